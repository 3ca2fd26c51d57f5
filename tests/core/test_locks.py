"""A lock belongs to one process and ends with it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from semmae.cli import state_dir
from semmae.core.locks import exclusive_lock

HOLDER = """
import sys
from semmae.core.locks import exclusive_lock
with exclusive_lock("output", "x"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_names_its_holder_and_ends_with_it(state_root: Path):
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with (
            pytest.raises(BlockingIOError, match=f"process {process.pid} is already writing output x"),
            exclusive_lock("output", "x"),
        ):
            pass
        with exclusive_lock("output", "y"):
            assert state_dir.lock_holders() == sorted([str(process.pid), str(os.getpid())])
        process.kill()
    with exclusive_lock("output", "x"):
        assert state_dir.lock_holders() == [str(os.getpid())]
    assert state_dir.lock_holders() == []
