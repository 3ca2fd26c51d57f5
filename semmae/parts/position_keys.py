"""Keys of patches by position on the object, for teachers whose tokens do not tell objects apart.

The tokens of a small masked autoencoder mostly encode position in the image and brightness. Without these two, they
still tell object and background apart (`foreground`), but not the parts of an object. The keys therefore add the
position on the object.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semmae.core.rng import fold
from semmae.parts.foreground import ClusterForeground, object_code

WHITENING_SHRINKAGE = 0.01  # this share of the mean variance is added to each variance, to limit the gain of noise
OBJECT_CODE_DIM = 4  # size of `foreground.object_code`


class PositionKeys(nn.Module):
    """Keys of patches from whitened tokens and the position on the object.

    Args:
        foreground: The fields of `ClusterForegroundConfig` in `semmae.training.parts_loop`; None without a background.
        grid: Rows and columns of patches.
        embed_dim: Size of a token.
        position_weight: Weight of the position relative to the token.
    """

    position_mean: Tensor
    whiten: Tensor

    def __init__(
        self, foreground: dict[str, Any] | None, *, grid: tuple[int, int], embed_dim: int, position_weight: float
    ) -> None:
        super().__init__()
        self.grid, self.position_weight, self.size = grid, position_weight, embed_dim + OBJECT_CODE_DIM
        self.foreground = ClusterForeground(foreground, grid=grid, embed_dim=embed_dim) if foreground else None
        self.register_buffer("position_mean", torch.zeros(grid[0] * grid[1], embed_dim))
        self.register_buffer("whiten", torch.eye(embed_dim))

    def prepare_tokens(self, patch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Prepare the patch tokens of the teacher.

        Subtract the mean token of each position, whiten, and add the mean of the 3 x 3 patches around each patch.
        """
        x = (patch - self.position_mean) @ self.whiten
        padded = F.pad(x.transpose(1, 2).unflatten(2, self.grid), [1] * 4, mode="replicate")
        return x + F.avg_pool2d(padded, 3, stride=1).flatten(2).transpose(1, 2)

    def fit(self, patch: Float[Tensor, "s n d"], *, seed: int) -> None:
        """Fit the whitening and the foreground to the tokens of a sample of images.

        Raises:
            ValueError: There is no foreground, or there are fewer patches than clusters.
        """
        self.position_mean.copy_(patch.mean(0))
        x = (patch - self.position_mean).flatten(0, 1).double()
        variance, axes = torch.linalg.eigh(x.T @ x / len(x))
        self.whiten.copy_(axes / (variance + WHITENING_SHRINKAGE * variance.mean()).sqrt())
        if self.foreground is not None:
            self.foreground.fit(F.normalize(self.prepare_tokens(patch), dim=-1), patch, seed=fold(seed, "foreground"))

    def forward(self, patch: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b n e"], Float[Tensor, "b n"]]:
        """Return the keys of the patches, of unit length, and their foreground shares in [0, 1]."""
        unit = F.normalize(self.prepare_tokens(patch), dim=-1)
        share = unit.new_ones(unit.shape[:2]) if self.foreground is None else self.foreground(unit, patch)
        keys = torch.cat([unit, self.position_weight * object_code(share, self.grid)], dim=-1)
        return F.normalize(keys, dim=-1), share
