"""Base class of the part methods that compare patch tokens: `learned` and `kmeans`.

They first prepare the tokens in the same way, because the raw tokens of a small teacher mostly encode position and
brightness.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from semmae.parts.part_method import PartMethod

WHITENING_SHRINKAGE = 0.01  # this share of the mean variance is added to each variance, to limit the gain of noise


class TokenPartMethod(PartMethod):
    """A part method that compares prepared patch tokens.

    Args:
        config: The keys of `PartMethod`, and `embed_dim` (size of a token).
    """

    position_mean: Tensor
    whiten: Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.register_buffer("position_mean", torch.zeros(self.grid[0] * self.grid[1], config["embed_dim"]))
        self.register_buffer("whiten", torch.eye(config["embed_dim"]))

    def fit(self, patch: Float[Tensor, "s n d"], *, seed: int) -> dict[str, float]:
        """Fit the method to the patch tokens of a sample of training images, and return metrics of the fit."""
        raise TypeError(f"{type(self).__name__} cannot be fitted")

    def prepare_tokens(self, patch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Prepare the patch tokens of the teacher.

        Subtract the mean token of each position, whiten, and add the mean of the 3 x 3 patches around each patch.
        """
        x = ((patch - self.position_mean) @ self.whiten).float()
        padded = F.pad(x.transpose(1, 2).unflatten(2, self.grid), [1] * 4, mode="replicate")
        return x + F.avg_pool2d(padded, 3, stride=1).flatten(2).transpose(1, 2)

    def fit_whitening(self, patch: Float[Tensor, "s n d"]) -> None:
        """Fit the mean token of each position and the whitening matrix to a sample of training images."""
        self.position_mean.copy_(patch.mean(0))
        x = (patch - self.position_mean).flatten(0, 1).double()
        variance, axes = torch.linalg.eigh(x.T @ x / len(x))
        self.whiten.copy_(axes / (variance + WHITENING_SHRINKAGE * variance.mean()).sqrt())
