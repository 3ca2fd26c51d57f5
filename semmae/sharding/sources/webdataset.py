"""WebDataset shards that exist already, e.g. img2dataset's: read where they lie, and indexed there if so wanted.

A sample is a run of members with one key, as WebDataset has it: of `a/7.mask.png` the key is `a/7`, what follows the
first dot of the base name is the extension. Members that are neither image, mask nor asked for are left alone.
"""

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from braceexpand import braceexpand
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT
from semmae.sharding.sources import tar as tars
from semmae.sharding.sources.layout import EXTENSIONS
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

MEMBER = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)  # key and extension
META = re.compile(r"__[^/]*__($|/)")  # what WebDataset skips


@dataclass(frozen=True, config=STRICT)
class Labels:
    """Where a sample's label stands: in its member `cls`, or in a field of its member `json`."""

    member: Literal["cls", "json"]
    field: str | None  # of json; null for cls
    names: list[str] | None  # what numbers mean; null: numbers and texts are names themselves

    @model_validator(mode="after")
    def _field_is_of_json(self) -> "Labels":
        if (self.member == "json") != (self.field is not None):
            raise ValueError("member json needs a field, member cls has none (null)")
        return self


@dataclass(frozen=True, config=STRICT)
class MemberMasks(MaskNames):
    """The masks of shards: 8-bit PNG with the extension `member`, e.g. mask.png."""

    member: str


@dataclass(frozen=True, config=STRICT)
class WebDataset:
    """Existing shards in a folder."""

    kind: Literal["webdataset"]
    path: PlainPath
    shards: Annotated[dict[Split, PlainPath], Field(min_length=1)]  # globs and {000..123} ranges, under `path`
    in_place: bool  # the index points into these very tars; false: samples are copied like those of other sources
    val_fraction: Fraction
    labels: Labels | None
    masks: MemberMasks | None
    group: str | None = None  # what val_fraction keeps together: images with the same value in this field of json
    weight: Weight = None

    @model_validator(mode="after")
    def _groups_make_sense(self) -> "WebDataset":
        if self.group is not None and self.val_fraction is None:
            raise ValueError("group says what val_fraction keeps together; without val_fraction leave it out")
        return self

    @property
    def where(self) -> str:
        return self.path

    def listed(self) -> Iterator[Entry]:
        """The entries, tar by tar."""
        split_of: dict[str, Split] = {}
        for split, pattern in self.shards.items():
            for name in _files(Path(self.path), pattern):
                if split_of.setdefault(name, split) != split:
                    raise ValueError(f"{self.path}: {name} is in split {split_of[name]} and in split {split}")
        fields: list[str] = []
        has_label = False
        for name, split in sorted(split_of.items()):
            for entry, known in self._samples(name, split):
                has_label = has_label or entry.label is not None or entry.refused.startswith("the label")
                fields = fields or known
                yield entry
        if self.labels and not has_label:
            given = f"; fields of the first json are: {printable(', '.join(fields))}" if fields else ""
            what = "a member .cls" if self.labels.field is None else f"a field {self.labels.field!r} in its json"
            raise ValueError(f"{self.path}: no sample has {what}, where labels should stand{given}")

    def _samples(self, name: str, split: Split) -> Iterator[tuple[Entry, list[str]]]:
        """The entries of one tar, with the fields of their json (if it was read)."""
        seen: Counter[str] = Counter()
        tar = os.path.abspath(os.path.join(self.path, name))
        for key, members in _grouped(Path(tar)):
            seen[key] += 1
            ordinal = "" if seen[key] == 1 else f"#{seen[key]}"
            images = [extension for extension, _ in members if f".{extension}" in EXTENSIONS]
            path = printable(f"{name}/{key}" + (f".{images[0]}" if len(images) == 1 else "") + ordinal)
            found, fields, label, group, refused = {}, {}, None, None, ""
            try:
                found = _judged(key, members, images, again=seen[key] > 1)
                fields = self._fields(found)
                label = self._label(found, fields)
                value = None if self.group is None else fields.get(self.group)
                group = None if value is None else printable(str(value))
            except ValueError as error:
                refused = printable(str(error))
            mask = found.get(self.masks.member) if self.masks else None
            image = found[images[0]] if found else None
            yield Entry(path, split, label, image, mask, refused, group, key + ordinal), list(fields)

    def _fields(self, members: dict[str, Blob]) -> dict[str, Any]:
        """The member json, empty where there is none or nothing is asked of it."""
        wanted = self.group is not None or (self.labels is not None and self.labels.member == "json")
        if not wanted or "json" not in members:
            return {}
        try:
            fields = json.loads(members["json"].read())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its json is broken: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError("its json is no object with fields")
        return fields

    def _label(self, members: dict[str, Blob], fields: dict[str, Any]) -> str | None:
        if self.labels is None:
            return None
        if self.labels.field is not None:
            return label_name(fields.get(self.labels.field), self.labels.names)
        text = members["cls"].read().decode("utf-8", "backslashreplace").strip() if "cls" in members else None
        return label_name(text, self.labels.names)

    def without_masks(self, example: str) -> str:
        """What to say when no image has a mask."""
        assert self.masks is not None
        return f"e.g. {example}, has a mask; a mask is a member with the key of its image and .{self.masks.member}"

    def fetch(self, entry: Entry) -> tuple[bytes, bytes | None]:
        return entry.read()

    def class_names(self, found: Iterable[Entry]) -> list[str]:
        if self.labels and self.labels.names:
            return self.labels.names
        return in_order({entry.label for entry in found if entry.label is not None})


def _files(root: Path, pattern: str) -> list[str]:
    """The files under `root` that a pattern means. ValueError: one of its ranges or globs means none."""
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; the path of a source is absolute, or relative to data/raw")
    found: list[str] = []
    for part in braceexpand(pattern, escape=False):
        files = [name for name in glob.glob(part, root_dir=root, recursive=True) if (root / name).is_file()]
        if not files:
            raise ValueError(f"{root} has no file {part}" + (f", which {pattern} asks for" if part != pattern else ""))
        found += sorted(files)
    return found


def _grouped(tar: Path) -> Iterator[tuple[str, list[tuple[str, Blob | None]]]]:
    """The samples of a tar as WebDataset forms them: key, and the extension and place of each member, null for a link
    and whatever else is no file.
    """
    named = (
        (match.group(1), (match.group(2).lower(), tars.blob(tar, member)))
        for member in tars.members(tar)
        if not member.isdir() and not META.match(member.name)
        if (match := MEMBER.fullmatch(member.name))
    )
    for key, members in groupby(named, key=lambda pair: pair[0]):
        yield key, [member for _, member in members]


def _judged(key: str, members: list[tuple[str, Blob | None]], images: list[str], *, again: bool) -> dict[str, Blob]:
    """The members of a sample by extension. ValueError: why they are none."""
    extensions = [extension for extension, _ in members]
    if again:
        raise ValueError(f"the key comes twice in its shard: {key}")
    if not images:
        raise ValueError(f"the sample has no image: its members are {', '.join(extensions)}")
    if len(images) > 1:
        raise ValueError(f"the sample has several images: {', '.join(images)}")
    if len(set(extensions)) < len(extensions):
        raise ValueError(f"the sample has two members of one name: {', '.join(extensions)}")
    files = {extension: blob for extension, blob in members if blob}
    if len(files) < len(members):
        raise ValueError(tars.SPECIAL)
    return files
