"""Trees of image files, in a folder or in one plain tar (read where it lies, nothing is extracted).

`layout` says which files of a tree are inputs. What is wrong with one shows when it is fetched and decoded,
except for what a tar must not hold (links, devices, names that lead out of it): that is refused when it is listed.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT
from semmae.sharding.sources import tar
from semmae.sharding.sources.layout import places
from semmae.sharding.sources.source_item import Blob, Entry, Fraction, MaskNames, PlainPath, Split, Weight, printable

MAX_WAYS = 100  # through links to one folder


@dataclass(frozen=True, config=STRICT)
class Masks(MaskNames):
    """The masks of a tree: 8-bit PNG in `folder`."""

    folder: str


@dataclass(frozen=True, config=STRICT)
class Tree:
    """Image files in a folder or in one plain tar, in any tree that `semmae.sharding.sources.layout` knows."""

    kind: Literal["folder", "tar"]
    path: PlainPath
    splits: list[Split] | None  # null: all that the tree has
    val_fraction: Fraction
    labels: bool  # folders are classes
    masks: Masks | None
    group: str | None = None  # what val_fraction keeps together: `parent`, or a regular expression on the path
    weight: Weight = None

    @model_validator(mode="after")
    def _groups_make_sense(self) -> "Tree":
        if self.group is None:
            return self
        if self.val_fraction is None:
            raise ValueError("group says what val_fraction keeps together; without val_fraction leave it out")
        try:
            captures = 1 if self.group == "parent" else re.compile(self.group).groups
        except re.error as error:
            raise ValueError(f"group {self.group!r} is no regular expression: {error}") from None
        if captures != 1:
            raise ValueError(f"group is {self.group!r}; expected parent, or a regular expression with one (capture)")
        return self

    @property
    def where(self) -> str:
        return self.path

    def listed(self) -> Iterator[Entry]:
        """The entries. A file that leads out of a tar counts as train, wherever it may lead."""
        files = _folder(Path(self.path)) if self.kind == "folder" else _tar(Path(self.path))
        outside = {name for name in files if _leads_out(name)}
        for name in outside:
            yield Entry(printable(name), "train", None, None, None, "its name in the tar leads out of the tar")
        masks = self.masks.folder if self.masks else "masks"
        for place in places(files.keys() - outside, labels=self.labels, masks=masks):
            image, mask = files[place.name], files.get(place.mask) if self.masks else None
            reasons = [place.refused, *(blob for blob in (image, mask) if isinstance(blob, str)), ""]
            path = printable(place.name)
            yield Entry(
                path=path,
                split=place.split,
                label=None if place.label is None else printable(place.label),
                image=image if isinstance(image, Blob) else None,
                mask=mask if isinstance(mask, Blob) else None,
                refused=next(filter(None, reasons), ""),
                group=self._group(path),
            )

    def without_masks(self, example: str) -> str:
        """What to say when no image has a mask."""
        assert self.masks is not None
        return (
            f"e.g. {example}, has a mask in {self.masks.folder}/; a mask has the path and name of its image, with .png"
        )

    def fetch(self, entry: Entry) -> tuple[bytes, bytes | None]:
        return entry.read()

    def class_names(self, found: Iterable[Entry]) -> list[str]:
        return sorted({entry.label for entry in found if entry.label is not None})

    def _group(self, path: str) -> str | None:
        if self.group in (None, "parent"):
            return None if self.group is None else os.path.dirname(path)
        match = re.search(self.group, path)  # type: ignore[arg-type]  # not None
        return match and match.group(1)


def _folder(root: Path) -> dict[str, Blob | str]:
    """The files under a folder by name, links followed: their bytes, or why they are refused. Hidden ones are left out.

    ValueError: there is no folder, one in it cannot be listed, or links lead to one in too many ways.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; the path of a source is absolute, or relative to data/raw")
    files: dict[str, Blob | str] = {}
    ways: Counter[str] = Counter()
    waiting: list[tuple[str, frozenset[str]]] = [("", frozenset())]  # a folder, and the real folders above it
    while waiting:
        inside, above = waiting.pop()
        real = os.path.realpath(root / inside)
        if real in above:
            continue  # a loop
        ways[real] += 1
        if ways[real] > MAX_WAYS:
            raise ValueError(f"{real} is reached in more than {MAX_WAYS} ways from {root}: links between folders")
        for item in _listed(root / inside):
            name = inside + item.name
            try:
                if item.is_dir():
                    waiting.append((f"{name}/", above | {real}))
                else:
                    files[name] = Blob.of(item.path)
            except OSError as error:
                files[name] = f"the file cannot be read: {error.strerror}"
            except ValueError as error:
                files[name] = str(error)
    return files


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, but for what is hidden. ValueError: who can tell what is lost?"""
    try:
        with os.scandir(folder) as items:
            return [item for item in items if not item.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"the folder {printable(str(folder))} cannot be listed: {error.strerror}") from None


def _tar(path: Path) -> dict[str, Blob | str]:
    """The members of a plain tar by name: their bytes, or why they are refused.

    As for tar itself, the last member of a name counts. One folder around everything is left out of the names.
    """
    files: dict[str, Blob | str] = {}
    for member in tar.members(path):
        name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        if not member.isdir():
            inside = member.name if _leads_out(member.name) else name
            files[inside or "."] = tar.blob(path, member) or tar.SPECIAL
    names = [name for name in files if not _leads_out(name) and not name.startswith(".")]
    top = names[0].split("/")[0] + "/" if names else ""
    if top in ("train/", "val/", "test/", "images/") or not all(name.startswith(top) for name in names):
        return files
    return {name.removeprefix(top): blob for name, blob in files.items()}


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")
