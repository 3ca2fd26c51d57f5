"""Reads the values of a run's steps, such as the loss, without blocking the GPU.

When the host has launched a step, the GPU may still compute the previous one. On a GPU, the host therefore reads the
values of a step after it has launched the next one. On a CPU it reads them at once. If the values of a step are finite,
they count in the means of the epoch. Any other step is retried, is skipped or ends the run, on all ranks alike.
"""

import dataclasses
import math
import sys
from collections import deque
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from semmae.core import distributed
from semmae.core.async_copy import PendingCopy
from semmae.runs.steps import Step


class StepFlags(NamedTuple):
    """Flags of a step: 1 if the condition holds on any rank, else 0."""

    nonfinite: float  # a checked value is not finite
    nonfinite_loss: float  # the recorded loss is not finite
    stop: float  # a stop signal was received
    checkpoint_due: float  # the last checkpoint is older than `checkpoint_minutes`


class StepValues(NamedTuple):
    """The values of a step on the host."""

    flags: StepFlags
    checked: dict[str, float]
    recorded: dict[str, float]


class PendingValues:
    """The values of a step, on their way to the host in one asynchronous copy.

    Args:
        flags: The fields of `StepFlags`, on the device.
        checked: Scalars that must be finite, for example loss and gradient norm.
        recorded: Scalars to average over the epoch; numbers of the host are not copied.
    """

    def __init__(
        self, flags: Float64[Tensor, "4"], checked: dict[str, Tensor], recorded: dict[str, Tensor | float]
    ) -> None:
        on_device = {name: value for name, value in recorded.items() if isinstance(value, Tensor)}
        self._checked_names, self._recorded_names = list(checked), list(on_device)
        self._host_values = {name: float(value) for name, value in recorded.items() if name not in on_device}
        scalars = [value.detach().to(flags) for value in (*checked.values(), *on_device.values())]
        self._copy = PendingCopy(torch.stack([*flags, *scalars]))

    def read(self) -> StepValues:
        """Wait for the copy and return the values."""
        values = self._copy.read().tolist()
        num_flags, num_checked = len(StepFlags._fields), len(self._checked_names)
        checked = dict(zip(self._checked_names, values[num_flags:][:num_checked], strict=True))
        recorded = dict(zip(self._recorded_names, values[num_flags + num_checked :], strict=True))
        return StepValues(StepFlags(*values[:num_flags]), checked, recorded | self._host_values)


