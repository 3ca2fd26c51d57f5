"""The Vision Transformer: timm's own, so that weights come from timm and go back to it without translation.

- `build`: a `VisionTransformer` from a small config, with the fixed 2-D sine-cosine positions of MAE.
- `encode_tokens`: its forward pass in the order of timm's `forward_features`, with masked patches left out before the first
  block.
- `class_attention`: how much the class token of the last block attends to each patch, by head; also of DINOv3, timm's
  `Eva`.
- `save` / `load`: weights and config, enough to rebuild it with no flags.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Integer, UInt8
from timm.layers import apply_rot_embed_cat, build_sincos2d_pos_embed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae.core.model_files import load_model, save_model

CONFIG_KEYS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
MEAN = (0.485, 0.456, 0.406)  # of ImageNet's pixels in [0, 1], the convention of timm and MAE
STD = (0.229, 0.224, 0.225)
FUSED_ATTENTION_MIN_PATCHES = 400  # patches; with 256 explicit products are faster in bf16 (benchmarks/attention.py)

Network = VisionTransformer | Eva  # Eva: a ViT whose attention may turn queries and keys by their place (RoPE)


def build(config: dict[str, Any], *, drop_path: float = 0.0) -> VisionTransformer:
    """A class-token ViT with the keys CONFIG; `img_size` is the side in pixels, other sizes resample the positions."""
    size, patch = config["img_size"], config["patch_size"]
    if size % patch:
        raise ValueError(f"img_size is {size}; it must be a multiple of patch_size, which is {patch}")
    if config["embed_dim"] % (4 * config["num_heads"]):
        raise ValueError(f"embed_dim is {config['embed_dim']}; it must be a multiple of 4 * num_heads")
    vit = VisionTransformer(
        **{key: config[key] for key in CONFIG_KEYS}, num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path
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


def normalize(
    images: UInt8[Tensor, "b 3 H W"], mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> Float[Tensor, "b 3 H W"]:
    """Pixels 0...255 to zero mean and unit variance over a large set (ImageNet), on whatever device they are."""
    center, scale = (_filled(values, images.device) for values in (mean, std))
    return (images.float() / 255 - center) / scale


def _filled(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "c 1 1"]:
    """One value per channel, each filled in on the device: a copy from the host would wait for it."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])


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


def encode_tokens(
    vit: Network, images: Float[Tensor, "b 3 H W"], ids_keep: Integer[Tensor, "b k"] | None = None
) -> Float[Tensor, "b t d"]:
    """The normalized output tokens: `vit.num_prefix_tokens` first (the class token leads), then the patches.

    Patches can be left out (`ids_keep`) of a VisionTransformer only.
    """
    if ids_keep is None:
        return vit.forward_features(images)
    assert isinstance(vit, VisionTransformer)
    return vit.norm(vit.blocks(embed(vit, images, ids_keep)))


def class_attention(
    vit: Network, images: Float[Tensor, "b 3 H W"]
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b a n"]]:
    """`encode_tokens`, and the last block's class-token attention to the patches in each of its `a` heads.

    What the class token spends on itself and on registers is left out, so a head's sum is below 1.
    """
    last, seen = cast(Any, vit.blocks[-1]), dict[str, Any]()

    def see(_: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
        seen.update(x=inputs[0], rope=keywords.get("rope"))

    with last.register_forward_pre_hook(see, with_kwargs=True):
        out = encode_tokens(vit, images)
    q, k = _queries_and_keys(last.attn, last.norm1(seen["x"]), seen["rope"])
    weights = (q[:, :, :1] * last.attn.scale @ k.transpose(-2, -1)).softmax(-1)  # (b, heads, 1, t)
    return out, weights[:, :, 0, vit.num_prefix_tokens :].float()


def _queries_and_keys(attn: Any, x: Float[Tensor, "b t d"], rope: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries and keys (b, heads, t, d / heads) of a timm attention layer; `rope` turns all but the prefix tokens."""
    b, t, _ = x.shape
    qkv = attn.qkv(x)
    if getattr(attn, "q_bias", None) is not None:  # Eva keeps its biases apart
        qkv = qkv + torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    q, k, _ = qkv.reshape(b, t, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        q, k = (_turned(z, rope, attn) for z in (q, k))
    return q, k


def _turned(z: Tensor, rope: Tensor, attn: Any) -> Tensor:
    """Queries or keys with their rotary positions; prefix tokens have none."""
    prefix, patches = z[:, :, : attn.num_prefix_tokens], z[:, :, attn.num_prefix_tokens :]
    return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=attn.rotate_half)], dim=2).type_as(z)


def use_fastest_attention(model: nn.Module, device: torch.device, *, frozen_at: Sequence[int] = (0,)) -> None:
    """Fused attention on GPUs; on CPUs explicit products, whose backward pass is twice as fast, but for a model that
    learns nothing and is said to see a grid of MANY patches: there fused attention is faster, in half of the memory.
    """
    fused = device.type == "cuda" or math.prod(frozen_at) >= FUSED_ATTENTION_MIN_PATCHES
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            cast(Any, module).fused_attn = fused


def resize(vit: VisionTransformer, config: dict[str, Any], img_size: int) -> dict[str, Any]:
    """Make `vit` one for images of `img_size` pixels, its positions resampled; its config with that size."""
    if img_size % config["patch_size"]:
        raise ValueError(
            f"img_size is {img_size}; it must be a multiple of patch_size, which is {config['patch_size']}"
        )
    vit.set_input_size((img_size, img_size))
    return config | {"img_size": img_size}


def save(folder: Path, vit: VisionTransformer, config: dict[str, Any], *, name: str = "encoder") -> None:
    """Write `<name>.safetensors` and `<name>.json`; `config` holds CONFIG and whatever else tells where it comes
    from.
    """
    save_model(folder, name, vit.state_dict(), config)


def load(folder: Path, *, name: str = "encoder") -> tuple[VisionTransformer, dict[str, Any]]:
    """The encoder in `folder`, in evaluation mode and frozen, and its config."""
    state, config = load_model(folder, name)
    vit = build(config)
    vit.load_state_dict(state, strict=True)
    return vit.eval().requires_grad_(False), config
