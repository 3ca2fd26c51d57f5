"""Fetch and convert the inputs of sources, and compute the digests of sources."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import NamedTuple

from semmae.core.worker_pool import ordered_map
from semmae.data import decoding
from semmae.sharding.shard_assignment import ShardAssignment
from semmae.sharding.sources.source import Source
from semmae.sharding.sources.source_item import SourceItem

CHUNK = 16  # inputs per task of a worker process
PREFETCH = 4  # largest number of chunks per worker that are in progress or wait for the writer
PRELOAD = (__name__, "semmae.sharding.sources.sources")  # modules that the fork server imports once


class ConvertedItem(NamedTuple):
    """An input in its stored form, or the reason for rejecting it."""

    image: decoding.StoredImage | None
    mask: bytes | None
    digests: tuple[str, str]  # SHA-256 of the original bytes of image and mask
    reason: str


def convert_all(
    assignments: list[ShardAssignment], sources: dict[str, Source], *, short_side: int | None, workers: int
) -> Iterator[ConvertedItem]:
    """Fetch and convert all inputs in worker processes, and yield them in the order of `assignments`.

    The workers come from a fork server, because a fork of this process would copy locks that threads of torch or Arrow
    hold.
    """
    chunks = [assignments[i : i + CHUNK] for i in range(0, len(assignments), CHUNK)]
    convert = partial(_convert_chunk, sources=sources, short_side=short_side)
    return chain.from_iterable(
        ordered_map(convert, chunks, workers=workers, start_method="forkserver", preload=PRELOAD, prefetch=PREFETCH)
    )


def _convert_chunk(
    chunk: list[ShardAssignment], *, sources: dict[str, Source], short_side: int | None
) -> list[ConvertedItem]:
    return [_convert(assignment, sources[assignment.source], short_side=short_side) for assignment in chunk]


def _convert(assignment: ShardAssignment, source: Source, *, short_side: int | None) -> ConvertedItem:
    """Fetch an input, decode it once to find damage, and convert it."""
    image, mask, reason = _fetch(source, assignment.item)
    digests = _digests(image, mask)
    if image is None:
        return ConvertedItem(None, None, digests, reason)
    try:
        stored = (
            decoding.inspect_image(image)
            if assignment.shard < 0
            else decoding.convert_image(image, short_side=short_side)
        )
        if mask is not None:
            mask = decoding.convert_mask(mask, stored, num_names=len(source.mask_names()[1]))
    except ValueError as error:
        return ConvertedItem(None, None, digests, str(error))
    return ConvertedItem(stored, mask, digests, "")


def _fetch(source: Source, item: SourceItem) -> tuple[bytes | None, bytes | None, str]:
    """Fetch the bytes of image and mask; returns None for both and the reason if that fails."""
    try:
        return *source.fetch(item), ""
    except ValueError as error:
        return None, None, str(error)
    except OSError as error:
        return None, None, f"the file cannot be read: {error.strerror or error}"


def _digests(image: bytes | None, mask: bytes | None) -> tuple[str, str]:
    image_digest, mask_digest = ("" if data is None else hashlib.sha256(data).hexdigest() for data in (image, mask))
    return image_digest, mask_digest


def source_digest(source: Source) -> str:
    """Compute the digest of the current content of a source."""

    def contents() -> Iterator[tuple[SourceItem, str, str]]:
        items = source.list_items(seed=0)
        with ThreadPoolExecutor(None if source.thread_safe else 1) as threads:  # reading and hashing release the GIL
            digests = threads.map(lambda item: _digests(*_fetch(source, item)[:2]), items)
            for item, (image, mask) in zip(items, digests, strict=True):
                yield item, image, mask

    return source.digest(contents())
