"""Datasets of the Hugging Face hub, or a local folder as the `datasets` library understands it (Parquet, images).

The library is optional (`pip install 'semmae[hf]'`) and imported when a source asks for it. A local folder needs no
network; images keep their own bytes.
"""

import os
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT
from semmae.sharding.sources.source_item import (
    Blob,
    Entry,
    Fraction,
    MaskNames,
    PlainPath,
    Split,
    Weight,
    in_order,
    label_name,
    printable,
)


@dataclass(frozen=True, config=STRICT)
class Hub:
    """A dataset on the hub."""

    name: PlainPath  # e.g. ethz/food101
    subset: str | None  # its configuration, where it has several
    revision: str | None  # a commit, a tag or a branch; null: the newest


@dataclass(frozen=True, config=STRICT)
class Columns:
    """Which columns hold what."""

    image: str
    label: str | None


@dataclass(frozen=True, config=STRICT)
class ColumnMasks(MaskNames):
    """The masks in a column: 8-bit PNG."""

    column: str


@dataclass(frozen=True, config=STRICT)
class HuggingFace:
    """What `datasets.load_dataset` loads."""

    kind: Literal["hf"]
    path: PlainPath | None  # a local folder, or
    hub: Hub | None  # a dataset on the hub
    splits: Annotated[dict[Split, str], Field(min_length=1)]  # our splits to those of the dataset
    columns: Columns
    val_fraction: Fraction
    masks: ColumnMasks | None
    group: str | None = None  # what val_fraction keeps together: images with the same value in this column
    weight: Weight = None

    @model_validator(mode="after")
    def _makes_sense(self) -> "HuggingFace":
        if (self.path is None) == (self.hub is None):
            raise ValueError("give either path (a local folder) or hub (a dataset to download), the other is null")
        if self.group is not None and self.val_fraction is None:
            raise ValueError("group says what val_fraction keeps together; without val_fraction leave it out")
        return self

    @property
    def where(self) -> str:
        return self.path or self.hub.name  # type: ignore[union-attr]  # one of both is given

    def listed(self) -> Iterator[Entry]:
        """The entries, numbered in each split."""
        for split in self.splits:
            table = self._table(split)
            names = self._names(table)
            labels, groups = (
                table.with_format(None)[column][:] if column else [None] * len(table)
                for column in (self.columns.label, self.group)
            )
            for number, (label, group) in enumerate(zip(labels, groups, strict=True)):
                name, refused = None, ""
                try:
                    name = label_name(label, names)
                except ValueError as error:
                    refused = str(error)
                path = f"{split}/{number:06d}"
                yield Entry(path, split, name, None, None, refused, None if group is None else printable(str(group)))

    def fetch(self, entry: Entry) -> tuple[bytes, bytes | None]:
        split, number = entry.path.split("/")
        row = self._table(split)[int(number)]
        image = self._bytes(row[self.columns.image])
        if image is None:
            raise ValueError("the row has no image")
        return image, self._bytes(row[self.masks.column]) if self.masks else None

    def class_names(self, found: Iterable[Entry]) -> list[str]:
        names = self._names(self._table(next(iter(self.splits))))
        return names or in_order({entry.label for entry in found if entry.label is not None})

    def _bytes(self, image: dict[str, Any] | None) -> bytes | None:
        """The file of an image: its bytes, or what its path holds; a row may name files of its own dataset only."""
        if image is None or image["path"] is None or image["bytes"] is not None:
            return None if image is None else image["bytes"]
        import datasets
        from huggingface_hub.constants import HF_HUB_CACHE

        path, homes = os.path.abspath(image["path"]), (self.path, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
        if not any(home and path.startswith(os.path.join(os.path.abspath(home), "")) for home in homes):
            raise ValueError(f"the row names a file outside of its dataset: {printable(path)}")
        return Blob.of(path).read()

    def _names(self, table: Any) -> list[str] | None:
        """The names that a column of class labels brings."""
        return None if self.columns.label is None else getattr(table.features[self.columns.label], "names", None)

    def _table(self, split: str) -> Any:
        """A split, whose images are left as bytes. ValueError: it, or a column of it, does not exist."""
        pictures = (self.columns.image, *([self.masks.column] if self.masks else []))
        others = tuple(column for column in (self.columns.label, self.group) if column is not None)
        return _table(self.path, self.hub, self.splits[split], pictures, others)  # type: ignore[index]


@cache
def _table(path: str | None, hub: Hub | None, split: str, pictures: tuple[str, ...], others: tuple[str, ...]) -> Any:
    """A split with its `pictures` as {bytes, path}, once per process."""
    splits, where = _loaded(path, hub), path or hub.name  # type: ignore[union-attr]
    if split not in splits:
        raise ValueError(f"{where} has no split {split!r}; it has {', '.join(splits)}")
    table = splits[split]
    for column in (*pictures, *others):
        if column not in table.column_names:
            raise ValueError(f"{where} has no column {column!r}; it has {', '.join(table.column_names)}")
    import datasets

    for column in pictures:
        try:
            table = table.cast_column(column, datasets.Image(decode=False))
        except (TypeError, ValueError, pa.ArrowException):
            raise ValueError(f"{where} holds no images in column {column!r}: {table.features[column]}") from None
    return table


@cache
def _loaded(path: str | None, hub: Hub | None) -> Any:
    """All splits by name, once per process."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "sources of kind hf need the datasets library, which is not installed: pip install 'semmae[hf]'"
        ) from None
    if path is not None and not Path(path).is_dir():
        raise ValueError(f"{path} is not a folder; the path of a source is absolute, or relative to data/raw")
    try:
        if hub is None:
            return datasets.load_dataset(path)
        return datasets.load_dataset(hub.name, hub.subset, revision=hub.revision)
    except Exception as error:  # the library raises whatever its parsing meets
        cause = error.__cause__ or error
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise ValueError(f"the datasets library cannot load {path or hub}: {reason}") from None
