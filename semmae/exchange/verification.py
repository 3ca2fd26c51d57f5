"""Verify in float64 on random images that an exported network computes the outputs of the original."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from semmae.models import mae, masking, vit
from semmae.models.frozen_encoder import FrozenEncoder

TOLERANCE = 1e-5


@torch.no_grad()
def verify_outputs(
    encoder: FrozenEncoder,
    exported: torch.nn.Module,
    outputs: Callable[..., Tensor],
    *,
    original_outputs: Callable[..., Tensor] = vit.encode_tokens,
) -> None:
    """Raise a ValueError unless the exported network computes the outputs of the original.

    Args:
        encoder: The original.
        exported: The exported network; this function converts it to float64.
        outputs: Computes the outputs of `exported` from images.
        original_outputs: Computes the same outputs from the original network and images.
    """
    images = _random_images(encoder.config["img_size"])
    exported.double().eval()
    _require_equal(outputs(images), original_outputs(copy.deepcopy(encoder.network).double(), images))


@torch.no_grad()
def verify_decoder(model: mae.MAE, exported: Any, img_size: int) -> None:
    """Raise a ValueError unless both networks predict the same pixels for masks that the exported ViTMAE draws."""
    images = _random_images(img_size)
    output = exported.double().eval()(images)
    mask = output.mask.bool()
    num_masked = masking.num_masked(mask.shape[1], exported.config.mask_ratio)
    _require_equal(output.logits[mask], copy.deepcopy(model).double()(images, mask, num_masked)[mask])


def _random_images(img_size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, img_size, img_size, generator=generator, dtype=torch.float64)


def _require_equal(exported: Tensor, original: Tensor) -> None:
    difference = float((exported - original).abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the outputs of the export differ from the original by {difference:.1e}; expected at most "
            f"{TOLERANCE:.0e}. Nothing was written; use the other library with --to"
        )
