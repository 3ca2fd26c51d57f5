"""Trackers receive the history of a run, a resumed run continues its tracked run, and nothing leaves the machine."""

import importlib.util
import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from semmae.core.distributed import World
from semmae.data.dataset import Reader
from semmae.runs import tracking
from semmae.runs.run import Run

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
VALUES = {5: 2.0, 10: 7.0, 15: 12.0}  # means of the step numbers 0...4, 5...9 and 10...14


@dataclass(frozen=True)
class Recipe:
    lr: float
    shape: dict[str, int]


class Halt(Exception):
    """Ends a run in these tests."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with a secret in the environment, and refuse connections to other machines."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "s3cret" * 8)
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
    return tmp_path


def train(dataset: Path, names: str, *, halt_after: int | None = None) -> Run:
    """Train three epochs of 5 steps whose loss is the number of the step."""
    Path("params.yaml").write_text(f"tracking: {names}\n")
    recipe = Recipe(0.1, {"depth": 2})
    run = Run("toy", ALONE, out=Path("data/toy"), params=recipe, inputs=[], checkpoint_minutes=60)
    with run:
        for step in run.steps(Reader(dataset, "train"), load, batch_size=8, epochs=3, seed=0, workers=0, state={}):
            if step.number == halt_after:
                raise Halt
            run.record(loss=torch.tensor(float(step.number)))
    return run


def load(reader: Reader, index: int, epoch: int) -> dict[str, object]:
    return {"key": reader.keys[index], "value": np.array(epoch)}


def read_tensorboard(run_id: str) -> tuple[dict[int, float], str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracking.tracking_root() / "tensorboard" / run_id)).Reload()
    text = events.Tensors("parameters/text_summary")[0].tensor_proto.string_val[0].decode()
    return {event.step: event.value for event in events.Scalars("toy/loss")}, text


def read_mlflow(run_id: str) -> tuple[dict[int, float], str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tracking.tracking_root() / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("semmae").experiment_id])
    assert (run.info.run_name, run.info.status) == (run_id, "FINISHED")
    values = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "toy/loss")}
    return values, json.dumps(run.data.params) + json.dumps(run.data.tags)


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a file of W&B, a log of LevelDB with a header of 7 bytes and blocks of 32 KiB."""
    position, record = 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield record
            record = b""


def read_wandb(run_id: str) -> tuple[dict[int, float], str]:
    from wandb.proto.wandb_internal_pb2 import Record

    values, text = {}, ""
    for file in sorted(tracking.tracking_root().glob(f"wandb/offline-run-*-{run_id}/*.wandb")):
        for content in wandb_records(file.read_bytes()):
            record = Record.FromString(content)
            text += str(record)
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if items:
                values[items["_step"]] = items["toy/loss"]
    return values, text


READ = {"tensorboard": read_tensorboard, "mlflow": read_mlflow, "wandb": read_wandb}


@pytest.mark.parametrize("name", READ)
def test_a_tracker_has_the_history_with_its_steps_and_the_parameters_and_a_resumed_run_continues(
    name: str, toy_dataset: Path
):
    pytest.importorskip(name, reason=f"the tracker {name} is not installed; pip install 'semmae[{name}]'")
    with pytest.raises(Halt):
        train(toy_dataset, f"[{name}]", halt_after=7)
    run = train(toy_dataset, f"[{name}]")
    values, text = READ[name](run.tracking.id)
    assert values == VALUES
    assert "shape.depth" in text
    assert "s3cret" not in "".join(
        path.read_bytes().decode(errors="replace") for path in tracking.tracking_root().rglob("*") if path.is_file()
    )


def test_without_trackers_no_file_is_written(toy_dataset: Path, state_root: Path):
    assert [row["loss"] for row in train(toy_dataset, "[]").history] == list(VALUES.values())
    assert not (state_root / "tracking").exists()


def test_a_project_without_the_key_has_no_trackers(toy_dataset: Path):
    train(toy_dataset, "[]")
    Path("params.yaml").write_text("seed: 0\n")
    assert tracking.read_names() == []


def test_an_unknown_tracker_is_refused_before_the_first_step(toy_dataset: Path):
    with pytest.raises(ValueError, match=r"tracking\.0 is 'tensorbord'; expected one of 'tensorboard', 'mlflow' or"):
        train(toy_dataset, "[tensorbord]")


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    toy_dataset: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"mlflow, which needs .* not installed: mlflow\. Run: pip install 'semmae\[ml"
    ):
        train(toy_dataset, "[mlflow]")


def test_a_training_continues_without_a_tracker_that_fails(
    toy_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object) -> tracking.Tracker:
        raise OSError("no space left")

    monkeypatch.setitem(tracking.OPEN, "tensorboard", fail)
    monkeypatch.setattr(tracking, "check_installed", lambda _: None)
    assert len(train(toy_dataset, "[tensorboard]").history) == 3
    warning = "warning: toy continues without tensorboard, which failed: no space left\n"
    assert capsys.readouterr().err.count(warning) == 1
