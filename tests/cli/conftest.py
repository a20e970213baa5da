"""How CLI tests run the program: in this process, in an empty folder away from the checkout."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpdm_cli.app import app


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a run of the program left: its exit code and both streams."""

    returncode: int
    stdout: str
    stderr: str


Hpdm = Callable[..., Done]


@pytest.fixture(scope="session")
def run_hpdm() -> Hpdm:
    """Run `hpdm ...` in the current folder, as the console script does."""

    def run(*args: str) -> Done:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            app(list(args), prog_name="hpdm")
        return Done(returncode=ended.value.code, stdout=out.getvalue(), stderr=err.getvalue())

    return run


@pytest.fixture
def hpdm(run_hpdm: Hpdm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hpdm:
    """Run `hpdm ...` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return run_hpdm
