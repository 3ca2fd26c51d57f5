"""A training run between its steps: order of the data, checkpoints, clean stops, history, progress.

A stage keeps its loop visible and asks a `Run` for the next step:

    with Run("pretrain", world, out=..., params=..., inputs=...) as run:
        for step in run.steps(reader, load, ...):
            loss = ...; loss.backward(); optimizer.step()
            run.record(loss=loss)

A run is known by its fingerprint: stage, params (but not the number of workers), digests of its inputs and of the
source it imported. A run with the same fingerprint goes on at the step where the last one was killed, with the same
numbers; anything else starts afresh, unless it adopts what other source has begun (`adoption`).
"""

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, Protocol, Self, TypeVar

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from semmae import adoption, artifact, checkpoint, dist
from semmae.order import epoch_size
from semmae.params import STRICT
from semmae.progress import Progress
from semmae.reader import Reader, batches
from semmae.spikes import Losses

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, config=STRICT)
class Inference:
    """Where and how fast a stage computes; of these only `precision` (and `window`, where it trains) is meant to move a
    result.
    """

    device: dist.Device
    precision: dist.Precision
    compile: bool
    workers: NonNegativeInt  # processes that load images; 0 loads between the steps

    def compiled(self, function: Callable[P, R]) -> Callable[P, R]:
        """`function`, compiled if that is asked for. (A module that learns compiles itself: `module.compile()`.)"""
        return torch.compile(function) if self.compile else function


@dataclass(frozen=True, config=STRICT)
class Compute(Inference):
    """The same of a stage that trains."""

    window: PositiveInt | None  # shards whose samples are mixed at a time; null: all of them
    checkpoint_minutes: NonNegativeFloat


class Stateful(Protocol):
    """What a checkpoint keeps: a module or an optimiser."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Step:
    """One optimiser update of `steps`: its epoch, this process's share of the batch, whether the epoch ends with it."""

    number: int
    steps: int
    per_epoch: int
    epoch: int
    batch: dict[str, Any]
    ends_epoch: bool

    @property
    def progress(self) -> float:
        """0 at the first step of the whole run, 1 at the last."""
        return self.number / max(1, self.steps - 1)

    @property
    def ends_run(self) -> bool:
        """Whether this is the last step."""
        return self.number == self.steps - 1


