"""A command forked from the warm server runs, prints and exits like one started by Python."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import warm

PRINTS = "import os, sys; print(os.getcwd(), os.environ['WORD'], sys.argv[1:], sys.stdin.read()); sys.exit(3)"
SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"


def python(program: str, *arguments: str, **keywords: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(warm.commands() / "python"), "-c", program, *arguments], text=True, stdout=subprocess.PIPE, **keywords
    )


def test_a_command_has_the_folder_the_environment_and_the_files_of_its_caller(tmp_path: Path):
    process = python(PRINTS, "a", cwd=tmp_path, env={**os.environ, "WORD": "heard"}, stdin=subprocess.PIPE)
    output, _ = process.communicate("b")
    assert (output, process.returncode) == (f"{tmp_path} heard ['a'] b\n", 3)


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("print('printed')", 0),
        ("import sys; print('printed'); sys.exit(2)", 2),
        ("import sys; print('printed'); sys.exit('why')", 1),
        ("print('printed'); 1 / 0", 1),
        ("import atexit; atexit.register(print, 'printed')", 0),
        ("print('printed'); raise KeyboardInterrupt", -signal.SIGINT),
    ],
)
def test_a_command_exits_as_under_python(program: str, status: int):
    process = python(program, stderr=subprocess.DEVNULL)
    assert (process.communicate()[0], process.returncode) == ("printed\n", status)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_signal_reaches_the_command(number: signal.Signals):
    process = python(SLEEPS)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait() == -number
    for _ in range(100):  # the caller may end a moment earlier
        if not Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} is still alive")
