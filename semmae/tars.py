"""Plain tars, read where they lie: the headers of their members, and whether they are whole."""

import tarfile
from collections.abc import Iterator
from pathlib import Path


def members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The members of a plain tar, in its order. ValueError: it is none, is compressed, damaged or cut short."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file; the path of a source is absolute, or relative to data/raw")
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            yield from tar
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any damage for the end
                raise tarfile.ReadError(f"damaged at byte {tar.offset}, or cut short there")
    except tarfile.TarError as error:
        raise ValueError(f"{path} cannot be read as a plain, uncompressed tar: {error}") from None
