"""Look at a folder or a tar of images: what `semmae init` needs to know before it writes a project."""

import hashlib
import tarfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from semmae.console.tracking import tracked
from semmae.data import decoding
from semmae.sharding.sources.folder import Tree, find_inputs
from semmae.sharding.sources.source_item import EXTENSIONS, Blob, SourceItem

SourceKind = Literal["folder", "tar"]
SAMPLE_SIZE = 1000  # images that are decoded
SAMPLE_SECONDS = 3.0  # after this time, no more images are decoded, or compared with others
MIN_IMAGES = 30  # fewer images teach a network nothing
MASKS = "masks"  # the folder in which a tree has its masks by default


@dataclass(frozen=True)
class ImageSample:
    """What decoding some images, spread evenly over the data, has shown."""

    sizes: list[tuple[int, int]] = field(default_factory=list)  # height and width of the upright images, in pixels
    modes: Counter[str] = field(default_factory=Counter)  # modes of Pillow
    blobs: list[Blob] = field(default_factory=list)  # of the intact images, in the order of `sizes`
    broken: list[tuple[str, str]] = field(default_factory=list)  # path and reason
    seconds: float = 0.0  # to read and decode the intact images

    @property
    def short_side(self) -> int:
        """Median of the shorter sides, in pixels."""
        return int(np.median([min(size) for size in self.sizes]))


@dataclass(frozen=True)
class ImageSurvey:
    """What is known about the images of a person.

    Attributes:
        path: The folder or tar.
        kind: The kind of the source, `folder` or `tar`.
        splits: Number of images by split.
        formats: Number of images by the extension of their names, in lower case.
        num_bytes: Size of all image files.
        classes: Number of images by class, if the names of folders are the classes.
        unclassed: Number of images in no class folder.
        duplicates: Number of files that equal an earlier file, byte for byte.
        compared_all: Whether all files of equal size were compared for this.
        others: Number of files without the extension of an image, which are rejected.
        refused: Paths and reasons of files that are listed but cannot be read.
        has_masks: Whether the tree has a folder `masks`.
        sample: Decoded images.
    """

    path: Path
    kind: SourceKind
    splits: dict[str, int]
    formats: Counter[str]
    num_bytes: int
    classes: Counter[str]
    unclassed: int
    duplicates: int
    compared_all: bool
    others: int
    refused: list[tuple[str, str]]
    has_masks: bool
    sample: ImageSample

    @property
    def num_images(self) -> int:
        """Number of images in all splits."""
        return sum(self.splits.values())

    @property
    def num_train(self) -> int:
        """Number of images in the split train."""
        return self.splits.get("train", 0)


def survey_images(path: Path, *, mask_folder: str | None = None) -> ImageSurvey:
    """Look at all names below `path`, and decode a sample of the images.

    Args:
        path: A folder, or a plain tar.
        mask_folder: The folder of masks in the tree; None if there is none, or it is `masks`.

    Raises:
        ValueError: There is no such folder or tar, it has too few images or none in train, or none of the
            sample can be decoded.
    """
    kind = _kind(path)
    tree = Tree(kind=kind, path=str(path), splits=None, val_fraction=None, labels=False, masks=None)
    names = mask_folder or MASKS
    items = [item for item in tree.scan() if not item.path.startswith(f"{names}/")]
    images = sorted((item for item in items if _is_image(item)), key=lambda item: item.path)
    if len(images) < MIN_IMAGES:
        raise ValueError(
            f"{path} has {len(images)} images; expected at least {MIN_IMAGES}. Images have the extensions jpg, jpeg, "
            "png, webp, gif, bmp, tif or tiff. Choose another folder with --images"
        )
    splits = dict(Counter(item.split for item in images))
    if "train" not in splits:
        raise ValueError(
            f"{path} has images in {' and '.join(splits)}, but none in the split train; expected a folder train, or no "
            "folders of splits"
        )
    refused = [(item.path, item.refused) for item in items if item.refused]
    readable = [item for item in images if not item.refused]
    sample = decode_sample(readable)
    if not sample.sizes:
        example, reason = (sample.broken or refused)[0]
        raise ValueError(f"none of {len(sample.broken)} images of {path} can be decoded, e.g. {example}: {reason}")
    labeled = find_inputs([item.path for item in images], labels=True, masks=names)
    duplicates, compared_all = count_duplicates(readable)
    return ImageSurvey(
        path=path, kind=kind,
        splits=splits,
        formats=Counter(PurePosixPath(item.path).suffix.lower().removeprefix(".") for item in images),
        num_bytes=sum(item.image.size for item in readable if item.image),
        classes=Counter(file.label for file in labeled if file.label is not None),
        unclassed=sum(file.label is None for file in labeled),
        duplicates=duplicates, compared_all=compared_all, others=len(items) - len(images), refused=refused,
        has_masks=_has_folder(path, kind, names), sample=sample,
    )  # fmt: skip


