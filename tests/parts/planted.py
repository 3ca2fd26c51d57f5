"""Patch tokens of scenes whose foreground and parts are known."""

import torch
from torch.nn import functional

from semmae.models.teacher import Tokens

GRID, WIDTH = (8, 8), 16


def tokens_of(patch: torch.Tensor) -> Tokens:
    """Return tokens of images with these patch tokens."""
    heads = torch.full((len(patch), 2, patch.shape[1]), 1 / patch.shape[1])
    return Tokens(patch, patch.mean(1), heads.mean(1), heads, patch.mean(1), patch)


def _object_coordinates(
    images: int, generator: torch.Generator, *, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return row and column of each patch (b, 8, 8), relative to the corner of an object near the center."""
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    corner = torch.stack([torch.randint(1, 8 - side, (images,), generator=generator) for side in (height, width)])
    return rows - corner[0, :, None, None], columns - corner[1, :, None, None]


def object_scenes(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens (b, n, d) and parts (b, n) of objects on textured backgrounds, which the tokens tell apart.

    An object is 4 patches high and wide. Its parts 1, 2 and 3 are its patches by content, in an order of columns that
    differs between images. Part 0 is the background.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(7))
    kinds[:5] *= 0.4  # textures differ less than object and background
    kinds[:, 0] = torch.tensor([-1.0] * 5 + [3.0] * 3)
    row, column = _object_coordinates(images, generator, height=4, width=4)
    inside = (row >= 0) & (row < 4) & (column >= 0) & (column < 4)
    order = torch.rand(images, 3, generator=generator).argsort(1)
    part = 1 + order.gather(1, (column.clamp(0, 3).flatten(1) * 3) // 4)
    texture = torch.randint(0, 5, (images, 64), generator=generator)
    kind = torch.where(inside.flatten(1), part + 4, texture)
    patch = kinds[kind] + 0.2 * torch.randn(images, 64, WIDTH, generator=generator)
    return patch, torch.where(inside.flatten(1), part, 0)


def half_objects(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit tokens (b, n, d) and parts (b, n) of scenes with an object near the center.

    The object is 4 patches high and 3 wide. Parts are 0 for the background, 1 for the upper and 2 for the lower half of
    the object. The tokens of both halves have the same distribution.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(5))
    row, column = _object_coordinates(images, generator, height=4, width=3)
    inside = (row >= 0) & (row < 4) & (column >= 0) & (column < 3)
    scenery = torch.randint(2, 8, (images, 8, 8), generator=generator)
    object_kind = torch.randint(0, 2, (images, 1, 1), generator=generator).expand(-1, 8, 8)
    kind = torch.where(inside, object_kind, scenery).flatten(1)
    patch = kinds[kind] + 0.1 * torch.randn(images, 64, WIDTH, generator=generator)
    return functional.normalize(patch, dim=-1), torch.where(inside, 1 + (row >= 2).long(), 0).flatten(1)


def bright_scenes(images: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `half_objects` whose tokens vary most with the brightness of each patch, which tells nothing."""
    patch, part = half_objects(images, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    axis = functional.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(6)), dim=0)
    return patch + 3 * torch.randn(images, 64, 1, generator=generator) * axis, part