class Run:
    """The bookkeeping of one training run; use as a context manager."""

    def __init__(
        self, stage: str, world: dist.World, *, out: Path, params: Any, inputs: list[str], checkpoint_minutes: float
    ) -> None:
        self.stage, self.world, self.out = stage, world, out
        self.identity = {
            "stage": stage,
            "params": lasting(dataclasses.asdict(params)),
            "inputs": inputs,
            "source": source_digest(),
        }
        self.fingerprint = artifact.digest(self.identity)
        self.folder = artifact.state_root() / "runs" / self.fingerprint
        self.checkpoint_seconds = 60 * checkpoint_minutes
        self.history: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}  # of the values recorded in this epoch
        self._count = 0
        self._measured: dict[str, float] = {}
        self._latest = torch.zeros(())  # the last recorded loss
        self._losses = Losses()
        self.skipped = 0  # steps left out since their loss was not finite
        self.adopted: dict[str, list[str]] = {}  # the other sources by which it was computed; into its artifact
        self._signal = 0

    def __enter__(self) -> Self:
        if self.world.leads:
            self._locks = [
                artifact.lock("output", str(self.out.absolute())),
                artifact.lock("run", self.fingerprint, wait=True),  # experiments side by side share their baselines
            ]
            for lock in self._locks:
                lock.__enter__()
            artifact.write_json(self.folder / "identity.json", self.identity)
            if sources := adoption.take(self.identity, self.folder):
                self.adopted = {"adopted": sources}
        dist.barrier(self.world)  # whoever restores a checkpoint finds what was adopted
        self._handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        done = kind is None and not self._signal
        if self.world.leads:
            if done:
                checkpoint.forget(self.folder)
            for lock in reversed(self._locks):
                lock.__exit__(None, None, None)
        if kind is None and not done:  # nothing has heeded it: who is stopped has not finished
            self.heed("when its work was done")

    def _on_signal(self, number: int, _: Any) -> None:
        self._signal = number

    def steps(
        self,
        reader: Reader,
        load: Callable[[Reader, int, int], dict[str, Any]],
        *,
        batch_size: int,
        epochs: int,
        seed: int,
        workers: int,
        state: dict[str, Stateful],
    ) -> Iterator[Step]:
        """Every step of `epochs`, from where the last run with this fingerprint stopped; `load(reader, index, epoch)`.

        Step s of an epoch takes the samples s * batch_size ... of the epoch's permutation, each rank its slice, so
        the order is a function of (seed, epoch) alone. What does not fill a batch is left to other epochs.
        """
        per_epoch = (size := epoch_size(len(reader), reader.weights)) // batch_size
        if per_epoch == 0:
            raise ValueError(f"{self.stage}: batch_size is {batch_size}, but an epoch has {size} samples")
        if batch_size % self.world.size:
            raise ValueError(
                f"{self.stage}: batch_size is {batch_size}; {self.world.size} processes cannot share it evenly"
            )
        share = batch_size // self.world.size
        number, steps, saved = self._restore(state), epochs * per_epoch, time.monotonic()
        with Progress(self.stage, steps, per_epoch, batch_size, start=number, shown=self.world.leads) as progress:
            while number < steps:
                epoch, first = divmod(number, per_epoch)
                order = reader.epoch_order(seed=seed, epoch=epoch)[: per_epoch * batch_size].reshape(
                    per_epoch, self.world.size, share
                )
                mine = order[first:, self.world.rank].reshape(-1)
                for batch in batches(reader, mine, _Load(load, epoch), batch_size=share, workers=workers):
                    ends_epoch = (number + 1) % per_epoch == 0
                    yield Step(number, steps, per_epoch, epoch, batch, ends_epoch)
                    self._check(number, batch)
                    number += 1
                    progress.advance(self._latest)
                    if ends_epoch:
                        self._close_epoch(epoch)
                        progress.line(self.history[-1])
                    stop = dist.any_rank(self._signal != 0, self.world)
                    due = time.monotonic() - saved > self.checkpoint_seconds or (ends_epoch and number < steps)
                    if stop or dist.any_rank(due, self.world):
                        self._save(number, state)
                        saved = time.monotonic()
                    elif number == steps:
                        self._demand_finite(number, state)
                    if stop:
                        where = f"saved under {self.folder}; run the same command again to go on from there"
                        self._stop(f"after step {number} of {steps}, {where}")

    def heed(self, where: str = "after its last step", *, together: bool = False) -> None:
        """Stop here if a signal has asked for it: for long work that has no step to finish. `together`: if any rank's
        has, where all of them come by equally often.
        """
        if dist.any_rank(self._signal != 0, self.world) if together else self._signal:
            self._stop(f"{where}; run the same command again to go on from the last checkpoint, if there is one")

    def is_finite(self, step: Step, precision: str, computed: dict[str, Tensor]) -> bool:
        """Whether what this step has computed in `precision` (its loss, the norm of its gradient) is finite on every
        rank; told where it is not.
        """
        name, value = _worst(computed)
        if not dist.any_rank(not math.isfinite(value), self.world):
            return True
        if self.world.leads:
            print(f"{self.stage}: the {name} of step {step.number} is {value} in {precision}", file=sys.stderr)
        return False

    def leave_out(self, step: Step, computed: dict[str, Tensor], *, allowed: int) -> None:
        """Go on without this step, of which something is not finite; the run may do so `allowed` times, one more raises
        FloatingPointError.
        """
        self.skipped += 1
        if self.skipped > allowed:
            raise self._not_finite(*_worst(computed), step.number, step.batch)
        if not math.isfinite(_worst(computed)[1]):
            print(f"{self.stage}: step {step.number} is left out: {_some(step.batch['key'])}", file=sys.stderr)

    def record(self, **values: Tensor | float) -> None:
        """Values of this step, averaged over the epoch's steps and the ranks; `loss` must be finite."""
        self._count += 1
        for name, value in values.items():
            value = torch.as_tensor(value, dtype=torch.float64).detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            if name == "loss":
                self._latest = value

    def log(self, **values: float) -> None:
        """Values measured once, at the end of this epoch."""
        self._measured.update(values)

    def _check(self, number: int, batch: dict[str, Any]) -> None:
        if not torch.isfinite(self._latest):
            raise self._not_finite("loss", float(self._latest), number, batch)
        mean = self._losses.mean
        if self._losses.is_spike(float(self._latest)) and self.world.leads:
            found, keys = f"the loss is {float(self._latest):.4g}, lately {mean:.4g}", _some(batch["key"])
            print(f"{self.stage}: spike at step {number}: {found}; its samples: {keys}", file=sys.stderr)

    def _not_finite(self, name: str, value: float, number: int, batch: dict[str, Any]) -> FloatingPointError:
        if math.isfinite(value):
            return FloatingPointError(f"{self.stage}: not finite at step {number}, on another rank than this")
        return FloatingPointError(
            f"{self.stage}: the {name} is {value} at step {number} on rank {self.world.rank}; its samples: "
            f"{_some(batch['key'])}; lower base_lr or set precision to fp32"
        )

    def _close_epoch(self, epoch: int) -> None:
        row: dict[str, float] = {"epoch": epoch + 1}
        for name, total in self._sums.items():
            row[name] = float(dist.mean(total / self._count, self.world))
        self.history.append({**row, **self._measured})
        self._sums, self._count, self._measured = {}, 0, {}

    def _restore(self, state: dict[str, Stateful]) -> int:
        saved = checkpoint.latest(self.folder, map_location=self.world.device)
        if saved is None:
            return 0
        for name, owner in state.items():
            owner.load_state_dict(saved["state"][name])
        self.history, self._sums, self._count = saved["history"], saved["sums"], saved["count"]
        self.skipped = saved["skipped"]
        self._losses.load_state_dict(saved["losses"])
        return saved["step"]

    def _demand_finite(self, number: int, state: dict[str, Stateful]) -> None:
        """FloatingPointError if a weight of the model is not finite: it is neither saved nor anybody's result. (Many
        heads that are trained side by side are no `model`: one that diverges is out of the running.)
        """
        for key, value in state["model"].state_dict().items() if "model" in state else ():
            if not bool(torch.isfinite(value).all()):
                raise FloatingPointError(
                    f"{self.stage}: {key} of the model is not finite after step {number}; the last checkpoint is of "
                    "before: lower base_lr or set precision to fp32, and run the same command again"
                )

    def _save(self, number: int, state: dict[str, Stateful]) -> None:
        self._demand_finite(number, state)
        sums = {name: dist.mean(total, self.world) for name, total in self._sums.items()}  # every rank goes on from it
        if self.world.leads:
            content = {"step": number, "history": self.history, "sums": sums, "count": self._count}
            content |= {"skipped": self.skipped, "losses": self._losses.state_dict()}
            content["state"] = {name: owner.state_dict() for name, owner in state.items()}
            checkpoint.save(self.folder, number, content)
        dist.barrier(self.world)

    def _stop(self, when: str) -> None:
        name = signal.Signals(self._signal or signal.SIGTERM).name
        if self.world.leads:
            print(f"{self.stage}: stopped by {name} {when}", file=sys.stderr)
        raise SystemExit(128 + (self._signal or signal.SIGTERM))


