"""Exit codes and streams: 0 done, 2 a mistake, 1 a bug, 130 interrupted; stdout is the result's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A command whose body is the test's; children and libraries print to stdout in between. SIGINT gets
# its handler back: it is ignored in what a shell starts in the background, tests included.
PROGRAM = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import typer
from hpdm_cli.console import session
from hpdm_cli.tables import Shown
from hpdm_core.errors import DataError
app = typer.Typer(pretty_exceptions_enable=False)
@app.command()
def command(json: bool = False) -> None:
    with session(as_json=json) as current:
        print("noise of a library")
        subprocess.run(["echo", "noise of a child"])
        {body}
app()
"""
SHOW = """current.show(
            {"videos": 3, "rows": [{"a": 1}, {"a": 2}]},
            Shown(lines=[("made", "3 [videos]")], tables={"Rows": [{"a": 1}, {"a": 2}]}),
        )"""
MISTAKE = 'raise DataError("no [videos] in x", got=0, expected="some", remedy="add some")'


def _run(
    body: str, *args: str, rank: int = 0, stdout: str | None = None
) -> subprocess.CompletedProcess:
    """Run the program; stdout may be a file, or a pipe whose reader has left."""
    target = subprocess.PIPE
    if stdout == "closed pipe":
        reader, target = os.pipe()
        os.close(reader)
    elif stdout is not None:
        target = os.open(stdout, os.O_WRONLY)
    try:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM.format(body=body), *args],
            cwd=ROOT,
            env=os.environ | {"RANK": str(rank), "COLUMNS": "100", "PYTHONUNBUFFERED": ""},
            stdout=target,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        if target != subprocess.PIPE:
            os.close(target)


def test_result_as_json_is_all_of_stdout():
    done = _run(SHOW, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"videos": 3, "rows": [{"a": 1}, {"a": 2}]}
    assert "noise of a library" in done.stderr
    assert "noise of a child" in done.stderr


def test_result_as_tables_and_lines():
    done = _run(SHOW)
    assert done.returncode == 0
    assert done.stdout.endswith("made    3 [videos]\n")
    assert "Rows" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("args", [(), ("--json",)])
def test_a_full_stdout_is_one_message_and_2(args):
    done = _run(SHOW, *args, stdout="/dev/full")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Error: ")
    assert "got 'No space left on device'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("args", [(), ("--json",)])
def test_a_reader_that_left_is_no_failure(args):
    done = _run(SHOW, *args, stdout="closed pipe")
    assert "Traceback" not in done.stderr
    assert done.returncode == 0


def test_a_mistake_is_one_message_and_2():
    done = _run(MISTAKE)
    assert done.returncode == 2
    assert done.stderr == "Error: no [videos] in x; got 0; expected some; add some\n"


def test_a_mistake_with_json_is_an_object_too():
    done = _run(MISTAKE, "--json")
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert found["kind"] == "DataError"
    assert found["exit_code"] == 2
    assert found["error"].startswith("no [videos] in x")
    assert "Error: no [videos] in x" in done.stderr


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("os.mkdir('/etc/passwd')", "cannot use /etc/passwd; got 'File exists'; a file is where"),
        ("os.mkdir('/etc/passwd/x')", "cannot use /etc/passwd/x; got 'Not a directory'; a file"),
        ("open('/etc')", "cannot use /etc; got 'Is a directory'; a folder is where a file"),
        ("open('x' * 999, 'w')", f"cannot use {'x' * 999}; got 'File name too long'; give a"),
        ("raise OSError(28, 'Full')", "got 'Full'; what was finished is kept: free space"),
        (
            "raise PermissionError(13, 'Denied', '/srv/a')",
            "cannot use /srv/a; got 'Denied'; give",
        ),
    ],
)
@pytest.mark.parametrize("args", [(), ("--json",)])
def test_what_the_file_system_refuses_is_a_mistake_not_a_bug(body, said, args):
    done = _run(body, *args)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"Error: {said}" in done.stderr
    if args:
        assert json.loads(done.stdout)["error"].startswith(said)


@pytest.mark.parametrize("body", ["open('no such file')", "raise PermissionError(13, 'socket')"])
def test_other_errors_of_the_system_are_bugs(body):
    done = _run(body)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("args", [(), ("--json",)])
def test_a_bug_is_a_traceback_and_1(args):
    done = _run('raise KeyError("oops")', *args)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'oops'" in done.stderr
    if args:
        assert json.loads(done.stdout)["kind"] == "KeyError"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_is_130_and_says_how_to_go_on(name):
    done = _run(f"os.kill(os.getpid(), signal.{name}); time.sleep(30)")
    assert done.returncode == 130
    assert done.stderr == "interrupted; run the same command again to resume\n"


def test_interruption_may_say_what_was_saved():
    done = _run('raise KeyboardInterrupt("saved step 40 in runs/x")', "--json")
    assert done.returncode == 130
    assert json.loads(done.stdout)["error"] == "saved step 40 in runs/x"


def test_only_the_first_process_shows_results():
    assert _run(SHOW, "--json", rank=1).stdout == ""
    assert "process 1: Error: no [videos]" in _run(MISTAKE, rank=1).stderr


@pytest.mark.parametrize("args", [(), ("--json",)])
def test_log_messages_go_to_stderr_from_the_first_process_alone(args):
    body = 'import logging; logging.getLogger("hpdm.data").info("%s [here]", 3)'
    done = _run(body, *args)
    assert "3 [here]" in done.stderr.splitlines()
    assert "here" not in done.stdout
    assert "here" not in _run(body, *args, rank=1).stderr
    assert "here" in _run(body.replace("info", "error"), *args, rank=1).stderr


def test_an_interrupt_of_the_imports_is_130_and_one_line():
    """Ctrl-C before any command has begun, while the program itself is imported."""
    program = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from hpdm_cli.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_warnings_of_the_hubs_library_are_not_shown(monkeypatch):
    monkeypatch.delenv("HF_HUB_VERBOSITY", raising=False)
    body = "from huggingface_hub.utils import logging; logging.get_logger().warning('chatter')"
    done = _run(body)
    assert done.returncode == 0
    assert "chatter" not in done.stdout + done.stderr
