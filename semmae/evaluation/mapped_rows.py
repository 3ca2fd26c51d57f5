"""A matrix that is written to a file row by row, and then read as one memory-mapped tensor.

The system drops pages of the file when memory is short. A process that works on chunks therefore needs the same memory
for any number of rows. If a process is killed, the next process can use the rows in the file.
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

BYTES_PER_VALUE = 4  # float32


class MappedRows:
    """A growing float32 matrix of `width` columns in a file.

    Args:
        width: Number of columns.
        path: The file. None: a temporary file, which is deleted when it is closed.
    """

    def __init__(self, width: int, path: Path | None = None) -> None:
        self.width = width
        folder = state_root() / "scratch" if path is None else path.parent
        folder.mkdir(parents=True, exist_ok=True)
        self._path = path or folder / "features"
        self._file = tempfile.TemporaryFile(dir=folder) if path is None else open(path, "a+b")  # noqa: SIM115

    def __len__(self) -> int:
        """Return the number of whole rows in the file."""
        return os.fstat(self._file.fileno()).st_size // (BYTES_PER_VALUE * self.width)

    def truncate(self, rows: int) -> None:
        """Keep the first `rows` rows only."""
        os.truncate(self._file.fileno(), rows * BYTES_PER_VALUE * self.width)

    def append(self, rows: Float[Tensor, "b {self.width}"]) -> None:
        """Append rows to the file.

        Raises:
            OSError: The disk is full.
        """
        try:
            self._file.write(rows.float().cpu().contiguous().numpy().tobytes())
            self._file.flush()
        except OSError as error:
            raise disk_full_error(self._path) if error.errno == errno.ENOSPC else error from None

    def as_tensor(self) -> Float[Tensor, "n {self.width}"]:
        """Map all rows to a tensor. Changes to the tensor do not change the file."""
        if not len(self):
            return torch.empty(0, self.width)  # an empty file cannot be mapped
        shape = len(self), self.width
        return torch.from_numpy(np.memmap(self._file, dtype=np.float32, mode="c", shape=shape))  # type: ignore[arg-type]
