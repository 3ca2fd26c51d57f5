"""Plain tars, read without extracting them: the headers of their members, and whether the tar is complete."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from semmae.sharding.sources.source_item import Blob

SPECIAL = "a link, a device or another special member of the tar"
MAX_HEADER = 2**16  # bytes of the long names and extended attributes of one member


def members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a plain tar in its order.

    Raises:
        ValueError: The file is no tar, or it is compressed, damaged or truncated.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; the path of a source is absolute, or relative to data/raw")
    try:
        with _HeaderFile(str(path)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.size < 0:  # tarfile would seek backwards and read this header again, forever
                    raise tarfile.ReadError(f"the member at byte {member.offset} has {member.size} bytes")
                yield member
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile reads damage as the end of the tar
                raise tarfile.ReadError(f"damaged at byte {tar.offset}, or cut short there")
    except OSError:
        raise
    except Exception as error:  # a malformed header makes tarfile raise errors of many types
        raise ValueError(f"{path} cannot be read as a plain, uncompressed tar: {error}") from None


def blob(path: Path, member: tarfile.TarInfo) -> Blob | None:
    """Locate the bytes of a member; None if it is not a regular file."""
    regular = member.isreg() and not member.issparse()
    return Blob(str(path), member.offset_data, member.size) if regular else None


class _HeaderFile(io.FileIO):
    """A file whose reads are limited to the size of a header, so that no header can fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes, allowed are {MAX_HEADER}")
        return super().read(size)
