"""A command that is forked from the warm process begins, speaks and ends as one that Python has started."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import warm

SPEAKS = "import os, sys; print(os.getcwd(), os.environ['WORD'], sys.argv[1:], sys.stdin.read()); sys.exit(3)"
SLEEPS = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"


def python(program: str, *arguments: str, **keywords: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(warm.commands() / "python"), "-c", program, *arguments], text=True, stdout=subprocess.PIPE, **keywords
    )


def test_it_has_the_folder_the_environment_and_the_files_of_who_asked(tmp_path: Path):
    process = python(SPEAKS, "a", cwd=tmp_path, env={**os.environ, "WORD": "heard"}, stdin=subprocess.PIPE)
    said, _ = process.communicate("b")
    assert (said, process.returncode) == (f"{tmp_path} heard ['a'] b\n", 3)


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("print('said')", 0),
        ("import sys; print('said'); sys.exit(2)", 2),
        ("import sys; print('said'); sys.exit('why')", 1),
        ("print('said'); 1 / 0", 1),
        ("import atexit; atexit.register(print, 'said')", 0),
        ("print('said'); raise KeyboardInterrupt", -signal.SIGINT),
    ],
)
def test_it_ends_as_python_ends(program: str, status: int):
    process = python(program, stderr=subprocess.DEVNULL)
    assert (process.communicate()[0], process.returncode) == ("said\n", status)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_signal_reaches_it(number: signal.Signals):
    process = python(SLEEPS)
    assert process.stdout is not None
    asleep = int(process.stdout.readline())
    process.send_signal(number)
    assert process.wait() == -number
    for _ in range(100):  # who asked may be gone a moment earlier
        if not Path(f"/proc/{asleep}").exists():
            return
        time.sleep(0.1)
    pytest.fail(f"process {asleep} lives on")
