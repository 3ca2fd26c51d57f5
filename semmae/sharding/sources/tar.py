"""Plain tars, read where they lie: the headers of their members, and whether they are whole."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

from semmae.sharding.sources.source_item import Blob

SPECIAL = "a link, a device or another special member of the tar"
MAX_HEADER = 2**16  # bytes that the long names and further attributes of one member may take


def members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The members of a plain tar, in its order. ValueError: it is none, is compressed, damaged or cut short."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file; the path of a source is absolute, or relative to data/raw")
    try:
        with _Headers(str(path)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.size < 0:  # tarfile would go back by so much, and come here again, for ever
                    raise tarfile.ReadError(f"{member.size} bytes are said to lie at byte {member.offset}")
                yield member
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any damage for the end
                raise tarfile.ReadError(f"damaged at byte {tar.offset}, or cut short there")
    except OSError:
        raise
    except Exception as error:  # tarfile raises whatever its parsing meets
        raise ValueError(f"{path} cannot be read as a plain, uncompressed tar: {error}") from None


def blob(path: Path, member: tarfile.TarInfo) -> Blob | None:
    """Where the bytes of a member lie, None if it is no plain file."""
    plain = member.isreg() and not member.issparse()
    return Blob(str(path), member.offset_data, member.size) if plain else None


class _Headers(io.FileIO):
    """A tar as tarfile reads it, headers only: nobody's header can ask for all memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes, allowed are {MAX_HEADER}")
        return super().read(size)
