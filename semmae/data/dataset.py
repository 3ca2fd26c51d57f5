"""Read the samples of a dataset by index, and verify the shards of a dataset."""

import copy
import errno
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float64, Int64, Integer, UInt8

from semmae.core import hash_cache
from semmae.core.atomic_files import read_json
from semmae.data import decoding, epoch_order, sample_table


@runtime_checkable
class ImageSequence(Protocol):
    """Images with keys, in a fixed order: the samples of a dataset (`Reader`), or the files of a folder."""

    @property
    def keys(self) -> list[str]:
        """Name of each image."""
        ...

    def __len__(self) -> int: ...

    def image(self, index: SupportsIndex, *, at_least: tuple[int, int] = (0, 0)) -> UInt8[np.ndarray, "h w 3"]:
        """Decode an image, upright, in RGB.

        Args:
            at_least: Minimum rows and columns of the result. The decoder may reduce the image, but not below this
                size. (0, 0) requires the full size.
        """
        ...


class TrainingImages(ImageSequence, Protocol):
    """Images that a run visits in epochs: the samples of a dataset (`Reader`), or image files (`ImageFiles`)."""

    @property
    def weights(self) -> Float64[np.ndarray, " n"] | None:
        """Average number of times that an epoch visits each image; None: once."""
        ...

    def epoch_order(self, *, seed: int, epoch: int) -> Int64[np.ndarray, " k"]:
        """Compute the order of the image indices in a training epoch."""
        ...


