"""The steps of a run and their batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from semmae.core.distributed import World
from semmae.data.dataset import TrainingImages
from semmae.data.epoch_order import epoch_size
from semmae.data.loader import batches

LoadSample = Callable[[Any, int, int], dict[str, Any]]  # (images, image index, epoch) -> sample


@dataclass(frozen=True)
class Step:
    """One optimizer step of a run.

    Attributes:
        number: Index of the step in the run, from 0.
        steps: Number of steps of the run.
        per_epoch: Number of steps of an epoch.
        epoch: Index of the epoch, from 0.
        batch: This rank's share of the batch.
        ends_epoch: Whether this is the last step of its epoch.
        is_retry: Whether the first attempt was not finite; the loop then computes the step in fp32.
    """

    number: int
    steps: int
    per_epoch: int
    epoch: int
    batch: dict[str, Any]
    ends_epoch: bool
    is_retry: bool = False

    @property
    def progress(self) -> float:
        """Progress of the run: 0 at its first step, 1 at its last."""
        return self.number / max(1, self.steps - 1)

    @property
    def ends_run(self) -> bool:
        """Whether this is the last step of the run."""
        return self.number == self.steps - 1


def steps_per_epoch(stage: str, images: TrainingImages, batch_size: int) -> int:
    """Return the number of full batches in an epoch.

    Raises:
        ValueError: An epoch has no full batch.
    """
    size = epoch_size(len(images), images.weights)
    if size < batch_size:
        raise ValueError(f"{stage}: batch_size is {batch_size}, but an epoch has {size} samples")
    return size // batch_size


class StepPlan:
    """The order of a run's steps and batches. It depends on the dataset, the seed and the batch size only.

    Each rank gets its slice of a batch. An incomplete batch at the end of an epoch is dropped.

    Args:
        stage: Name of the stage, for messages.
        load: A function that loads a sample. Worker processes call it.
        batch_size: Samples per step over all ranks.
        epochs: Number of epochs; None with `steps`.
        steps: Number of steps; the last epoch may be incomplete. None with `epochs`.
        workers: Number of processes that load samples. With 0, this process loads them between the steps.

    Attributes:
        per_epoch: Number of steps of an epoch.
        steps: Number of steps of the run.

    Raises:
        ValueError: An epoch has no full batch, or the ranks cannot share a batch evenly.
    """

    def __init__(
        self,
        stage: str,
        world: World,
        images: TrainingImages,
        load: LoadSample,
        *,
        batch_size: int,
        epochs: int | None,
        steps: int | None,
        seed: int,
        workers: int,
    ) -> None:
        if batch_size % world.size:
            raise ValueError(f"{stage}: batch_size is {batch_size}; {world.size} processes cannot share it evenly")
        self.per_epoch = steps_per_epoch(stage, images, batch_size)
        self.steps = (epochs or 0) * self.per_epoch if steps is None else steps
        self._world, self._images, self._load = world, images, load
        self._batch_size, self._seed, self._workers = batch_size, seed, workers

    def steps_from(self, number: int) -> Iterator[Step]:
        """Yield the steps from index `number` on, with this rank's share of their batches."""
        size = self._batch_size // self._world.size  # of this rank's share of a batch
        while number < self.steps:
            epoch, first_step = divmod(number, self.per_epoch)
            order = self._images.epoch_order(seed=self._seed, epoch=epoch)[: self.per_epoch * self._batch_size]
            last_step = self.steps - epoch * self.per_epoch  # an incomplete epoch ends before its last batch
            batch_indices = order.reshape(self.per_epoch, self._world.size, size)[first_step:last_step]
            indices = batch_indices[:, self._world.rank].reshape(-1)
            load = _LoadAtEpoch(self._load, epoch)
            for batch in batches(self._images, indices, load, batch_size=size, workers=self._workers):
                ends_epoch = (number + 1) % self.per_epoch == 0 or number + 1 == self.steps
                yield Step(number, self.steps, self.per_epoch, epoch, batch, ends_epoch)
                number += 1


@dataclass(frozen=True)
class _LoadAtEpoch:
    """Calls `load` for one epoch. It is a class, because a closure cannot be pickled for worker processes."""

    load: LoadSample
    epoch: int

    def __call__(self, images: TrainingImages, index: int) -> dict[str, Any]:
        return self.load(images, index, self.epoch)