class StepLog:
    """Reads, checks and averages the values of the steps, in their order.

    Attributes:
        delay: Number of steps by which reading lags behind. On a GPU, the host reads the values of a step after it has
            launched the next one (1); on a CPU, at once (0).
        stop: Whether a rank has received a stop signal.
        checkpoint_due: Whether a checkpoint is due on any rank.
        latest_loss: The loss of the last step that was read.
        skipped: Number of steps skipped so far.
        retry: Whether a step that is not finite is computed once more.
        max_skipped_steps: Number of steps that may be skipped; one more ends the run.
    """

    def __init__(self, stage: str, world: distributed.World) -> None:
        self.stage, self.world = stage, world
        self.delay = 1 if world.device.type == "cuda" else 0
        self.stop = self.checkpoint_due = False
        self.latest_loss, self.skipped = 0.0, 0
        self.retry, self.max_skipped_steps = False, 0
        self.sums: dict[str, float] = {}  # sums of the recorded values over the steps of the epoch
        self.count = 0  # steps in these sums
        self.loss_spikes = LossSpikes()
        self._launched: deque[tuple[Step, PendingValues]] = deque()
        self._checked: dict[str, Tensor] = {}
        self._nonfinite: Float64[Tensor, ""] | None = None
        self._recorded: dict[str, Tensor | float] = {}

    def all_finite(self, **checked: Tensor) -> Bool[Tensor, ""]:
        """Check that values of the current step are finite on every rank; see `Run.all_finite`."""
        self._checked, nonfinite = checked, _any_nonfinite(checked, self.world)
        self._nonfinite = distributed.maximum(nonfinite, self.world)
        return self._nonfinite == 0

    def record(self, **values: Tensor | float) -> None:
        """Keep values of the current step for the means of the epoch."""
        self._recorded = values

    def enqueue(self, step: Step, *, stop: bool, checkpoint_due: bool) -> None:
        """Start the copy of a launched step's values to the host. The two flags are those of this rank."""
        loss = {name: value for name, value in self._recorded.items() if name == "loss" and isinstance(value, Tensor)}
        nonfinite_loss = _any_nonfinite(loss, self.world)
        nonfinite = nonfinite_loss if self._nonfinite is None else self._nonfinite
        flags = [
            nonfinite,
            nonfinite_loss,
            *(torch.full_like(nonfinite, float(flag)) for flag in (stop, checkpoint_due)),
        ]
        pending = PendingValues(
            distributed.maximum(torch.stack(flags), self.world), checked=self._checked, recorded=self._recorded
        )
        self._launched.append((step, pending))
        self._checked, self._recorded, self._nonfinite = {}, {}, None

    def read_completed(self, *, leave: int) -> Step | None:
        """Read the values of launched steps, oldest first, until `leave` of them are left or one must be retried.

        Returns:
            The step to compute again, or None.

        Raises:
            FloatingPointError: A step is not finite and may be neither retried nor skipped.
        """
        while len(self._launched) > leave:
            step, pending = self._launched.popleft()
            values = pending.read()
            self.stop = self.stop or values.flags.stop > 0
            self.checkpoint_due = self.checkpoint_due or values.flags.checkpoint_due > 0
            if not values.flags.nonfinite and not values.flags.nonfinite_loss:
                self._count(step, values.recorded)
                continue
            cause = _cause(values)
            if not self.retry or step.is_retry:
                self._skip(step, cause)
                continue
            self._print(
                f"{cause or 'a value of another rank is not finite'} at step {step.number}; retrying it in fp32"
            )
            return dataclasses.replace(step, is_retry=True)
        return None

    def close_epoch(self) -> dict[str, float]:
        """Return the means of the epoch over its steps and the ranks, and start the next epoch."""
        means = {name: self._mean(total / self.count) for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint. All ranks resume from it, so each sum is averaged over the ranks."""
        sums = {name: self._mean(total) for name, total in self.sums.items()}
        loss_spikes = self.loss_spikes.state_dict()
        return {"sums": sums, "count": self.count, "skipped": self.skipped, "loss_spikes": loss_spikes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.sums, self.count, self.skipped = state["sums"], state["count"], state["skipped"]
        self.loss_spikes.load_state_dict(state["loss_spikes"])

    def _mean(self, value: float) -> float:
        return float(distributed.mean(torch.tensor(value, dtype=torch.float64), self.world))

    def _count(self, step: Step, recorded: dict[str, float]) -> None:
        """Add a finite step to the sums of the epoch; warn if its loss is a spike."""
        self.count += 1
        for name, value in recorded.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if (loss := recorded.get("loss")) is None:
            return
        self.latest_loss, mean = loss, self.loss_spikes.mean
        if self.loss_spikes.is_spike(loss):
            self._print(
                f"loss spike at step {step.number}: {loss:.4g}, moving mean {mean:.4g}; its samples: {_samples(step)}"
            )

    def _skip(self, step: Step, cause: str | None) -> None:
        """Skip a step, or end the run. The ranks whose values are not finite print the samples of the step."""
        self.skipped += 1
        message = (
            f"{self.stage}: {cause} at step {step.number} on rank {self.world.rank}; its samples: {_samples(step)}"
        )
        if self.skipped <= self.max_skipped_steps:
            if cause:
                print(f"{message}; the step is skipped", file=sys.stderr)
        elif cause:
            raise FloatingPointError(f"{message}; lower base_lr or set precision to fp32")
        else:
            raise FloatingPointError(f"{self.stage}: a value of another rank is not finite at step {step.number}")

    def _print(self, message: str) -> None:
        if self.world.is_main:
            print(f"{self.stage}: {message}", file=sys.stderr)


def _any_nonfinite(values: dict[str, Tensor], world: distributed.World) -> Float64[Tensor, ""]:
    """Return 1 on the device if any value is not finite, else 0."""
    zero = torch.zeros((), dtype=torch.float64, device=world.device)
    return torch.stack([zero, *((~torch.isfinite(value.detach()).all()).to(zero) for value in values.values())]).amax()


def _cause(values: StepValues) -> str | None:
    """Return a phrase that names a value of this rank that is not finite, or None if this rank is not the cause.

    A loss that is not finite on one rank makes the averaged gradients of all ranks not finite. In that case only the
    ranks whose own loss is not finite are the cause.
    """
    nonfinite = {name: v for name, v in (values.checked | values.recorded).items() if not math.isfinite(v)}
    name = "loss" if values.flags.nonfinite_loss else next(iter(nonfinite), "")
    return f"the {name} is {nonfinite[name]}" if name in nonfinite else None


def _samples(step: Step) -> str:
    """Return the keys of the step's first samples."""
    keys = step.batch["key"]
    return ", ".join(keys[:8]) + (" ..." if len(keys) > 8 else "")


class LossSpikes:
    """Detects losses far above the moving mean of the previous losses."""

    DECAY = 0.98  # decay of the moving mean and variance per step: they average about 50 steps
    WARMUP = 50  # number of first losses that never count as spikes
    MAX_DEVIATIONS = 6.0  # a spike lies more than this number of standard deviations above the mean
    MIN_DEVIATION = 0.05  # lower bound of the standard deviation, as a fraction of the mean

    def __init__(self) -> None:
        self.count, self.mean, self.variance = 0, 0.0, 0.0

    def is_spike(self, loss: float) -> bool:
        """Return whether `loss` is a spike, then include it in the moving mean and variance."""
        deviation = max(math.sqrt(self.variance), self.MIN_DEVIATION * abs(self.mean))
        spike = self.count >= self.WARMUP and loss - self.mean > self.MAX_DEVIATIONS * deviation
        decay = min(self.DECAY, self.count / (self.count + 1))  # a plain mean over the first losses
        distance = loss - self.mean
        self.mean += (1 - decay) * distance
        self.variance = decay * (self.variance + (1 - decay) * distance**2)
        self.count += 1
        return spike

    def state_dict(self) -> dict[str, float]:
        """Return the state for a checkpoint."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state of a checkpoint."""
        vars(self).update(state)
