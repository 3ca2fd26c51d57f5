"""The Vision Transformer of this project: timm's `VisionTransformer`, with the fixed sine-cosine positions of MAE.

The network is timm's, so timm loads its weights without conversion, and vice versa. Functions that accept a `Network`
also accept timm's `Eva`, the architecture of DINOv3.
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

CONFIG_KEYS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")  # required by `build`
MEAN = (0.485, 0.456, 0.406)  # ImageNet's mean and deviation of pixels in [0, 1], as in timm and MAE
STD = (0.229, 0.224, 0.225)
FUSED_ATTENTION_MIN_PATCHES = 400  # on a CPU; with 256 patches explicit products are faster (benchmarks/attention.py)

Network = VisionTransformer | Eva  # Eva: a ViT that may have rotary positions (RoPE)


def build(config: dict[str, Any], *, drop_path: float = 0.0) -> VisionTransformer:
    """Build a ViT with a class token, fixed positions and no classifier.

    Args:
        config: holds CONFIG_KEYS. `img_size` is the side in pixels; images of other sizes resample the positions.
        drop_path: rate of stochastic depth in the last block; it rises linearly from 0 in the first.

    Raises:
        ValueError: `patch_size` does not divide `img_size`, or 4 * num_heads does not divide `embed_dim`.
    """
    size, patch = config["img_size"], config["patch_size"]
    if size % patch:
        raise ValueError(f"img_size is {size}; it must be a multiple of patch_size, which is {patch}")
    if config["embed_dim"] % (4 * config["num_heads"]):
        raise ValueError(f"embed_dim is {config['embed_dim']}; it must be a multiple of 4 * num_heads")
    network = VisionTransformer(
        **{key: config[key] for key in CONFIG_KEYS}, num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path
    )
    assert network.pos_embed is not None
    assert network.cls_token is not None
    network.pos_embed.requires_grad_(False)
    network.pos_embed.data.copy_(sincos_positions(size // patch, config["embed_dim"]))
    nn.init.normal_(network.cls_token, std=0.02)
    return network


def sincos_positions(side: int, width: int) -> Float[Tensor, "1 n d"]:
    """Return fixed positions: zeros for the class token, then 2-D sine-cosine for side * side patches.

    The encoding follows Vaswani et al. 2017, extended to two dimensions as in MAE (appendix A).
    """
    patches = build_sincos2d_pos_embed([side, side], dim=width)
    return torch.cat([torch.zeros(1, width), patches])[None]


def normalize(
    images: UInt8[Tensor, "b 3 H W"], mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> Float[Tensor, "b 3 H W"]:
    """Scale pixels from 0...255 to [0, 1], subtract `mean`, and divide by `std`, on the device of the images."""
    center, scale = (_per_channel(values, images.device) for values in (mean, std))
    return (images.float() / 255 - center) / scale


def _per_channel(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "c 1 1"]:
    """Create a tensor of one value per channel on the device, without a blocking copy from the CPU."""
    return torch.stack([torch.full((1, 1), value, device=device) for value in values])


def embed(
    network: VisionTransformer, images: Float[Tensor, "b 3 H W"], keep_indices: Integer[Tensor, "b k"] | None = None
) -> Float[Tensor, "b t d"]:
    """Return the input of the first block: prefix tokens and patch tokens with their positions.

    Args:
        network: the ViT.
        images: normalized images.
        keep_indices: the patches to keep; None keeps all of them.
    """
    x = network._pos_embed(network.patch_embed(images))  # (b, t, d)
    if keep_indices is not None:
        prefix, patches = x[:, : network.num_prefix_tokens], x[:, network.num_prefix_tokens :]
        patches = patches.gather(1, keep_indices[:, :, None].expand(-1, -1, patches.shape[2]))
        x = torch.cat([prefix, patches], dim=1)
    return network.norm_pre(x)


def encode_tokens(
    network: Network, images: Float[Tensor, "b 3 H W"], keep_indices: Integer[Tensor, "b k"] | None = None
) -> Float[Tensor, "b t d"]:
    """Return the normalized output tokens: `network.num_prefix_tokens` prefix tokens, then the patches.

    The class token is the first prefix token; registers follow it.

    Args:
        network: the ViT.
        images: normalized images.
        keep_indices: the patches to encode, only for a `VisionTransformer`; None encodes all of them.
    """
    if keep_indices is None:
        return network.forward_features(images)
    assert isinstance(network, VisionTransformer)
    return network.norm(network.blocks(embed(network, images, keep_indices)))


def class_attention(
    network: Network, images: Float[Tensor, "b 3 H W"]
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b a n"]]:
    """Return the output tokens, and the attention from the class token to the patches in the last block.

    Returns:
        The tokens of `encode_tokens`, and one weight for each of the `a` heads and `n` patches. A head's weights sum
        to less than 1, because the class token also attends to itself and to registers.
    """
    tokens, queries, keys = last_attention(network, images)
    return tokens, class_weights(queries, keys)[:, :, network.num_prefix_tokens :]


def last_attention(
    network: Network, images: Float[Tensor, "b 3 H W"]
) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b a t e"], Float[Tensor, "b a t e"]]:
    """Return the output tokens, and the queries and keys of the last block for its `a` heads of width `e`.

    The queries include the scale of the attention. So a softmax over their products with the keys is the attention.
    """
    last_block, block_input = cast(Any, network.blocks[-1]), dict[str, Any]()

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
        block_input.update(x=inputs[0], rope=keywords.get("rope"))

    with last_block.register_forward_pre_hook(keep_input, with_kwargs=True):
        tokens = encode_tokens(network, images)
    q, k = _queries_and_keys(last_block.attn, last_block.norm1(block_input["x"]), block_input["rope"])
    return tokens, q * last_block.attn.scale, k


def class_weights(queries: Float[Tensor, "b a t e"], keys: Float[Tensor, "b a t e"]) -> Float[Tensor, "b a t"]:
    """Return the attention from the class token, the first token, to all tokens, from that of `last_attention`."""
    return (queries[:, :, :1] @ keys.transpose(-2, -1)).softmax(-1)[:, :, 0].float()


def _queries_and_keys(attn: Any, x: Float[Tensor, "b t d"], rope: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return queries and keys (b, heads, t, d / heads) of a timm attention layer, with rotary positions if any."""
    b, t, _ = x.shape
    qkv = attn.qkv(x)
    if getattr(attn, "q_bias", None) is not None:  # Eva stores these biases outside its linear layer
        qkv = qkv + torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    q, k, _ = qkv.reshape(b, t, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        q, k = (_rotate(z, rope, attn) for z in (q, k))
    return q, k


def _rotate(z: Tensor, rope: Tensor, attn: Any) -> Tensor:
    """Apply rotary positions to the patches; prefix tokens have none."""
    prefix, patches = z[:, :, : attn.num_prefix_tokens], z[:, :, attn.num_prefix_tokens :]
    return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=attn.rotate_half)], dim=2).type_as(z)


