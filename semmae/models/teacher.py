"""The frozen teacher, one format for all of them: patch tokens, class token, class-token attention.

Where it comes from (iBOT or MAE on your own shards, a file of others by `from_timm`, an encoder of yours by
`from_encoder`) is the teacher stage's business; what follows only sees `Teacher.encode`. A teacher is any timm
VisionTransformer, or timm's DINOv3; it takes images of any size that its patches divide.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, cast

import timm
import torch
from jaxtyping import Float, UInt8
from timm.models import eva, vision_transformer
from torch import Tensor, nn

from semmae.core.model_files import load_model, model_digest, save_model
from semmae.models import pretrained_weights, vit


class Tokens(NamedTuple):
    """What a teacher says of a batch of images."""

    patch: Float[Tensor, "b n d"]
    cls: Float[Tensor, "b d"]
    attention: Float[Tensor, "b n"]  # of the last block's class token, mean over heads, sums to 1


class Teacher(nn.Module):
    """A frozen ViT and what is known of it; `class_token` tells whether its class token was trained."""

    def __init__(self, network: vit.Network, config: dict[str, Any], digest: str) -> None:
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

    def encode(self, images: UInt8[Tensor, "b 3 H W"]) -> Tokens:
        """Tokens of whole images, in float32. Where no class token was trained, `cls` is the mean of the patches."""
        return self.encode_with_heads(images)[0]

    @torch.no_grad()
    def encode_with_heads(self, images: UInt8[Tensor, "b 3 H W"]) -> tuple[Tokens, Float[Tensor, "b a n"]]:
        """Tokens, and the class token's attention in the last block by head, each head's sum over the patches 1."""
        pixels = vit.normalize(images, tuple(self.config["mean"]), tuple(self.config["std"]))
        out, heads = vit.class_attention(self.network, pixels)
        patch, attention = out[:, self.network.num_prefix_tokens :].float(), heads.mean(1)
        cls = out[:, 0].float() if self.class_token else patch.mean(1)
        tokens = Tokens(patch, cls, attention / attention.sum(1, keepdim=True))
        return tokens, heads / heads.sum(2, keepdim=True)


def from_timm(
    name: str, *, img_size: int, checkpoint: Path | None, sha256: str | None = None
) -> tuple[vit.Network, dict[str, Any]]:
    """A timm ViT by name with timm's published weights or those in `checkpoint`, positions resampled to `img_size`.

    `checkpoint` is a file in the layout of timm or of the model's authors (`foreign.read`), `sha256` its digest. Mean
    and deviation are those of the name's tag; without a tag those of timm's default weights (0.5, 0.5 for most), but
    ImageNet's for a file laid out as DINO's and iBOT's.
    Raises ValueError for a name that is no such ViT, a model without a class token, foreign weights, MAE's by another
    name, an `img_size` that its patches do not divide.
    """
    architectures = list_architectures()
    if name.split(".")[0] not in architectures:
        near = get_close_matches(name, architectures, n=5, cutoff=0.3)
        raise ValueError(
            f"teacher.model is {name!r}, none of timm's VisionTransformers or DINOv3, such as "
            f"{', '.join(near or architectures[:5])}"
        )
    try:
        network = create_network(name, img_size, pretrained=checkpoint is None)
    except (RuntimeError, OSError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"teacher.model is {name!r}: {reason}; without a network, give teacher.checkpoint a file"
        ) from None
    if network.cls_token is None:
        raise ValueError(f"teacher.model is {name!r}, which has no class token; choose one that has")
    published = cast(dict[str, Any], network.pretrained_cfg)
    architecture, by_mae = published["architecture"], published.get("tag") == "mae"
    _refuse_broken_patches(img_size, network.patch_embed.patch_size[0], f"teacher.model {name}")
    known = {key: list(published[key]) for key in ("mean", "std")}
    if checkpoint is not None:
        state = pretrained_weights.read_state_dict(checkpoint, sha256)
        if pretrained_weights.is_mae(state) and not by_mae:
            raise ValueError(
                f"{checkpoint} holds weights of MAE's, of which no loss trained the class token, and teacher.model is "
                f"{name!r}; {_mae_of(architecture)}"
            )
        _fill(network, state, checkpoint, architecture)
        if "." not in name and pretrained_weights.is_self_distilled(state):
            known = {"mean": list(vit.MEAN), "std": list(vit.STD)}
    return network, {"timm": name, "img_size": img_size, "class_token": not by_mae} | known


def from_encoder(
    file: Path, sha256: str, *, img_size: int
) -> tuple[vision_transformer.VisionTransformer, dict[str, Any]]:
    """An encoder or a teacher of ours, `file` with its JSON beside it, positions resampled to `img_size`.

    Its class token is offered as one if its JSON says that it was trained; an encoder's says nothing: no loss of MAE
    touches it.
    """
    pretrained_weights.verify_file(file, sha256)
    network, config = vit.load(file.parent, name=file.stem)
    _refuse_broken_patches(img_size, config["patch_size"], f"the encoder in {file}")
    kept = {key: config[key] for key in (*vit.CONFIG_KEYS, "mean", "std")} | {
        "class_token": config.get("class_token", False)
    }
    return network, vit.resize(network, kept, img_size)


def list_architectures() -> list[str]:
    """The names of timm's ViTs that can teach."""
    return timm.list_models(module="vision_transformer") + timm.list_models("*dinov3*", module="eva")


