"""A run takes its samples in a fixed order, is resumed where it stopped, and refuses values that are not finite."""

import contextlib
import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from semmae.cli import state_dir
from semmae.core import checkpoint, distributed
from semmae.core.locks import exclusive_lock
from semmae.core.paths import state_root
from semmae.data.dataset import Reader
from semmae.data.epoch_order import epoch_order
from semmae.runs.run import Run
from tests.runs.toy_run import ALONE, Halt, Recipe, load_sample, train


class Weights:
    """A module with a single weight."""

    def __init__(self, number: float) -> None:
        self.number = number

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"w": torch.tensor(self.number)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.number = float(state["w"])


@pytest.mark.parametrize(("name", "raises"), [("model", True), ("first heads", False)])
def test_a_model_that_is_not_finite_is_not_saved_but_heads_may_diverge(
    toy_dataset: Path, tmp_path: Path, name: str, raises: bool
):
    with Run("toy", ALONE, out=tmp_path / "out", params=Recipe(0.1), inputs=[], checkpoint_minutes=60) as run:
        steps = run.steps(
            Reader(toy_dataset, "train"), load_sample, batch_size=8, epochs=2, seed=0, workers=0,
            state={name: Weights(float("nan"))},
        )  # fmt: skip
        if raises:
            with pytest.raises(FloatingPointError, match="w of the model is not finite after step 5"):
                list(steps)
        else:
            assert len(list(steps)) == 10
        assert bool(list(run.folder.glob("step-*"))) is not raises


def test_a_run_takes_each_sample_once_per_epoch_in_the_order_of_seed_and_epoch(toy_dataset: Path, tmp_path: Path):
    batches, _, history = train(toy_dataset, tmp_path / "out")
    keys = np.array(Reader(toy_dataset, "train").keys)
    expected = [
        list(keys[indices]) for epoch in range(3) for indices in epoch_order(40, seed=0, epoch=epoch).reshape(5, 8)
    ]
    assert batches == expected
    assert [row["epoch"] for row in history] == [row["measured_in"] for row in history] == [1, 2, 3]


def test_a_run_repeats_samples_by_their_weight(toy_dataset: Path, tmp_path: Path):
    dataset = shutil.copytree(toy_dataset, tmp_path / "toy")
    meta = json.loads((dataset / "shards.json").read_text())
    meta["sources"]["toy"]["weight"] = 1.25
    (dataset / "shards.json").write_text(json.dumps(meta))
    batches, _, _ = train(dataset, tmp_path / "out")
    reader = Reader(dataset, "train")
    keys, weights = np.array(reader.keys), reader.weights
    orders = [epoch_order(40, seed=0, epoch=epoch, weights=weights)[:48].reshape(6, 8) for epoch in range(3)]
    assert batches == [list(keys[indices]) for order in orders for indices in order]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_is_resumed_and_ends_the_same_with_any_number_of_workers(
    toy_dataset: Path, tmp_path: Path, workers: int
):
    whole, weight, history = train(toy_dataset, tmp_path / "out")
    with pytest.raises(Halt):
        train(toy_dataset, tmp_path / "out", halt_after=12)
    (left,) = state_dir.list_runs()
    assert (left.stage, left.step, left.locked) == ("toy", 10, False)
    rest, weight_again, history_again = train(toy_dataset, tmp_path / "out", workers=workers)
    assert rest == whole[10:]  # the last checkpoint was after the second epoch
    assert torch.equal(weight_again, weight)
    assert history_again == history
    assert state_dir.list_runs() == []  # a finished run deletes its checkpoints


def test_a_checkpoint_of_an_older_version_is_refused_with_a_remedy(toy_dataset: Path, tmp_path: Path):
    with pytest.raises(Halt):
        train(toy_dataset, tmp_path / "out", halt_after=6)
    (left,) = state_dir.list_runs()
    folder = state_root() / "runs" / left.fingerprint
    checkpoint.save(folder, 6, {"step": 6, "history": [], "sums": {}, "count": 0, "state": {}})
    with pytest.raises(
        ValueError, match=f"{folder} has checkpoints of an older version, which this one cannot resume; delete"
    ):
        train(toy_dataset, tmp_path / "out")


def test_a_loss_that_is_not_finite_ends_the_run_and_names_step_and_samples(toy_dataset: Path, tmp_path: Path):
    first = Reader(toy_dataset, "train").keys[epoch_order(40, seed=0, epoch=0)[0]]
    with pytest.raises(FloatingPointError, match=rf"loss is nan at step 0 on rank 0; its samples: {first}"):
        train(toy_dataset, tmp_path / "out", loss=float("nan"))


def test_one_writer_per_output(toy_dataset: Path, tmp_path: Path):
    with (
        exclusive_lock("output", str(tmp_path / "out")),
        pytest.raises(BlockingIOError, match=f"process {os.getpid()} is already writing output {tmp_path}/out"),
    ):
        train(toy_dataset, tmp_path / "out")


def test_the_same_run_for_another_output_waits_its_turn(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Experiments that run at the same time train the same baselines."""
    with pytest.raises(Halt):
        train(toy_dataset, tmp_path / "out", halt_after=2)
    (left,) = state_dir.list_runs()
    with contextlib.ExitStack() as held:
        held.enter_context(exclusive_lock("run", left.fingerprint))
        threading.Timer(0.5, held.close).start()
        train(toy_dataset, tmp_path / "other")
    message = f"process {os.getpid()} is already writing run {left.fingerprint}; waiting for it"
    assert message in capsys.readouterr().err


def test_a_batch_larger_than_the_data_is_refused(toy_dataset: Path, tmp_path: Path):
    with Run("toy", ALONE, out=tmp_path, params=Recipe(0.1), inputs=[], checkpoint_minutes=1) as run, pytest.raises(
        ValueError, match=r"toy: batch_size is 41, but an epoch has 40 samples"
    ):  # fmt: skip
        next(run.steps(Reader(toy_dataset, "train"), load_sample, batch_size=41, epochs=1, seed=0, workers=0, state={}))


def test_a_checkpoint_holds_the_mean_of_the_recorded_values_over_the_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with Run("toy", ALONE, out=tmp_path / "out", params=Recipe(0.1), inputs=[], checkpoint_minutes=60) as run:
        run.step_log.sums = {"loss": 1.0}
        monkeypatch.setattr(
            distributed, "mean", lambda value, world: (value + 10.0) / 2
        )  # the loss of the other rank is 10
        run._save(1, {})
        saved = checkpoint.load_latest(run.folder, map_location=ALONE.device)
    assert saved is not None
    assert saved["step_log"]["sums"] == {"loss": 5.5}
