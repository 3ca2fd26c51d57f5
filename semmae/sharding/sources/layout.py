"""Trees of image files: where in them images are expected, and what the place of a file says about it.

    train/cat/7.jpg                   split and class          train/7.jpg              split
    cat/7.jpg                         class                    7.jpg                    neither
    images/train/7.jpg                any of these trees under images/
    masks/train/cat/7.png             the mask of train/cat/7.jpg, also of images/train/cat/7.jpg

An input is one file that is not hidden, where images are expected, whatever it contains. Masks are never images.
"""

from collections.abc import Iterable
from os.path import splitext
from typing import NamedTuple

SPLITS = ("train", "val", "test")
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")  # of images, as opposed to papers


class Place(NamedTuple):
    """An input and what its place says."""

    name: str
    split: str
    label: str | None  # name of its class
    mask: str  # the name that its mask would have
    refused: str  # why it cannot be a sample, "" if nothing speaks against it


def places(names: Iterable[str], *, labels: bool, masks: str) -> list[Place]:
    """The inputs among the files `names` of a tree; `masks` is its folder of masks.

    A tree without split folders is all train. With `labels`, the first folder below the split is the class; a file
    above the class folders is an input (and refused) if its extension is an image's, a paper otherwise.
    """
    aside = masks.strip("/").split("/")
    files, base = _below_images([file for name in names if not _is_hidden(file := name.split("/"))])
    files = [file for file in files if file[0] != "masks" and file[: len(aside)] != aside]
    splits = {file[base] for file in files if len(file) > base + 1}.intersection(SPLITS)
    if splits:
        files = _in_splits(files, base, splits)
    found = []
    for file in files:
        below = file[base:]
        inside = below[1:] if splits else below
        has_class = len(inside) > 1
        if labels and not has_class and not _is_image(file):
            continue
        found.append(
            Place(
                name="/".join(file),
                split=below[0] if splits else "train",
                label=inside[0] if labels and has_class else None,
                mask=splitext("/".join([*aside, *below]))[0] + ".png",
                refused="the file lies in no class folder" if labels and not has_class else "",
            )
        )
    return found


def _below_images(files: list[list[str]]) -> tuple[list[list[str]], int]:
    """The files of the tree proper, those under images/ if there are any, and how many folders lie above it."""
    below = [file for file in files if file[0] == "images" and len(file) > 1]
    return (below, 1) if below else (files, 0)


def _in_splits(files: list[list[str]], base: int, splits: set[str]) -> list[list[str]]:
    """The files in split folders. ValueError: images in folders beside them, not to be dropped in silence."""
    for file in files:
        if file[base] not in SPLITS and len(file) > base + 1 and _is_image(file):
            raise ValueError(
                f"images lie in {'/'.join(file[:-1])}, beside the split folders {', '.join(sorted(splits))}; "
                "move them into train, val or test (a class of such a name needs a split folder above it)"
            )
    return [file for file in files if file[base] in SPLITS and len(file) > base + 1]


def _is_hidden(file: list[str]) -> bool:
    return any(part.startswith(".") for part in file)


def _is_image(file: list[str]) -> bool:
    return file[-1].lower().endswith(EXTENSIONS)
