"""A run is resumed only if nothing has changed that can change its results."""

import sys
from pathlib import Path

import pytest

from semmae.cli import state_dir
from semmae.runs import fingerprint
from tests.imports import WITHOUT_EFFECT
from tests.project import ROOT
from tests.runs.toy_run import Halt, train


def test_a_changed_parameter_does_not_resume(toy_dataset: Path, tmp_path: Path):
    with pytest.raises(Halt):
        train(toy_dataset, tmp_path / "out", halt_after=12)
    batches, _, _ = train(toy_dataset, tmp_path / "out", lr=0.2)
    assert len(batches) == 15
    assert [left.step for left in state_dir.list_runs()] == [10]  # the first run can still be resumed


def test_an_edit_of_the_console_output_or_of_the_version_keeps_the_fingerprint():
    files = fingerprint.source_files()
    assert {ROOT / "semmae/runs/run.py", ROOT / "semmae/core/checkpoint.py"} <= files
    assert "semmae.console.progress" in sys.modules
    assert not [file for file in files if any(map(file.is_relative_to, WITHOUT_EFFECT))]
