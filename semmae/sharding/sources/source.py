"""The interface of a source of images.

To add a kind of source, write a class with the members of `Source` in a module of this folder, and add it to
`AnySource` in `sources.py`. The class is a frozen pydantic dataclass: its fields are the parameters of the source in
params.yaml, and its field `kind` selects it. A source that reads files inherits from `FileSource`, which leaves
`scan`, `class_names` and sometimes `read` to write.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, Self

from semmae.core.digests import json_digest
from semmae.sharding.sources.source_item import Fraction, MaskNames, SourceItem, Weight
from semmae.sharding.sources.val_split import split_off_val

Contents = Iterable[tuple[SourceItem, str, str]]  # items with the SHA-256 of image and mask; "" for missing bytes


class Source(Protocol):
    """The members that the shard writer uses."""

    @property
    def weight(self) -> Weight:
        """How often an epoch of training repeats the images; None: once."""
        ...

    @property
    def location(self) -> str:
        """Path or name of the source, for error messages; the folder of the tars that are indexed in place."""
        ...

    @property
    def indexed_in_place(self) -> bool:
        """Whether the index points into the tars of the source, so that no image is copied."""
        ...

    @property
    def thread_safe(self) -> bool:
        """Whether several threads may call `fetch` at the same time."""
        ...

    def list_items(self, *, seed: int) -> list[SourceItem]:
        """List every input, sorted by path, including refused ones.

        Args:
            seed: Seed of the split that `val_fraction` draws.

        Raises:
            ValueError: The source cannot be listed, or it has no input in a split.
        """
        ...

    def fetch(self, item: SourceItem) -> tuple[bytes, bytes | None]:
        """Return the encoded bytes of the image and of the mask (None without a mask).

        A worker process may call this method, so it must not depend on state that `list_items` sets.

        Raises:
            ValueError, OSError: The input is refused or cannot be read. The text is the reason in the list of rejects.
        """
        ...

    def class_names(self, items: Iterable[SourceItem]) -> list[str]:
        """List the class names in the order of their label numbers; `items` is the result of `list_items`."""
        ...

    def mask_names(self) -> tuple[str | None, list[str]]:
        """Return the kind and the names of the masks; (None, []) without masks."""
        ...

    def digest(self, contents: Contents) -> str:
        """Compute the identity of the source, which changes if a sample changes.

        Args:
            contents: Items and digests of their bytes, in any order. The iterable may read all images, so a source
                whose parameters determine its images should not iterate it.
        """
        ...

    def resolve_paths(self, root: Path) -> Self:
        """Return the source with its relative paths resolved against `root`."""
        ...


class FileSource:
    """Base class of a `Source` that reads files: splits, refusals, digests and paths are the same for all kinds."""

    path: str | None  # this and the next two are fields of the subclass
    val_fraction: Fraction
    masks: MaskNames | None
    indexed_in_place = False
    thread_safe = True

    def scan(self) -> Iterable[SourceItem]:
        """List the inputs with the splits of the source itself, in any order."""
        raise NotImplementedError

    @property
    def location(self) -> str:
        """Path or name of the source for error messages."""
        return str(self.path)

    def select(self, items: list[SourceItem]) -> list[SourceItem]:
        """Select the items to keep, after `val_fraction` has moved some of them to val."""
        return items

    def missing_masks(self, example: str) -> str | None:
        """Describe where masks are expected, for the error that no image has one; None if `scan` cannot find masks.

        Args:
            example: Path of an image without a mask.
        """
        return None

    def read(self, item: SourceItem) -> tuple[bytes, bytes | None]:
        """Read the bytes of image and mask of an item that is not refused."""
        return item.read()

    def list_items(self, *, seed: int) -> list[SourceItem]:
        items = sorted(self.scan(), key=lambda item: item.path)
        if self.val_fraction is not None:
            items = split_off_val(items, self.val_fraction, seed=seed, location=self.location)
        items = self.select(items)
        if not items:
            raise ValueError(
                f"{self.location} holds no files where images are expected; docs/data/sources.md shows the layouts"
            )
        if self.masks and not any(item.mask for item in items) and (problem := self.missing_masks(items[0].path)):
            raise ValueError(f"{self.location}: none of {len(items)} images, {problem}")
        return items

    def fetch(self, item: SourceItem) -> tuple[bytes, bytes | None]:
        if item.refused:
            raise ValueError(item.refused)
        return self.read(item)

    def mask_names(self) -> tuple[str | None, list[str]]:
        return (self.masks.kind, self.masks.names) if self.masks else (None, [])

    def digest(self, contents: Contents) -> str:
        return json_digest(sorted((item.path, item.label or "", image, mask) for item, image, mask in contents))

    def resolve_paths(self, root: Path) -> Self:
        return self if self.path is None else replace(self, path=str(root / self.path))  # type: ignore[type-var]
