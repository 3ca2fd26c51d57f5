"""The run of a training: order of the data, retries, checkpoints, stop signals, history and progress.

A training loop stays visible and takes its steps from a `Run`:

    with Run("pretrain", world, out=..., params=..., inputs=..., checkpoint_minutes=...) as run:
        for step in run.steps(images, load, ...):
            loss = ...
            loss.backward()
            optimizer.step()
            run.record(loss=loss)

A run resumes from the last checkpoint of a killed run with the same fingerprint (`fingerprint`), and gives the same
results. Otherwise it starts at its first step, unless it adopts the checkpoints of a run with older source
(`handover`).
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from jaxtyping import Bool
from torch import Tensor

from semmae.console.progress import Progress
from semmae.core import checkpoint, distributed
from semmae.core.atomic_files import write_json
from semmae.core.digests import json_digest
from semmae.core.locks import exclusive_lock
from semmae.core.paths import state_root
from semmae.data.dataset import TrainingImages
from semmae.runs import handover
from semmae.runs.fingerprint import run_identity
from semmae.runs.step_log import StepLog
from semmae.runs.steps import LoadSample, Step, StepPlan
from semmae.runs.tracking import RunTracking
from semmae.runs.training_length import describe_short


class Stateful(Protocol):
    """An object whose state a checkpoint keeps: a module or an optimizer."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


