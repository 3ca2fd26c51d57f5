"""The masked autoencoder (He et al. 2022): encode the visible patches, regress the pixels of the masked ones.

The encoder is a ViT that never sees a masked patch; the decoder is a few narrow blocks over the encoder's tokens and
a shared mask token; the loss is the squared error on masked patches, each patch optionally normalized by its own
mean and deviation. MAE also predicts the visible patches, of which no loss asks; what only they need is left out here.
"""

from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Integer
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from semmae.core.model_files import load_model, save_model
from semmae.models import masking, vit
from semmae.models.vit import encode_tokens, sincos_positions

EPSILON = 1e-6  # added to a patch's variance: a patch of one color becomes zeros, not NaN


class MAE(nn.Module):
    """An encoder and the decoder that trains it; `embed_dim`, `depth`, `num_heads` are the decoder's."""

    positions: Tensor

    def __init__(self, encoder: VisionTransformer, *, embed_dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.patch_size = encoder.patch_embed.patch_size[0]
        side = encoder.patch_embed.grid_size[0]
        self.decoder = nn.ModuleDict(
            {
                "embed": nn.Linear(encoder.embed_dim, embed_dim),
                "blocks": nn.Sequential(*[Block(embed_dim, num_heads, qkv_bias=True) for _ in range(depth)]),
                "norm": nn.LayerNorm(embed_dim, eps=1e-6),
                "pred": nn.Linear(embed_dim, self.patch_size**2 * 3),
            }
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_buffer("positions", sincos_positions(side, embed_dim), persistent=False)
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder.apply(_xavier)

    def encode(
        self, images: Float[Tensor, "b 3 H W"], mask: Bool[Tensor, "b n"], num_masked: int
    ) -> Float[Tensor, "b t d"]:
        """The latent: class token and visible patches, in the order of their places."""
        ids_keep, _, _ = masking.split_indices(mask, num_masked)
        return encode_tokens(self.encoder, images, ids_keep)

    def decode(
        self, latent: Float[Tensor, "b t d"], mask: Bool[Tensor, "b n"], num_masked: int,
        some: Bool[Tensor, "b n"] | None = None, num_decode: int = 0,
    ) -> Float[Tensor, "b n v"]:  # fmt: skip
        """The predicted pixels of the masked patches, v = p * p * 3 values each, or of `some` of them, `num_decode` per
        sample: the decoder is not told of the others. 0 where nothing is predicted.
        """
        if some is None:
            some, num_decode = mask, num_masked
        (ids_keep, _, _), (_, ids_some, _) = (
            masking.split_indices(mask, num_masked),
            masking.split_indices(some, num_decode),
        )
        x = self.decoder["embed"](latent)
        x = torch.cat([x, self.mask_token.to(x.dtype).expand(len(x), num_decode, -1)], dim=1)
        places = torch.cat([torch.zeros_like(ids_keep[:, :1]), torch.cat([ids_keep, ids_some], dim=1) + 1], dim=1)
        pred = self._predict(x + self._places(mask.shape[1])[0, places], num_decode)
        b, _, v = pred.shape
        return pred.new_zeros(b, mask.shape[1], v).scatter(1, _columns(ids_some, v), pred)

    def _places(self, n: int) -> Float[Tensor, "1 {n+1} d"]:
        """The decoder's positions on a square grid of `n` patches, resampled as timm does the encoder's."""
        side = int(n**0.5)
        return resample_abs_pos_embed(self.positions, [side, side], num_prefix_tokens=1)

    def _predict(self, x: Float[Tensor, "b t d"], last: int) -> Float[Tensor, "b {last} v"]:
        """Of the `last` tokens; from the last block's attention on, the others have no say."""
        blocks = cast(nn.Sequential, self.decoder["blocks"])
        x, end = blocks[:-1](x), cast(Block, blocks[-1])
        x = (x + end.attn(end.norm1(x)))[:, -last:]
        x = x + end.mlp(end.norm2(x))
        return self.decoder["pred"](self.decoder["norm"](x))

    def forward(
        self, images: Float[Tensor, "b 3 H W"], mask: Bool[Tensor, "b n"], num_masked: int,
        some: Bool[Tensor, "b n"] | None = None, num_decode: int = 0,
    ) -> Float[Tensor, "b n v"]:  # fmt: skip
        """`decode` of the patches that `mask` leaves; each row of a mask has as many True as its number says."""
        return self.decode(self.encode(images, mask, num_masked), mask, num_masked, some, num_decode)


def _columns(ids: Integer[Tensor, "b k"], width: int) -> Integer[Tensor, "b k {width}"]:
    """The same index in every one of so many columns, as gather and scatter want it."""
    return ids[:, :, None].expand(-1, -1, width)


def patchify(images: Float[Tensor, "b 3 H W"], patch_size: int) -> Float[Tensor, "b n v"]:
    """Images to rows of patches, values in the order row, column, channel."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_size, q=patch_size)


def unpatchify(patches: Float[Tensor, "b n v"], patch_size: int) -> Float[Tensor, "b 3 H W"]:
    """The inverse of `patchify`, for square images."""
    side = int(patches.shape[1] ** 0.5)
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", h=side, p=patch_size, q=patch_size)


def moments(patches: Float[Tensor, "b n v"]) -> tuple[Float[Tensor, "b n 1"], Float[Tensor, "b n 1"]]:
    """Each patch's mean and (Bessel-corrected) standard deviation."""
    mean = patches.mean(-1, keepdim=True)
    norm = torch.linalg.vector_norm(patches - mean, dim=-1, keepdim=True)  # on CPUs twenty times as fast as `var`
    return mean, (norm.square() / (patches.shape[-1] - 1) + EPSILON).sqrt()


def loss(
    pred: Float[Tensor, "b n v"],
    images: Float[Tensor, "b 3 H W"],
    mask: Bool[Tensor, "b n"],
    *,
    patch_size: int,
    norm_pix_loss: bool,
) -> Float[Tensor, ""]:
    """Mean squared error over the masked patches (MAE section 3, "reconstruction target"), in float32."""
    target = patchify(images, patch_size).float()
    if norm_pix_loss:
        mean, deviation = moments(target)
        target = (target - mean) / deviation
    error = functional.mse_loss(pred.float(), target, reduction="none").mean(-1)
    return (error * mask).sum() / mask.sum()


def reconstruct(
    pred: Float[Tensor, "b n v"],
    images: Float[Tensor, "b 3 H W"],
    mask: Bool[Tensor, "b n"],
    *,
    patch_size: int,
    norm_pix_loss: bool,
) -> Float[Tensor, "b 3 H W"]:
    """The image with its masked patches replaced by the prediction, in the units of `images`.

    A norm-pix prediction knows a patch's pattern, not its mean and contrast: those are taken from the image itself.
    """
    original = patchify(images, patch_size)
    if norm_pix_loss:
        mean, deviation = moments(original)
        pred = pred * deviation + mean
    return unpatchify(torch.where(mask[:, :, None], pred, original), patch_size)


def save(folder: Path, model: MAE, *, encoder: dict[str, Any], decoder: dict[str, Any]) -> None:
    """Write encoder and decoder, each with the config that rebuilds it (`encoder`: vit.CONFIG; `decoder`: MAE's
    keywords).
    """
    vit.save(folder, model.encoder, encoder)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    save_model(folder, "decoder", state, decoder)


def load(folder: Path) -> tuple[MAE, dict[str, Any]]:
    """The autoencoder in `folder`, frozen, and the decoder's config."""
    encoder, _ = vit.load(folder)
    state, config = load_model(folder, "decoder")
    model = MAE(encoder, **{name: config[name] for name in ("embed_dim", "depth", "num_heads")})
    model.load_state_dict(state | {f"encoder.{name}": value for name, value in encoder.state_dict().items()})
    return model.eval().requires_grad_(False), config


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
