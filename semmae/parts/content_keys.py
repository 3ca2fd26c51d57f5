"""Keys of patches by content: tokens relative to the background. For teachers whose tokens tell objects apart."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semmae.parts.component_foreground import ComponentForeground
from semmae.parts.foreground import patch_affinity, patch_positions

OWN_WEIGHT = 0.5  # weight of a patch's own token in each step of smoothing
NEAR = 0.3  # standard deviation of the distance of patches that are averaged, in sides of the image
MIN_VARIANCE = 1e-12


class ContentKeys(nn.Module):
    """Keys of patches from their tokens alone.

    A token of a patch that shows both part and background lies between the two. Relative to the background, it has the
    direction of the part. The keys are therefore the directions of the tokens as seen from the mean background token,
    after two steps against noise: `denoising_matrix`, and smoothing among similar and near patches of the same image.

    Args:
        grid: Rows and columns of patches.
        embed_dim: Size of a token.
        smoothing_steps: Number of steps of smoothing.
        background: Whether the background has its own label. Otherwise, the keys are relative to the mean token.
    """

    mean: Tensor
    denoise: Tensor
    origin: Tensor
    nearness: Tensor

    def __init__(self, *, grid: tuple[int, int], embed_dim: int, smoothing_steps: int, background: bool) -> None:
        super().__init__()
        self.size, self.smoothing_steps, self.background = embed_dim, smoothing_steps, background
        self.foreground = ComponentForeground(grid=grid, embed_dim=embed_dim)
        self.register_buffer("mean", torch.zeros(embed_dim))
        self.register_buffer("denoise", torch.eye(embed_dim))
        self.register_buffer("origin", torch.zeros(embed_dim))
        self.register_buffer("nearness", patch_nearness(grid), persistent=False)

    def fit(self, patch: Float[Tensor, "s n d"]) -> None:
        """Fit the denoising, the foreground and the origin to the tokens of a sample of images.

        Raises:
            ValueError: All tokens are equal.
        """
        self.mean.copy_(patch.mean((0, 1)))
        self.denoise.copy_(denoising_matrix((patch - self.mean).flatten(0, 1)))
        tokens = self.denoise_tokens(patch)
        self.foreground.fit(tokens)
        is_background = ~self.foreground.is_foreground(tokens)
        background = tokens[is_background] if self.background and is_background.any() else tokens.flatten(0, 1)
        self.origin.copy_(background.mean(0))

    def denoise_tokens(self, patch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Shrink the tokens towards their mean in the directions of noise."""
        return self.mean + (patch - self.mean) @ self.denoise

    def foreground_score(self, patch: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """Return the score of `ComponentForeground`, which is high on the foreground."""
        return self.foreground.score(self.denoise_tokens(patch))

    def forward(self, patch: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n"]]:
        """Return the keys of the patches, of unit length, and their foreground shares in [0, 1]."""
        tokens = self.denoise_tokens(patch)
        share = self.foreground(tokens) if self.background else tokens.new_ones(tokens.shape[:2])
        smoothed = smooth(tokens - self.origin, self.nearness, steps=self.smoothing_steps)
        return F.normalize(smoothed, dim=-1), share


def denoising_matrix(centered: Float[Tensor, "m d"]) -> Float[Tensor, "d d"]:
    """Return the linear map that best recovers tokens from noise of equal variance in all directions.

    It is the Wiener filter in the principal components: a component of variance v is multiplied by (v - noise) / v. The
    variance of the noise is the median over the components, because the signal has few directions.

    Args:
        centered: Tokens minus their mean.
    """
    x = centered.double()
    variance, axes = torch.linalg.eigh(x.T @ x / len(x))
    gain = (1 - variance.median() / variance.clamp(min=MIN_VARIANCE)).clamp(min=0)
    return ((axes * gain) @ axes.T).to(centered.dtype)


def patch_nearness(grid: tuple[int, int]) -> Float[Tensor, "n n"]:
    """Return a Gaussian of the distance of each pair of patches, with the standard deviation `NEAR`."""
    positions = patch_positions(grid) / 2  # the side of the image is 1
    return torch.exp(-torch.cdist(positions, positions).square() / (2 * NEAR**2))


def smooth(tokens: Float[Tensor, "b n d"], nearness: Float[Tensor, "n n"], *, steps: int) -> Float[Tensor, "b n d"]:
    """Average tokens with those of similar and near patches of the same image, `steps` times.

    Args:
        tokens: Tokens of the patches.
        nearness: The weight of each pair of patches, by their distance.
        steps: Number of steps; 0 returns the tokens unchanged.
    """
    if steps == 0:
        return tokens
    affinity = patch_affinity(tokens) * nearness
    affinity = affinity / affinity.sum(-1, keepdim=True)
    for _ in range(steps):
        tokens = OWN_WEIGHT * tokens + (1 - OWN_WEIGHT) * (affinity @ tokens)
    return tokens
