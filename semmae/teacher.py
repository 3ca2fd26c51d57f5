"""The frozen teacher, one format for all of them: patch tokens, class token, class-token attention.

Where it comes from (iBOT or MAE on your own shards, a timm model) is the teacher stage's business; what follows only
sees `Teacher.encode`. A teacher is any timm VisionTransformer; it takes images of any size that its patches divide.
"""

import pickle
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from semmae import artifact, vit


class Tokens(NamedTuple):
    """What a teacher says of a batch of images."""

    patch: Float[Tensor, "b n d"]
    cls: Float[Tensor, "b d"]
    attention: Float[Tensor, "b n"]  # of the last block's class token, mean over heads, sums to 1


class Teacher(nn.Module):
    """A frozen ViT and what is known of it; `class_token` tells whether its class token was trained."""

    def __init__(self, network: VisionTransformer, config: dict[str, Any], digest: str) -> None:
        super().__init__()
        self.network, self.config, self.digest = network.eval().requires_grad_(False), config, digest
        self.patch_size: int = network.patch_embed.patch_size[0]
        self.embed_dim: int = network.embed_dim
        self.class_token: bool = config["class_token"]

    def grid(self, img_size: int) -> tuple[int, int]:
        """Rows and columns of patches in a square image; ValueError where patches do not fit."""
        if img_size % self.patch_size:
            raise ValueError(
                f"img_size is {img_size}; the teacher needs a multiple of its patch size {self.patch_size}"
            )
        return img_size // self.patch_size, img_size // self.patch_size

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "b 3 H W"]) -> Tokens:
        """Tokens of whole images, in float32. Where no class token was trained, `cls` is the mean of the patches."""
        x = vit.normalise(images, tuple(self.config["mean"]), tuple(self.config["std"]))
        out, attention = vit.class_attention(self.network, x)
        patch = out[:, self.network.num_prefix_tokens :].float()
        return Tokens(patch, out[:, 0].float() if self.class_token else patch.mean(1), attention)


def from_timm(name: str, *, img_size: int, checkpoint: Path | None) -> tuple[VisionTransformer, dict[str, Any]]:
    """A timm ViT by name with timm's published weights or those in `checkpoint`, positions resampled to `img_size`.

    `checkpoint` is a file as timm reads it (safetensors, or a state dict that `torch.load` takes with
    `weights_only=True`). Raises ValueError for a name that is no VisionTransformer, a model without a class token,
    or foreign weights.
    """
    known = timm.list_models(module="vision_transformer")
    if name.split(".")[0] not in known:
        near = get_close_matches(name, known, n=5, cutoff=0.3)
        raise ValueError(
            f"teacher.model is {name!r}, none of timm's VisionTransformers, such as {', '.join(near or known[:5])}"
        )
    try:
        network = _create(name, img_size, pretrained=checkpoint is None)
    except (RuntimeError, OSError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"teacher.model is {name!r}: {reason}; without a network, give teacher.checkpoint a file"
        ) from None
    if network.cls_token is None:
        raise ValueError(f"teacher.model is {name!r}, which has no class token; choose one that has")
    published = cast(dict[str, Any], network.pretrained_cfg)
    if checkpoint is not None:
        _fill(network, checkpoint, published["architecture"])
    config = {"timm": name, "img_size": img_size, "class_token": True}
    return network, config | {key: list(published[key]) for key in ("mean", "std")}


def _create(name: str, img_size: int, *, pretrained: bool) -> VisionTransformer:
    network = timm.create_model(name, pretrained=pretrained, num_classes=0, img_size=img_size, dynamic_img_size=True)
    return cast(VisionTransformer, network)


def _fill(network: VisionTransformer, checkpoint: Path, architecture: str) -> None:
    """Strictly load a file into `network`: all weights but a classifier's, positions resampled, nothing unpickled."""
    try:
        state = timm.models.load_state_dict(str(checkpoint), use_ema=False, weights_only=True)
        state = timm.models.vision_transformer.checkpoint_filter_fn(state, network)
        network.load_state_dict(
            {k: v for k, v in state.items() if not k.startswith(("head.", "fc_norm."))}, strict=True
        )
    except (RuntimeError, OSError, KeyError, AttributeError, pickle.UnpicklingError, SafetensorError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        first = lines[1] if isinstance(error, RuntimeError) and len(lines) > 1 else lines[0]  # below torch's headline
        raise ValueError(f"{checkpoint} does not hold the weights of {architecture}: {first}") from None


def save(folder: Path, network: VisionTransformer, config: dict[str, Any]) -> None:
    """Freeze `network` into `folder`: teacher.safetensors and teacher.json."""
    artifact.save_model(folder, "teacher", network.state_dict(), config)


def load(folder: Path) -> Teacher:
    """The teacher in `folder`, frozen; strict about its weights."""
    state, config = artifact.read_model(folder, "teacher")
    network = _create(config["timm"], config["img_size"], pretrained=False) if "timm" in config else vit.build(config)
    network.load_state_dict(state, strict=True)
    return Teacher(network, config, artifact.model_digest(folder, "teacher"))
