"""Functions of part maps that train the paper's part learner (SemMAE, section 3.1)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


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

    The loss is 0 if each patch belongs wholly to one label.
    """
    return (1 - maps.square().sum(1)).mean()
