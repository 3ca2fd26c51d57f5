"""A run with edited source adopts the checkpoints that the user has offered, and no others."""

import json
from pathlib import Path

import pytest
import torch

from semmae.cli import state_dir
from semmae.core.atomic_files import write_json
from semmae.core.locks import exclusive_lock
from semmae.core.paths import state_root
from semmae.runs import fingerprint, handover
from tests.runs.toy_run import Halt, train


def test_an_offered_run_is_adopted_under_edited_source_and_records_the_older_source(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole, weight, history = train(toy_dataset, tmp_path / "out")
    before = fingerprint.source_digest()
    with pytest.raises(Halt):
        train(toy_dataset, tmp_path / "out", halt_after=12)
    (left,) = state_dir.list_runs()
    state_dir.adopt(left.fingerprint[:6])
    monkeypatch.setattr(fingerprint, "source_digest", lambda: "edited")
    assert len(train(toy_dataset, tmp_path / "out", lr=0.2)[0]) == 15
    assert "toy does not adopt run" in (message := capsys.readouterr().err)
    assert "other params" in message
    with pytest.raises(Halt):
        train(toy_dataset, tmp_path / "out", halt_after=13)
    (taken,) = state_dir.list_runs()
    assert (taken.fingerprint != left.fingerprint, taken.step) == (True, 10)
    rest, weight_again, history_again = train(toy_dataset, tmp_path / "out", adopted=[before])
    assert rest == whole[10:]
    assert torch.equal(weight_again, weight)
    assert history_again == history
    record = json.loads((state_root() / "adoptions.jsonl").read_text())
    assert (record["from"], record["to"]) == (left.fingerprint, taken.fingerprint)


def test_a_run_that_cannot_be_adopted_is_refused(toy_dataset: Path, tmp_path: Path):
    with pytest.raises(Halt):
        train(toy_dataset, tmp_path / "out", halt_after=2)
    (left,) = state_dir.list_runs()
    with pytest.raises(ValueError, match=f"0 unfinished runs begin with 'x'; there are: {left.fingerprint[:12]}"):
        state_dir.adopt("x")
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        state_dir.adopt(left.fingerprint)
    with pytest.raises(Halt):
        train(toy_dataset, tmp_path / "out", halt_after=12)
    with exclusive_lock("run", left.fingerprint), pytest.raises(BlockingIOError, match="is already writing"):
        state_dir.adopt(left.fingerprint)


def test_an_offer_that_was_taken_before_is_deleted(state_root: Path):
    """A process that is killed after it has moved the checkpoints leaves the folder without them."""
    identity = {"stage": "toy", "params": {}, "inputs": [], "source": "new"}
    left, begun = state_root / "runs/left", state_root / "runs/begun"
    write_json(left / "identity.json", identity | {"source": "old"})
    write_json(left / "offer.json", {"offered": "then"})
    assert handover.adopt_offered(identity, begun) == []
    assert not left.exists()
    assert not begun.exists()
