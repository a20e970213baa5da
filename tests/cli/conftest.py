"""How CLI tests run the program: as a user does, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Hpdm = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def hpdm(tmp_path: Path) -> Hpdm:
    """Run `hpdm ...` in an empty folder, away from the checkout."""

    def run(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "hpdm_cli", *args],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
