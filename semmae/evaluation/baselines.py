"""Baselines of an encoder: features from other sources, scored by the same protocol.

- `thumbnail`: the pixels of the image, resized to 16 x 16.
- `untrained`: the architecture of the encoder with fresh weights.
- `teacher`: the network from whose tokens the parts were learned.
"""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semmae.core import distributed
from semmae.core.async_copy import to_device
from semmae.core.rng import fold
from semmae.evaluation.features import FeatureEncoder, Pool, TokenEncoder, build_token_encoder, pool_tokens
from semmae.models import vit
from semmae.models.teacher import Teacher, create_network

THUMBNAIL_SIZE = 16  # pixels


def build_feature_encoders(
    config: dict[str, Any],
    teacher: Teacher,
    *,
    pool: Pool,
    seed: int,
    device: torch.device,
    precision: distributed.Precision,
) -> dict[str, tuple[FeatureEncoder, int]]:
    """Return all baselines of an encoder.

    Args:
        config: The config of the encoder.
        seed: Seed of the untrained weights.

    Returns:
        For each name, a function from images to features, and the side of its images in pixels.
    """
    networks = build_token_encoders(config, teacher, seed=seed, device=device, precision=precision)
    encoders = {name: (pool_tokens(encode, pool), img_size) for name, (encode, img_size) in networks.items()}
    return {"thumbnail": (flatten_pixels, THUMBNAIL_SIZE), **encoders}


def build_token_encoders(
    config: dict[str, Any], teacher: Teacher, *, seed: int, device: torch.device, precision: distributed.Precision
) -> dict[str, tuple[TokenEncoder, int]]:
    """Return the baselines that have patch tokens, as `build_feature_encoders`, but without pooling."""
    encode_untrained = build_token_encoder(create_untrained(config, seed=seed), device=device, precision=precision)
    encode_teacher = build_teacher_token_encoder(teacher, device=device, precision=precision)
    return {
        "untrained": (encode_untrained, config["img_size"]),
        "teacher": (encode_teacher, teacher.config["img_size"]),
    }


def flatten_pixels(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
    """Return the normalized pixels as features.

    Normalized pixels are a stronger baseline for cosine similarity than pixels in [0, 1], whose cosines are all high.
    """
    return vit.normalize(images).flatten(1)


def create_untrained(config: dict[str, Any], *, seed: int) -> vit.Network:
    """Create a frozen network with fresh weights from the config of an encoder or of a teacher."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(seed, "untrained"))
        network = create_network(config["timm"], config["img_size"]) if "timm" in config else vit.build(config)
    return network.eval().requires_grad_(False)


def build_teacher_token_encoder(
    teacher: Teacher, *, device: torch.device, precision: distributed.Precision
) -> TokenEncoder:
    """Return a function from images to the class token and the patch tokens of a teacher.

    If the teacher has no trained class token, the mean of the patch tokens takes its place.
    """
    teacher = teacher.to(device)
    vit.use_fastest_attention(teacher, device)

    def encode_tokens(images: UInt8[Tensor, "b 3 s s"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        with distributed.autocast(device, precision):
            tokens = teacher.encode(to_device(device, images))
        return tokens.cls, tokens.patch

    return encode_tokens
