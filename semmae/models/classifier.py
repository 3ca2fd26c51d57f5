"""A classifier for finetuning: timm's `VisionTransformer` with the weights of an encoder and a fresh linear head."""

from pathlib import Path
from typing import Any, Literal

from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from semmae.core.model_files import load_model, save_model
from semmae.core.rng import torch_generator
from semmae.models import vit

Pool = Literal["class", "patch_mean"]
HEAD_STD = 2e-5  # as in MAE: the random head hardly disturbs the encoder in the first steps


def build(config: dict[str, Any], *, num_classes: int, pool: Pool, drop_path: float = 0.0) -> VisionTransformer:
    """Build a ViT with a linear head.

    With the pool `class`, the head reads the class token after the final norm. With `patch_mean`, the head reads the
    mean of the patch tokens, and a norm after the pooling replaces the final norm (MAE).

    Args:
        config: a dictionary with the keys `vit.CONFIG_KEYS`.
        num_classes: outputs of the head.
        pool: the tokens that the head reads.
        drop_path: rate of stochastic depth in the last block.

    Raises:
        ValueError: `patch_size` does not divide `img_size`.
    """
    size, patch = config["img_size"], config["patch_size"]
    if size % patch:
        raise ValueError(f"img_size is {size}; the encoder needs a multiple of its patch size {patch}")
    return VisionTransformer(
        **{key: config[key] for key in vit.CONFIG_KEYS},
        num_classes=num_classes,
        global_pool="token" if pool == "class" else "avg",
        dynamic_img_size=True,
        drop_path_rate=drop_path,
    )


def from_encoder(
    encoder: VisionTransformer, config: dict[str, Any], *, num_classes: int, pool: Pool, drop_path: float, seed: int
) -> VisionTransformer:
    """Build a classifier with the weights of `encoder` and a random head.

    Args:
        encoder: the pretrained ViT.
        config: the config of the encoder, with the `img_size` of the classifier; the positions are resampled to it.
        num_classes: outputs of the head.
        pool: the tokens that the head reads.
        drop_path: rate of stochastic depth in the last block.
        seed: seed of the head's weights.
    """
    model = build(config, num_classes=num_classes, pool=pool, drop_path=drop_path)
    state = encoder.state_dict()
    assert model.pos_embed is not None
    state["pos_embed"] = resample_abs_pos_embed(
        state["pos_embed"], new_size=list(model.patch_embed.grid_size), num_prefix_tokens=encoder.num_prefix_tokens
    )
    if pool == "patch_mean":  # a norm after the pooling replaces the final norm
        state = {name: value for name, value in state.items() if not name.startswith("norm.")}
    missing, unknown = model.load_state_dict(state, strict=False)
    assert not unknown
    assert {name.partition(".")[0] for name in missing} <= {"head", "fc_norm"}
    assert isinstance(model.head, nn.Linear)
    nn.init.trunc_normal_(model.head.weight, std=HEAD_STD, generator=torch_generator(seed, "head"))
    nn.init.zeros_(model.head.bias)
    return model


def save(folder: Path, model: VisionTransformer, config: dict[str, Any]) -> None:
    """Write `classifier.safetensors` and `classifier.json`.

    `config` needs the keys `vit.CONFIG_KEYS`, `pool` and `class_names`.
    """
    save_model(folder, "classifier", model.state_dict(), config)


def load(folder: Path) -> tuple[VisionTransformer, dict[str, Any]]:
    """Load the classifier in `folder`, frozen and in evaluation mode, and its config.

    The classifier expects images that `vit.normalize` has normalized.
    """
    state, config = load_model(folder, "classifier")
    model = build(config, num_classes=len(config["class_names"]), pool=config["pool"])
    model.load_state_dict(state, strict=True)
    return model.eval().requires_grad_(False), config
