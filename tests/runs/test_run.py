"""Files are whole or absent, damaged checkpoints are skipped, a run is resumed where it stopped or starts anew."""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from semmae.cli import state_dir
from semmae.console.progress import Progress
from semmae.core import checkpoint, distributed
from semmae.core.atomic_files import atomic_write, read_json, write_json
from semmae.core.distributed import World
from semmae.core.locks import exclusive_lock
from semmae.core.model_files import CONFIG_DIGEST, load_model, save_model
from semmae.core.paths import state_root
from semmae.data.dataset import Reader
from semmae.data.epoch_order import epoch_order
from semmae.project.stage_code import WITHOUT_EFFECT
from semmae.runs import fingerprint, handover
from semmae.runs.history_files import write_history
from semmae.runs.run import Run
from tests.project import ROOT

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@dataclasses.dataclass(frozen=True)
class Recipe:
    lr: float
    workers: int = 0


# Files


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_failed_write_leaves_the_previous_file(tmp_path: Path, kind: str):
    def write(path: Path, text: str) -> None:
        if kind == "folder":
            path.mkdir()
        (path if kind == "file" else path / "content").write_text(text)

    target = tmp_path / "target"
    with atomic_write(target) as temporary:
        write(temporary, "old")
    with pytest.raises(RuntimeError), atomic_write(target) as temporary:  # noqa: PT012
        write(temporary, "half of")
        raise RuntimeError
    assert (target if kind == "file" else target / "content").read_text() == "old"
    with atomic_write(target) as temporary:
        write(temporary, "new")
    assert (target if kind == "file" else target / "content").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_json_has_no_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()


def test_a_model_is_restored_and_damaged_weights_are_refused(tmp_path: Path):
    save_model(tmp_path, "encoder", {"w": torch.arange(4.0)}, {"depth": 1})
    weights, config = load_model(tmp_path, "encoder")
    assert torch.equal(weights["w"], torch.arange(4.0))
    assert config["depth"] == 1
    _flip_a_bit(tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match=r"encoder\.safetensors does not match the sha256"):
        load_model(tmp_path, "encoder")


def test_a_model_with_an_edited_config_is_refused(tmp_path: Path):
    save_model(tmp_path, "encoder", {"w": torch.arange(4.0)}, {"depth": 1})
    file = tmp_path / "encoder.json"
    file.write_text(file.read_text().replace('"depth": 1', '"depth": 3'))
    with pytest.raises(ValueError, match=r"encoder\.json is damaged"):
        load_model(tmp_path, "encoder")


def test_a_model_of_an_older_version_is_restored(tmp_path: Path):
    save_model(tmp_path, "encoder", {"w": torch.arange(4.0)}, {"depth": 1})
    old = read_json(tmp_path / "encoder.json")
    del old[CONFIG_DIGEST]
    write_json(tmp_path / "encoder.json", old)
    assert load_model(tmp_path, "encoder")[1] == old


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
            Reader(toy_dataset, "train"), _load, batch_size=8, epochs=2, seed=0, workers=0,
            state={name: Weights(float("nan"))},
        )  # fmt: skip
        if raises:
            with pytest.raises(FloatingPointError, match="w of the model is not finite after step 5"):
                list(steps)
        else:
            assert len(list(steps)) == 10
        assert bool(list(run.folder.glob("step-*"))) is not raises


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


# Checkpoints


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_two_checkpoints_are_kept(tmp_path: Path):
    for step in (1, 2, 10):
        checkpoint.save(tmp_path, step, {"step": step})
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000000002", "step-000000010"]
    assert checkpoint.load_latest(tmp_path, map_location=ALONE.device) == {"step": 10}


