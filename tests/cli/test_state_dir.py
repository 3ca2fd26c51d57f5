"""Unfinished runs are listed and pruned, also while they save."""

import threading
from pathlib import Path

import pytest

from semmae.cli import state_dir
from semmae.core import checkpoint
from semmae.core.locks import exclusive_lock
from tests.runs.toy_run import Halt, train


def test_old_runs_are_pruned_and_locked_ones_are_not(toy_dataset: Path, tmp_path: Path):
    with pytest.raises(Halt):
        train(toy_dataset, tmp_path / "out", halt_after=6)
    (left,) = state_dir.list_runs()
    assert state_dir.prune_runs(unused_days=1) == []
    with exclusive_lock("run", left.fingerprint):
        assert state_dir.prune_runs(unused_days=0) == []
    assert [run.fingerprint for run in state_dir.prune_runs(unused_days=0)] == [left.fingerprint]
    assert state_dir.list_runs() == []


def test_runs_are_listed_while_one_of_them_saves(state_root: Path):
    folder, saving = state_root / "runs/busy", threading.Event()

    def save() -> None:
        for step in range(200):
            checkpoint.save(folder, step, {"step": step})
        saving.set()

    thread = threading.Thread(target=save)
    thread.start()
    while not saving.is_set():
        assert len(state_dir.list_runs()) <= 1
    thread.join()
    assert [run.step for run in state_dir.list_runs()] == [199]