def create_network(name: str, img_size: int, *, pretrained: bool = False) -> vit.Network:
    """A timm ViT without its classifier; without published weights it is fresh."""
    network = timm.create_model(name, pretrained=pretrained, num_classes=0, img_size=img_size, dynamic_img_size=True)
    return cast(vit.Network, network)


def _refuse_broken_patches(img_size: int, patch_size: int, whose: str) -> None:
    """ValueError where an image is no whole number of patches."""
    if img_size % patch_size:
        raise ValueError(f"teacher.img_size is {img_size}; {whose} needs a multiple of its patch size {patch_size}")


def _mae_of(architecture: str) -> str:
    """What to do instead with weights of MAE's that fit `architecture`."""
    if timm.models.is_model_pretrained(f"{architecture}.mae"):
        return f"make it {architecture}.mae"
    return "import them (semmae import), and make teacher.source semmae"


def _fill(network: vit.Network, state: dict[str, Tensor], path: Path, name: str) -> None:
    """Strictly load the weights of a file: timm knows the layouts of the authors and resamples positions."""
    patch, ours = state.get("patch_embed.proj.weight"), network.patch_embed.proj.weight
    if patch is not None and patch.ndim == 4 and patch.shape[2:] != ours.shape[2:]:  # timm would resample them
        raise ValueError(
            f"{path} does not hold the weights of {name}: its patches are {patch.shape[-1]} pixels wide, there "
            f"{ours.shape[-1]}"
        )
    if "storage_tokens" in state and isinstance(network, eva.Eva):  # DINOv3 as published
        state = _without_zero_biases(network, state, path, name)
    layout = eva if isinstance(network, eva.Eva) else vision_transformer
    try:
        state = layout.checkpoint_filter_fn(state, network)
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{path} does not hold the weights of {name}: {error}") from None
    pretrained_weights.load_strictly(network, state, path=path, name=name)


def _without_zero_biases(network: eva.Eva, state: dict[str, Tensor], path: Path, name: str) -> dict[str, Tensor]:
    """DINOv3's weights for an architecture without biases of queries and values, which must then be zero."""
    if cast(Any, network.blocks[0]).attn.q_bias is not None:
        return state
    biases = [key for key in state if key.endswith("qkv.bias")]
    if any(part.any() for key in biases for part in state[key].chunk(3)[::2]):
        raise ValueError(f"{path} has biases of queries and values, which {name} leaves out; choose its twin with qkvb")
    return {key: value for key, value in state.items() if key not in biases}


def save_teacher(folder: Path, network: vit.Network, config: dict[str, Any]) -> None:
    """Freeze `network` into `folder`: teacher.safetensors and teacher.json."""
    save_model(folder, "teacher", network.state_dict(), config)


def load_teacher(folder: Path) -> Teacher:
    """The teacher in `folder`, frozen; strict about its weights."""
    state, config = load_model(folder, "teacher")
    network = create_network(config["timm"], config["img_size"]) if "timm" in config else vit.build(config)
    network.load_state_dict(state, strict=True)
    return Teacher(network, config, model_digest(folder, "teacher"))
