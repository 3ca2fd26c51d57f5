"""The part method `grid`: equal rectangles, the same in each image."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from semmae.models.teacher import Tokens
from semmae.parts.part_method import PartMethod


class GridParts(PartMethod):
    """Each rectangle of a regular grid is a part; there is no background label.

    Args:
        config: The keys of `PartMethod`; `num_parts` is the number of rectangles.
    """

    shares: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        labels = torch.from_numpy(grid_labels(self.grid, self.num_parts))
        self.register_buffer("shares", torch.eye(self.num_parts)[labels].T, persistent=False)

    def assign(self, tokens: Tokens, counts: Integer[Tensor, "b n g"] | None = None) -> Float[Tensor, "b p n"]:
        """Return share 1 for the rectangle of each patch; the tokens only tell the number of images."""
        return self.shares.expand(len(tokens.patch), -1, -1)


def grid_shape(grid: tuple[int, int], count: int) -> tuple[int, int]:
    """Return the rows and columns of at most `count` rectangles that divide a grid of patches."""
    rows = min(int(count**0.5), grid[0])
    return rows, min(count // rows, grid[1])


def grid_labels(grid: tuple[int, int], count: int) -> Integer[np.ndarray, " n"]:
    """Label each patch by its rectangle, in a grid of at most `count` equal rectangles."""
    rows, columns = grid_shape(grid, count)
    i, j = np.mgrid[: grid[0], : grid[1]]
    return (i * rows // grid[0] * columns + j * columns // grid[1]).ravel()
