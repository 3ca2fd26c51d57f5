"""One input of a source: its label, its split, and the location of its image and mask."""

import os
import re
import stat
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT, PositiveBelow1
from semmae.data import decoding

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")  # of image files
MAX_BYTES = 2**30  # per file; a larger file, such as a video, is refused without reading it
MAX_LABEL = 200  # largest length of a class name, in characters
UNPRINTABLE = re.compile(r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

Split = Literal["train", "val", "test"]
SPLITS = get_args(Split)
Fraction = PositiveBelow1 | None  # fraction of train that becomes val; null: none
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)] | None  # visits to each image per epoch; null: one


def _local_path(path: str) -> str:
    if path.lstrip().lower().startswith("pipe:") or "://" in path:
        raise ValueError("pipe: commands and URLs are refused; expected a local path. Download the files first")
    return path


LocalPath = Annotated[str, AfterValidator(_local_path)]  # a path on this machine, neither a command nor a URL


@dataclass(frozen=True, config=STRICT)
class MaskNames:
    """The meaning of the values of 8-bit masks: they index `names`; the value 255 is ignored."""

    kind: Literal["foreground", "parts", "classes"]
    names: Annotated[list[str], Field(min_length=2, max_length=decoding.IGNORE)]


class Blob(NamedTuple):
    """A range of bytes in a file: a complete file, or one member of a tar."""

    file: str
    offset: int
    size: int

    @classmethod
    def of(cls, path: str) -> "Blob":
        """Describe a complete file.

        Raises:
            ValueError: The path is not a regular file. For example, reading from a pipe could block forever.
        """
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        return cls(path, 0, status.st_size)

    def read(self) -> bytes:
        """Read the bytes.

        Raises:
            ValueError: The file is too large, or has become shorter.
            OSError: The file cannot be opened or read.
        """
        if self.size > MAX_BYTES:
            raise ValueError(f"the file is too large: {self.size} bytes, allowed are {MAX_BYTES}")
        handle = os.open(self.file, os.O_RDONLY | os.O_NONBLOCK)  # does not block, even if the file is a pipe by now
        try:
            data = os.pread(handle, self.size, self.offset)
        finally:
            os.close(handle)
        if len(data) < self.size:
            raise ValueError("the file has become shorter since it was listed")
        return data


class SourceItem(NamedTuple):
    """One input of a source, which becomes a sample or is rejected."""

    path: str  # unique in the source
    split: str
    label: str | None  # class name
    image: Blob | None  # None: drawn, loaded by a library, or refused
    mask: Blob | None
    refused: str  # reason to refuse the input; "" if there is none
    group: str | None = None  # val_fraction keeps the inputs of a group in one split; None: it is its own group
    key: str | None = None  # string from which the key is made; None: the path

    def read(self) -> tuple[bytes, bytes | None]:
        """Read the bytes of image and mask; raises ValueError or OSError if a file cannot be read."""
        assert self.image is not None
        return self.image.read(), self.mask.read() if self.mask else None


def printable(name: str) -> str:
    """Escape a name losslessly, so that it can be printed on one line.

    A control character becomes \\u...., a byte that is not UTF-8 becomes \\x.., and a backslash becomes two.
    """

    def escaped(match: re.Match[str]) -> str:
        code = ord(match[0])
        return "\\\\" if match[0] == "\\" else f"\\x{code - 0xDC00:02x}" if code >> 8 == 0xDC else f"\\u{code:04x}"

    return UNPRINTABLE.sub(escaped, name)


def label_name(value: Any, names: list[str] | None) -> str | None:
    """Convert a label to a class name.

    Args:
        value: An index into `names`, or one of the names. Without `names`, a number or a string, which becomes the
            class name. -1 and None mean that there is no label.

    Raises:
        ValueError: The value is not a valid label.
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


def sort_labels(labels: set[str]) -> list[str]:
    """Sort class names: by value if all are numbers, else alphabetically."""
    return sorted(labels, key=int if all(label.isdecimal() for label in labels) else None)