def _worst(computed: dict[str, Tensor]) -> tuple[str, float]:
    """The first that is not finite, by its name; the first of all where each is."""
    values = {name: float(value.detach()) for name, value in computed.items()}
    return next((item for item in values.items() if not math.isfinite(item[1])), next(iter(values.items())))


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:8]) + (" ..." if len(keys) > 8 else "")


@dataclasses.dataclass(frozen=True)
class _Load:
    """`load` at one epoch, as `reader.batches` calls it (a class, so that worker processes can receive it)."""

    load: Callable[[Reader, int, int], dict[str, Any]]
    epoch: int

    def __call__(self, reader: Reader, index: int) -> dict[str, Any]:
        return self.load(reader, index, self.epoch)


def lasting(params: dict[str, Any]) -> dict[str, Any]:
    """The params of a run without those that it may go on without: how its images are loaded, how often it saves."""
    return {
        name: lasting(value) if isinstance(value, dict) else value
        for name, value in params.items() if name not in ("workers", "checkpoint_minutes")
    }  # fmt: skip


def source_digest() -> str:
    """The digest of the project's own source that this process has imported, the running stage included."""
    modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("semmae", "stages")}
    files = {
        module.__file__ for module in (*modules.values(), sys.modules["__main__"]) if getattr(module, "__file__", None)
    }
    return artifact.digest(sorted(artifact.sha256(Path(file)) for file in files if file))


def write_history(folder: Path, stage: str, history: list[dict[str, float]]) -> None:
    """The curves of a run for `dvc plots` and `dvc exp show`: one DVCLive TSV per column, rewritten whole.

    Without DVCLive (a training machine that has no DVC) there is nobody to read them: the history in the artifact
    stays.
    """
    try:
        from dvclive import Live
    except ImportError:
        return
    with Live(str(folder), resume=False, dvcyaml=None, save_dvc_exp=False, report=None, monitor_system=False) as live:
        for row in history:
            live.step = int(row["epoch"])
            for name, value in row.items():
                if name != "epoch":
                    live.log_metric(f"{stage}/{name}", value, plot=True)
            live.make_summary()


def described(section: Any) -> dict[str, Any]:
    """A stage's section as its artifact tells it: all that is meant to change the result, not where and how fast it was
    computed.
    """
    told = {name: value for name, value in dataclasses.asdict(section).items() if name != "compute"}
    return told | ({} if section.compute.window is None else {"window": section.compute.window})
