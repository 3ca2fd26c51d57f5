"""The book of a training run: what each step says of itself, entered when reading it makes no device wait.

A step is closed when its work was told to the device, and settled when its numbers are here: at once on a CPU, one step
later on a GPU. A settled step counts in the means of its epoch; one that is not finite comes again, is left out, or
ends the run, on all ranks alike.
"""

import dataclasses
import math
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from semmae.core import distributed
from semmae.core.async_copy import PendingScalars
from semmae.runs.loss_spikes import LossSpikes


@dataclasses.dataclass(frozen=True)
class Step:
    """One optimizer update of a run: its epoch, this process's share of the batch, whether the epoch ends with it;
    `again` if what it computed before was not finite, so that it should take more care.
    """

    number: int
    steps: int
    per_epoch: int
    epoch: int
    batch: dict[str, Any]
    ends_epoch: bool
    again: bool = False

    @property
    def progress(self) -> float:
        """0 at the first step of the whole run, 1 at the last."""
        return self.number / max(1, self.steps - 1)

    @property
    def ends_run(self) -> bool:
        """Whether this is the last step."""
        return self.number == self.steps - 1


class Closed(NamedTuple):
    """A step whose numbers are on their way."""

    step: Step
    numbers: PendingScalars
    known: dict[str, float]  # recorded, and no device's


class StepLog:
    """What the steps of a run say, in their order."""

    def __init__(self, stage: str, world: distributed.World) -> None:
        self.stage, self.world = stage, world
        self.lag = 1 if world.device.type == "cuda" else 0  # steps that stay open while the next one is told
        self.sums: dict[str, float] = {}  # of the values recorded in this epoch
        self.count = 0
        self.losses = LossSpikes()
        self.latest = 0.0  # the last loss
        self.skipped = 0  # steps left out since they were not finite
        self.stop = self.due = False  # whether a rank has been asked to stop, or finds that it is time to save
        self._open: deque[Closed] = deque()
        self._computed: dict[str, Tensor] = {}
        self._bad: Tensor | None = None  # 1 if any of that is not finite on any rank
        self._recorded: dict[str, Tensor | float] = {}

    def finite(self, **computed: Tensor) -> Bool[Tensor, ""]:
        """Whether all of this is finite on every rank, on the device."""
        self._computed, self._bad = computed, distributed.highest(_bad(computed, self.world), self.world)
        return self._bad == 0

    def record(self, **values: Tensor | float) -> None:
        """What counts in the means of the epoch once the step is settled."""
        self._recorded = values

    def close(self, step: Step, *, stop: bool, due: bool) -> None:
        """All of this step was told to the device; its numbers set out, with what this rank has to say besides."""
        recorded = {name: value for name, value in self._recorded.items() if isinstance(value, Tensor)}
        known = {name: float(value) for name, value in self._recorded.items() if name not in recorded}
        lost = _bad({name: value for name, value in recorded.items() if name == "loss"}, self.world)
        said = [torch.full((), float(flag), dtype=torch.float64, device=self.world.device) for flag in (stop, due)]
        flags = distributed.highest(torch.stack([lost if self._bad is None else self._bad, lost, *said]), self.world)
        numbers = dict(zip(("flag bad", "flag lost", "flag stop", "flag due"), flags, strict=True))
        numbers |= {f"computed {name}": value for name, value in self._computed.items()}
        numbers |= {f"recorded {name}": value for name, value in recorded.items()}
        self._open.append(Closed(step, PendingScalars(numbers, self.world.device), known))
        self._computed, self._recorded, self._bad = {}, {}, None

    def settle(self, left: int, *, retry: bool, max_skipped_steps: int) -> Iterator[Step]:
        """Read the numbers of all closed steps but the last `left`. With `retry`, a step that is not finite is handed
        out to be computed again, and closed again; one that was is left out, `max_skipped_steps` of a run, one more raises
        FloatingPointError.
        """
        while len(self._open) > left:
            step, numbers, known = self._open.popleft()
            flags, computed, recorded = (numbers.read(kind) for kind in ("flag ", "computed ", "recorded "))
            self.stop, self.due = self.stop or flags["stop"] > 0, self.due or flags["due"] > 0
            if not flags["bad"] and not flags["lost"]:
                self._enter(step, recorded | known)
                continue
            wrong = _wrong(computed | recorded, lost=flags["lost"] > 0)
            if retry and not step.again:
                self._tell(f"{wrong or 'another rank is not finite'} at step {step.number}, which comes again in fp32")
                yield dataclasses.replace(step, again=True)
            else:
                self._leave_out(step, wrong, max_skipped_steps)

    def close_epoch(self) -> dict[str, float]:
        """The means of the epoch over its steps and the ranks."""
        means = {name: self._mean(total / self.count) for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: of this epoch what the ranks have on average, since all of them go on from it."""
        sums = {name: self._mean(total) for name, total in self.sums.items()}
        return {"sums": sums, "count": self.count, "skipped": self.skipped, "losses": self.losses.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums, self.count, self.skipped = state["sums"], state["count"], state["skipped"]
        self.losses.load_state_dict(state["losses"])

    def _mean(self, value: float) -> float:
        return float(distributed.mean(torch.tensor(value, dtype=torch.float64), self.world))

    def _enter(self, step: Step, values: dict[str, float]) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if (loss := values.get("loss")) is None:
            return
        self.latest, mean = loss, self.losses.mean
        if self.losses.is_spike(loss):
            self._tell(
                f"spike at step {step.number}: the loss is {loss:.4g}, lately {mean:.4g}; its samples: {_some(step)}"
            )

    def _leave_out(self, step: Step, wrong: str | None, max_skipped_steps: int) -> None:
        """Told by the ranks that are to blame, with their samples."""
        self.skipped += 1
        blamed = f"{self.stage}: {wrong} at step {step.number} on rank {self.world.rank}; its samples: {_some(step)}"
        if self.skipped <= max_skipped_steps:
            if wrong:
                print(f"{blamed}; the step is left out", file=sys.stderr)
        elif wrong:
            raise FloatingPointError(f"{blamed}; lower base_lr or set precision to fp32")
        else:
            raise FloatingPointError(f"{self.stage}: not finite at step {step.number}, on another rank than this")

    def _tell(self, what: str) -> None:
        if self.world.leads:
            print(f"{self.stage}: {what}", file=sys.stderr)


def _bad(computed: dict[str, Tensor], world: distributed.World) -> Tensor:
    """1 if anything is not finite, else 0."""
    wrong = [~torch.isfinite(value.detach()).all() for value in computed.values()]
    none = torch.zeros((), dtype=torch.float64, device=world.device)
    return torch.stack([none, *(one.to(none) for one in wrong)]).amax()


def _wrong(values: dict[str, float], *, lost: bool) -> str | None:
    """What is not finite here, None if nothing is; where a rank's loss was `lost`, everybody's gradient is, for which
    only a loss of one's own is to blame.
    """
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    name = "loss" if lost else next(iter(wrong), "")
    return f"the {name} is {wrong[name]}" if name in wrong else None


def _some(step: Step) -> str:
    keys = step.batch["key"]
    return ", ".join(keys[:8]) + (" ..." if len(keys) > 8 else "")