class Run:
    """A training run; use it as a context manager.

    The block holds two locks: one on the output, one on the fingerprint. On success the checkpoints are deleted; after
    an error they stay.

    Args:
        stage: Name of the stage, for messages.
        out: Output of the stage. The run locks it: a second run with the same output fails at its start.
        params: Parameters of the stage, a dataclass; part of the fingerprint.
        inputs: Digests of the files that the stage reads; part of the fingerprint.
        checkpoint_minutes: Time between two checkpoints within an epoch.

    Attributes:
        history: One row per finished epoch: `epoch` (from 1), the means of the recorded values, and the logged values.
        num_steps: Number of steps of the run; 0 before `steps` is called.
        adopted: `{"adopted": [...]}` with the digests of the older source versions that computed a part of this run,
            or `{}`. The stage writes this entry into the JSON of its artifact.
        tracking: Copies the history to the trackers in params.yaml. A loop without `steps` calls its `log`.
    """

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
        self.identity = run_identity(stage, params, inputs)
        self.fingerprint = json_digest(self.identity)
        self.folder = state_root() / "runs" / self.fingerprint
        self.step_log = StepLog(stage, world)
        self.tracking = RunTracking(stage, out, self.identity["params"], enabled=world.is_main)
        self.history: list[dict[str, float]] = []
        self.num_steps = 0
        self.adopted: dict[str, list[str]] = {}
        self._checkpoint_seconds, self._last_checkpoint = 60 * checkpoint_minutes, 0.0
        self._logged: dict[str, float] = {}  # by `log`, for the row of the current epoch
        self._signal = 0

    def __enter__(self) -> Self:
        with ExitStack() as locks, ExitStack() as handlers:
            if self.world.is_main:
                locks.enter_context(exclusive_lock("output", str(self.out.absolute())))
                # Concurrent experiments may train the same baseline. The second one waits, then trains it again.
                locks.enter_context(exclusive_lock("run", self.fingerprint, wait=True))
                write_json(self.folder / "identity.json", self.identity)
                if sources := handover.adopt_offered(self.identity, self.folder):
                    self.adopted = {"adopted": sources}
            distributed.barrier(self.world)  # adopted checkpoints must be in place before any rank looks for one
            for number in (signal.SIGTERM, signal.SIGINT):
                handlers.callback(signal.signal, number, signal.signal(number, self._on_signal))
            self._locks, self._signal_handlers = locks.pop_all(), handlers.pop_all()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self._signal_handlers.close()
        finished = kind is None and not self._signal
        with self._locks:
            self.tracking.close(finished=finished)
            if finished and self.world.is_main:
                checkpoint.delete_all(self.folder)
        if kind is None and not finished:  # a stop signal was received after the last step
            self.exit_if_stopped("when its work was done")

    def _on_signal(self, number: int, _: Any) -> None:
        self._signal = number

    def steps(
        self,
        images: TrainingImages,
        load: LoadSample,
        *,
        batch_size: int,
        epochs: int | None,
        steps: int | None = None,
        seed: int,
        workers: int,
        state: dict[str, Stateful],
        retry: bool = False,
        max_skipped_steps: int = 0,
        warn_if_short: bool = False,
    ) -> Iterator[Step]:
        """Yield the steps of the run, from the last checkpoint on.

        `StepPlan` describes the arguments from `images` to `workers`.

        Args:
            state: Objects whose state a checkpoint keeps, by name. The weights of an entry `model` must be finite
                whenever a checkpoint is saved.
            retry: If a step is not finite, yield it a second time, with `is_retry`. On a GPU, `steps` may yield the
                next step before the retry.
            max_skipped_steps: Number of steps that may be skipped because they are not finite. The loop must not update
                its weights in such a step; see `all_finite` and `optim.step_if`.
            warn_if_short: Print a warning if the run has few steps for a self-supervised training.

        Raises:
            ValueError: An epoch has no full batch, or the ranks cannot share a batch evenly.
            FloatingPointError: A step is not finite and may not be skipped, or a weight of the model is not finite.
            SystemExit: A stop signal was received. The run has saved a checkpoint.
        """
        plan = StepPlan(self.stage, self.world, images, load, batch_size=batch_size, epochs=epochs, steps=steps,
                        seed=seed, workers=workers)  # fmt: skip
        self.num_steps = plan.steps
        if warn_if_short:
            self._warn_if_short()
        steps_done, log = self._restore(state), self.step_log
        log.retry, log.max_skipped_steps = retry, max_skipped_steps
        self._last_checkpoint = time.monotonic()
        shown = self.world.is_main
        with Progress(self.stage, plan.steps, plan.per_epoch, batch_size, start=steps_done, shown=shown) as progress:
            for step in plan.steps_from(steps_done):
                if step.ends_epoch:  # the loop may evaluate the model after this step, so retry earlier steps first
                    yield from self._steps_to_retry(leave=0)
                yield step
                self._enqueue(step)
                # On a GPU this reads the values of the previous step, while the GPU computes this one.
                yield from self._steps_to_retry(leave=0 if step.ends_epoch else log.delay)
                progress.advance(log.latest_loss)
                if step.ends_epoch:
                    self._close_epoch(step, progress)
                if log.stop or log.checkpoint_due or (step.ends_epoch and not step.ends_run):
                    yield from self._steps_to_retry(leave=0)
                    self._save(step.number + 1, state)
                elif step.ends_run:
                    self._check_weights(step.number + 1, state)
                if log.stop:
                    self._stop_after(step)

    def _warn_if_short(self) -> None:
        if self.world.is_main and (sentence := describe_short(self.num_steps)):
            print(f"{self.stage}: {sentence}; set more epochs or steps in its recipe", file=sys.stderr)

    def _stop_after(self, step: Step) -> None:
        saved = f"saved under {self.folder}; run the same command again to resume from there"
        self._stop(f"after step {step.number + 1} of {self.num_steps}, {saved}")

    def _steps_to_retry(self, *, leave: int) -> Iterator[Step]:
        """Read the values of all launched steps except the last `leave`, and yield each step that must be retried."""
        while step := self.step_log.read_completed(leave=leave):
            yield step
            self._enqueue(step)

    def _enqueue(self, step: Step) -> None:
        """Start the copy of the step's values to the host, with the stop and checkpoint flags of this rank."""
        age = time.monotonic() - self._last_checkpoint
        self.step_log.enqueue(step, stop=self._signal != 0, checkpoint_due=age > self._checkpoint_seconds)

    def _close_epoch(self, step: Step, progress: Progress) -> None:
        """Add the row of a finished epoch to the history, print it and send it to the trackers."""
        self.history.append({"epoch": step.epoch + 1} | self.step_log.close_epoch() | self._logged)
        self._logged = {}
        progress.print_epoch(self.history[-1])
        self.tracking.log(step.number + 1, self.history[-1])

    def all_finite(self, **checked: Tensor) -> Bool[Tensor, ""]:
        """Check that scalars of the current step, for example loss and gradient norm, are finite on every rank.

        Returns:
            A flag on the device, for `optim.step_if`. The host is not blocked.
        """
        return self.step_log.all_finite(**checked)

    def record(self, **values: Tensor | float) -> None:
        """Record scalars of the current step, to be averaged over the epoch and the ranks. `loss` must be finite."""
        self.step_log.record(**values)

    def log(self, **values: float) -> None:
        """Log values that are measured once, at the end of the current epoch."""
        self._logged.update(values)

    def exit_if_stopped(self, when: str = "after its last step", *, together: bool = False) -> None:
        """Exit if a stop signal was received. Call this between the parts of long work that has no steps.

        Args:
            when: When the run stopped, for the message.
            together: Exit if any rank has received a signal. All ranks must make the same number of calls.
        """
        if distributed.any_rank(self._signal != 0, self.world) if together else self._signal:
            self._stop(f"{when}; run the same command again to resume from the last checkpoint, if there is one")

    def _stop(self, when: str) -> None:
        number = self._signal or signal.SIGTERM  # another rank may have received the signal
        if self.world.is_main:
            print(f"{self.stage}: stopped by {signal.Signals(number).name} {when}", file=sys.stderr)
        raise SystemExit(128 + number)

    def _restore(self, state: dict[str, Stateful]) -> int:
        """Restore the newest checkpoint, if there is one, and return the number of steps done."""
        saved = checkpoint.load_latest(self.folder, map_location=self.world.device)
        if saved is None:
            return 0
        if "step_log" not in saved:
            raise ValueError(
                f"{self.folder} has checkpoints of an older version of semmae, which cannot be resumed; delete the "
                "folder and run the same command again"
            )
        for name, stateful in state.items():
            stateful.load_state_dict(saved["state"][name])
        self.history = saved["history"]
        self.tracking.id = saved.get("tracking_id", self.tracking.id)  # checkpoints of older source may lack it
        self.step_log.load_state_dict(saved["step_log"])
        return saved["step"]

    def _save(self, steps_done: int, state: dict[str, Stateful]) -> None:
        """Save a checkpoint. All values of the launched steps must have been read."""
        self._check_weights(steps_done, state)
        content = {
            "step": steps_done, "history": self.history, "step_log": self.step_log.state_dict(),
            "tracking_id": self.tracking.id,
        }  # fmt: skip
        if self.world.is_main:
            content["state"] = {name: stateful.state_dict() for name, stateful in state.items()}
            checkpoint.save(self.folder, steps_done, content)
        distributed.barrier(self.world)
        self._last_checkpoint, self.step_log.checkpoint_due = time.monotonic(), False

    def _check_weights(self, steps_done: int, state: dict[str, Stateful]) -> None:
        """Raise FloatingPointError if a weight of `state["model"]` is not finite.

        The heads of the attentive probe have another name in `state`, so this check does not apply to them. One of them
        may diverge, because only the best head is used.
        """
        for key, value in state["model"].state_dict().items() if "model" in state else ():
            if not bool(torch.isfinite(value).all()):
                raise FloatingPointError(
                    f"{self.stage}: {key} of the model is not finite after step {steps_done}; this state is not saved: "
                    "lower base_lr or set precision to fp32, and run the same command again"
                )
