"""The decoder that trains the part learner, and the losses (SemMAE, section 3.1).

The decoder reconstructs a target from the part maps and the class token. Only the maps are spatial. The decoder can
therefore reconstruct a difference between two patches only if the maps separate them.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from semmae.models.patches import patchify
from semmae.models.vit import normalize


class PartDecoder(nn.Module):
    """Convolutions over part maps, with a style from the class token.

    Adaptive instance normalization (Huang & Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance
    Normalization", ICCV 2017) follows each convolution.

    Args:
        num_labels: Number of part maps.
        width: Channels of each convolution.
        depth: Number of convolutions.
        style_dim: Size of the class token.
        target_dim: Target values per patch.
    """

    def __init__(self, num_labels: int, width: int, depth: int, style_dim: int, target_dim: int) -> None:
        super().__init__()
        channels = [num_labels] + [width] * depth
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, padding_mode="replicate") for a, b in itertools.pairwise(channels)
        )
        self.style = nn.LayerNorm(style_dim)
        self.styles = nn.ModuleList(nn.Linear(style_dim, 2 * width) for _ in range(depth))
        self.out = nn.Conv2d(width, target_dim, 1)

    def forward(self, maps: Float[Tensor, "b p h w"], style: Float[Tensor, "b d"]) -> Float[Tensor, "b v h w"]:
        """Reconstruct the target from part maps and class tokens."""
        x, style = maps, self.style(style)
        for convolve, to_style in zip(self.convolutions, self.styles, strict=True):
            scale, shift = to_style(style)[:, :, None, None].chunk(2, dim=1)
            x = F.gelu(F.instance_norm(convolve(x)) * (1 + scale) + shift)
        return self.out(x)


def blur(maps: Float[Tensor, "b p h w"], sigma: float) -> Float[Tensor, "b p h w"]:
    """Blur maps with a Gaussian, with replicated borders.

    Args:
        maps: Part maps.
        sigma: Standard deviation in patches; 0 returns the maps unchanged.
    """
    if sigma == 0:
        return maps
    radius = math.ceil(2 * sigma)
    kernel = torch.exp(-torch.arange(-radius, radius + 1, device=maps.device).float().square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(maps.shape[1], 1, 1, -1)
    x = F.pad(maps, [radius] * 4, mode="replicate")
    x = F.conv2d(x, kernel, groups=maps.shape[1])
    return F.conv2d(x, kernel.transpose(2, 3), groups=maps.shape[1])


def diversity_loss(maps: Float[Tensor, "b p n"]) -> Float[Tensor, ""]:
    """Compute the overlap of part maps: the sum over labels p != q of maps[p] * maps[q], averaged over patches.

    The loss is 0 if each patch belongs wholly to one label. Training does not change the foreground
    share of a patch, so the loss stays above 0 where that share is strictly between 0 and 1.
    """
    return (1 - maps.square().sum(1)).mean()


def balance_loss(shares: Float[Tensor, " p"], floor: float) -> Float[Tensor, ""]:
    """Penalize labels with a small share: max(0, 1 - share / floor), averaged over labels.

    The loss uses a floor instead of a uniform prior, because parts differ in size. It has no effect on the share of the
    background, which is fixed before training.

    Args:
        shares: The share of each label in all patches of a batch.
        floor: The smallest share without a penalty.
    """
    return (1 - shares / floor).clamp(min=0).mean()


def pixel_targets(images: UInt8[Tensor, "b 3 H W"], patch_size: int) -> Float[Tensor, "b n v"]:
    """Return the normalized pixels of each patch, the target of the decoder for `target: pixels`."""
    return patchify(normalize(images), patch_size)