def test_a_restarted_run_keeps_its_own_checkpoints_and_deletes_damaged_later_ones(tmp_path: Path):
    for step in (190, 200):
        checkpoint.save(tmp_path, step, {"step": step})
        os.truncate(tmp_path / f"step-{step:09d}/state.pt", 10)
    assert checkpoint.load_latest(tmp_path, map_location=ALONE.device) is None
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
        _flip_a_bit(newest / "state.pt")
    elif damage == "cut short":
        os.truncate(newest / "state.pt", 100)
    else:
        (newest / ("manifest.json" if damage == "no manifest" else "state.pt")).unlink()
    saved = checkpoint.load_latest(tmp_path, map_location=ALONE.device)
    assert saved is not None
    assert saved["step"] == 1
    assert "checkpoint skipped" in capsys.readouterr().err


def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint.save(tmp_path, 1, {"step": 1})
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(OSError, match="is full: step-000000002 was not written"):
        checkpoint.save(tmp_path, 2, {"step": 2})
    assert checkpoint.load_latest(tmp_path, map_location=ALONE.device) == {"step": 1}


# Runs


class Halt(Exception):
    """Ends a run in these tests."""


def _train(
    dataset: Path,
    out: Path,
    *,
    lr: float = 0.1,
    halt_after: int | None = None,
    loss: float = 1.0,
    adopted: list[str] | None = None,
    workers: int = 0,
) -> tuple[list[list[str]], torch.Tensor, list[dict[str, float]]]:
    """Train three epochs of 5 steps with SGD; return the keys of each batch, the weight and the history."""
    reader, weight = Reader(dataset, "train"), torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(weight.weight)
    optimizer = torch.optim.SGD(weight.parameters(), lr=lr, momentum=0.9)
    keys = []
    with Run("toy", ALONE, out=out, params=Recipe(lr, workers), inputs=["digest"], checkpoint_minutes=60) as run:
        for step in run.steps(
            reader,
            _load,
            batch_size=8,
            epochs=3,
            seed=0,
            workers=workers,
            state={"weight": weight, "optimizer": optimizer},
        ):
            if step.number == halt_after:
                raise Halt
            keys.append(step.batch["key"])
            optimizer.zero_grad()
            error = (weight(step.batch["value"].float()[:, None]) - 2).square().mean()
            error.backward()
            optimizer.step()
            run.record(loss=error * loss)
            if step.ends_epoch:
                run.log(measured_in=step.epoch + 1)
    assert run.adopted.get("adopted") == adopted
    return keys, weight.weight.detach().clone(), run.history


def _load(reader: Reader, index: int, epoch: int) -> dict[str, object]:
    return {"key": reader.keys[index], "value": np.array(len(reader.encoded(index)) / 1000 + epoch)}


def test_a_run_takes_each_sample_once_per_epoch_in_the_order_of_seed_and_epoch(toy_dataset: Path, tmp_path: Path):
    batches, _, history = _train(toy_dataset, tmp_path / "out")
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
    batches, _, _ = _train(dataset, tmp_path / "out")
    reader = Reader(dataset, "train")
    keys, weights = np.array(reader.keys), reader.weights
    orders = [epoch_order(40, seed=0, epoch=epoch, weights=weights)[:48].reshape(6, 8) for epoch in range(3)]
    assert batches == [list(keys[indices]) for order in orders for indices in order]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_is_resumed_and_ends_the_same_with_any_number_of_workers(
    toy_dataset: Path, tmp_path: Path, workers: int
):
    whole, weight, history = _train(toy_dataset, tmp_path / "out")
    with pytest.raises(Halt):
        _train(toy_dataset, tmp_path / "out", halt_after=12)
    (left,) = state_dir.list_runs()
    assert (left.stage, left.step, left.locked) == ("toy", 10, False)
    rest, weight_again, history_again = _train(toy_dataset, tmp_path / "out", workers=workers)
    assert rest == whole[10:]  # the last checkpoint was after the second epoch
    assert torch.equal(weight_again, weight)
    assert history_again == history
    assert state_dir.list_runs() == []  # a finished run deletes its checkpoints


def test_a_changed_parameter_does_not_resume(toy_dataset: Path, tmp_path: Path):
    with pytest.raises(Halt):
        _train(toy_dataset, tmp_path / "out", halt_after=12)
    batches, _, _ = _train(toy_dataset, tmp_path / "out", lr=0.2)
    assert len(batches) == 15
    assert [left.step for left in state_dir.list_runs()] == [10]  # the first run can still be resumed


