"""The pool keeps the order of the items, and its workers depend on the parent process in every way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from semmae.core.worker_pool import ordered_map
from tests.imports import ROOT

PRELOAD = ["semmae.core.worker_pool"]


def negative(item: int) -> int:
    time.sleep(0.02 * (item % 3))
    return -item


def fail(item: int) -> int:
    if item == 5:
        raise ValueError("item 5 is bad: expected another")
    return item


def kill_itself(item: int) -> int:
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, None), (2, "forkserver")])
def test_results_are_in_the_order_of_the_items_and_draw_no_random_number(workers, method):
    before = torch.get_rng_state()
    results = list(ordered_map(negative, range(20), workers=workers, start_method=method, preload=PRELOAD))
    assert results == [-item for item in range(20)]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, None), (2, "forkserver")])
def test_an_error_of_the_user_arrives_unchanged(workers, method):
    with pytest.raises(ValueError, match=r"^item 5 is bad: expected another$"):
        list(ordered_map(fail, range(20), workers=workers, start_method=method, preload=PRELOAD))


@pytest.mark.parametrize("method", [None, "forkserver"])
def test_a_killed_worker_is_reported_in_one_sentence(method):
    with pytest.raises(ChildProcessError, match=r"^a worker process was killed, .*; use fewer workers"):
        list(ordered_map(kill_itself, range(20), workers=2, start_method=method, preload=PRELOAD))


def write_pid_and_wait(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)


PARENT = """
import sys
from semmae.core.worker_pool import ordered_map
from tests.core.test_worker_pool import PRELOAD, write_pid_and_wait
if __name__ == "__main__":
    method = sys.argv[2] or None
    list(ordered_map(write_pid_and_wait, [sys.argv[1]] * 4, workers=2, start_method=method, preload=PRELOAD))
"""


@pytest.mark.parametrize("method", ["", "forkserver"])
def test_workers_leave_interrupts_to_the_parent_and_exit_with_it(method, tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    (folder := tmp_path / "pids").mkdir()
    command = [sys.executable, str(tmp_path / "parent.py"), str(folder), method]
    parent = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while len(workers := [int(path.name) for path in folder.iterdir()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for pid in workers:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.5)
    assert all(map(is_running, workers))
    parent.kill()
    parent.wait()
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
