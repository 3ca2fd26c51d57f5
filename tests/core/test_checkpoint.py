"""Checkpoints are whole, and damaged ones are skipped."""

import os
from pathlib import Path

import pytest
import torch

from semmae.core import checkpoint
from tests.damage import flip_a_bit


def test_two_checkpoints_are_kept(tmp_path: Path):
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, {"step": step})
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000000002", "step-000000010"]
    assert checkpoint.load_latest(tmp_path, map_location=torch.device("cpu")) == {"step": 10}


def test_a_restarted_run_keeps_its_own_checkpoints_and_deletes_damaged_later_ones(tmp_path: Path):
    for step in (190, 200):
        checkpoint.save(tmp_path, step, {"step": step})
        os.truncate(tmp_path / f"step-{step:09d}/state.pt", 10)
    assert checkpoint.load_latest(tmp_path, map_location=torch.device("cpu")) is None
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, {"step": step})
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000000020", "step-000000030"]


@pytest.mark.parametrize("damage", ["flipped bit", "cut short", "no manifest", "no state"])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {"step": step, "weights": torch.arange(1000.0)})
    newest = tmp_path / "step-000000002"
    if damage == "flipped bit":
        flip_a_bit(newest / "state.pt")
    elif damage == "cut short":
        os.truncate(newest / "state.pt", 100)
    else:
        (newest / ("manifest.json" if damage == "no manifest" else "state.pt")).unlink()
    saved = checkpoint.load_latest(tmp_path, map_location=torch.device("cpu"))
    assert saved is not None
    assert saved["step"] == 1
    assert "checkpoint skipped" in capsys.readouterr().err


def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint.save(tmp_path, 1, {"step": 1})
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="is full: step-000000002 was not written"):
        checkpoint.save(tmp_path, 2, {"step": 2})
    assert checkpoint.load_latest(tmp_path, map_location=torch.device("cpu")) == {"step": 1}