def use_fastest_attention(model: nn.Module, device: torch.device, *, frozen_grid: Sequence[int] = (0,)) -> None:
    """Choose between fused attention and explicit matrix products, in every layer of `model`.

    A GPU always uses fused attention. On a CPU the backward pass of explicit products is twice as fast. A frozen model
    has no backward pass. From FUSED_ATTENTION_MIN_PATCHES patches on, fused attention is faster and halves its memory.

    Args:
        model: any module with timm's attention layers.
        device: the device that the model runs on.
        frozen_grid: for a frozen model, the grid of patches of its images; the default is for a model in training.
    """
    fused = device.type == "cuda" or math.prod(frozen_grid) >= FUSED_ATTENTION_MIN_PATCHES
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            cast(Any, module).fused_attn = fused


def resize(network: VisionTransformer, config: dict[str, Any], img_size: int) -> dict[str, Any]:
    """Resample the positions in place to images of `img_size` pixels, and return the config with that size.

    Raises:
        ValueError: `patch_size` does not divide `img_size`.
    """
    if img_size % config["patch_size"]:
        raise ValueError(
            f"img_size is {img_size}; it must be a multiple of patch_size, which is {config['patch_size']}"
        )
    network.set_input_size((img_size, img_size))
    return config | {"img_size": img_size}


def save(folder: Path, network: VisionTransformer, config: dict[str, Any], *, name: str = "encoder") -> None:
    """Write `<name>.safetensors` and `<name>.json`; `config` holds CONFIG_KEYS and any notes on the origin."""
    save_model(folder, name, network.state_dict(), config)


def load(folder: Path, *, name: str = "encoder") -> tuple[VisionTransformer, dict[str, Any]]:
    """Load the encoder in `folder`, frozen and in evaluation mode, and its config."""
    state, config = load_model(folder, name)
    network = build(config)
    network.load_state_dict(state, strict=True)
    return network.eval().requires_grad_(False), config
