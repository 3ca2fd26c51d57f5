"""Read checkpoints that other projects have published: DINO, iBOT, DINOv2, DINOv3, MAE and timm.

No code in a file is executed. The weights must fit the network exactly; otherwise the error names the first
tensor that does not.
"""

import argparse
import itertools
import math
import pathlib
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semmae.core.digests import file_digest
from semmae.models import vit

# A .pth file is a pickle, a list of calls. With `weights_only`, torch refuses all calls but those that build tensors
# and plain values. Training scripts also store their arguments, paths and NumPy scalars, so the classes below are
# allowed as well. They only store values; none of them imports modules, opens files or calls functions. Each string is
# the name of the same class in another version of Python or NumPy.
_SCALAR = np.float64(0).__reduce__()[0]
HARMLESS_CLASSES: list[Any] = [
    argparse.Namespace,
    np.dtype, type(np.dtype("f8")), type(np.dtype("f4")), type(np.dtype("i8")),
    (_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar"),
    (pathlib.PurePosixPath, "pathlib.PosixPath"), (pathlib.PurePosixPath, "pathlib._local.PosixPath"),
]  # fmt: skip
WRAPPERS = ("teacher", "state_dict", "model", "student")  # in order of preference; a teacher is a moving average
EXTRA_PREFIXES = ("head.", "fc_norm.", "decoder_", "mask_token", "masked_embed")  # weights outside the ViT
# Parameter names of a DINO or iBOT backbone. CLIP's norm before the blocks, DINOv2's layer scale and classifiers have
# other names.
DINO_NAMES = re.compile(
    r"cls_token|pos_embed|(patch_embed\.proj|norm|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)"
)
DINO_HEAD_PREFIXES = ("head.mlp.", "head.last_layer", "masked_embed")  # the optional head in a file of DINO or iBOT
HEADS_BY_WIDTH = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # ViT-Ti, S, B, L, H; not stored in the weights


def read_state_dict(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read the weights of the backbone in `path`, under the names that timm, DINO and MAE use for a ViT.

    This function unpacks the dictionaries of training scripts, strips the prefixes of DDP and torch.compile, and drops
    DINO's projection head.

    Raises:
        ValueError: the file does not exist, its digest is not `sha256`, it is no checkpoint, or it holds objects other
            than weights and plain values.
    """
    verify_file(path, sha256)
    content = _load_dict(path)
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    state = {re.sub(r"^(_orig_mod\.|module\.)+", "", str(key)): value for key, value in content.items()}
    if any(key.startswith("backbone.") for key in state):
        state = {key.removeprefix("backbone."): state[key] for key in state if key.startswith("backbone.")}
    state = {key: value.detach() for key, value in state.items() if isinstance(value, Tensor)}
    if not state:
        names = ", ".join(map(str, content)) or "nothing"
        raise ValueError(f"{path} holds no weights, only {names}; give a checkpoint")
    return state


def verify_file(path: Path, sha256: str | None) -> None:
    """Check that a file exists and has the expected digest, if one is given.

    Raises:
        ValueError: the file does not exist, or its digest differs.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give the path of a checkpoint")
    if sha256 is not None and (digest := file_digest(path)) != sha256:
        raise ValueError(f"{path} has sha256 {digest}, but params.yaml has {sha256}; correct the file or params.yaml")


def _load_dict(path: Path) -> dict[str, Any]:
    """Load the dictionary in a safetensors file or a file of torch.save."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(HARMLESS_CLASSES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds {_refused_names(path, error)}; expected only weights and plain values. "
            "Save its state dict alone"
        ) from None
    except (RuntimeError, OSError, EOFError, UnicodeDecodeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0] or "it is empty"
        raise ValueError(f"{path} is no checkpoint: {reason}; give a safetensors file or a state dict") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a state dict. Save its state dict alone")
    return content


def _refused_names(path: Path, error: pickle.UnpicklingError) -> str:
    """List the Python names in a file that torch refuses to call."""
    try:
        with torch.serialization.safe_globals(HARMLESS_CLASSES):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (pickle.UnpicklingError, RuntimeError, ValueError):  # the format before torch 1.6, or not a checkpoint
        names = re.findall(r"GLOBAL (\S+)", str(error))
    return ", ".join(sorted(names)) or "no weights that torch knows"


def load_strictly(network: torch.nn.Module, state: dict[str, Tensor], *, path: Path, name: str) -> None:
    """Load `state` into `network`; ignore heads and decoders that the network does not have.

    Args:
        network: receives the weights.
        state: the weights; every tensor of the network must be in it, with the same shape.
        path: the file of the weights, for error messages.
        name: the architecture of the network, for error messages.

    Raises:
        ValueError: a tensor is missing, not expected, or has another shape.
    """
    expected = network.state_dict()
    state = {key: value for key, value in state.items() if key in expected or not key.startswith(EXTRA_PREFIXES)}
    if missing := [key for key in expected if key not in state]:
        reason = f"it lacks {_first_and_count(missing)}"
    elif unexpected := [key for key in state if key not in expected]:
        reason = f"it has {_first_and_count(unexpected)}, which is not expected"
    elif mismatched := [key for key in expected if state[key].shape != expected[key].shape]:
        shape, expected_shape = (" x ".join(map(str, tensors[mismatched[0]].shape)) for tensors in (state, expected))
        reason = f"its {mismatched[0]} is {shape}, expected {expected_shape}"
    else:
        network.load_state_dict(state)
        return
    raise ValueError(f"{path} does not hold the weights of {name}: {reason}; give weights of this architecture")


def _first_and_count(keys: list[str]) -> str:
    return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def load_mae_encoder(
    path: Path, *, img_size: int | None = None, num_heads: int | None = None
) -> tuple[VisionTransformer, dict[str, Any]]:
    """Load a frozen encoder and its config from a file in MAE's format.

    The shape of the network is derived from the weights. If the file was finetuned, its norm after the pooling becomes
    the final norm of the encoder.

    Args:
        path: pretrained or finetuned weights.
        img_size: side of the encoder's images, to which the positions are resampled; None keeps the positions.
        num_heads: attention heads; None takes them from HEADS_BY_WIDTH.

    Returns:
        The encoder, and the config to pass to `vit.save`.

    Raises:
        ValueError: the file is not in MAE's format, or the number of heads is not known.
    """
    state = read_state_dict(path)
    if "fc_norm.weight" in state and "norm.weight" not in state:
        state |= {f"norm.{part}": state[f"fc_norm.{part}"] for part in ("weight", "bias")}
    config = _infer_config(path, state, num_heads)
    network = vit.build(config)
    load_strictly(network, state, path=path, name="an MAE encoder")
    positions = "sine-cosine" if is_sincos(state["pos_embed"].float()) else "its own"
    config |= {"mean": vit.MEAN, "std": vit.STD}
    config["imported"] = {"file": path.name, "sha256": file_digest(path), "positions": positions}
    if img_size is not None:
        config = vit.resize(network, config, img_size)
    return network.eval().requires_grad_(False), config


def is_mae(state: dict[str, Tensor]) -> bool:
    """Return whether MAE trained these weights: whether they hold a decoder or fixed sine-cosine positions.

    The encoders that MAE's authors published have no decoder.
    """
    return any(key.startswith("decoder_") for key in state) or (
        "pos_embed" in state and state["pos_embed"].ndim == 3 and is_sincos(state["pos_embed"].float())
    )


def is_self_distilled(state: dict[str, Tensor]) -> bool:
    """Return whether a state dict has the layout of DINO and iBOT: a plain ViT with biases, without a classifier."""
    names = [key for key in state if not key.startswith(DINO_HEAD_PREFIXES)]
    return "blocks.0.attn.qkv.bias" in names and all(DINO_NAMES.fullmatch(key) for key in names)


def is_sincos(positions: Float[Tensor, "1 t d"]) -> bool:
    """Return whether these are fixed sine-cosine positions.

    The channels may hold the sines and cosines of rows and columns in any order.
    """
    side, width = math.isqrt(positions.shape[1] - 1), positions.shape[2]
    if positions.shape[1] != side**2 + 1 or width % 4:
        return False
    quarters = vit.sincos_positions(side, width).unflatten(2, (4, -1))
    orders = (quarters[:, :, list(order)].flatten(2) for order in itertools.permutations(range(4)))
    return any(torch.allclose(positions, order, atol=1e-3) for order in orders)  # the file may be in half precision


def _infer_config(path: Path, state: dict[str, Tensor], num_heads: int | None) -> dict[str, Any]:
    """Derive the config of a ViT (`vit.CONFIG_KEYS`) from its weights."""
    for key in ("patch_embed.proj.weight", "pos_embed", "cls_token", "blocks.0.attn.qkv.weight"):
        if key not in state:
            raise ValueError(f"{path} is not in MAE's format: it lacks {key}; give a checkpoint of MAE")
    patch, positions = state["patch_embed.proj.weight"].shape, state["pos_embed"].shape
    if len(patch) != 4 or patch[1] != 3 or patch[2] != patch[3] or len(positions) != 3:
        given = " x ".join(map(str, patch))
        raise ValueError(f"{path} is not in MAE's format: its patches are {given}; expected width x 3 x p x p")
    width, side = patch[0], math.isqrt(positions[1] - 1)
    if side**2 != positions[1] - 1:
        raise ValueError(f"{path} has {positions[1]} positions; expected a class token and a square of patches")
    if num_heads is None and width not in HEADS_BY_WIDTH:
        raise ValueError(
            f"{path} has width {width}; the number of heads is known for widths {', '.join(map(str, HEADS_BY_WIDTH))}. "
            "Give --num-heads"
        )
    return {
        "img_size": side * patch[2], "patch_size": patch[2], "embed_dim": width,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "num_heads": num_heads or HEADS_BY_WIDTH[width],
    }  # fmt: skip
