"""A dataset on disk as a sequence of samples with random access, and the verification of its shards."""

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
            at_least: Rows and columns that the image must keep. A decoder that can reduce the image while it decodes
                may do so down to this size; (0, 0) requires the full size.
        """
        ...


class Reader:
    """The samples of one split of a dataset, read from its shards by offset.

    The reader holds the index in memory and opens a shard at the first read. It can be pickled and forked.

    Args:
        dataset: Folder with index.parquet and shards.json.
        split: Name of the split; None reads all splits.
        verify: Compare all shards with their digests first.

    Raises:
        ValueError: The folder is no dataset, it has no such split, or a shard is missing or damaged.
    """

    def __init__(self, dataset: Path, split: str | None = None, verify: bool = False) -> None:
        self.dataset = Path(dataset)
        if not (self.dataset / "index.parquet").is_file():
            raise ValueError(f"{self.dataset} is no dataset; run: dvc repro shards@{self.dataset.name}")
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
        """Index into `class_names` of each sample; -1 without a label."""
        return self.samples.label

    @property
    def weights(self) -> Float64[np.ndarray, " n"] | None:
        """How often an epoch of training repeats each sample; None: each sample once."""
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
        return self.samples.mask_span[:, 0] >= 0

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
        return self._read(index, self.samples.image_span)

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        """Height and width of the upright image, in pixels."""
        height, width = self.samples.size[index].tolist()
        return height, width

    def image(self, index: SupportsIndex, *, at_least: tuple[int, int] = (0, 0)) -> UInt8[np.ndarray, "h w 3"]:
        """Decode an image, upright, in RGB; see `ImageSequence.image`.

        Raises:
            ValueError: The shard is missing or damaged.
        """
        return self._decode(index, partial(decoding.to_rgb, at_least=at_least), self.samples.image_span)

    def mask(self, index: SupportsIndex) -> UInt8[np.ndarray, "h w"] | None:
        """Decode the mask of an image, in the coordinates of the upright image; None without a mask."""
        if self.samples.mask_span[index, 0] < 0:
            return None
        decode = partial(decoding.decode_mask, num_names=len(self.mask_names))
        return self._decode(index, decode, self.samples.mask_span)

    def select(self, indices: Integer[np.ndarray, " n"]) -> "Reader":
        """Make a view of the samples at `indices`, in that order."""
        view = copy.copy(self)  # shares the open files
        view.samples = self.samples.take(indices)
        return view

    def with_shuffle_shards(self, shuffle_shards: int | None) -> "Reader":
        """Make a view whose epochs mix the samples of this many shards at a time; None mixes all samples."""
        view = copy.copy(self)
        view.shuffle_shards = shuffle_shards
        return view

    def epoch_order(self, *, seed: int, epoch: int) -> Int64[np.ndarray, " k"]:
        """Compute the sample indices of an epoch of training, from `weights` and `shuffle_shards`."""
        return epoch_order.epoch_order(
            len(self),
            seed=seed,
            epoch=epoch,
            weights=self.weights,
            shards=self.samples.shard,
            shuffle_shards=self.shuffle_shards,
        )

    def _decode(self, index: SupportsIndex, decode: Callable[[bytes], np.ndarray], span: np.ndarray) -> np.ndarray:
        data = self._read(index, span)
        try:
            return decode(data)
        except ValueError as error:
            raise self._damaged_sample(index, str(error)) from None

    def _read(self, index: SupportsIndex, span: np.ndarray) -> bytes:
        offset, size = span[index].tolist()
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
        data = os.pread(self._files[shard].fileno(), size, offset)
        if len(data) < size:
            raise self._damaged_sample(index, "the shard is truncated")
        return data

    def _damaged_sample(self, index: SupportsIndex, problem: str) -> ValueError:
        path, key = self._paths[self._shard_names[self.samples.shard[index]]], self.keys[index]
        return ValueError(f"{path}, sample {key}: {problem}; {_remedy(self.dataset, path)}")


def shard_paths(dataset: Path, meta: dict[str, Any]) -> dict[str, Path]:
    """Map the shard names in the index to paths: in the folder of the dataset, or where a tar was indexed in place."""
    return {shard["file"]: Path(shard.get("location", dataset / shard["file"])) for shard in meta["shards"]}


def verify_shards(dataset: Path) -> None:
    """Compare the index and all shards of a dataset with the digests in shards.json.

    Raises:
        ValueError: The index or a shard is missing, or its bytes have changed.
    """
    meta = read_json(dataset / "shards.json")
    paths, index = shard_paths(dataset, meta), dataset / "index.parquet"
    expected = meta.get("index_sha256")  # missing in datasets of older versions
    if expected is not None and hash_cache.cached_digest(index) != expected:
        raise ValueError(f"{index} is damaged: its bytes are not those in shards.json; {_remedy(dataset, index)}")
    for shard in meta["shards"]:
        path = paths[shard["file"]]
        if not path.exists():
            raise ValueError(f"{path} is missing; {_remedy(dataset, path)}")
        if (
            not path.is_file()
            or path.stat().st_size != shard["bytes"]
            or hash_cache.cached_digest(path) != shard["sha256"]
        ):
            raise ValueError(f"{path} is damaged: its bytes are not those in shards.json; {_remedy(dataset, path)}")


def _remedy(dataset: Path, path: Path) -> str:
    stage = f"shards@{dataset.name}"
    if path.parent == dataset:
        return f"restore it (dvc checkout --force {stage}) or write it again (dvc repro -f {stage})"
    return f"it is indexed in place: restore the file, or index it again (dvc repro -f {stage})"
