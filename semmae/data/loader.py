"""Load batches of samples in a given order, in this process or in worker processes."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Integer

from semmae.core.worker_pool import ordered_map
from semmae.data.dataset import ImageSequence

Images = TypeVar("Images", bound=ImageSequence)


def batches(
    images: Images,
    indices: Integer[np.ndarray, " n"],
    load: Callable[[Images, int], dict[str, Any]],
    *,
    batch_size: int,
    workers: int,
) -> Iterator[dict[str, Any]]:
    """Load samples in the order of `indices` and collate them; the last batch may be smaller.

    Args:
        load: Loads one sample as a dict of arrays, numbers and strings.
        workers: Number of processes that load batches in advance; 0 loads in this process.

    Returns:
        Dicts with the keys that `load` returns. Arrays and numbers become tensors of the same type. Strings become
        lists.

    Raises:
        ValueError: An image cannot be read.
    """
    return load_groups(
        images, [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)], load, workers=workers
    )


def load_groups(
    images: Images, groups: Iterable[Any], load: Callable[[Images, int], dict[str, Any]], *, workers: int
) -> Iterator[dict[str, Any]]:
    """Load batches as `batches` does: one batch for each group of sample indices."""
    # pinned memory allows asynchronous copies to the device
    load_batch = partial(_load_batch, images, load)
    return ordered_map(load_batch, list(groups), workers=workers, pin_memory=torch.cuda.is_available())


def _load_batch(images: Images, load: Callable[[Images, int], dict[str, Any]], indices: Any) -> dict[str, Any]:
    samples = [load(images, index) for index in np.asarray(indices).tolist()]
    return {name: _collate([sample[name] for sample in samples]) for name in samples[0]}


def _collate(values: list[Any]) -> Any:
    return values if isinstance(values[0], str) else torch.from_numpy(np.stack(values))
