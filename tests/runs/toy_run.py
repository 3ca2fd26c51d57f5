"""A training of one weight, for tests of runs."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from semmae.core.distributed import World
from semmae.data.dataset import Reader
from semmae.runs.run import Run

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Parameters of the run; `workers` is not part of its fingerprint."""

    lr: float
    workers: int = 0


class Halt(Exception):
    """Ends a run in these tests."""


def train(
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
            load_sample,
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


def load_sample(reader: Reader, index: int, epoch: int) -> dict[str, object]:
    """Return the key of a sample, and a value that depends on its image and the epoch."""
    return {"key": reader.keys[index], "value": np.array(len(reader.encoded(index)) / 1000 + epoch)}
