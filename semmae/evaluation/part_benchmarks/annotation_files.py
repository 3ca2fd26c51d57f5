"""Read the annotation files of a benchmark. Every error names the file and the layout that is expected."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from semmae.core.atomic_files import read_json
from semmae.sharding.image_files import ImageFiles


@dataclass(frozen=True)
class AnnotationFiles:
    """The files of a benchmark as its authors publish it.

    Attributes:
        root: The folder of the benchmark.
        layout: The files and folders that `root` must hold, for error messages.
    """

    root: Path
    layout: str

    def find(self, *names: str) -> Path:
        """Return the first of the files or folders `names` in `root` that exists.

        Raises:
            ValueError: None of them exists.
        """
        for name in names:
            if (self.root / name).exists():
                return self.root / name
        alternatives = f" (nor {', '.join(names[1:])})" if len(names) > 1 else ""
        raise ValueError(f"{self.root / names[0]} does not exist{alternatives}; {self._remedy()}")

    def rows(self, path: Path, fields: str, *, header: int = 0) -> list[list[str]]:
        """Read a text file with one row of fields per line; the last field may contain spaces.

        Args:
            fields: Names of the fields, separated by spaces.
            header: Number of lines before the first row.

        Raises:
            ValueError: A line lacks a field, or there is no row.
        """
        try:
            lines = path.read_text().splitlines()[header:]
        except UnicodeDecodeError:
            raise self.error(path, "not a text file") from None
        count, rows = len(fields.split()), []
        for number, line in enumerate(lines, header + 1):
            row = line.split(maxsplit=count - 1)
            if len(row) != count:
                raise self.error(path, f"line {number} is {line[:60]!r}, but a line holds: {fields}")
            rows.append(row)
        if not rows:
            raise self.error(path, f"no lines, but a line holds: {fields}")
        return rows

    def numbers(self, path: Path, rows: Sequence[Sequence[str]]) -> Float64[np.ndarray, "n k"]:
        """Convert the fields of all rows to numbers.

        Raises:
            ValueError: A field is not a finite number.
        """
        try:
            values = np.array(rows, dtype=np.float64)
        except ValueError as error:
            raise self.error(path, str(error)) from None
        if not np.isfinite(values).all():
            raise self.error(path, "a value is not finite")
        return values

    def table(self, path: Path, fields: str, *, header: int = 0) -> dict[str, Float64[np.ndarray, " k"]]:
        """Read a text file whose first field is a key and whose other fields are numbers.

        Raises:
            ValueError: A line is malformed, or there is none.
        """
        rows = self.rows(path, fields, header=header)
        values = self.numbers(path, [row[1:] for row in rows])
        return {row[0]: value for row, value in zip(rows, values, strict=True)}

    def select(
        self, path: Path, table: dict[str, Float64[np.ndarray, " k"]], keys: Sequence[str]
    ) -> Float64[np.ndarray, "n k"]:
        """Return the values of a `table` for `keys`, in their order.

        Raises:
            ValueError: The table lacks a key.
        """
        if missing := [key for key in keys if key not in table]:
            raise self.error(path, f"no line for {missing[0]} ({len(missing)} of {len(keys)} are missing)")
        return np.array([table[key] for key in keys])

    def json(self, path: Path, *names: str) -> dict[str, Any]:
        """Read a JSON object that holds the lists `names`.

        Raises:
            ValueError: The file is not such an object.
        """
        content = read_json(path)
        for name in names:
            if not isinstance(content, dict) or not isinstance(content.get(name), list):
                raise self.error(path, f"it has no list {name!r}")
        return content

    def check_images(self, images: ImageFiles) -> None:
        """Check that there is an image and that all images exist.

        Raises:
            ValueError: There is none, or one does not exist.
        """
        if not images.keys:
            raise ValueError(f"no image is left for a split of {self.root}; {self._remedy()}")
        missing = [key for key in images.keys if not (images.root / key).is_file()]
        if missing:
            path, share = images.root / missing[0], f"{len(missing)} of {len(images)} images are missing"
            raise ValueError(f"{path} does not exist ({share}); {self._remedy()}")

    def error(self, path: Path, problem: str) -> ValueError:
        """Return an error that names a file, its problem and the expected layout."""
        return ValueError(f"{path}: {problem}; {self._remedy()}")

    def _remedy(self) -> str:
        return f"expected {self.layout}. Unpack the data set again as its authors publish it"
