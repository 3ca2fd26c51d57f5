"""Where images come from: kinds of sources, each reduced to a sorted list of entries that any process can fetch.

- `Creatures`, `Tree` (kind folder or tar): the parameters of a source; `Source` is any of them.
- `entries(source)`: every input, sorted by path: split, label, where the bytes of its image and mask lie.
- `fetch(source, entry)`: these bytes. Members of a tar are read where they lie, nothing is extracted.
- `class_names`, `mask_names`, `digest`: of the source as a whole.

`semmae.layout` says which files of a tree are inputs. What is wrong with one shows when it is fetched and decoded,
except for what a tar must not hold (links, devices, names that lead out of it): that is refused when it is listed.
"""

import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from semmae import artifact, creatures, images, rng
from semmae.layout import places
from semmae.params import STRICT

MAX_BYTES = 2**30  # of one file; what is larger (a film in a folder of pictures) is refused unread


@dataclass(frozen=True, config=STRICT)
class Creatures:
    """The embedded dataset: `train` + `val` drawings, `size` pixels square."""

    kind: Literal["creatures"]
    train: Annotated[int, Field(ge=1)]
    val: Annotated[int, Field(ge=0)]
    size: Annotated[int, Field(ge=16)]
    seed: int


@dataclass(frozen=True, config=STRICT)
class Masks:
    """The masks of a tree: 8-bit PNG in `folder`, whose values index `names`; 255 = ignore."""

    folder: str
    kind: Literal["foreground", "parts", "classes"]
    names: Annotated[list[str], Field(min_length=2, max_length=images.IGNORE)]


@dataclass(frozen=True, config=STRICT)
class Tree:
    """Image files in a folder or in one plain tar, in any tree that `semmae.layout` knows."""

    kind: Literal["folder", "tar"]
    path: str
    splits: list[Literal["train", "val", "test"]] | None  # null: all that the tree has
    val_fraction: Annotated[float, Field(gt=0, lt=1)] | None  # of train, set aside as val; null: none
    labels: bool  # folders are classes
    masks: Masks | None


Source = Annotated[Creatures | Tree, Field(discriminator="kind")]


class Blob(NamedTuple):
    """Bytes in a file: all of them, or those of a tar's member."""

    file: str
    offset: int
    size: int

    def read(self) -> bytes:
        if self.size > MAX_BYTES:
            raise ValueError(f"the file is too large: {self.size} bytes, allowed are {MAX_BYTES}")
        with open(self.file, "rb") as file:
            data = os.pread(file.fileno(), self.size, self.offset)
        if len(data) < self.size:
            raise ValueError("the file has become shorter since it was listed")
        return data


class Entry(NamedTuple):
    """One input."""

    path: str  # in the source
    split: str
    label: str | None  # name of its class
    image: Blob | None  # None: drawn, or refused
    mask: Blob | None
    refused: str  # why it is no sample, "" if nothing is known against it


def entries(source: Creatures | Tree, *, seed: int) -> list[Entry]:
    """Every input, sorted by path; `seed` draws the val_fraction. ValueError: nothing there, or a split is empty."""
    if isinstance(source, Creatures):
        return list(_creatures(source))
    found = _set_aside(sorted(_tree(source)), source, seed=seed)
    have = sorted({entry.split for entry in found})
    for split in source.splits or []:
        if split not in have:
            raise ValueError(
                f"{source.path} has no images in split {split!r}; it has {', '.join(have) or 'none at all'}"
            )
    found = [entry for entry in found if source.splits is None or entry.split in source.splits]
    if not found:
        raise ValueError(f"{source.path} holds no files where images are expected; docs/data.md shows the layouts")
    if source.masks and not any(entry.mask for entry in found):
        raise ValueError(
            f"{source.path}: none of {len(found)} images, e.g. {found[0].path}, has a mask in {source.masks.folder}/; "
            "a mask has the path and name of its image, with .png"
        )
    return found


def fetch(source: Creatures | Tree, entry: Entry) -> tuple[bytes, bytes | None]:
    """The bytes of an entry's image and mask. ValueError or OSError: why there are none."""
    if entry.refused:
        raise ValueError(entry.refused)
    if isinstance(source, Creatures):
        image, mask, _ = creatures.draw(source.seed, entry.path, source.size)
        return images.encode_png(image), images.encode_png(mask)
    assert entry.image is not None
    return entry.image.read(), entry.mask.read() if entry.mask else None


def class_names(source: Creatures | Tree, found: Iterable[Entry]) -> list[str]:
    """The classes of a source, in the order of their labels."""
    if isinstance(source, Creatures):
        return list(creatures.SPECIES)
    return sorted({entry.label for entry in found if entry.label is not None})


