"""One input of a source: what is said of it, and where the bytes of its image and mask lie."""

import os
import re
import stat
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT, Share
from semmae.data import decoding

MAX_BYTES = 2**30  # of one file; what is larger (a film in a folder of pictures) is refused unread
MAX_LABEL = 200  # characters of a class's name
UNPRINTABLE = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Split = Literal["train", "val", "test"]
Fraction = Share | None  # of train, set aside as val; null: none
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)] | None  # times that an epoch sees a source; null: once


def _plain(path: str) -> str:
    if path.lstrip().lower().startswith("pipe:") or "://" in path:
        raise ValueError("pipe: commands and URLs are refused, download the shards first, or the images")
    return path


PlainPath = Annotated[str, AfterValidator(_plain)]  # of files on this machine


@dataclass(frozen=True, config=STRICT)
class MaskNames:
    """What the values of 8-bit masks mean: they index `names`; 255 = ignore."""

    kind: Literal["foreground", "parts", "classes"]
    names: Annotated[list[str], Field(min_length=2, max_length=decoding.IGNORE)]


class Blob(NamedTuple):
    """Bytes in a file: all of them, or those of a tar's member."""

    file: str
    offset: int
    size: int

    @classmethod
    def of(cls, path: str) -> "Blob":
        """The whole of a file. ValueError: it is no regular one; who opened a pipe would wait for ever."""
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        return cls(path, 0, status.st_size)

    def read(self) -> bytes:
        if self.size > MAX_BYTES:
            raise ValueError(f"the file is too large: {self.size} bytes, allowed are {MAX_BYTES}")
        handle = os.open(self.file, os.O_RDONLY | os.O_NONBLOCK)  # it may have become a pipe since it was listed
        try:
            data = os.pread(handle, self.size, self.offset)
        finally:
            os.close(handle)
        if len(data) < self.size:
            raise ValueError("the file has become shorter since it was listed")
        return data


class Entry(NamedTuple):
    """One input."""

    path: str  # in the source
    split: str
    label: str | None  # name of its class
    image: Blob | None  # None: drawn, handed over by a library, or refused
    mask: Blob | None
    refused: str  # why it is no sample, "" if nothing is known against it
    group: str | None = None  # of images that val_fraction keeps together; null: it stands alone
    key: str | None = None  # what its key is made of; null: the path

    def read(self) -> tuple[bytes, bytes | None]:
        """The bytes of image and mask. ValueError or OSError: why there are none."""
        assert self.image is not None
        return self.image.read(), self.mask.read() if self.mask else None


def printable(name: str) -> str:
    """Any name in one line that says it exactly: a control character becomes \\u...., a byte that is not UTF-8 \\x..,
    a backslash two.
    """

    def escaped(match: re.Match[str]) -> str:
        code = ord(match[0])
        return "\\\\" if match[0] == "\\" else f"\\x{code - 0xDC00:02x}" if code >> 8 == 0xDC else f"\\u{code:04x}"

    return UNPRINTABLE.sub(escaped, name)


def label_name(value: Any, names: list[str] | None) -> str | None:
    """The class that a label means: an index into `names`, or one of them; without names, a number or a text itself.

    -1 and null mean that there is no label. ValueError: why it is none.
    """
    if value in (None, -1, "-1"):
        return None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"the label is neither a number nor a text: {value!r:.80}")
    if isinstance(value, str) and len(value) > MAX_LABEL:
        raise ValueError(f"the label is too long: {len(value)} characters, allowed are {MAX_LABEL}")
    if names is None:
        return printable(str(value))
    if value in names:
        return str(value)
    if not str(value).isdecimal():
        raise ValueError(f"the label is none of the names: {value!r}")
    if int(value) >= len(names):
        raise ValueError(f"the label has no name: {value}, names are for 0 to {len(names) - 1}")
    return names[int(value)]


def in_order(labels: set[str]) -> list[str]:
    """Class names in the order of their labels: numbers by value, texts by alphabet."""
    return sorted(labels, key=int if all(label.isdecimal() for label in labels) else None)
