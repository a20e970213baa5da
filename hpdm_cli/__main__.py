"""`python -m hpdm_cli`, and `torchrun ... -m hpdm_cli train ...`."""

from hpdm_cli.app import main

if __name__ == "__main__":
    main()
