"""A source for image files in a folder, or in one plain tar, which is not extracted. These layouts are known:

    train/cat/7.jpg                   split and class          train/7.jpg              split
    cat/7.jpg                         class                    7.jpg                    neither
    images/train/7.jpg                any of these layouts under images/
    masks/train/cat/7.png             the mask of train/cat/7.jpg, also of images/train/cat/7.jpg

Every file in these places is an input, whatever its extension, unless it is hidden. Masks are not inputs. Listing a tar
already refuses links, devices and names that lead out of the tar. Other errors occur when an image is read and decoded.
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

MAX_WAYS = 100  # largest number of paths that lead to one folder through links


@dataclass(frozen=True, config=STRICT)
class FolderMasks(MaskNames):
    """8-bit PNG masks, which are in the folder `folder` of the tree."""

    folder: str


@dataclass(frozen=True, config=STRICT)
class Tree(FileSource):
    """A tree of image files, in a folder or in one plain tar."""

    kind: Literal["folder", "tar"]
    path: LocalPath
    splits: list[Split] | None  # splits to keep; null: all
    val_fraction: Fraction
    labels: bool  # whether folder names are class names
    masks: FolderMasks | None
    # val_fraction keeps images of a group together: `parent` groups by folder, a regular expression by its capture
    group: str | None = None
    weight: Weight = None

    @model_validator(mode="after")
    def _check_group(self) -> "Tree":
        if self.group is None:
            return self
        if self.val_fraction is None:
            raise ValueError("group is set, but val_fraction is null: only val_fraction uses group. Remove group")
        try:
            captures = 1 if self.group == "parent" else re.compile(self.group).groups
        except re.error as error:
            raise ValueError(f"group {self.group!r} is not a valid regular expression: {error}") from None
        if captures != 1:
            raise ValueError(
                f"invalid group: {self.group!r}; expected parent, or a regular expression with one (capture)"
            )
        return self

    def scan(self) -> Iterator[SourceItem]:
        files = _folder_files(Path(self.path)) if self.kind == "folder" else _tar_files(Path(self.path))
        unsafe_names = {name for name in files if _leads_out_of_tar(name)}
        for name in unsafe_names:  # the split does not matter, because the item is refused
            yield SourceItem(printable(name), "train", None, None, None, "its name in the tar leads out of the tar")
        mask_folder = self.masks.folder if self.masks else "masks"
        for file in find_inputs(files.keys() - unsafe_names, labels=self.labels, masks=mask_folder):
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
        # paths contain the labels
        return json_digest(sorted((item.path, image, mask) for item, image, mask in contents))

    def _group(self, path: str) -> str | None:
        if self.group in (None, "parent"):
            return None if self.group is None else os.path.dirname(path)
        match = re.search(self.group, path)  # type: ignore[arg-type]
        return match and match.group(1)


class TreeFile(NamedTuple):
    """A file of a tree that is an input."""

    name: str
    split: str
    label: str | None  # class name
    mask: str  # expected name of its mask
    refused: str  # reason to refuse the file; "" if there is none


def find_inputs(names: Iterable[str], *, labels: bool, masks: str) -> list[TreeFile]:
    """Find the inputs among the files of a tree.

    Without split folders, all inputs belong to train. With `labels`, the first folder below the split is the class. A
    file in no class folder is refused if it has the extension of an image; otherwise it is skipped.

    Args:
        masks: Folder of the masks in the tree.

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
        layout_path = file[depth:]
        below_split = layout_path[1:] if splits else layout_path
        has_class = len(below_split) > 1
        if labels and not has_class and not _is_image(file):
            continue
        inputs.append(
            TreeFile(
                name="/".join(file),
                split=layout_path[0] if splits else "train",
                label=below_split[0] if labels and has_class else None,
                mask=splitext("/".join([*mask_folder, *layout_path]))[0] + ".png",
                refused="the file is in no class folder" if labels and not has_class else "",
            )
        )
    return inputs


def _below_images(files: list[list[str]]) -> tuple[list[list[str]], int]:
    """Keep only the files under images/, if there are any.

    Returns:
        The files, and the number of leading folders that are not part of the layout.
    """
    below = [file for file in files if file[0] == "images" and len(file) > 1]
    return (below, 1) if below else (files, 0)


def _in_splits(files: list[list[str]], depth: int, splits: set[str]) -> list[list[str]]:
    """Keep the files in split folders; raises ValueError if images are in other folders."""
    for file in files:
        if file[depth] not in SPLITS and len(file) > depth + 1 and _is_image(file):
            raise ValueError(
                f"there are images in {'/'.join(file[:-1])}, outside of the split folders {', '.join(sorted(splits))}. "
                "Move them into train, val or test. If the split folders are classes, move all into a folder train"
            )
    return [file for file in files if file[depth] in SPLITS and len(file) > depth + 1]


def _is_hidden(file: list[str]) -> bool:
    return any(part.startswith(".") for part in file)


def _is_image(file: list[str]) -> bool:
    return file[-1].lower().endswith(EXTENSIONS)


def _folder_files(root: Path) -> dict[str, Blob | str]:
    """Find the files under a folder. Follow links, and skip hidden files and folders.

    Returns:
        The location of each file by its name, or the reason to refuse it.

    Raises:
        ValueError: The folder does not exist, a folder cannot be listed, or too many paths lead to one folder.
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
            raise ValueError(
                f"{real} is reached in more than {MAX_WAYS} ways from {root}, because of links. Remove some of them"
            )
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
    """List the children of a folder that are not hidden; raises ValueError if the folder cannot be listed."""
    try:
        with os.scandir(folder) as children:
            return [child for child in children if not child.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"the folder {printable(str(folder))} cannot be listed: {error.strerror}") from None


def _tar_files(path: Path) -> dict[str, Blob | str]:
    """Find the members of a plain tar, as `_folder_files` does.

    If several members have the same name, the last one counts, as for the command tar. If all members are in one top
    folder, the names do not include it.
    """
    files: dict[str, Blob | str] = {}
    for member in tar.members(path):
        name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
        if not member.isdir():
            name = member.name if _leads_out_of_tar(member.name) else name
            files[name or "."] = tar.locate(path, member) or tar.SPECIAL
    names = [name for name in files if not _leads_out_of_tar(name) and not name.startswith(".")]
    top = names[0].split("/")[0] + "/" if names else ""
    if top in ("train/", "val/", "test/", "images/") or not all(name.startswith(top) for name in names):
        return files
    return {name.removeprefix(top): blob for name, blob in files.items()}


def _leads_out_of_tar(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")
