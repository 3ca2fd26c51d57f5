"""The frozen teacher, one format for all of them: patch tokens, class token, class-token attention.

Where it comes from (iBOT or MAE on your own shards, a timm model) is the teacher stage's business; what follows only sees
`Teacher.encode`. A teacher is any timm VisionTransformer; it takes images of any size that its patches divide.
"""

from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from jaxtyping import Float, UInt8
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
            raise ValueError(f"img_size is {img_size}; the teacher needs a multiple of its patch size {self.patch_size}")
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

    `checkpoint` is a file as timm reads it (safetensors, or a state dict that `torch.load` takes with `weights_only=True`).
    Raises ValueError for an unknown name, a model that is not a VisionTransformer with a class token, or foreign weights.
    """
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"{name.split('_')[0]}*patch*")[:8]) or "see timm.list_models('vit_*')"
        raise ValueError(f"teacher.timm.model is {name!r}; timm has no such model, but {near}")
    source = {} if checkpoint is None else {"pretrained_cfg_overlay": {"file": str(checkpoint)}}
    try:
        network = timm.create_model(
            name, pretrained=True, num_classes=0, img_size=img_size, dynamic_img_size=True, **source
        )
    except (RuntimeError, OSError, TypeError, KeyError) as error:
        where = checkpoint or "timm's hub (no network? give teacher.timm.checkpoint a path)"
        raise ValueError(f"teacher.timm: {name} cannot be loaded from {where}: {str(error).splitlines()[0]}") from None
    if not isinstance(network, VisionTransformer) or network.cls_token is None:
        raise ValueError(f"teacher.timm.model is {name!r}, a {type(network).__name__}; only ViTs with a class token can teach")
    config = {"timm": name, "img_size": img_size, "class_token": True}
    return network, config | {key: list(network.pretrained_cfg[key]) for key in ("mean", "std")}


def save(folder: Path, network: VisionTransformer, config: dict[str, Any]) -> None:
    """Freeze `network` into `folder`: teacher.safetensors and teacher.json."""
    artifact.save_model(folder, "teacher", network.state_dict(), config)


def load(folder: Path) -> Teacher:
    """The teacher in `folder`, frozen; strict about its weights."""
    state, config = artifact.read_model(folder, "teacher")
    if "timm" in config:
        network = timm.create_model(
            config["timm"], pretrained=False, num_classes=0, img_size=config["img_size"], dynamic_img_size=True
        )
    else:
        network = vit.build(config)
    network.load_state_dict(state, strict=True)
    return Teacher(network, config, artifact.model_digest(folder, "teacher"))
