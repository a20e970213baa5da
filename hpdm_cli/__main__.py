"""Entry point of `hpdm`, `python -m hpdm_cli`, and `torchrun ... -m hpdm_cli train ...`."""

import os
import sys


def main() -> None:
    """Run the program; an interrupt while it is still imported ends it too."""
    try:
        from hpdm_cli.app import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        os._exit(130)  # half-imported modules may fail while they are taken down


if __name__ == "__main__":
    main()
