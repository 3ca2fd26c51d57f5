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
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool
from torch import Tensor

from semmae.console.progress import Progress
from semmae.core import checkpoint, distributed
from semmae.core.atomic_files import write_json
from semmae.core.digests import file_digest, json_digest
from semmae.core.locks import exclusive_lock
from semmae.core.paths import state_root
from semmae.data.dataset import Reader
from semmae.data.epoch_order import epoch_size
from semmae.data.loader import batches
from semmae.runs import handover
from semmae.runs.step_log import Step, StepLog


class Stateful(Protocol):
    """What a checkpoint keeps: a module or an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Run:
    """The bookkeeping of one training run; use as a context manager."""

    def __init__(
        self,
        stage: str,
        world: distributed.World,
        *,
        out: Path,
        params: Any,
        inputs: list[str],
        checkpoint_minutes: float,
    ) -> None:
        self.stage, self.world, self.out = stage, world, out
        self.identity = {
            "stage": stage,
            "params": lasting(dataclasses.asdict(params)),
            "inputs": inputs,
            "source": source_digest(),
        }
        self.fingerprint = json_digest(self.identity)
        self.folder = state_root() / "runs" / self.fingerprint
        self.checkpoint_seconds = 60 * checkpoint_minutes
        self.history: list[dict[str, float]] = []
        self.book = StepLog(stage, world)
        self._measured: dict[str, float] = {}
        self.adopted: dict[str, list[str]] = {}  # the other sources by which it was computed; into its artifact
        self._signal = 0

    def __enter__(self) -> Self:
        if self.world.leads:
            self._locks = [
                exclusive_lock("output", str(self.out.absolute())),
                exclusive_lock("run", self.fingerprint, wait=True),  # experiments side by side share their baselines
            ]
            for lock in self._locks:
                lock.__enter__()
            write_json(self.folder / "identity.json", self.identity)
            if sources := handover.take(self.identity, self.folder):
                self.adopted = {"adopted": sources}
        distributed.barrier(self.world)  # whoever restores a checkpoint finds what was adopted
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
            self.exit_if_stopped("when its work was done")

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
        retry: bool = False,
        max_skipped_steps: int = 0,
    ) -> Iterator[Step]:
        """Every step of `epochs`, from where the last run with this fingerprint stopped; `load(reader, index, epoch)`.

        Step s of an epoch takes the samples s * batch_size ... of the epoch's permutation, each rank its slice, so
        the order is a function of (seed, epoch) alone. What does not fill a batch is left to other epochs. A step that
        is not finite comes `again` with `retry` (on a GPU after the step that was told meanwhile, if one was), and
        `max_skipped_steps` are left out; the loop sees to it that such a step moves nothing (`finite`).
        """
        per_epoch = (size := epoch_size(len(reader), reader.weights)) // batch_size
        if per_epoch == 0:
            raise ValueError(f"{self.stage}: batch_size is {batch_size}, but an epoch has {size} samples")
        if batch_size % self.world.size:
            raise ValueError(
                f"{self.stage}: batch_size is {batch_size}; {self.world.size} processes cannot share it evenly"
            )
        share, book = batch_size // self.world.size, self.book
        number, steps, saved = self._restore(state), epochs * per_epoch, time.monotonic()

        def close(step: Step) -> None:
            late = time.monotonic() - saved > self.checkpoint_seconds
            book.close(step, stop=self._signal != 0, due=late)

        def settle(left: int) -> Iterator[Step]:
            for step in book.settle(left, retry=retry, max_skipped_steps=max_skipped_steps):
                yield step
                close(step)

        with Progress(self.stage, steps, per_epoch, batch_size, start=number, shown=self.world.leads) as progress:
            while number < steps:
                epoch, first = divmod(number, per_epoch)
                order = reader.epoch_order(seed=seed, epoch=epoch)[: per_epoch * batch_size].reshape(
                    per_epoch, self.world.size, share
                )
                mine = order[first:, self.world.rank].reshape(-1)
                for batch in batches(reader, mine, _Load(load, epoch), batch_size=share, workers=workers):
                    ends_epoch = (number + 1) % per_epoch == 0
                    if ends_epoch:
                        yield from settle(0)  # what is measured at an epoch's end has seen all that was before
                    yield (step := Step(number, steps, per_epoch, epoch, batch, ends_epoch))
                    close(step)
                    yield from settle(0 if ends_epoch else book.lag)
                    number += 1
                    progress.advance(book.latest)
                    if ends_epoch:
                        self.history.append({"epoch": epoch + 1} | book.close_epoch() | self._measured)
                        self._measured = {}
                        progress.line(self.history[-1])
                    if book.stop or book.due or (ends_epoch and number < steps):
                        yield from settle(0)
                        self._save(number, state)
                        saved, book.due = time.monotonic(), False
                    elif number == steps:
                        self._demand_finite(number, state)
                    if book.stop:
                        where = f"saved under {self.folder}; run the same command again to go on from there"
                        self._stop(f"after step {number} of {steps}, {where}")

    def exit_if_stopped(self, where: str = "after its last step", *, together: bool = False) -> None:
        """Stop here if a signal has asked for it: for long work that has no step to finish. `together`: if any rank's
        has, where all of them come by equally often.
        """
        if distributed.any_rank(self._signal != 0, self.world) if together else self._signal:
            self._stop(f"{where}; run the same command again to go on from the last checkpoint, if there is one")

    def finite(self, **computed: Tensor) -> Bool[Tensor, ""]:
        """Whether what this step has computed (its loss, the norm of its gradient) is finite on every rank: a flag on
        the device, for `optim.step_if`.
        """
        return self.book.finite(**computed)

    def record(self, **values: Tensor | float) -> None:
        """Values of this step, averaged over the epoch's steps and the ranks; `loss` must be finite."""
        self.book.record(**values)

    def log(self, **values: float) -> None:
        """Values measured once, at the end of this epoch."""
        self._measured.update(values)

    def _restore(self, state: dict[str, Stateful]) -> int:
        saved = checkpoint.latest(self.folder, map_location=self.world.device)
        if saved is None:
            return 0
        if "book" not in saved:
            raise ValueError(f"{self.folder} is of an older version, which kept less; remove it to begin anew")
        for name, owner in state.items():
            owner.load_state_dict(saved["state"][name])
        self.history = saved["history"]
        self.book.load_state_dict(saved["book"])
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
        content: dict[str, Any] = {"step": number, "history": self.history, "book": self.book.state_dict()}
        if self.world.leads:
            content["state"] = {name: owner.state_dict() for name, owner in state.items()}
            checkpoint.save(self.folder, number, content)
        distributed.barrier(self.world)

    def _stop(self, when: str) -> None:
        name = signal.Signals(self._signal or signal.SIGTERM).name
        if self.world.leads:
            print(f"{self.stage}: stopped by {name} {when}", file=sys.stderr)
        raise SystemExit(128 + (self._signal or signal.SIGTERM))


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
    return json_digest(sorted(file_digest(Path(file)) for file in files if file))


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
    """Return the parameters of a stage that can change its result, for the JSON of its artifact.

    Args:
        section: The section of the stage, a dataclass with a field `compute`.
    """
    parameters = lasting(dataclasses.asdict(section))
    del parameters["compute"]
    return parameters | {"precision": section.compute.precision}
