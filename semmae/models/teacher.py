"""The frozen teacher: a ViT that returns patch tokens, a class token and class-token attention.

A teacher is a timm `VisionTransformer` or timm's DINOv3. Its weights come from self-distillation or MAE on your own
shards, from an earlier encoder (`from_encoder`), or from timm and other published checkpoints (`from_timm`). Later
stages use every teacher through `Teacher.encode`.
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
    """The output of a teacher for a batch of images, in float32."""

    patch: Float[Tensor, "b n d"]
    cls: Float[Tensor, "b d"]
    attention: Float[Tensor, "b n"]  # from the class token in the last block; mean over heads, sums to 1
    heads: Float[Tensor, "b a n"]  # the same attention of each head; the weights of a head sum to 1
    query: Float[Tensor, "b d"]  # of the token `cls` in the last block, scaled; its heads side by side
    keys: Float[Tensor, "b n d"]  # of the patches in the last block; query . keys, within a head, is its logit


class Teacher(nn.Module):
    """A frozen ViT with its config. It accepts images of any size that is a multiple of its patch size.

    Args:
        network: the ViT; this class freezes it.
        config: holds `mean` and `std` of the pixels, and `class_token`, which is True if the class token was trained.
        digest: identifies the teacher in the metadata of part maps.
    """

    def __init__(self, network: vit.Network, config: dict[str, Any], digest: str) -> None:
        super().__init__()
        self.network, self.config, self.digest = network.eval().requires_grad_(False), config, digest
        self.patch_size: int = network.patch_embed.patch_size[0]
        self.embed_dim: int = network.embed_dim
        self.num_heads: int = cast(Any, network.blocks[-1]).attn.num_heads
        self.class_token: bool = config["class_token"]

    def grid(self, img_size: int) -> tuple[int, int]:
        """Return the rows and columns of patches in a square image.

        Raises:
            ValueError: the patch size does not divide `img_size`.
        """
        if img_size % self.patch_size:
            raise ValueError(
                f"img_size is {img_size}; the teacher needs a multiple of its patch size {self.patch_size}"
            )
        return img_size // self.patch_size, img_size // self.patch_size

    @torch.no_grad()
    def encode(self, images: UInt8[Tensor, "b 3 H W"]) -> Tokens:
        """Encode whole images with pixels from 0 to 255.

        If the class token was not trained, `Tokens.cls` is the mean of the patch tokens.
        """
        pixels = vit.normalize(images, tuple(self.config["mean"]), tuple(self.config["std"]))
        out, queries, keys = vit.last_attention(self.network, pixels)
        prefix = self.network.num_prefix_tokens
        patch, heads = out[:, prefix:].float(), vit.class_weights(queries, keys)[:, :, prefix:]
        cls = out[:, 0].float() if self.class_token else patch.mean(1)
        query = queries[:, :, 0] if self.class_token else queries[:, :, prefix:].mean(2)
        attention = heads.mean(1)
        return Tokens(
            patch, cls, attention / attention.sum(1, keepdim=True), heads / heads.sum(2, keepdim=True),
            query.flatten(1).float(), keys[:, :, prefix:].transpose(1, 2).flatten(2).float(),
        )  # fmt: skip


def save_teacher(folder: Path, network: vit.Network, config: dict[str, Any]) -> None:
    """Write teacher.safetensors and teacher.json to `folder`."""
    save_model(folder, "teacher", network.state_dict(), config)


def load_teacher(folder: Path) -> Teacher:
    """Load the teacher in `folder`; its weights must fit the architecture exactly."""
    state, config = load_model(folder, "teacher")
    network = create_network(config["timm"], config["img_size"]) if "timm" in config else vit.build(config)
    network.load_state_dict(state, strict=True)
    return Teacher(network, config, model_digest(folder, "teacher"))


def from_encoder(
    file: Path, sha256: str, *, img_size: int
) -> tuple[vision_transformer.VisionTransformer, dict[str, Any]]:
    """Make a teacher from an encoder or a teacher that this project has trained.

    The JSON of a teacher stores whether its class token was trained. The JSON of an encoder has no such key, because
    MAE does not train the class token.

    Args:
        file: the weights; the JSON with the same stem lies in the same folder.
        sha256: the expected digest of `file`.
        img_size: side of the teacher's images; the positions are resampled to it.

    Raises:
        ValueError: the file does not exist, its digest differs, or its patch size does not divide `img_size`.
    """
    pretrained_weights.verify_file(file, sha256)
    network, config = vit.load(file.parent, name=file.stem)
    _check_img_size(img_size, config["patch_size"], f"the encoder in {file}")
    teacher_config = {key: config[key] for key in (*vit.CONFIG_KEYS, "mean", "std")}
    teacher_config["class_token"] = config.get("class_token", False)
    return network, vit.resize(network, teacher_config, img_size)


def from_timm(
    name: str, *, img_size: int, checkpoint: Path | None, sha256: str | None = None
) -> tuple[vit.Network, dict[str, Any]]:
    """Make a teacher from a timm model.

    The teacher normalizes pixels by the mean and deviation in timm's config of `name`. If the name has no tag and the
    checkpoint has the layout of DINO and iBOT, the teacher uses the mean and deviation of ImageNet instead.

    Args:
        name: a name that timm knows, such as vit_small_patch16_224.dino.
        img_size: side of the teacher's images; the positions are resampled to it.
        checkpoint: weights in the layout of timm or of the model's authors; None downloads timm's weights.
        sha256: the expected digest of `checkpoint`.

    Raises:
        ValueError: the name is not a ViT with a class token, the weights do not fit it, or the patch size does not
            divide `img_size`. Weights of MAE also need a name with the tag `mae`.
    """
    network = _create_with_class_token(name, img_size, pretrained=checkpoint is None)
    published = cast(dict[str, Any], network.pretrained_cfg)
    architecture, is_mae = published["architecture"], published.get("tag") == "mae"
    _check_img_size(img_size, network.patch_embed.patch_size[0], f"teacher.model {name}")
    normalization = {key: list(published[key]) for key in ("mean", "std")}
    if checkpoint is not None:
        state = pretrained_weights.read_state_dict(checkpoint, sha256)
        if pretrained_weights.is_mae(state) and not is_mae:
            raise ValueError(
                f"{checkpoint} holds weights of MAE, which did not train the class token, but teacher.model is "
                f"{name!r}; {_remedy_for_mae(architecture)}"
            )
        _load_published(network, state, checkpoint, architecture)
        if "." not in name and pretrained_weights.is_self_distilled(state):
            normalization = {"mean": list(vit.MEAN), "std": list(vit.STD)}
    return network, {"timm": name, "img_size": img_size, "class_token": not is_mae} | normalization


def list_architectures() -> list[str]:
    """List the timm architectures that `from_timm` accepts."""
    return timm.list_models(module="vision_transformer") + timm.list_models("*dinov3*", module="eva")


def create_network(name: str, img_size: int, *, pretrained: bool = False) -> vit.Network:
    """Create a timm ViT without its classifier; the weights are random unless `pretrained` is set."""
    network = timm.create_model(name, pretrained=pretrained, num_classes=0, img_size=img_size, dynamic_img_size=True)
    return cast(vit.Network, network)


def _create_with_class_token(name: str, img_size: int, *, pretrained: bool) -> vit.Network:
    """Create a timm ViT; raise ValueError if timm cannot create it, or if it has no class token."""
    architectures = list_architectures()
    if name.split(".")[0] not in architectures:
        suggestions = get_close_matches(name, architectures, n=5, cutoff=0.3) or architectures[:5]
        raise ValueError(
            f"teacher.model is {name!r}; expected a VisionTransformer or a DINOv3 of timm, such as "
            f"{', '.join(suggestions)}"
        )
    try:
        network = create_network(name, img_size, pretrained=pretrained)
    except (RuntimeError, OSError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"teacher.model is {name!r}: {reason}; without internet access, give a file as teacher.checkpoint"
        ) from None
    if network.cls_token is None:
        raise ValueError(f"teacher.model is {name!r}, which has no class token; choose a model with a class token")
    return network


def _check_img_size(img_size: int, patch_size: int, owner: str) -> None:
    """Raise ValueError if the patch size of `owner` does not divide `img_size`."""
    if img_size % patch_size:
        raise ValueError(f"teacher.img_size is {img_size}; {owner} needs a multiple of its patch size {patch_size}")


def _remedy_for_mae(architecture: str) -> str:
    """Return the settings that load MAE weights of `architecture`, for an error message."""
    if timm.models.is_model_pretrained(f"{architecture}.mae"):
        return f"set teacher.model to {architecture}.mae"
    return "import them (semmae import), and set teacher.source to semmae"


def _load_published(network: vit.Network, state: dict[str, Tensor], path: Path, name: str) -> None:
    """Load weights in the layout of timm or of the model's authors; timm translates them and resamples positions."""
    patch_weight, expected = state.get("patch_embed.proj.weight"), network.patch_embed.proj.weight
    if patch_weight is not None and patch_weight.ndim == 4 and patch_weight.shape[2:] != expected.shape[2:]:
        # timm would resample the patch embedding, which changes the network
        raise ValueError(
            f"{path} does not hold the weights of {name}: its patches are {patch_weight.shape[-1]} pixels wide, "
            f"expected {expected.shape[-1]}; choose a teacher.model with these patches"
        )
    if "storage_tokens" in state and isinstance(network, eva.Eva):  # the layout of DINOv3's authors
        state = _drop_zero_biases(network, state, path, name)
    layout = eva if isinstance(network, eva.Eva) else vision_transformer
    try:
        state = layout.checkpoint_filter_fn(state, network)
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        raise ValueError(f"{path} does not hold the weights of {name}: {error}") from None
    pretrained_weights.load_strictly(network, state, path=path, name=name)


def _drop_zero_biases(network: eva.Eva, state: dict[str, Tensor], path: Path, name: str) -> dict[str, Tensor]:
    """Drop DINOv3's biases of queries and values if the architecture has none; raise ValueError if one is not 0."""
    if cast(Any, network.blocks[0]).attn.q_bias is not None:
        return state
    biases = [key for key in state if key.endswith("qkv.bias")]
    if any(part.any() for key in biases for part in state[key].chunk(3)[::2]):
        raise ValueError(
            f"{path} has biases of queries and values, but {name} has none; choose the teacher.model with qkvb"
        )
    return {key: value for key, value in state.items() if key not in biases}