def test_an_offered_run_is_adopted_under_edited_source_and_the_artifact_tells_it(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole, weight, history = _train(toy_dataset, tmp_path / "out")
    before = fingerprint.source_digest()
    with pytest.raises(Halt):
        _train(toy_dataset, tmp_path / "out", halt_after=12)
    (left,) = state_dir.list_runs()
    state_dir.adopt(left.fingerprint[:6])
    monkeypatch.setattr(fingerprint, "source_digest", lambda: "edited")
    assert len(_train(toy_dataset, tmp_path / "out", lr=0.2)[0]) == 15
    assert "toy does not adopt run" in (message := capsys.readouterr().err)
    assert "other params" in message
    with pytest.raises(Halt):
        _train(toy_dataset, tmp_path / "out", halt_after=13)
    (taken,) = state_dir.list_runs()
    assert (taken.fingerprint != left.fingerprint, taken.step) == (True, 10)
    rest, weight_again, history_again = _train(toy_dataset, tmp_path / "out", adopted=[before])
    assert rest == whole[10:]
    assert torch.equal(weight_again, weight)
    assert history_again == history
    record = json.loads((state_root() / "adoptions.jsonl").read_text())
    assert (record["from"], record["to"]) == (left.fingerprint, taken.fingerprint)


def test_an_edit_of_the_console_output_or_of_the_version_keeps_the_fingerprint():
    files = fingerprint.source_files()
    assert {ROOT / "semmae/runs/run.py", ROOT / "semmae/core/checkpoint.py"} <= files
    assert "semmae.console.progress" in sys.modules
    assert not [file for file in files if any(map(file.is_relative_to, WITHOUT_EFFECT))]


def test_a_run_that_cannot_be_adopted_is_refused(toy_dataset: Path, tmp_path: Path):
    with pytest.raises(Halt):
        _train(toy_dataset, tmp_path / "out", halt_after=2)
    (left,) = state_dir.list_runs()
    with pytest.raises(ValueError, match=f"0 unfinished runs match 'x'; expected one of: {left.fingerprint[:12]}"):
        state_dir.adopt("x")
    with pytest.raises(ValueError, match="has no checkpoint yet"):
        state_dir.adopt(left.fingerprint)
    with pytest.raises(Halt):
        _train(toy_dataset, tmp_path / "out", halt_after=12)
    with exclusive_lock("run", left.fingerprint), pytest.raises(BlockingIOError, match="is already writing"):
        state_dir.adopt(left.fingerprint)


def test_a_checkpoint_of_an_older_version_is_refused_with_a_remedy(toy_dataset: Path, tmp_path: Path):
    with pytest.raises(Halt):
        _train(toy_dataset, tmp_path / "out", halt_after=6)
    (left,) = state_dir.list_runs()
    folder = state_root() / "runs" / left.fingerprint
    checkpoint.save(folder, 6, {"step": 6, "history": [], "sums": {}, "count": 0, "state": {}})
    with pytest.raises(
        ValueError, match=f"{folder} has checkpoints of an older version of semmae, which cannot be resumed; delete"
    ):
        _train(toy_dataset, tmp_path / "out")


def test_old_runs_are_pruned_and_locked_ones_are_not(toy_dataset: Path, tmp_path: Path):
    with pytest.raises(Halt):
        _train(toy_dataset, tmp_path / "out", halt_after=6)
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


def test_a_loss_that_is_not_finite_ends_the_run_and_names_step_and_samples(toy_dataset: Path, tmp_path: Path):
    first = Reader(toy_dataset, "train").keys[epoch_order(40, seed=0, epoch=0)[0]]
    with pytest.raises(FloatingPointError, match=rf"loss is nan at step 0 on rank 0; its samples: {first}"):
        _train(toy_dataset, tmp_path / "out", loss=float("nan"))


def test_one_writer_per_output(toy_dataset: Path, tmp_path: Path):
    with (
        exclusive_lock("output", str(tmp_path / "out")),
        pytest.raises(BlockingIOError, match=f"process {os.getpid()} is already writing output {tmp_path}/out"),
    ):
        _train(toy_dataset, tmp_path / "out")


def test_the_same_run_for_another_output_waits_its_turn(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Experiments that run at the same time train the same baselines."""
    with pytest.raises(Halt):
        _train(toy_dataset, tmp_path / "out", halt_after=2)
    (left,) = state_dir.list_runs()
    with contextlib.ExitStack() as held:
        held.enter_context(exclusive_lock("run", left.fingerprint))
        threading.Timer(0.5, held.close).start()
        _train(toy_dataset, tmp_path / "other")
    message = f"process {os.getpid()} is already writing run {left.fingerprint}; waiting for it"
    assert message in capsys.readouterr().err


def test_a_batch_larger_than_the_data_is_refused(toy_dataset: Path, tmp_path: Path):
    with Run("toy", ALONE, out=tmp_path, params=Recipe(0.1), inputs=[], checkpoint_minutes=1) as run, pytest.raises(
        ValueError, match=r"toy: batch_size is 41, but an epoch has 40 samples"
    ):  # fmt: skip
        next(run.steps(Reader(toy_dataset, "train"), _load, batch_size=41, epochs=1, seed=0, workers=0, state={}))


def test_a_mean_over_ranks_is_computed_on_their_device(monkeypatch: pytest.MonkeyPatch):
    reduced = []  # NCCL needs GPU tensors; a recorded value may be on the CPU
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: reduced.append(value.device.type))
    distributed.mean(torch.ones(()), World(rank=0, size=2, device=torch.device("meta")))
    assert reduced == ["meta"]


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


def test_a_remaining_time_above_a_day_is_shown_in_days(capsys: pytest.CaptureFixture[str]):
    with Progress("toy", steps=1001, per_epoch=1, batch_size=1, start=0, shown=True) as progress:
        progress.started -= 108  # seconds
        progress.done = 1
        progress.print_epoch({"epoch": 1, "loss": 1.0})
    assert "1 day, 6:00:0" in capsys.readouterr().err


def test_the_curves_are_replaced_as_a_whole(tmp_path: Path):
    for history in ([{"epoch": 1, "loss": 3.0}], [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]):
        write_history(tmp_path / "live", "toy", history)
    lines = (tmp_path / "live/plots/metrics/toy/loss.tsv").read_text().split()
    assert lines == ["step", "loss", "1", "2.0", "2", "1.0"]
    assert read_json(tmp_path / "live/metrics.json") == {"toy": {"loss": 1.0}, "step": 2}


def test_a_value_of_some_epochs_has_no_point_in_the_others(tmp_path: Path):
    history = [{"epoch": 1, "loss": 3.0, "knn": 0.5}, {"epoch": 2, "loss": 2.0}]
    write_history(tmp_path / "live", "toy", history)
    assert (tmp_path / "live/plots/metrics/toy/knn.tsv").read_text() == "step\tknn\n1\t0.5\n"
    assert read_json(tmp_path / "live/metrics.json") == {"toy": {"loss": 2.0, "knn": 0.5}, "step": 2}


def test_a_run_without_history_replaces_the_curves_by_none(tmp_path: Path):
    for history in ([{"epoch": 1, "loss": 3.0}], []):
        write_history(tmp_path / "live", "toy", history)
    assert [path.name for path in (tmp_path / "live").iterdir()] == ["metrics.json"]


def test_an_offer_that_was_taken_before_is_deleted(state_root: Path):
    """A process that is killed after it has moved the checkpoints leaves the folder without them."""
    identity = {"stage": "toy", "params": {}, "inputs": [], "source": "new"}
    left, begun = state_root / "runs/left", state_root / "runs/begun"
    write_json(left / "identity.json", identity | {"source": "old"})
    write_json(left / "offer.json", {"offered": "then"})
    assert handover.adopt_offered(identity, begun) == []
    assert not left.exists()
    assert not begun.exists()
