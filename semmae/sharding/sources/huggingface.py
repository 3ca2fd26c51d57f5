"""A source for datasets on the Hugging Face hub, and for local folders that the `datasets` library can load.

The library is optional (`pip install 'semmae[hf]'`), so this module imports it only when a source needs it. A local
folder needs no network. Images keep their encoded bytes.
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
from semmae.sharding.sources.source import FileSource
from semmae.sharding.sources.source_item import (
    Blob,
    Fraction,
    LocalPath,
    MaskNames,
    SourceItem,
    Split,
    Weight,
    label_name,
    printable,
    sort_labels,
)


@dataclass(frozen=True, config=STRICT)
class Hub:
    """A dataset on the hub."""

    name: LocalPath  # e.g. ethz/food101
    subset: str | None  # configuration of a dataset that has several
    revision: str | None  # commit, tag or branch; null: the newest


@dataclass(frozen=True, config=STRICT)
class Columns:
    """The columns of images and labels."""

    image: str
    label: str | None


@dataclass(frozen=True, config=STRICT)
class ColumnMasks(MaskNames):
    """8-bit PNG masks in a column."""

    column: str


@dataclass(frozen=True, config=STRICT)
class HuggingFace(FileSource):
    """A dataset that `datasets.load_dataset` can load."""

    kind: Literal["hf"]
    path: LocalPath | None  # a local folder; null with `hub`
    hub: Hub | None  # a dataset on the hub; null with `path`
    splits: Annotated[dict[Split, str], Field(min_length=1)]  # the split of the dataset for each of our splits
    columns: Columns
    val_fraction: Fraction
    masks: ColumnMasks | None
    group: str | None = None  # column; val_fraction keeps images with the same value in one split
    weight: Weight = None

    @model_validator(mode="after")
    def _check(self) -> "HuggingFace":
        if (self.path is None) == (self.hub is None):
            raise ValueError(
                "give either path (a local folder) or hub (a dataset to download), and set the other to null"
            )
        if self.group is not None and self.val_fraction is None:
            raise ValueError("group is set, but val_fraction is null: only val_fraction uses group. Remove group")
        return self

    @property
    def location(self) -> str:
        return self.path or self.hub.name  # type: ignore[union-attr]  # exactly one is set

    def scan(self) -> Iterator[SourceItem]:
        for split in self.splits:
            table = self._table(split)
            names = self._label_names(table)
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
                group = None if group is None else printable(str(group))
                yield SourceItem(f"{split}/{number:06d}", split, name, None, None, refused, group)

    def read(self, item: SourceItem) -> tuple[bytes, bytes | None]:
        split, number = item.path.split("/")
        row = self._table(split)[int(number)]
        image = self._file_bytes(row[self.columns.image])
        if image is None:
            raise ValueError("the row has no image")
        return image, self._file_bytes(row[self.masks.column]) if self.masks else None

    def class_names(self, items: Iterable[SourceItem]) -> list[str]:
        names = self._label_names(self._table(next(iter(self.splits))))
        return names or sort_labels({item.label for item in items if item.label is not None})

    def _file_bytes(self, image: dict[str, Any] | None) -> bytes | None:
        """Return the bytes of an image. They are in the row, or in a file that the row names."""
        if image is None or image["path"] is None or image["bytes"] is not None:
            return None if image is None else image["bytes"]
        import datasets
        from huggingface_hub.constants import HF_HUB_CACHE

        path = os.path.abspath(image["path"])
        allowed = (self.path, datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
        if not any(folder and path.startswith(os.path.join(os.path.abspath(folder), "")) for folder in allowed):
            raise ValueError(f"the row names a file outside of its dataset: {printable(path)}")
        return Blob.of(path).read()

    def _label_names(self, table: Any) -> list[str] | None:
        """Return the class names of the label column; None if the column has no class names."""
        return None if self.columns.label is None else getattr(table.features[self.columns.label], "names", None)

    def _table(self, split: str) -> Any:
        """Load a split, with encoded images; raises ValueError if the split or a column does not exist."""
        images = (self.columns.image, *([self.masks.column] if self.masks else []))
        others = tuple(column for column in (self.columns.label, self.group) if column is not None)
        return _load_table(self.path, self.hub, self.splits[split], images, others)  # type: ignore[index]


@cache
def _load_table(
    path: str | None, hub: Hub | None, split: str, images: tuple[str, ...], other_columns: tuple[str, ...]
) -> Any:
    """Load a split once per process. Entries of the columns `images` are dicts of bytes and path."""
    dataset, location = _load_dataset(path, hub), path or hub.name  # type: ignore[union-attr]
    if split not in dataset:
        raise ValueError(f"{location} has no split {split!r}; it has {', '.join(dataset)}")
    table = dataset[split]
    for column in (*images, *other_columns):
        if column not in table.column_names:
            raise ValueError(f"{location} has no column {column!r}; it has {', '.join(table.column_names)}")
    import datasets

    for column in images:
        try:
            table = table.cast_column(column, datasets.Image(decode=False))
        except (TypeError, ValueError, pa.ArrowException):
            raise ValueError(
                f"{location} holds no images in column {column!r}: its type is {table.features[column]}"
            ) from None
    return table


@cache
def _load_dataset(path: str | None, hub: Hub | None) -> Any:
    """Load all splits by name, once per process."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "sources of kind hf need the datasets library, which is not installed. Run: pip install 'semmae[hf]'"
        ) from None
    if path is not None and not Path(path).is_dir():
        raise ValueError(f"{path} is not a folder; the path of a source is absolute, or relative to data/raw")
    try:
        if hub is None:
            return datasets.load_dataset(path)
        return datasets.load_dataset(hub.name, hub.subset, revision=hub.revision)
    except Exception as error:  # the library raises many types of errors for damaged files
        cause = error.__cause__ or error
        reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
        raise ValueError(f"the datasets library cannot load {path or hub}: {reason}") from None