def check_labels(survey: ImageSurvey, *, labels: bool) -> None:
    """Raise ValueError if folder names are to be classes, but there are fewer than two classes."""
    if labels and len(survey.classes) < 2:
        raise ValueError(
            f"--labels is set, but {survey.path} has {len(survey.classes)} folders with images, below the splits if "
            "there are any; expected a folder for each class. Remove --labels, or sort the images into folders"
        )


def decode_sample(items: list[SourceItem]) -> ImageSample:
    """Decode up to `SAMPLE_SIZE` items, spread evenly, for at most `SAMPLE_SECONDS`."""
    sample, end = ImageSample(), time.monotonic() + SAMPLE_SECONDS
    chosen = np.unique(np.linspace(0, len(items) - 1, min(SAMPLE_SIZE, len(items))).astype(int))
    order = np.random.default_rng(0).permutation(chosen)  # so that an early end leaves an even sample
    seconds = 0.0
    for index in tracked(order, len(order), "images"):
        start = time.perf_counter()
        try:
            data, _ = items[index].read()
            header = decoding.read_header(data)
            decoding.to_rgb(data)
        except (ValueError, OSError) as error:
            sample.broken.append((items[index].path, str(error)))
            continue
        seconds += time.perf_counter() - start
        sample.sizes.append(header.size)
        sample.modes[header.mode] += 1
        sample.blobs.append(items[index].image)
        if time.monotonic() > end:
            break
    return replace(sample, seconds=seconds)


def count_duplicates(items: Iterable[SourceItem]) -> tuple[int, bool]:
    """Count the files that equal an earlier file. Only files of equal size are read, for at most `SAMPLE_SECONDS`.

    Returns:
        The number, and whether all files of equal size were read.
    """
    by_size: dict[int, list[SourceItem]] = defaultdict(list)
    for item in items:
        if item.image is not None:
            by_size[item.image.size].append(item)
    end, duplicates = time.monotonic() + SAMPLE_SECONDS, 0
    for same_size in by_size.values():
        if len(same_size) < 2:
            continue
        if time.monotonic() > end:
            return duplicates, False
        digests = set()
        for item in same_size:
            try:
                digests.add(hashlib.sha256(item.read()[0]).digest())
            except (ValueError, OSError):
                digests.add(item.path.encode())
        duplicates += len(same_size) - len(digests)
    return duplicates, True


def _kind(path: Path) -> SourceKind:
    """Return the kind of source of a path; raise ValueError if it is neither a folder nor a tar."""
    if path.is_dir():
        return "folder"
    if path.is_file() and tarfile.is_tarfile(path):
        return "tar"
    problem = "is neither a folder nor a tar" if path.exists() else "does not exist"
    raise ValueError(
        f"{path} {problem}; expected a folder of images, or a plain tar of images. Other kinds of sources are set in "
        "params.yaml, after `semmae init --demo`"
    )


def _is_image(item: SourceItem) -> bool:
    return item.path.lower().endswith(EXTENSIONS)


def _has_folder(path: Path, kind: str, name: str) -> bool:
    if kind == "folder":
        return (path / name).is_dir()
    with tarfile.open(path) as archive:
        return any(f"/{name}/" in f"/{member}" for member in archive.getnames())
