"""Read the headers of the members of a plain tar, and check that the tar is complete. Nothing is extracted."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from semmae.sharding.sources.source_item import Blob

# reason to refuse a member that is not a regular file
SPECIAL = "a link, a device or another special member of the tar"
MAX_HEADER = 2**16  # in bytes; limits the long name and the extended attributes of a member


def members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a plain tar, in order.

    Raises:
        ValueError: The file is not a tar, or it is compressed, damaged or truncated.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; the path of a source is absolute, or relative to data/raw")
    try:
        with _HeaderFile(str(path)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.size < 0:  # tarfile would seek backwards and read this header again, in an endless loop
                    raise tarfile.ReadError(f"the member at byte {member.offset} has {member.size} bytes")
                yield member
            file.seek(tar.offset)
            # a tar ends with blocks of zeros; tarfile stops at a damaged header without an error
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"damaged or truncated at byte {tar.offset}")
    except OSError:
        raise
    except Exception as error:  # tarfile raises many types of errors for malformed headers
        raise ValueError(f"{path} cannot be read as a plain, uncompressed tar: {error}") from None


def locate(path: Path, member: tarfile.TarInfo) -> Blob | None:
    """Locate the bytes of a member. Return None if the member is not a regular file."""
    regular = member.isreg() and not member.issparse()
    return Blob(str(path), member.offset_data, member.size) if regular else None


class _HeaderFile(io.FileIO):
    """A file that refuses reads of more than MAX_HEADER bytes, so that a malicious header cannot fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes; expected 0 to {MAX_HEADER}")
        return super().read(size)