def mask_names(source: Creatures | Tree) -> tuple[str | None, list[str]]:
    """Kind and names of a source's masks; None and no names if it has none."""
    if isinstance(source, Creatures):
        return "parts", list(creatures.PARTS)
    return (source.masks.kind, source.masks.names) if source.masks else (None, [])


def digest(source: Creatures | Tree, contents: Iterable[tuple[str, str, str]]) -> str:
    """The identity of a source, from the path of each entry and the digests of its image and mask, in any order."""
    if isinstance(source, Creatures):
        return artifact.digest([source.train, source.val, source.size, source.seed])
    return artifact.digest(sorted(contents))


def _creatures(source: Creatures) -> Iterator[Entry]:
    for split, count in (("train", source.train), ("val", source.val)):
        for number in range(count):
            key = f"{split}-{number:06d}"
            yield Entry(key, split, creatures.SPECIES[creatures.label_of(key)], None, None, "")


def _tree(source: Tree) -> Iterator[Entry]:
    """The entries of a folder or tar. A file that leads out of a tar counts as train, wherever it may lead."""
    files = _folder(Path(source.path)) if source.kind == "folder" else _tar(Path(source.path))
    outside = {name for name in files if _leads_out(name)}
    for name in outside:
        yield Entry(_printable(name), "train", None, None, None, "its name in the tar leads out of the tar")
    for place in places(
        files.keys() - outside, labels=source.labels, masks=source.masks.folder if source.masks else "masks"
    ):
        image, mask = files[place.name], files.get(place.mask) if source.masks else None
        reasons = [place.refused, *(blob for blob in (image, mask) if isinstance(blob, str)), ""]
        yield Entry(
            path=_printable(place.name),
            split=place.split,
            label=None if place.label is None else _printable(place.label),
            image=image if isinstance(image, Blob) else None,
            mask=mask if isinstance(mask, Blob) else None,
            refused=next(filter(None, reasons), ""),
        )


def _set_aside(found: list[Entry], source: Tree, *, seed: int) -> list[Entry]:
    """Move the val_fraction of train, class by class, to val: those whose paths fold to the smallest numbers.

    A new image moves at most one other across.
    """
    if source.val_fraction is None:
        return found
    if any(entry.split == "val" for entry in found):
        raise ValueError(f"{source.path} has a val split of its own; set its val_fraction to null in params.yaml")
    chosen = set()
    for label in {entry.label for entry in found}:
        train = [entry.path for entry in found if entry.split == "train" and entry.label == label]
        train.sort(key=lambda path: rng.fold(seed, "val", path))
        chosen.update(train[: round(source.val_fraction * len(train))])
    return [entry._replace(split="val") if entry.path in chosen else entry for entry in found]


def _folder(root: Path) -> dict[str, Blob | str]:
    """The files under a folder by name, links followed: their bytes, or why they are refused."""
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; the path of a source is absolute, or relative to data/raw")
    files: dict[str, Blob | str] = {}
    for folder, below, names in os.walk(root, followlinks=True):
        here = os.path.realpath(folder) + "/"
        below[:] = [
            name for name in below if not here.startswith(os.path.realpath(f"{folder}/{name}") + "/")
        ]  # no loops
        for name in names:
            path = os.path.join(folder, name)
            inside = path[len(str(root)) + 1 :]
            try:
                status = os.stat(path)
                files[inside] = Blob(path, 0, status.st_size) if stat.S_ISREG(status.st_mode) else "not a regular file"
            except OSError as error:
                files[inside] = f"the file cannot be read: {error.strerror}"
    return files


def _tar(path: Path) -> dict[str, Blob | str]:
    """The members of a plain tar by name: their bytes, or why they are refused.

    As for tar itself, the last member of a name counts. One folder around everything is left out of the names.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; the path of a source is absolute, or relative to data/raw")
    files: dict[str, Blob | str] = {}
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = "/".join(part for part in member.name.split("/") if part not in ("", "."))
                if member.isreg() and not member.issparse():
                    files[member.name if _leads_out(member.name) else name] = Blob(
                        str(path), member.offset_data, member.size
                    )
                elif not member.isdir():
                    files[name] = "a link, a device or another special member of the tar"
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any damage for the end
                raise tarfile.ReadError(f"damaged at byte {tar.offset}, or cut short there")
    except tarfile.TarError as error:
        raise ValueError(f"{path} cannot be read as a plain, uncompressed tar: {error}") from None
    inside = [name for name in files if not _leads_out(name) and not name.startswith(".")]
    top = inside[0].split("/")[0] + "/" if inside else ""
    if top in ("train/", "val/", "test/", "images/") or not all(name.startswith(top) for name in inside):
        return files
    return {name.removeprefix(top): blob for name, blob in files.items()}


def _leads_out(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/")


def _printable(name: str) -> str:
    """A file name as text: bytes that are not UTF-8 are written as \\x.."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
