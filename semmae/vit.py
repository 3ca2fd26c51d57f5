"""The Vision Transformer: timm's own, so that weights come from timm and go back to it without translation.

- `build`: a `VisionTransformer` from a small config, with the fixed 2-D sine-cosine positions of MAE.
- `tokens`: its forward pass in the order of timm's `forward_features`, with masked patches left out before the first
  block.
- `class_attention`: how much the class token of the last block attends to each patch.
- `save` / `load`: weights and config, enough to rebuild it with no flags.
"""

from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Integer, UInt8
from timm.layers import Attention, build_sincos2d_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from semmae import artifact

CONFIG = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pixels in [0, 1], the convention of timm and MAE
STD = (0.229, 0.224, 0.225)


def build(config: dict[str, Any], *, drop_path: float = 0.0) -> VisionTransformer:
    """A class-token ViT with the keys CONFIG; `img_size` is the side in pixels, other sizes resample the positions."""
    size, patch = config["img_size"], config["patch_size"]
    if size % patch:
        raise ValueError(f"img_size is {size}; it must be a multiple of patch_size, which is {patch}")
    if config["embed_dim"] % (4 * config["num_heads"]):
        raise ValueError(f"embed_dim is {config['embed_dim']}; it must be a multiple of 4 * num_heads")
    vit = VisionTransformer(
        **{key: config[key] for key in CONFIG}, num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path
    )
    assert vit.pos_embed is not None
    assert vit.cls_token is not None
    vit.pos_embed.requires_grad_(False)
    vit.pos_embed.data.copy_(sincos_positions(size // patch, config["embed_dim"]))
    nn.init.normal_(vit.cls_token, std=0.02)
    return vit


def sincos_positions(side: int, width: int) -> Float[Tensor, "1 n d"]:
    """Fixed positions for a class token (zeros) and side * side patches (MAE appendix A; Vaswani et al. 2017, in
    2-D).
    """
    patches = build_sincos2d_pos_embed([side, side], dim=width)
    return torch.cat([torch.zeros(1, width), patches])[None]


def normalise(
    images: UInt8[Tensor, "b 3 H W"], mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> Float[Tensor, "b 3 H W"]:
    """Pixels 0...255 to zero mean and unit variance over a large set (ImageNet), on whatever device they are."""
    centre = torch.tensor(mean, device=images.device).view(3, 1, 1)
    scale = torch.tensor(std, device=images.device).view(3, 1, 1)
    return (images.float() / 255 - centre) / scale


def embed(
    vit: VisionTransformer, images: Float[Tensor, "b 3 H W"], ids_keep: Integer[Tensor, "b k"] | None = None
) -> Float[Tensor, "b t d"]:
    """Prefix tokens and patch tokens (all, or those at `ids_keep`) with their positions, before the first block."""
    x = vit._pos_embed(vit.patch_embed(images))  # (b, t, d)
    if ids_keep is not None:
        prefix, patches = x[:, : vit.num_prefix_tokens], x[:, vit.num_prefix_tokens :]
        patches = patches.gather(1, ids_keep[:, :, None].expand(-1, -1, patches.shape[2]))
        x = torch.cat([prefix, patches], dim=1)
    return vit.norm_pre(x)


def tokens(
    vit: VisionTransformer, images: Float[Tensor, "b 3 H W"], ids_keep: Integer[Tensor, "b k"] | None = None
) -> Float[Tensor, "b t d"]:
    """The normalised output tokens: `vit.num_prefix_tokens` first (the class token leads), then the patches."""
    return vit.norm(vit.blocks(embed(vit, images, ids_keep)))


def class_attention(
    vit: VisionTransformer, images: Float[Tensor, "b 3 H W"]
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b n"]]:
    """`tokens`, and the last block's class-token attention to the patches: mean over heads, sums to 1 over patches."""
    x = vit.blocks[:-1](embed(vit, images))
    block = cast(Block, vit.blocks[-1])
    attn = cast(Attention, block.attn)
    q, k, _ = _qkv(attn, block.norm1(x))
    weights = (q[:, :, :1] * attn.scale @ k.transpose(-2, -1)).softmax(-1)  # (b, heads, 1, t)
    attention = weights[:, :, 0, vit.num_prefix_tokens :].float().mean(1)
    return vit.norm(block(x)), attention / attention.sum(1, keepdim=True)


def _qkv(attn: Attention, x: Float[Tensor, "b t d"]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys, values (b, heads, t, d / heads) of a timm attention layer."""
    b, t, _ = x.shape
    q, k, v = attn.qkv(x).reshape(b, t, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    return attn.q_norm(q), attn.k_norm(k), v


def use_fastest_attention(model: nn.Module, device: torch.device) -> None:
    """Fused attention on GPUs; on CPUs explicit products, whose backward pass is twice as fast at these lengths."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            cast(Any, module).fused_attn = device.type == "cuda"


def save(folder: Path, vit: VisionTransformer, config: dict[str, Any], *, name: str = "encoder") -> None:
    """Write `<name>.safetensors` and `<name>.json`; `config` holds CONFIG and whatever else tells where it comes
    from.
    """
    artifact.save_model(folder, name, vit.state_dict(), config)


def load(folder: Path, *, name: str = "encoder") -> tuple[VisionTransformer, dict[str, Any]]:
    """The encoder in `folder`, in evaluation mode and frozen, and its config."""
    state, config = artifact.read_model(folder, name)
    vit = build(config)
    vit.load_state_dict(state, strict=True)
    return vit.eval().requires_grad_(False), config
