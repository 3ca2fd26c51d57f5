"""Rows too many for memory: appended to a file as they come, then read as one tensor that lies in that file.

The pages of a file are the system's to drop when memory is short, so a process that works on them chunk by chunk needs
the same memory for any number of rows. What a killed process has appended is there for the next one.
"""

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from semmae.core.atomic_files import disk_full_error
from semmae.core.paths import state_root

BYTES = 4  # of a float32


class Rows:
    """Rows of `width` numbers in the file `path`; without one, in a nameless file that goes with the last reader."""

    def __init__(self, width: int, path: Path | None = None) -> None:
        self.width = width
        folder = state_root() / "scratch" if path is None else path.parent
        folder.mkdir(parents=True, exist_ok=True)
        self._path = path or folder / "features"
        self._file = tempfile.TemporaryFile(dir=folder) if path is None else open(path, "a+b")  # noqa: SIM115

    def __len__(self) -> int:
        """The whole rows in the file."""
        return os.fstat(self._file.fileno()).st_size // (BYTES * self.width)

    def keep(self, rows: int) -> None:
        """Drop what follows the first `rows`."""
        os.truncate(self._file.fileno(), rows * BYTES * self.width)

    def append(self, rows: Float[Tensor, "b {self.width}"]) -> None:
        """Write rows behind those that are there."""
        try:
            self._file.write(rows.float().cpu().contiguous().numpy().tobytes())
            self._file.flush()
        except OSError as error:
            raise disk_full_error(self._path) if error.errno == errno.ENOSPC else error from None

    def tensor(self) -> Float[Tensor, "n {self.width}"]:
        """All rows, in the file; a change to them would stay in this process."""
        if not len(self):
            return torch.empty(0, self.width)  # nothing cannot be mapped
        shape = len(self), self.width
        return torch.from_numpy(np.memmap(self._file, dtype=np.float32, mode="c", shape=shape))  # type: ignore[arg-type]
