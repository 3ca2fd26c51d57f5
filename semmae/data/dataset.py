"""A dataset as a sequence: random access to its samples by offset, batches of tensors.

- `Reader`: the samples of a split, in the order of the index; `verify_shards` compares the shards with their digests.
- `batches`: samples loaded in exactly a given order, here or in worker processes, as dicts of torch tensors.
"""

import copy
import errno
import io
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float64, Int64, Integer, UInt8
from torch.utils.data import DataLoader, Dataset

from semmae.core import hash_cache
from semmae.core.atomic_files import read_json
from semmae.data import decoding
from semmae.data import epoch_order as order

COLUMNS = (  # of the index, that reading takes; the last one only where sources have weights
    "key", "split", "shard", "offset", "size", "mask_offset", "mask_size", "height", "width", "label", "source",
)  # fmt: skip


class Reader:
    """The samples of one split (None: of all) of the dataset in a folder; `select` makes views.

    It holds the index in memory and opens a shard when it first reads from it; it may be pickled and forked. `weights`
    says how often an epoch of training sees each sample (None: each once), `window` how many shards it mixes at a time
    (None: all).
    """

    def __init__(self, dataset: Path, split: str | None = None, verify: bool = False) -> None:
        self.dataset = Path(dataset)
        if not (self.dataset / "index.parquet").is_file():
            raise ValueError(f"{self.dataset} is no dataset; run: dvc repro shards@{self.dataset.name}")
        if verify:
            verify_shards(self.dataset)
        self.meta: dict[str, Any] = read_json(self.dataset / "shards.json")
        self._paths = shard_paths(self.dataset, self.meta)
        columns = COLUMNS if _weighted(self.meta["sources"]) else COLUMNS[:-1]
        table = pq.read_table(self.dataset / "index.parquet", columns=list(columns))
        shards = table["shard"].combine_chunks().dictionary_encode()
        shard, names = shards.indices.to_numpy(), shards.dictionary.to_pylist()
        row = _rows(shard)
        if split is not None:
            splits = table["split"].unique().to_pylist()
            if split not in splits:
                raise ValueError(f"{self.dataset} has no split {split!r}; its splits are: {', '.join(splits)}")
            here = pc.equal(table["split"], split)
            chosen = here.to_numpy()
            table, shard, row = table.filter(here), shard[chosen], row[chosen]
        self.keys: list[str] = table["key"].to_pylist()
        self.shards: list[str] = [names[number] for number in shard.tolist()]  # one string per shard, not per sample
        self.labels = _integers(table["label"])
        self._image_span = np.stack([_integers(table["offset"]), _integers(table["size"])], axis=1)
        self._mask_span = np.stack([_integers(table["mask_offset"]), _integers(table["mask_size"])], axis=1)
        self._size = np.stack([_integers(table["height"]), _integers(table["width"])], axis=1).astype(np.int32)
        self._row, self._shard = row, shard
        self.weights = _weights(table["source"], self.meta["sources"]) if "source" in columns else None
        del table, shards
        pa.default_memory_pool().release_unused()  # Arrow keeps for itself what it has freed
        self.window: int | None = None
        self._files: dict[str, io.FileIO] = {}

    def __len__(self) -> int:
        return len(self.keys)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # another process opens its own

    @property
    def class_names(self) -> list[str]:
        return self.meta["class_names"]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def mask_kind(self) -> str | None:
        return self.meta["mask_kind"]

    @property
    def mask_names(self) -> list[str]:
        return self.meta["mask_names"]

    @property
    def has_mask(self) -> Bool[np.ndarray, " n"]:
        """Which samples have a mask, by the index."""
        return self._mask_span[:, 0] >= 0

    def encoded(self, index: SupportsIndex) -> bytes:
        """The bytes of an image as they are in its shard."""
        return self._read(index, self._image_span)

    def size(self, index: SupportsIndex) -> tuple[int, int]:
        """Height and width of an image, upright, in pixels."""
        height, width = self._size[index].tolist()
        return height, width

    def image(self, index: SupportsIndex, *, at_least: tuple[int, int] = (0, 0)) -> UInt8[np.ndarray, "h w 3"]:
        """An image in RGB, upright; reduced by its decoder if it can, to `at_least` so many rows and columns."""
        return self._decoded(index, partial(decoding.to_rgb, at_least=at_least), self._image_span)

    def mask(self, index: SupportsIndex) -> UInt8[np.ndarray, "h w"] | None:
        """The mask of an image in its upright coordinates, None where there is none."""
        if not self.has_mask[index]:
            return None
        return self._decoded(index, partial(decoding.mask_indices, num_names=len(self.mask_names)), self._mask_span)

    def select(self, ids: Integer[np.ndarray, " n"]) -> "Reader":
        """A view of the samples at `ids`, in that order."""
        view = copy.copy(self)
        view._files = self._files
        view.keys = [self.keys[i] for i in ids]
        view.shards = [self.shards[i] for i in ids]
        view.labels, view._row, view._shard = self.labels[ids], self._row[ids], self._shard[ids]
        view.weights = None if self.weights is None else self.weights[ids]
        view._image_span, view._mask_span, view._size = self._image_span[ids], self._mask_span[ids], self._size[ids]
        return view

    def windowed(self, window: int | None) -> "Reader":
        """A view whose epochs read so many shards at a time."""
        view = copy.copy(self)
        view.window = window
        return view

    def epoch_order(self, *, seed: int, epoch: int) -> Int64[np.ndarray, " k"]:
        """The samples of an epoch of training, by `weights` and `window`."""
        return order.epoch_order(
            len(self), seed=seed, epoch=epoch, weights=self.weights, shards=self._shard, window=self.window
        )

    def rows_in_shard(self) -> Int64[np.ndarray, " n"]:
        """The position of each sample in its shard."""
        return self._row

    def _decoded(self, index: SupportsIndex, decode: Callable[[bytes], np.ndarray], span: np.ndarray) -> np.ndarray:
        data = self._read(index, span)
        try:
            return decode(data)
        except ValueError as error:
            raise self._damage(index, str(error)) from None

    def _read(self, index: SupportsIndex, span: np.ndarray) -> bytes:
        offset, size = span[index].tolist()
        shard = self.shards[index]
        if shard not in self._files:
            try:
                self._files[shard] = io.FileIO(self._paths[shard])
            except OSError as error:
                if error.errno == errno.EMFILE:
                    raise ValueError(
                        f"{len(self._files)} shard(s) are open, and the system allows no more files: raise `ulimit -n`"
                    ) from None
                raise self._damage(index, str(error.strerror)) from None
        data = os.pread(self._files[shard].fileno(), size, offset)
        if len(data) < size:
            raise self._damage(index, "the shard ends before the sample does")
        return data

    def _damage(self, index: SupportsIndex, what: str) -> ValueError:
        name, key = self.shards[index], self.keys[index]
        return ValueError(f"{self._paths[name]}, sample {key}: {what}; {_remedy(self.dataset, self._paths[name])}")


