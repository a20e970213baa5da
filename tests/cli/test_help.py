"""Help: every word of the interface is there, and nothing heavy is imported for it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMON = {"--dry-run", "--json", "--help"}
PREP = COMMON | {"--name", "--workers"}
TRAIN = COMMON | {"RECIPE", "KEY=VALUE", "--out", "--device", "--seed", "torchrun"}
OPTIONS = {
    "": {"prep", "train", "finetune", "sample", "eval-fvd", "ablate", "130"}
    | {"--version", "--install-completion"},
    "prep": {"ucf101", "folder", "captions", "shapes", "vizdoom", "commit"},
    "prep ucf101": PREP | {"--source", "--fold"},
    "prep folder": PREP | {"--source", "--shard"},
    "prep captions": PREP | {"--source", "--text-encoder", "--device", "--shard"},
    "prep commit": {"DEST", "--json", "--help"},
    "prep shapes": PREP | {"--num", "--size", "--frames", "--seed"},
    "prep vizdoom": PREP | {"--num", "--size", "--frames", "--scenes", "--seed", "hpdm[vizdoom]"},
    "train": TRAIN | {"--list", "--copy", "--devices"},
    "finetune": (TRAIN - {"torchrun"}) | {"--from"},
    "sample": COMMON
    | {"--checkpoint", "--recipe", "--overlap", "--num", "--class", "--prompt", "--prompt-file"}
    | {"--guidance", "--steps", "--out", "--format", "--cache", "--cache-gb", "--batch", "--shard"}
    | {"--tile-batch", "--save-levels", "--compare-overlaps", "--text-encoder", "--device"}
    | {"--seed", "--list", "--input", "--upscale", "--strength", "--mask", "--repeats"}
    | {"--first-frames", "--extend", "--context-noise", "--size", "--no-consistent"},
    "eval-fvd": COMMON
    | {"--checkpoint", "--samples", "--real", "--protocol", "--metrics", "--detector", "--split"}
    | {"--num-fakes", "--out", "--batch", "--device", "--seed", "--force"},
    "ablate": COMMON | {"--list", "TABLE", "--scale", "--rows", "--device", "--seed", "--out"},
}
PROBE = """
import sys
from hpdm_cli.app import app
try:
    app(sys.argv[1:], prog_name="hpdm")
finally:
    heavy = {"torch", "numpy", "scipy", "av", "transformers", "matplotlib"} & set(sys.modules)
    print("HEAVY", sorted(heavy))
"""


@pytest.mark.parametrize("command", OPTIONS)
def test_help_names_every_option_and_imports_nothing_heavy(command):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *command.split(), "--help"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("HEAVY []\n")
    assert max(map(len, done.stdout.splitlines())) <= 80, "an example breaks in a terminal"
    for word in OPTIONS[command]:
        assert word in done.stdout, f"hpdm {command} --help does not name {word}"
    if command not in ("", "prep"):  # an example that can be copied, on a line of its own
        assert f"Examples:\n    hpdm {command} " in done.stdout


def test_version(hpdm):
    from hpdm_core import __version__

    assert hpdm("--version").stdout == f"hpdm {__version__}\n"
