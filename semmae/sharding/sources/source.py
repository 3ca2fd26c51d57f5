"""The interface of a source of images.

To add a kind of source, write a class with the members of `Source` in a module of this folder. Then add the class to
`AnySource` in `sources.py`. The class must be a frozen pydantic dataclass. Its fields are the parameters of the source
in params.yaml; the value of its field `kind` selects the class.

A source that reads files can inherit from `FileSource`. It then implements only `scan`, `class_names` and, if
necessary, `read`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol, Self

from semmae.core.digests import json_digest
from semmae.sharding.sources.source_item import Fraction, MaskNames, SourceItem, Weight
from semmae.sharding.sources.val_split import split_off_val

# items, each with the SHA-256 of its image and of its mask; "" if there is no image or mask
Contents = Iterable[tuple[SourceItem, str, str]]


class Source(Protocol):
    """The members that the shard writer uses."""

    @property
    def weight(self) -> Weight:
        """Average number of times that a training epoch visits each image; None: once."""
        ...

    @property
    def location(self) -> str:
        """Path or name of the source, for error messages.

        For a source that is indexed in place, it must be the folder of its tars.
        """
        ...

    @property
    def indexed_in_place(self) -> bool:
        """Whether the index points into the tars of the source; no image is copied then."""
        ...

    @property
    def thread_safe(self) -> bool:
        """Whether several threads may call `fetch` at the same time."""
        ...

    def list_items(self, *, seed: int) -> list[SourceItem]:
        """List all inputs, sorted by path. An input that the source refuses has the reason in `SourceItem.refused`.

        Args:
            seed: Seed of the split that `val_fraction` draws.

        Raises:
            ValueError: The source cannot be listed, or a split has no input.
        """
        ...

    def fetch(self, item: SourceItem) -> tuple[bytes, bytes | None]:
        """Return the encoded bytes of the image and of the mask (None without a mask).

        A worker process may call this method, so it must not depend on state that `list_items` sets.

        Raises:
            ValueError, OSError: The input is refused or cannot be read. The list of rejected inputs stores the message.
        """
        ...

    def class_names(self, items: Iterable[SourceItem]) -> list[str]:
        """List the class names in the order of their label numbers.

        Args:
            items: The result of `list_items`.
        """
        ...

    def mask_names(self) -> tuple[str | None, list[str]]:
        """Return the kind and the names of the masks; (None, []) without masks."""
        ...

    def digest(self, contents: Contents) -> str:
        """Compute a digest of the source that changes if a sample changes.

        Args:
            contents: Items and digests of their bytes, in any order. Iterating over them may read all images. If the
                parameters of a source determine its images, compute the digest from the parameters instead.
        """
        ...

    def resolve_paths(self, root: Path) -> Self:
        """Return a copy of the source whose relative paths are resolved against `root`."""
        ...


class FileSource(ABC):
    """Base class of a `Source` that reads files. It implements splits, refusals, digests and paths."""

    # the next three are fields of the subclass
    path: str | None
    val_fraction: Fraction
    masks: MaskNames | None
    indexed_in_place = False
    thread_safe = True

    @abstractmethod
    def scan(self) -> Iterable[SourceItem]:
        """List the inputs in any order, with the splits that the source itself has."""

    @property
    def location(self) -> str:
        """Path or name of the source for error messages."""
        return str(self.path)

    def select(self, items: list[SourceItem]) -> list[SourceItem]:
        """Select the items to keep, after `val_fraction` has moved some of them to val."""
        return items

    def missing_masks(self, example: str) -> str | None:
        """Return the text that completes the error "none of <n> images, ", raised if no image has a mask.

        None means that `scan` does not look for masks, so no error is raised.

        Args:
            example: Path of an image without a mask, to name in the message.
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