def shard_paths(dataset: Path, meta: dict[str, Any]) -> dict[str, Path]:
    """Where the shards of a dataset lie, by the names that its index uses: beside it, or where they were found."""
    return {shard["file"]: Path(shard.get("location", dataset / shard["file"])) for shard in meta["shards"]}


def verify_shards(dataset: Path) -> None:
    """ValueError names what is missing or not what shards.json says it is: the index, or the first such shard."""
    meta = read_json(dataset / "shards.json")
    paths, index = shard_paths(dataset, meta), dataset / "index.parquet"
    if (told := meta.get("index_sha256")) is not None and hash_cache.cached_digest(
        index
    ) != told:  # older versions tell none
        raise ValueError(f"{index} is damaged: its bytes are not those in shards.json; {_remedy(dataset, index)}")
    for shard in meta["shards"]:
        path = paths[shard["file"]]
        if (
            not path.is_file()
            or path.stat().st_size != shard["bytes"]
            or hash_cache.cached_digest(path) != shard["sha256"]
        ):
            problem = "is damaged: its bytes are not those in shards.json" if path.exists() else "is missing"
            raise ValueError(f"{path} {problem}; {_remedy(dataset, path)}")


def _remedy(dataset: Path, shard: Path) -> str:
    stage = f"shards@{dataset.name}"
    if shard.parent == dataset:
        return f"restore it (dvc checkout --force {stage}) or write it again (dvc repro -f {stage})"
    return f"it was indexed there: put it back as it was, or index it again (dvc repro -f {stage})"


