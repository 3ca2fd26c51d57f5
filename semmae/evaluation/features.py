"""Features of a frozen network: functions that encode images, and the extraction for all images of a split."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from semmae.core import distributed
from semmae.core.async_copy import to_device
from semmae.data.dataset import Reader
from semmae.data.loader import batches
from semmae.evaluation.mapped_rows import MappedRows
from semmae.evaluation.views import CenterView, RandomView
from semmae.models import vit

Pool = Literal["class", "patch_mean", "both"]
FeatureEncoder = Callable[[UInt8[Tensor, "b 3 s s"]], Float[Tensor, "b d"]]
TokenEncoder = Callable[[UInt8[Tensor, "b 3 s s"]], tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]]


def extract(
    encode: FeatureEncoder,
    reader: Reader,
    *,
    img_size: int,
    batch_size: int,
    workers: int,
    views: int | None = None,
    seed: int = 0,
    file: Path | None = None,
) -> Float[Tensor, "*v n d"]:
    """Compute the features of all samples in the order of the reader.

    Memory holds one batch of images; the features are memory-mapped.

    Args:
        encode: Maps a batch of images to features.
        img_size: Side of the images in pixels.
        views: Number of random views of each image; None: the center view.
        seed: Seed of the random views.
        file: File of the features. Whole batches that a killed process has written are not computed again. None: a
            temporary file.

    Returns:
        Features on the CPU, (n, d), or (views, n, d) for random views.

    Raises:
        ValueError: The features of an image are not finite.
    """
    n = len(reader)
    with torch.inference_mode():
        rows = MappedRows(encode(torch.zeros(1, 3, img_size, img_size, dtype=torch.uint8)).shape[1], file)
        first_view, start = divmod(len(rows), n)
        # Only whole batches are kept, because rounding may depend on the size of a batch.
        start -= start % batch_size
        rows.truncate(first_view * n + start)
        for view in _views(img_size, views, seed)[first_view:]:
            for batch in batches(reader, np.arange(start, n), view, batch_size=batch_size, workers=workers):
                features = encode(batch["image"])
                if not features.isfinite().all():
                    index = len(rows) % n + int((~features.isfinite()).any(1).nonzero()[0])
                    raise ValueError(f"the features of {reader.keys[index]} are not finite. Train the network again")
                rows.append(features)
            start = 0
    result = rows.as_tensor()
    return result if views is None else result.unflatten(0, (views, n))


def _views(img_size: int, views: int | None, seed: int) -> list[CenterView] | list[RandomView]:
    return [CenterView(img_size)] if views is None else [RandomView(img_size, seed, view) for view in range(views)]


def build_feature_encoder(
    network: vit.Network, *, pool: Pool, device: torch.device, precision: distributed.Precision = "fp32"
) -> FeatureEncoder:
    """Return a function from images to pooled tokens of a frozen ViT."""
    return pool_tokens(build_token_encoder(network, device=device, precision=precision), pool)


def pool_tokens(encode_tokens: TokenEncoder, pool: Pool) -> FeatureEncoder:
    """Return a function from images to the class token, the mean patch token, or the concatenation of both."""

    def encode(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        cls, patch = encode_tokens(images)
        mean = patch.mean(1)
        return {"class": cls, "patch_mean": mean, "both": torch.cat([cls, mean], dim=1)}[pool]

    return encode


def build_token_encoder(
    network: vit.Network, *, device: torch.device, precision: distributed.Precision
) -> TokenEncoder:
    """Return a function from images to the class token and the patch tokens of a frozen ViT, in float32."""
    network = network.to(device).eval()
    vit.use_fastest_attention(network, device)

    @torch.no_grad()
    def encode_tokens(images: UInt8[Tensor, "b 3 s s"]) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n d"]]:
        with distributed.autocast(device, precision):
            tokens = vit.encode_tokens(network, vit.normalize(to_device(device, images))).float()
        return tokens[:, 0], tokens[:, network.num_prefix_tokens :]

    return encode_tokens
