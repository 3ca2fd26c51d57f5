"""Cut images into patches, and join patches into images."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor


def patchify(images: Float[Tensor, "b 3 H W"], patch_size: int) -> Float[Tensor, "b n v"]:
    """Cut images into patches, row by row; the values of a patch are in the order row, column, channel."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: Float[Tensor, "b n v"], patch_size: int) -> Float[Tensor, "b 3 H W"]:
    """Join patches into square images; the inverse of `patchify`."""
    side = int(patches.shape[1] ** 0.5)
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=patch_size, q=patch_size)
