"""Separate the foreground of images by the content of their tokens: the first principal component, refined.

The tokens of a teacher that knows objects differ most between object and background, so that their first principal
component separates the two (Oquab et al., "DINOv2", 2023, figure 1). A linear discriminant between both sides then
finds a direction that separates them better (Fisher, "The Use of Multiple Measurements in Taxonomic Problems", 1936).
No prior of position is involved, except for the sign of the component.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from semmae.parts.foreground import SIGMOID_SCALE, otsu_threshold
from semmae.parts.foreground_cues import first_component

ROUNDS = 3  # of relabeling the patches and fitting the discriminant
SHRINKAGE = 1.0  # this multiple of the mean variance is added to each variance, so that no direction of noise wins
MIN_VARIANCE = 1e-12


class ComponentForeground(nn.Module):
    """Estimate the foreground share of each patch by one direction of its token.

    Args:
        grid: Rows and columns of patches.
        embed_dim: Size of a token.
    """

    mean: Tensor
    axis: Tensor
    threshold: Tensor
    score_std: Tensor

    def __init__(self, *, grid: tuple[int, int], embed_dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("mean", torch.zeros(embed_dim))
        self.register_buffer("axis", torch.zeros(embed_dim))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("score_std", torch.ones(()))

    def fit(self, patch: Float[Tensor, "s n d"]) -> None:
        """Fit the direction and the threshold to the tokens of a sample of images.

        Raises:
            ValueError: All tokens are equal.
        """
        if patch.flatten(0, 1).var(0).mean() < MIN_VARIANCE:
            raise ValueError("no foreground found: all patch tokens are equal; expected a trained teacher")
        component = first_component(patch, grid=self.grid)
        self._set_axis(component.axis, patch)
        for _ in range(ROUNDS):
            self._set_axis(fit_discriminant(patch, self.is_foreground(patch)), patch)

    def _set_axis(self, axis: Float[Tensor, " d"], patch: Float[Tensor, "s n d"]) -> None:
        """Set the direction, and the threshold that goes with it."""
        self.mean.copy_(patch.mean((0, 1)))
        self.axis.copy_(axis)
        score = self.score(patch)
        self.threshold.copy_(otsu_threshold(score.reshape(1, -1))[0])
        self.score_std.copy_(score.std())

    def score(self, patch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """Project tokens on the direction; the score is high on the foreground."""
        return (patch - self.mean) @ self.axis

    def _margin(self, score: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """Return how far scores lie above the threshold: the mean of the dataset's and of the image's threshold."""
        return score - ((self.threshold + otsu_threshold(score)) / 2)[:, None]

    def is_foreground(self, patch: Float[Tensor, "b n d"]) -> Bool[Tensor, "b n"]:
        """Return whether each patch is foreground."""
        return self._margin(self.score(patch)) > 0

    def forward(self, patch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """Return the foreground share of each patch, in [0, 1]; 0.5 at the threshold."""
        return torch.sigmoid(self._margin(self.score(patch)) / (SIGMOID_SCALE * self.score_std))


def fit_discriminant(tokens: Float[Tensor, "s n d"], labels: Bool[Tensor, "s n"]) -> Float[Tensor, " d"]:
    """Fit Fisher's linear discriminant between two classes of tokens, with a shrunk covariance.

    Returns:
        The direction of unit length that points to the class of the true labels.
    """
    x, y = tokens.flatten(0, 1).double(), labels.flatten().double()
    x, y = x - x.mean(0), y - y.mean()
    covariance = x.T @ x / len(x)
    shrunk = covariance + SHRINKAGE * covariance.diagonal().mean() * torch.eye(x.shape[1], dtype=x.dtype)
    axis = torch.linalg.solve(shrunk, x.T @ y)
    return (axis / axis.norm().clamp(min=MIN_VARIANCE)).to(tokens.dtype)
