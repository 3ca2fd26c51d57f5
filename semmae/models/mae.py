"""The masked autoencoder (MAE, He et al. 2022): encode the visible patches, predict the pixels of the masked ones.

The encoder is a ViT that receives the visible patches alone. The decoder is a few narrow blocks over the encoder's
tokens and one mask token per decoded patch. The loss is the squared error of the decoded patches. The original
implementation also decodes the visible patches, which its loss ignores. This module skips them.
"""

from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Integer
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from semmae.core.model_files import load_model, save_model
from semmae.models import masking, vit
from semmae.models.patches import patchify, unpatchify
from semmae.models.vit import encode_tokens, sincos_positions

EPSILON = 1e-6  # added to the variance of a patch, so that a patch of one color becomes 0 instead of NaN


class MAE(nn.Module):
    """An encoder and its decoder.

    Args:
        encoder: the ViT to train; its images and patches are square.
        embed_dim: width of the decoder.
        depth: number of decoder blocks.
        num_heads: attention heads of the decoder.
    """

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
        self.decoder.apply(_init_linear)

    def forward(
        self,
        images: Float[Tensor, "b 3 H W"],
        mask: Bool[Tensor, "b n"],
        num_masked: int,
        decode_mask: Bool[Tensor, "b n"] | None = None,
        num_decode: int = 0,
    ) -> Float[Tensor, "b n v"]:
        """Predict the pixels of masked patches from the visible patches.

        Args:
            images: normalized images.
            mask: True for masked patches, `num_masked` per image.
            num_masked: number of masked patches per image.
            decode_mask: True for the masked patches to decode, `num_decode` per image; None decodes all of them.
            num_decode: number of decoded patches per image.

        Returns:
            v = 3 * patch_size ** 2 values per patch, in the order of `patchify`; 0 for patches that are not decoded.
        """
        keep_indices, decode_indices, _ = masking.split_indices(mask, num_masked)
        if decode_mask is not None:
            _, decode_indices, _ = masking.split_indices(decode_mask, num_decode)
        return self.decode(self.encode(images, keep_indices), keep_indices, decode_indices, mask.shape[1])

    def encode(self, images: Float[Tensor, "b 3 H W"], keep_indices: Integer[Tensor, "b k"]) -> Float[Tensor, "b t d"]:
        """Return the encoder's class token and the tokens of the visible patches, in the order of `keep_indices`."""
        return encode_tokens(self.encoder, images, keep_indices)

    def decode(
        self,
        latent: Float[Tensor, "b t d"],
        keep_indices: Integer[Tensor, "b k"],
        decode_indices: Integer[Tensor, "b m"],
        num_patches: int,
    ) -> Float[Tensor, "b {num_patches} v"]:
        """Predict the pixels of the patches at `decode_indices`; see `forward`.

        The decoder receives the visible patches and the decoded ones, and no token for any other patch.
        """
        num_decode = decode_indices.shape[1]
        x = self.decoder["embed"](latent)
        x = torch.cat([x, self.mask_token.to(x.dtype).expand(len(x), num_decode, -1)], dim=1)
        patches = torch.cat([keep_indices, decode_indices], dim=1)
        indices = torch.cat([torch.zeros_like(keep_indices[:, :1]), patches + 1], dim=1)  # 0 is the class token
        pred = self._predict_last(x + self._positions(num_patches)[0, indices], num_decode)
        b, _, v = pred.shape
        return pred.new_zeros(b, num_patches, v).scatter(1, decode_indices[:, :, None].expand(-1, -1, v), pred)

    def _positions(self, num_patches: int) -> Float[Tensor, "1 {num_patches+1} d"]:
        """Resample the decoder's positions to a square grid, as timm resamples those of the encoder."""
        side = int(num_patches**0.5)
        return resample_abs_pos_embed(self.positions, [side, side], num_prefix_tokens=1)

    def _predict_last(self, x: Float[Tensor, "b t d"], count: int) -> Float[Tensor, "b {count} v"]:
        """Predict the pixels of the last `count` tokens.

        After the attention of the last block, the other tokens have no influence and are dropped.
        """
        blocks = cast(nn.Sequential, self.decoder["blocks"])
        x, last = blocks[:-1](x), cast(Block, blocks[-1])
        x = (x + last.attn(last.norm1(x)))[:, -count:]
        x = x + last.mlp(last.norm2(x))
        return self.decoder["pred"](self.decoder["norm"](x))


def moments(patches: Float[Tensor, "b n v"]) -> tuple[Float[Tensor, "b n 1"], Float[Tensor, "b n 1"]]:
    """Return the mean and the standard deviation (with Bessel's correction) of each patch."""
    mean = patches.mean(-1, keepdim=True)
    norm = torch.linalg.vector_norm(patches - mean, dim=-1, keepdim=True)  # 20 times as fast as `var` on a CPU
    return mean, (norm.square() / (patches.shape[-1] - 1) + EPSILON).sqrt()


def loss(
    pred: Float[Tensor, "b n v"],
    images: Float[Tensor, "b 3 H W"],
    mask: Bool[Tensor, "b n"],
    *,
    patch_size: int,
    norm_pix_loss: bool,
) -> Float[Tensor, ""]:
    """Return the mean squared error over the patches under `mask`, in float32 (MAE section 3, "reconstruction target").

    With `norm_pix_loss`, the target of a patch is normalized by the patch's own mean and standard deviation.
    """
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
    """Replace the patches under `mask` by their predictions, in the units of `images`.

    With `norm_pix_loss`, predictions are normalized. The mean and the deviation of each patch are taken from `images`.
    """
    original = patchify(images, patch_size)
    if norm_pix_loss:
        mean, deviation = moments(original)
        pred = pred * deviation + mean
    return unpatchify(torch.where(mask[:, :, None], pred, original), patch_size)


def save(folder: Path, model: MAE, *, encoder: dict[str, Any], decoder: dict[str, Any]) -> None:
    """Write the encoder and the decoder, each with the config that rebuilds it.

    Args:
        folder: where to write encoder.safetensors, encoder.json, decoder.safetensors and decoder.json.
        model: the trained autoencoder.
        encoder: config of the encoder, with the keys `vit.CONFIG_KEYS`.
        decoder: config of the decoder: `embed_dim`, `depth`, `num_heads`.
    """
    vit.save(folder, model.encoder, encoder)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    save_model(folder, "decoder", state, decoder)


def load(folder: Path) -> tuple[MAE, dict[str, Any]]:
    """Load the autoencoder in `folder`, frozen, and the config of its decoder."""
    encoder, _ = vit.load(folder)
    state, config = load_model(folder, "decoder")
    model = MAE(encoder, **{name: config[name] for name in ("embed_dim", "depth", "num_heads")})
    model.load_state_dict(state | {f"encoder.{name}": value for name, value in encoder.state_dict().items()})
    return model.eval().requires_grad_(False), config


def _init_linear(module: nn.Module) -> None:
    """Initialize a linear layer as MAE does: Xavier-uniform weights, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
