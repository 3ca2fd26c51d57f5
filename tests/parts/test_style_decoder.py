"""The decoder turns maps into images at the resolution of pixels; AdaIN sets the statistics of its channels."""

import pytest
import torch

from semmae.parts import style_decoder


@pytest.mark.parametrize("patch_size", [1, 8, 14])
def test_the_image_has_the_size_of_its_pixels(patch_size):
    decoder = style_decoder.StyleDecoder(4, 16, 12, patch_size)
    images = decoder(torch.rand(2, 4, 3, 5), torch.randn(2, 12))
    assert images.shape == (2, 3, 3 * patch_size, 5 * patch_size)


def test_the_resolution_doubles_up_to_the_patch_size():
    assert style_decoder.upsampling_scales(1) == [1]
    assert style_decoder.upsampling_scales(14) == [1, 2, 4, 8, 14]
    assert style_decoder.upsampling_scales(16) == [1, 2, 4, 8, 16]


def test_the_style_gives_each_channel_its_mean_and_deviation():
    x, scale, shift = torch.randn(2, 3, 9, 7) * 5 + 2, torch.randn(2, 3), torch.randn(2, 3)
    out = style_decoder.adaptive_instance_norm(x, scale, shift)
    torch.testing.assert_close(out.mean((2, 3)), shift)
    torch.testing.assert_close(out.std((2, 3), correction=0), scale.abs(), rtol=1e-4, atol=1e-4)


def test_a_block_ends_with_the_statistics_of_its_style():
    block, style = style_decoder.StyleBlock(4, 6, 12), torch.randn(2, 12)
    scale, shift = block.styles[-1](style).chunk(2, dim=1)
    out = block(torch.rand(2, 4, 8, 8), style)
    torch.testing.assert_close(out.mean((2, 3)), shift, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(out.std((2, 3), correction=0), (1 + scale).abs(), rtol=5e-3, atol=1e-4)


def test_the_maps_are_the_only_spatial_input():
    """The same maps in every patch give the same color in every pixel, which depends on the class token.

    AdaIN amplifies rounding errors of constant channels, hence the doubles and the few blocks.
    """
    decoder = style_decoder.StyleDecoder(4, 16, 12, 2).double()
    images = decoder(torch.full((2, 4, 3, 3), 0.25).double(), torch.randn(2, 12).double())
    torch.testing.assert_close(images, images[:, :, :1, :1].expand_as(images), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(images[0], images[1], atol=1e-2)