def batches(
    reader: Reader,
    ids: Integer[np.ndarray, " n"],
    load: Callable[[Reader, int], dict[str, Any]],
    *,
    batch_size: int,
    workers: int,
) -> Iterator[dict[str, Any]]:
    """`load(reader, i)` for the `ids` in exactly their order, collated by `batch_size`; the last batch may be short.

    Arrays and numbers become tensors of their own type, strings lists. `workers` processes load ahead; 0: this one.
    """
    return grouped(reader, [ids[i : i + batch_size] for i in range(0, len(ids), batch_size)], load, workers=workers)


def grouped(
    reader: Reader, groups: Iterable[Any], load: Callable[[Reader, int], dict[str, Any]], *,
    workers: int,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """`batches` of just these groups of samples, arrays of their ids, each a batch."""
    samples = _Batches(reader, list(groups), load)
    if workers == 0:
        loaded: Any = (samples[i] for i in range(len(samples)))
    else:
        loaded = DataLoader(
            samples,
            batch_size=None,
            num_workers=workers,
            collate_fn=_same,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # the loader would draw a seed from torch's global one
            pin_memory=torch.cuda.is_available(),  # or a copy to the device waits for it
        )
    for batch in loaded:
        if isinstance(batch, Exception):
            raise batch
        yield batch


class _Batches(Dataset):
    """Whole batches by number, for a DataLoader; a ValueError is handed over as it is, not as a worker's traceback."""

    def __init__(self, reader: Reader, groups: list, load: Callable) -> None:
        self.reader, self.groups, self.load = reader, groups, load

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> dict[str, Any] | ValueError:
        try:
            return _collated([self.load(self.reader, i) for i in np.asarray(self.groups[number]).tolist()])
        except ValueError as error:
            return error


def _collated(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: _column([sample[name] for sample in samples]) for name in samples[0]}


def _column(values: list[Any]) -> Any:
    return values if isinstance(values[0], str) else torch.from_numpy(np.stack(values))


def _same(batch: Any) -> Any:
    return batch


def _start_worker(_: int) -> None:
    """One thread per worker: they are many already. What stops a run stops all of its processes at once: a worker waits
    for the run, which saves its state first and ends its workers itself.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # none; 1 would wait for threads of the parent's that no fork has


def _rows(shard: Integer[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """0, 1, 2, ... within each run of equal numbers: the index lists a shard's samples together, in its order."""
    starts, number = np.diff(shard, prepend=-1) != 0, np.arange(len(shard))
    return number - np.maximum.accumulate(np.where(starts, number, 0))


def _weighted(sources: dict[str, Any]) -> bool:
    """Whether an epoch sees samples of some source more or less often than once."""
    return any(source.get("weight", 1.0) != 1.0 for source in sources.values())


def _weights(column: Any, sources: dict[str, Any]) -> Float64[np.ndarray, " n"]:
    """The weight of each sample by the source that its path begins with."""
    weight = {name: float(source.get("weight", 1.0)) for name, source in sources.items()}
    names = pc.list_element(pc.split_pattern(column, "/", max_splits=1), 0).combine_chunks().dictionary_encode()
    return np.array([weight[name] for name in names.dictionary.to_pylist()])[names.indices.to_numpy()]


def _integers(column: Any) -> Int64[np.ndarray, " n"]:
    """A column with -1 for null."""
    return column.fill_null(-1).to_numpy().astype(np.int64)
