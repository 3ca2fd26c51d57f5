"""Keys of patches by content: tokens relative to the background. For teachers whose tokens tell objects apart."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from semmae.parts.component_foreground import ComponentForeground
from semmae.parts.foreground import patch_affinity

OWN_WEIGHT = 0.5  # weight of a patch's own token in each step of smoothing


class ContentKeys(nn.Module):
    """Keys of patches from their tokens alone.

    A token of a patch that shows both part and background lies between the two. Relative to the background, it has the
    direction of the part. The keys are therefore the directions of the tokens as seen from the mean background token,
    after smoothing among similar patches of the same image, which reduces noise.

    Args:
        grid: Rows and columns of patches.
        embed_dim: Size of a token.
        smoothing_steps: Number of steps of smoothing.
        background: Whether the background has its own label. Otherwise, the keys are relative to the mean token.
    """

    origin: Tensor

    def __init__(self, *, grid: tuple[int, int], embed_dim: int, smoothing_steps: int, background: bool) -> None:
        super().__init__()
        self.size, self.smoothing_steps, self.background = embed_dim, smoothing_steps, background
        self.foreground = ComponentForeground(grid=grid, embed_dim=embed_dim)
        self.register_buffer("origin", torch.zeros(embed_dim))

    def fit(self, patch: Float[Tensor, "s n d"]) -> None:
        """Fit the foreground and the origin to the tokens of a sample of images.

        Raises:
            ValueError: All tokens are equal.
        """
        self.foreground.fit(patch)
        is_background = ~self.foreground.is_foreground(patch)
        tokens = patch[is_background] if self.background and is_background.any() else patch.flatten(0, 1)
        self.origin.copy_(tokens.mean(0))

    def forward(self, patch: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n"]]:
        """Return the keys of the patches, of unit length, and their foreground shares in [0, 1]."""
        share = self.foreground(patch) if self.background else patch.new_ones(patch.shape[:2])
        return F.normalize(smooth(patch - self.origin, steps=self.smoothing_steps), dim=-1), share


def smooth(tokens: Float[Tensor, "b n d"], *, steps: int) -> Float[Tensor, "b n d"]:
    """Average tokens with those of similar patches of the same image, `steps` times."""
    if steps == 0:
        return tokens
    affinity = patch_affinity(tokens)
    for _ in range(steps):
        tokens = OWN_WEIGHT * tokens + (1 - OWN_WEIGHT) * (affinity @ tokens)
    return tokens