class Reader:
    """The samples of one split of a dataset, read from its shards by offset.

    The reader holds the index in memory and opens a shard at the first read. It can be pickled and forked.

    Args:
        dataset: Folder with index.parquet and shards.json.
        split: Name of the split; None reads all splits.
        verify: Compare the index and all shards with their digests first.

    Raises:
        ValueError: The folder is not a dataset or has no such split. With `verify`: the index or a shard is damaged.
    """

    def __init__(self, dataset: Path, split: str | None = None, verify: bool = False) -> None:
        self.dataset = Path(dataset)
        require_dataset(self.dataset)
        if verify:
            verify_shards(self.dataset)
        self.meta: dict[str, Any] = read_json(self.dataset / "shards.json")
        self.samples, self._shard_names = sample_table.read(self.dataset, split, self.meta["sources"])
        self.shuffle_shards: int | None = None
        self._paths = shard_paths(self.dataset, self.meta)
        self._files: dict[str, io.FileIO] = {}

    def __len__(self) -> int:
        return len(self.samples.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # another process opens its own files

    @property
    def keys(self) -> list[str]:
        """Key of each sample."""
        return self.samples.keys

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Index of the class of each sample in `class_names`; -1 for a sample without a label."""
        return self.samples.label

    @property
    def weights(self) -> Float64[np.ndarray, " n"] | None:
        """Average number of times that a training epoch visits each sample; None: once."""
        return self.samples.weight

    @property
    def shards(self) -> list[str]:
        """File name of the shard of each sample. The list is built at every access."""
        return [self._shard_names[number] for number in self.samples.shard.tolist()]

    def rows_in_shard(self) -> Int64[np.ndarray, " n"]:
        """Position of each sample in its shard."""
        return self.samples.row

    @property
    def has_mask(self) -> Bool[np.ndarray, " n"]:
        """Whether each sample has a mask."""
        return self.samples.mask_range[:, 0] >= 0

    @property
    def class_names(self) -> list[str]:
        return self.meta["class_names"]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def mask_kind(self) -> str | None:
        """`foreground`, `parts` or `classes`; None: the dataset has no masks."""
        return self.meta["mask_kind"]

    @property
    def mask_names(self) -> list[str]:
        """Names of the mask values 0, 1, 2, …"""
        return self.meta["mask_names"]

    def encoded(self, index: SupportsIndex) -> bytes:
        """Read the encoded bytes of an image."""
        return self._read(index, self.samples.image_range)

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        """Height and width of the upright image, in pixels."""
        height, width = self.samples.size[index].tolist()
        return height, width

    def image(self, index: SupportsIndex, *, at_least: tuple[int, int] = (0, 0)) -> UInt8[np.ndarray, "h w 3"]:
        """Decode an image, upright, in RGB; see `ImageSequence.image`.

        Raises:
            ValueError: The shard is missing or damaged.
        """
        return self._decode(index, partial(decoding.to_rgb, at_least=at_least), self.samples.image_range)

    def mask(self, index: SupportsIndex) -> UInt8[np.ndarray, "h w"] | None:
        """Decode the mask of a sample; it matches the upright image. Return None for a sample without a mask."""
        if self.samples.mask_range[index, 0] < 0:
            return None
        decode = partial(decoding.decode_mask, num_names=len(self.mask_names))
        return self._decode(index, decode, self.samples.mask_range)

    def select(self, indices: Integer[np.ndarray, " n"]) -> "Reader":
        """Make a view of the samples at `indices`, in that order."""
        view = copy.copy(self)
        view.samples, view._files = self.samples.take(indices), self._files  # views share the open files
        return view

    def with_shuffle_shards(self, shuffle_shards: int | None) -> "Reader":
        """Make a view whose epochs shuffle this many shards at a time; None shuffles all samples together."""
        view = copy.copy(self)
        view.shuffle_shards, view._files = shuffle_shards, self._files
        return view

    def epoch_order(self, *, seed: int, epoch: int) -> Int64[np.ndarray, " k"]:
        """Compute the order of the sample indices in a training epoch, from `weights` and `shuffle_shards`."""
        return epoch_order.epoch_order(
            len(self),
            seed=seed,
            epoch=epoch,
            weights=self.weights,
            shards=self.samples.shard,
            shuffle_shards=self.shuffle_shards,
        )

    def _decode(
        self, index: SupportsIndex, decode: Callable[[bytes], np.ndarray], byte_ranges: np.ndarray
    ) -> np.ndarray:
        data = self._read(index, byte_ranges)
        try:
            return decode(data)
        except ValueError as error:
            raise self._damaged_sample(index, str(error)) from None

    def _read(self, index: SupportsIndex, byte_ranges: np.ndarray) -> bytes:
        offset, num_bytes = byte_ranges[index].tolist()
        shard = self._shard_names[self.samples.shard[index]]
        if shard not in self._files:
            try:
                self._files[shard] = io.FileIO(self._paths[shard])
            except OSError as error:
                if error.errno == errno.EMFILE:
                    raise ValueError(
                        f"{len(self._files)} shard(s) are open, and the system allows no more files: raise `ulimit -n`"
                    ) from None
                raise self._damaged_sample(index, str(error.strerror)) from None
        data = os.pread(self._files[shard].fileno(), num_bytes, offset)
        if len(data) < num_bytes:
            raise self._damaged_sample(index, "the shard is truncated")
        return data

    def _damaged_sample(self, index: SupportsIndex, problem: str) -> ValueError:
        path, key = self._paths[self._shard_names[self.samples.shard[index]]], self.keys[index]
        return ValueError(f"{path}, sample {key}: {problem}; {_remedy(self.dataset, path)}")


def shard_paths(dataset: Path, meta: dict[str, Any]) -> dict[str, Path]:
    """Map the shard names of the index to paths.

    A tar that is indexed in place has a `location`. All other shards are in the folder of the dataset.
    """
    return {shard["file"]: Path(shard.get("location", dataset / shard["file"])) for shard in meta["shards"]}


def require_dataset(folder: Path) -> None:
    """Raise a ValueError that lists the datasets beside `folder`, unless `folder` is a dataset."""
    if not (folder / "index.parquet").is_file():
        known = ", ".join(sorted(index.parent.name for index in folder.parent.glob("*/index.parquet"))) or "none"
        raise ValueError(
            f"{folder} is not a dataset; expected one of: {known}. To write another one, run: "
            f"dvc repro shards@{folder.name}"
        )


def verify_shards(dataset: Path) -> None:
    """Compare the index and all shards of a dataset with the digests in shards.json.

    Raises:
        ValueError: The index or a shard is damaged, or a shard is missing.
    """
    meta = read_json(dataset / "shards.json")
    paths, index = shard_paths(dataset, meta), dataset / "index.parquet"
    expected = meta.get("index_sha256")  # missing in datasets of older versions
    if expected is not None and hash_cache.cached_digest(index) != expected:
        raise ValueError(
            f"{index} is damaged: its digest differs from the one in shards.json; {_remedy(dataset, index)}"
        )
    for shard in meta["shards"]:
        path = paths[shard["file"]]
        if not path.exists():
            raise ValueError(f"{path} is missing; {_remedy(dataset, path)}")
        if (
            not path.is_file()
            or path.stat().st_size != shard["bytes"]
            or hash_cache.cached_digest(path) != shard["sha256"]
        ):
            raise ValueError(
                f"{path} is damaged: its digest differs from the one in shards.json; {_remedy(dataset, path)}"
            )


def _remedy(dataset: Path, path: Path) -> str:
    stage = f"shards@{dataset.name}"
    if path.parent == dataset:
        return f"restore it (dvc checkout --force {stage}) or write it again (dvc repro -f {stage})"
    return f"it is indexed in place: restore the file, or index it again (dvc repro -f {stage})"
