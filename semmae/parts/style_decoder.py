"""A decoder in the manner of StyleGAN: from part maps as content and a class token as style to the pixels of an image.

The structure is that of the generator of Karras et al., "A Style-Based Generator Architecture for Generative
Adversarial Networks" (CVPR 2019): a mapping network, and convolutions that double the resolution, each followed by
adaptive instance normalization (AdaIN; Huang & Belongie, ICCV 2017). The part maps take the place of the constant
input. Two differences make the maps the only spatial input: no noise is added, and borders are replicated instead of
padded with zeros, which convolutions could use as positions.
"""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

MAPPING_LAYERS = 4  # StyleGAN: 8
MIN_WIDTH = 8  # the smallest number of channels, at the highest resolutions
SLOPE = 0.2  # of the leaky ReLU for negative values, as in StyleGAN


class StyleDecoder(nn.Module):
    """Upsampling convolutions over part maps, with a style from the class token.

    Args:
        num_maps: Number of part maps.
        width: Channels at the resolution of the maps. Each doubling of the resolution halves them, down to MIN_WIDTH.
        style_dim: Size of the class token.
        patch_size: Side of a patch in pixels, by which the resolution grows.
    """

    def __init__(self, num_maps: int, width: int, style_dim: int, patch_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.LayerNorm(style_dim)]
        for _ in range(MAPPING_LAYERS):
            linear = nn.Linear(style_dim, style_dim)
            nn.init.kaiming_normal_(linear.weight, a=SLOPE)  # keeps the variance, and so the differences of images
            layers += [linear, nn.LeakyReLU(SLOPE)]
        self.mapping = nn.Sequential(*layers)
        self.scales = upsampling_scales(patch_size)
        widths = [num_maps] + [max(width >> i, MIN_WIDTH) for i in range(len(self.scales))]
        self.blocks = nn.ModuleList(StyleBlock(a, b, style_dim) for a, b in pairwise(widths))
        self.to_rgb = nn.Conv2d(widths[-1], 3, 1)

    def forward(self, maps: Float[Tensor, "b p h w"], cls: Float[Tensor, "b d"]) -> Float[Tensor, "b 3 H W"]:
        """Decode part maps and class tokens to normalized pixels, at `patch_size` times the resolution of the maps."""
        x, style = maps, self.mapping(cls)
        h, w = maps.shape[2:]
        for scale, block in zip(self.scales, self.blocks, strict=True):
            if scale > 1:
                x = F.interpolate(x, (scale * h, scale * w), mode="bilinear")
            x = block(x, style)
        return self.to_rgb(x)


class StyleBlock(nn.Module):
    """Two 3 x 3 convolutions at one resolution, each followed by a leaky ReLU and AdaIN.

    Args:
        in_width: Channels of the input.
        out_width: Channels of both convolutions.
        style_dim: Size of the style vector.
    """

    def __init__(self, in_width: int, out_width: int, style_dim: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, out_width, 3, padding=1, padding_mode="replicate") for width in (in_width, out_width)
        )
        self.styles = nn.ModuleList(nn.Linear(style_dim, 2 * out_width) for _ in range(2))

    def forward(self, x: Float[Tensor, "b c h w"], style: Float[Tensor, "b d"]) -> Float[Tensor, "b e h w"]:
        """Convolve `x`, and set the mean and deviation of its channels from the style vector."""
        for convolve, to_style in zip(self.convolutions, self.styles, strict=True):
            scale, shift = to_style(style).chunk(2, dim=1)
            x = adaptive_instance_norm(F.leaky_relu(convolve(x), SLOPE), 1 + scale, shift)
        return x


def adaptive_instance_norm(
    x: Float[Tensor, "b c h w"], scale: Float[Tensor, "b c"], shift: Float[Tensor, "b c"]
) -> Float[Tensor, "b c h w"]:
    """Normalize each channel of each image, then give it the mean `shift` and the standard deviation |scale|."""
    return F.instance_norm(x) * scale[:, :, None, None] + shift[:, :, None, None]


def upsampling_scales(patch_size: int) -> list[int]:
    """Return the resolutions of the blocks relative to the maps: powers of 2 below `patch_size`, then `patch_size`."""
    powers = range((patch_size - 1).bit_length())
    return [2**i for i in powers] + [patch_size]
