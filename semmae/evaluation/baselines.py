"""What an encoder's classification score is worth: the same protocol without the encoder.

- `thumbnail`: the pixels of a 16 x 16 image in place of features.
- `untrained`: the encoder's architecture with fresh weights.
- `taught`: the teacher, whose knowledge went into the masks.
- `beside`: all of them, ready to stand in for the encoder; `tokens_beside`: those that have patch tokens.
"""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semmae.core import distributed
from semmae.core.rng import fold
from semmae.evaluation.features import Encode, Pool, See, pooling, seen
from semmae.models import vit
from semmae.models.teacher import Teacher, create_network

THUMBNAIL = 16  # pixels on a side


def thumbnail(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
    """The pixels themselves, normalized as an encoder gets them: for a cosine a harder line than pixels in [0, 1]."""
    return vit.normalize(images).flatten(1)


def untrained(config: dict[str, Any], *, seed: int) -> vit.Network:
    """The network that an encoder's or a teacher's `config` describes, as it is before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(seed, "untrained"))
        network = create_network(config["timm"], config["img_size"]) if "timm" in config else vit.build(config)
    return network.eval().requires_grad_(False)


def taught(teacher: Teacher, *, device: torch.device, precision: distributed.Precision) -> See:
    """Images -> class token and patch tokens by the teacher; the former is the mean of the latter if need be."""
    teacher = teacher.to(device)
    vit.use_fastest_attention(teacher, device)

    def see(images: UInt8[Tensor, "b 3 s s"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        with distributed.autocast(device, precision):
            tokens = teacher.encode(images.to(device))
        return tokens.cls, tokens.patch

    return see


def beside(
    config: dict[str, Any],
    teacher: Teacher,
    *,
    pool: Pool,
    seed: int,
    device: torch.device,
    precision: distributed.Precision,
) -> dict[str, tuple[Encode, int]]:
    """The lines to print beside the encoder of that `config`: for each, images -> features, and the images' size."""
    networks = tokens_beside(config, teacher, seed=seed, device=device, precision=precision)
    lines: dict[str, tuple[Encode, int]] = {"thumbnail": (thumbnail, THUMBNAIL)}
    return lines | {line: (pooling(see, pool), img_size) for line, (see, img_size) in networks.items()}


def tokens_beside(
    config: dict[str, Any], teacher: Teacher, *, seed: int, device: torch.device, precision: distributed.Precision
) -> dict[str, tuple[See, int]]:
    """The networks among these lines: for each, images -> class token and patch tokens, and the images' size."""
    fresh = seen(untrained(config, seed=seed), device=device, precision=precision)
    elder = taught(teacher, device=device, precision=precision)
    return {"untrained": (fresh, config["img_size"]), "teacher": (elder, teacher.config["img_size"])}
