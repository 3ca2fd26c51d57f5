"""Image files in a folder or in one plain tar, which is read without extracting it.

    train/cat/7.jpg                   split and class          train/7.jpg              split
    cat/7.jpg                         class                    7.jpg                    neither
    images/train/7.jpg                any of these layouts under images/
    masks/train/cat/7.png             the mask of train/cat/7.jpg, also of images/train/cat/7.jpg

Every file that is not hidden is an input if it lies where images are expected, whatever it contains. Masks are no
inputs. Special members of a tar and names that lead out of it are refused when the tar is listed; other errors appear
when an image is read and decoded.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from os.path import splitext
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT
from semmae.core.digests import json_digest
from semmae.sharding.sources import tar
from semmae.sharding.sources.source import Contents, FileSource
from semmae.sharding.sources.source_item import (
    EXTENSIONS,
    SPLITS,
    Blob,
    Fraction,
    LocalPath,
    MaskNames,
    SourceItem,
    Split,
    Weight,
    printable,
)

MAX_WAYS = 100  # paths through links to one folder


@dataclass(frozen=True, config=STRICT)
class FolderMasks(MaskNames):
    """8-bit PNG masks in a folder of the tree."""

    folder: str


@dataclass(frozen=True, config=STRICT)
class Tree(FileSource):
    """A tree of image files, in a folder or in one plain tar."""

    kind: Literal["folder", "tar"]
    path: LocalPath
    splits: list[Split] | None  # splits to keep; null: all
    val_fraction: Fraction
    labels: bool  # folder names are class names
    masks: FolderMasks | None
    group: str | None = None  # groups for val_fraction: `parent` (the folder), or a regular expression on the path
    weight: Weight = None

    @model_validator(mode="after")
    def _check_group(self) -> "Tree":
        if self.group is None:
            return self
        if self.val_fraction is None:
            raise ValueError(
                "group is set, but val_fraction is null; group only matters for val_fraction, so remove it"
            )
        try:
            captures = 1 if self.group == "parent" else re.compile(self.group).groups
        except re.error as error:
            raise ValueError(f"group {self.group!r} is no regular expression: {error}") from None
        if captures != 1:
            raise ValueError(f"group is {self.group!r}; expected parent, or a regular expression with one (capture)")
        return self

    def scan(self) -> Iterator[SourceItem]:
        files = _folder_files(Path(self.path)) if self.kind == "folder" else _tar_files(Path(self.path))
        outside = {name for name in files if _leads_out(name)}
        for name in outside:  # refused, so the split does not matter
            yield SourceItem(printable(name), "train", None, None, None, "its name in the tar leads out of the tar")
        mask_folder = self.masks.folder if self.masks else "masks"
        for file in find_inputs(files.keys() - outside, labels=self.labels, masks=mask_folder):
            image, mask = files[file.name], files.get(file.mask) if self.masks else None
            reasons = [file.refused, *(blob for blob in (image, mask) if isinstance(blob, str)), ""]
            path = printable(file.name)
            yield SourceItem(
                path=path,
                split=file.split,
                label=None if file.label is None else printable(file.label),
                image=image if isinstance(image, Blob) else None,
                mask=mask if isinstance(mask, Blob) else None,
                refused=next(filter(None, reasons), ""),
                group=self._group(path),
            )

    def select(self, items: list[SourceItem]) -> list[SourceItem]:
        if self.splits is None:
            return items
        present = sorted({item.split for item in items})
        for split in self.splits:
            if split not in present:
                raise ValueError(
                    f"{self.path} has no images in split {split!r}; it has {', '.join(present) or 'none at all'}"
                )
        return [item for item in items if item.split in self.splits]

    def missing_masks(self, example: str) -> str:
        assert self.masks is not None
        return (
            f"e.g. {example}, has a mask in {self.masks.folder}/; a mask has the path and name of its image, with .png"
        )

    def class_names(self, items: Iterable[SourceItem]) -> list[str]:
        return sorted({item.label for item in items if item.label is not None})

    def digest(self, contents: Contents) -> str:
        return json_digest(
            sorted((item.path, image, mask) for item, image, mask in contents)
        )  # labels are in the paths

    def _group(self, path: str) -> str | None:
        if self.group in (None, "parent"):
            return None if self.group is None else os.path.dirname(path)
        match = re.search(self.group, path)  # type: ignore[arg-type]  # not None
        return match and match.group(1)


class TreeFile(NamedTuple):
    """A file of a tree that is an input."""

    name: str
    split: str
    label: str | None  # class name
    mask: str  # name that its mask has, if there is one
    refused: str  # reason for refusing it; "" if none is known


def find_inputs(names: Iterable[str], *, labels: bool, masks: str) -> list[TreeFile]:
    """Find the inputs among the files of a tree.

    Without split folders all inputs are train. With `labels`, the first folder below the split is the class. A file
    above the class folders is skipped, but if it is named as an image, it is an input and refused.

    Args:
        masks: Folder of the masks, in the tree.

    Raises:
        ValueError: There are images outside of the split folders.
    """
    mask_folder = masks.strip("/").split("/")
    files, depth = _below_images([file for name in names if not _is_hidden(file := name.split("/"))])
    files = [file for file in files if file[0] != "masks" and file[: len(mask_folder)] != mask_folder]
    splits = {file[depth] for file in files if len(file) > depth + 1}.intersection(SPLITS)
    if splits:
        files = _in_splits(files, depth, splits)
    inputs = []
    for file in files:
        below = file[depth:]
        in_split = below[1:] if splits else below
        has_class = len(in_split) > 1
        if labels and not has_class and not _is_image(file):
            continue
        inputs.append(
            TreeFile(
                name="/".join(file),
                split=below[0] if splits else "train",
                label=in_split[0] if labels and has_class else None,
                mask=splitext("/".join([*mask_folder, *below]))[0] + ".png",
                refused="the file is in no class folder" if labels and not has_class else "",
            )
        )
    return inputs


def _below_images(files: list[list[str]]) -> tuple[list[list[str]], int]:
    """Keep the files under images/ if there are any; return the files and the depth at which the layout begins."""
    below = [file for file in files if file[0] == "images" and len(file) > 1]
    return (below, 1) if below else (files, 0)


def _in_splits(files: list[list[str]], depth: int, splits: set[str]) -> list[list[str]]:
    """Keep the files in split folders. Images in other folders are an error, because they would be lost silently."""
    for file in files:
        if file[depth] not in SPLITS and len(file) > depth + 1 and _is_image(file):
            raise ValueError(
                f"there are images in {'/'.join(file[:-1])}, outside of the split folders {', '.join(sorted(splits))}; "
                "move them into train, val or test (a class of such a name needs a split folder above it)"
            )
    return [file for file in files if file[depth] in SPLITS and len(file) > depth + 1]


def _is_hidden(file: list[str]) -> bool:
    return any(part.startswith(".") for part in file)


def _is_image(file: list[str]) -> bool:
    return file[-1].lower().endswith(EXTENSIONS)


def _folder_files(root: Path) -> dict[str, Blob | str]:
    """Find the files under a folder. Links are followed, hidden files and folders are skipped.

    Returns:
        The bytes of each file by its name, or the reason for refusing it.

    Raises:
        ValueError: The folder does not exist, a folder cannot be listed, or links lead to a folder in too many ways.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; the path of a source is absolute, or relative to data/raw")
    files: dict[str, Blob | str] = {}
    ways: Counter[str] = Counter()
    queue: list[tuple[str, frozenset[str]]] = [("", frozenset())]  # a folder, and the real paths of its parents
    while queue:
        folder, parents = queue.pop()
        real = os.path.realpath(root / folder)
        if real in parents:
            continue  # a loop
        ways[real] += 1
        if ways[real] > MAX_WAYS:
            raise ValueError(f"{real} is reached in more than {MAX_WAYS} ways from {root}: links between folders")
        for child in _list_folder(root / folder):
            name = folder + child.name
            try:
                if child.is_dir():
                    queue.append((f"{name}/", parents | {real}))
                else:
                    files[name] = Blob.of(child.path)
            except OSError as error:
                files[name] = f"the file cannot be read: {error.strerror}"
            except ValueError as error:
                files[name] = str(error)
    return files


def _list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """List the children of a folder that are not hidden. A folder that cannot be listed is an error, not empty."""
    try:
        with os.scandir(folder) as children:
            return [child for child in children if not child.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"the folder {printable(str(folder))} cannot be listed: {error.strerror}") from None


def _tar_files(path: Path) -> dict[str, Blob | str]:
    """Find the members of a plain tar, as `_folder_files` does.

    Of several members with one name the last one counts, as for the command tar. A single top folder is left out of
    the names.
    """
    files: dict[str, Blob | str] = {}
    for member in tar.members(path):
        name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        if not member.isdir():
            name = member.name if _leads_out(member.name) else name
            files[name or "."] = tar.blob(path, member) or tar.SPECIAL
    names = [name for name in files if not _leads_out(name) and not name.startswith(".")]
    top = names[0].split("/")[0] + "/" if names else ""
    if top in ("train/", "val/", "test/", "images/") or not all(name.startswith(top) for name in names):
        return files
    return {name.removeprefix(top): blob for name, blob in files.items()}


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")
