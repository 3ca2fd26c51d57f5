"""Where images come from: kinds of sources, each reduced to a sorted list of entries that any process can fetch.

- `Source`: the parameters of any of them. `Creatures` are drawn here; the others have a module each: `trees`
  (folder, tar), `webdataset_source`, `torchvision_source`, `hf_source`.
- `entries(source)`: every input, sorted by path: split, label, where the bytes of its image and mask lie.
- `fetch(source, entry)`: these bytes. Members of a tar are read where they lie, nothing is extracted.
- `class_names`, `mask_names`, `digest`: of the source as a whole; `in_place`: are its images left where they lie?

A kind lists its entries (`listed`), fetches one (`fetch`) and names its classes (`class_names`).
"""

from collections.abc import Iterable
from typing import Annotated, Literal, TypeGuard

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT
from semmae.core.digests import json_digest
from semmae.data import decoding
from semmae.sharding.creatures import draw
from semmae.sharding.sources import val_split
from semmae.sharding.sources.folder import Masks, Tree
from semmae.sharding.sources.huggingface import HuggingFace
from semmae.sharding.sources.source_item import Blob, Entry, Weight
from semmae.sharding.sources.torchvision import TorchVision
from semmae.sharding.sources.webdataset import WebDataset

__all__ = ["Blob", "Creatures", "Entry", "HuggingFace", "Masks", "Source", "TorchVision", "Tree", "WebDataset"]


@dataclass(frozen=True, config=STRICT)
class Creatures:
    """The embedded dataset: `train` + `val` drawings, `size` pixels square."""

    kind: Literal["creatures"]
    train: PositiveInt
    val: NonNegativeInt
    size: Annotated[int, Field(ge=16)]
    seed: int
    weight: Weight = None

    def listed(self) -> list[Entry]:
        found = []
        for split, count in (("train", self.train), ("val", self.val)):
            for key in (f"{split}-{number:06d}" for number in range(count)):
                found.append(Entry(key, split, draw.SPECIES[draw.label_of(key)], None, None, ""))
        return found

    def fetch(self, entry: Entry) -> tuple[bytes, bytes]:
        image, mask, _ = draw.draw(self.seed, entry.path, self.size)
        return decoding.encode_png(image), decoding.encode_png(mask)

    def class_names(self, _: Iterable[Entry]) -> list[str]:
        return list(draw.SPECIES)


Files = Tree | WebDataset | TorchVision | HuggingFace  # kinds that read what a user brings
Source = Annotated[Creatures | Files, Field(discriminator="kind")]


def entries(source: Creatures | Files, *, seed: int) -> list[Entry]:
    """Every input, sorted by path; `seed` draws the val_fraction. ValueError: nothing there, or a split is empty."""
    if isinstance(source, Creatures):
        return source.listed()
    found, where = sorted(source.listed(), key=lambda entry: entry.path), source.where
    if source.val_fraction is not None:
        found = val_split.set_aside(found, source.val_fraction, seed=seed, where=where)
    if isinstance(source, Tree) and source.splits is not None:
        have = sorted({entry.split for entry in found})
        for split in source.splits:
            if split not in have:
                raise ValueError(f"{where} has no images in split {split!r}; it has {', '.join(have) or 'none at all'}")
        found = [entry for entry in found if entry.split in source.splits]
    if not found:
        raise ValueError(f"{where} holds no files where images are expected; docs/data.md shows the layouts")
    if isinstance(source, Tree | WebDataset) and source.masks and not any(entry.mask for entry in found):
        raise ValueError(f"{where}: none of {len(found)} images, {source.without_masks(found[0].path)}")
    return found


def fetch(source: Creatures | Files, entry: Entry) -> tuple[bytes, bytes | None]:
    """The bytes of an entry's image and mask. ValueError or OSError: why there are none."""
    if entry.refused:
        raise ValueError(entry.refused)
    return source.fetch(entry)


def class_names(source: Creatures | Files, found: Iterable[Entry]) -> list[str]:
    """The classes of a source, in the order of their labels."""
    return source.class_names(found)


def mask_names(source: Creatures | Files) -> tuple[str | None, list[str]]:
    """Kind and names of a source's masks; None and no names if it has none."""
    if isinstance(source, Creatures):
        return "parts", list(draw.PARTS)
    return (source.masks.kind, source.masks.names) if source.masks else (None, [])


def in_place(source: Creatures | Files) -> TypeGuard[WebDataset]:
    """Whether the index shall point into the source's own tars."""
    return isinstance(source, WebDataset) and source.in_place


def digest(source: Creatures | Files, contents: Iterable[tuple[Entry, str, str]]) -> str:
    """The identity of a source, from its entries and the digests of their images and masks, in any order."""
    if isinstance(source, Creatures):
        return json_digest([source.train, source.val, source.size, source.seed])
    if isinstance(source, Tree):  # whose labels are in the paths
        return json_digest(sorted((entry.path, image, mask) for entry, image, mask in contents))
    return json_digest(sorted((entry.path, entry.label or "", image, mask) for entry, image, mask in contents))
