"""A source that copies existing WebDataset shards (e.g. of img2dataset), or indexes them in place.

As in the webdataset library, consecutive members with the same key form a sample. The key of `a/7.mask.png` is `a/7`,
and its extension is `mask.png`: everything after the first dot of the file name. The source ignores members that are
neither an image, a mask nor a label.
"""

import glob
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from braceexpand import braceexpand
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from webdataset.tariterators import base_plus_ext

from semmae.core.config import STRICT
from semmae.sharding.sources import tar
from semmae.sharding.sources.source import FileSource
from semmae.sharding.sources.source_item import (
    EXTENSIONS,
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

SKIPPED = re.compile(r"__[^/]*__($|/)")  # members that webdataset skips by default (`skip_meta`)
RESERVED = ("__key__", "__url__", "__bad__", "__local_path__")  # extensions that webdataset reserves


@dataclass(frozen=True, config=STRICT)
class MemberLabels:
    """Where a sample stores its label: in its member `cls`, or in a field of its member `json`."""

    member: Literal["cls", "json"]
    field: str | None  # field of json; null for cls
    names: list[str] | None  # class names; a label is an index into this list; null: a label is the class name

    @model_validator(mode="after")
    def _check_field(self) -> "MemberLabels":
        if (self.member == "json") != (self.field is not None):
            raise ValueError("member json needs a field; for member cls, field must be null")
        return self


@dataclass(frozen=True, config=STRICT)
class MemberMasks(MaskNames):
    """The masks of shards: 8-bit PNG in the member with the extension `member`, such as mask.png."""

    member: str


class TarSample(NamedTuple):
    """The members of a tar that form one sample."""

    key: str
    members: dict[str, Blob | None]  # by lower-case extension; None for a member that is not a regular file
    refused: str  # reason to refuse the sample; "" if there is none

    @property
    def images(self) -> list[str]:
        """The extensions of the images."""
        return [extension for extension in self.members if f".{extension}" in EXTENSIONS]


@dataclass(frozen=True, config=STRICT)
class WebDataset(FileSource):
    """Existing shards in a folder."""

    kind: Literal["webdataset"]
    path: LocalPath
    shards: Annotated[dict[Split, LocalPath], Field(min_length=1)]  # globs and {000..123} ranges, under `path`
    in_place: bool  # true: the index points into these tars; false: samples are copied
    val_fraction: Fraction
    labels: MemberLabels | None
    masks: MemberMasks | None
    group: str | None = None  # field of json; val_fraction keeps images with the same value in one split
    weight: Weight = None

    @model_validator(mode="after")
    def _check_group(self) -> "WebDataset":
        if self.group is not None and self.val_fraction is None:
            raise ValueError("group is set, but val_fraction is null: only val_fraction uses group. Remove group")
        return self

    @property
    def indexed_in_place(self) -> bool:  # type: ignore[override]
        return self.in_place

    def scan(self) -> Iterator[SourceItem]:
        split_of: dict[str, Split] = {}
        for split, pattern in self.shards.items():
            for name in _expand(Path(self.path), pattern):
                if split_of.setdefault(name, split) != split:
                    raise ValueError(f"{self.path}: {name} is in split {split_of[name]} and in split {split}")
        first_fields: list[str] = []
        has_label = False
        for name, split in sorted(split_of.items()):
            for item, fields in self._scan_shard(name, split):
                has_label = has_label or item.label is not None or item.refused.startswith("the label")
                first_fields = first_fields or fields
                yield item
        if self.labels and not has_label:
            listing = printable(", ".join(first_fields))
            hint = f"; fields of the first json are: {listing}" if first_fields else ""
            expected = "a member .cls" if self.labels.field is None else f"a field {self.labels.field!r} in its json"
            raise ValueError(f"{self.path}: no sample has {expected}, which `labels` expects{hint}")

    def missing_masks(self, example: str) -> str:
        assert self.masks is not None
        return f"e.g. {example}, has a mask; the mask of the image <key>.* must be the member <key>.{self.masks.member}"

    def class_names(self, items: Iterable[SourceItem]) -> list[str]:
        if self.labels and self.labels.names:
            return self.labels.names
        return sort_labels({item.label for item in items if item.label is not None})

    def _scan_shard(self, name: str, split: str) -> Iterator[tuple[SourceItem, list[str]]]:
        """Yield the samples of one tar. Each comes with the field names of its json, or [] if its json was not read."""
        count: Counter[str] = Counter()
        for sample in group_members(Path(os.path.abspath(os.path.join(self.path, name)))):
            count[sample.key] += 1
            ordinal = "" if count[sample.key] == 1 else f"#{count[sample.key]}"
            images = sample.images
            extension = f".{images[0]}" if len(images) == 1 else ""
            members, fields, label, group, refused = {}, {}, None, None, ""
            try:
                members = _check_sample(sample, repeated=count[sample.key] > 1)
                fields = self._fields(members)
                label = self._label(members, fields)
                value = None if self.group is None else fields.get(self.group)
                group = None if value is None else printable(str(value))
            except ValueError as error:
                refused = printable(str(error))
            item = SourceItem(
                path=printable(f"{name}/{sample.key}{extension}") + ordinal,
                split=split,
                label=label,
                image=members[images[0]] if members else None,
                mask=members.get(self.masks.member) if self.masks else None,
                refused=refused,
                group=group,
                key=sample.key + ordinal,
            )
            yield item, list(fields)

    def _fields(self, members: dict[str, Blob]) -> dict[str, Any]:
        """Read the member json. Return {} if the sample has no json, or no parameter needs it."""
        needed = self.group is not None or (self.labels is not None and self.labels.member == "json")
        if not needed or "json" not in members:
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


def group_members(path: Path) -> Iterator[TarSample]:
    """Group the members of a tar into samples, as webdataset's `group_by_keys` does, without reading their data.

    webdataset skips members that are not regular files. This function refuses their sample instead, so that no input is
    lost silently. If such a member belongs to no sample, it forms a refused sample of its own.
    """
    regular: list[tuple[str, str, Blob | None]] = []
    special: dict[str, list[str]] = defaultdict(list)
    for member in tar.members(path):
        key, extension = base_plus_ext(member.name)
        if key is None or member.isdir() or SKIPPED.match(member.name):
            continue
        if member.isreg():
            regular.append((key, extension.lower(), tar.locate(path, member)))
        else:
            special[key].append(extension.lower())
    for key, members in groupby(regular, key=lambda member: member[0]):
        yield _tar_sample(key, [(extension, blob) for _, extension, blob in members], special.pop(key, []))
    for key, extensions in special.items():
        yield _tar_sample(key, [], extensions)


def _tar_sample(key: str, regular: list[tuple[str, Blob | None]], special: list[str]) -> TarSample:
    extensions = [*(extension for extension, _ in regular), *special]
    refused = ""
    if len(set(extensions)) < len(extensions):
        refused = f"the sample has two members of one name: {', '.join(extensions)}"
    elif reserved := [extension for extension in extensions if extension in RESERVED]:
        refused = f"the sample has a member whose name webdataset reserves: {reserved[0]}"
    elif special or any(blob is None for _, blob in regular):
        refused = tar.SPECIAL
    return TarSample(key, dict(regular) | dict.fromkeys(special), refused)


def _check_sample(sample: TarSample, *, repeated: bool) -> dict[str, Blob]:
    """Return the members of a sample by extension; raises ValueError unless it has exactly one image and no problem."""
    if repeated:
        raise ValueError(f"the key comes twice in its shard: {sample.key}")
    if not sample.images:
        raise ValueError(f"the sample has no image: its members are {', '.join(sample.members)}")
    if len(sample.images) > 1:
        raise ValueError(f"the sample has several images: {', '.join(sample.images)}")
    if sample.refused:
        raise ValueError(sample.refused)
    return {extension: blob for extension, blob in sample.members.items() if blob}


def _expand(root: Path, pattern: str) -> list[str]:
    """List the files under `root` that match a pattern.

    Raises:
        ValueError: A part of the pattern matches no file.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; the path of a source is absolute, or relative to data/raw")
    matches: list[str] = []
    for part in braceexpand(pattern, escape=False):
        files = [name for name in glob.glob(part, root_dir=root, recursive=True) if (root / name).is_file()]
        if not files:
            raise ValueError(f"{root} has no file {part}" + (f", which {pattern} asks for" if part != pattern else ""))
        matches += sorted(files)
    return matches
