"""Checkpoint files of others: opened without running anything, unwrapped, loaded strictly or refused in one sentence.

- `read_state_dict`: the backbone's weights in a file of DINO, iBOT, DINOv2, DINOv3, MAE or timm, however they are wrapped.
- `load_strictly`: those weights into a network, all of them and no others.
- `is_mae`: whether MAE trained them, and so nothing their class token.
- `is_self_distilled`: whether they are laid out as DINO's and iBOT's are, and so want ImageNet's mean and deviation.
- `load_mae_encoder`: an MAE-format file as a ViT of ours, its shape read off the weights.
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

# A .pth file is a pickle: a list of calls. `weights_only` makes torch refuse all but tensors and plain values. What
# training scripts keep beside the weights (`args`; learning rates that are NumPy scalars) needs these names as well.
# They are inert: each only holds the values it is given; none imports, opens or calls anything. Everything else is
# refused. Files name paths and NumPy's scalars by where those lived in the Python and NumPy that wrote them.
_SCALAR = np.float64(0).__reduce__()[0]
INERT: list[Any] = [
    argparse.Namespace,
    np.dtype, type(np.dtype("f8")), type(np.dtype("f4")), type(np.dtype("i8")),
    (_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar"),
    (pathlib.PurePosixPath, "pathlib.PosixPath"), (pathlib.PurePosixPath, "pathlib._local.PosixPath"),
]  # fmt: skip
WRAPPERS = ("teacher", "state_dict", "model", "student")  # in this order: the moving average is the better network
BESIDE = ("head.", "fc_norm.", "decoder_", "mask_token", "masked_embed")  # what training adds to a ViT
# All that a backbone of DINO or iBOT holds: no norm before the blocks (CLIP), no layer scale (DINOv2), no classifier.
PLAIN = re.compile(
    r"cls_token|pos_embed|(patch_embed\.proj|norm|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.(weight|bias)"
)
PROJECTION = ("head.mlp.", "head.last_layer", "masked_embed")  # of self-distillation, where a file keeps it
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # of ViT-Ti, S, B, L, H by width: weights do not tell it


def read_state_dict(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The weights of the one backbone in `path`, named as timm, DINO and MAE name a ViT's; heads of wrappers left out.

    Raises ValueError: no such file, another digest than `sha256`, what is no checkpoint, one that holds more than
    weights and plain values (names what).
    """
    verify_file(path, sha256)
    content = _content(path)
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    state = {re.sub(r"^(_orig_mod\.|module\.)+", "", str(key)): value for key, value in content.items()}
    if any(key.startswith("backbone.") for key in state):
        state = {key.removeprefix("backbone."): state[key] for key in state if key.startswith("backbone.")}
    state = {key: value.detach() for key, value in state.items() if isinstance(value, Tensor)}
    if not state:
        kept = ", ".join(map(str, content)) or "nothing"
        raise ValueError(f"{path} holds no weights but {kept}; give a checkpoint")
    return state


def verify_file(path: Path, sha256: str | None) -> None:
    """That there is such a file and, if a digest is given, that it is the file's; else ValueError."""
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give the path of a checkpoint")
    if sha256 is not None and (found := file_digest(path)) != sha256:
        raise ValueError(f"{path} has sha256 {found}, but params.yaml says {sha256}; correct one or the other")


def _content(path: Path) -> dict[str, Any]:
    """Whatever dictionary a file holds: safetensors, or what torch.save wrote."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(INERT):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds {_forbidden(path, error)}, and only weights and plain values are read from a file; "
            "save its state dict alone"
        ) from None
    except (RuntimeError, OSError, EOFError, UnicodeDecodeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0] or "it is empty"
        raise ValueError(f"{path} is no checkpoint: {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds one {type(content).__name__}, no state dict; save its state dict alone")
    return content


def _forbidden(path: Path, error: pickle.UnpicklingError) -> str:
    """The names that a file would call and may not."""
    try:
        with torch.serialization.safe_globals(INERT):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except (pickle.UnpicklingError, RuntimeError, ValueError):  # the old format, or no checkpoint at all
        names = re.findall(r"GLOBAL (\S+)", str(error))
    return ", ".join(sorted(names)) or "no weights that torch knows"


def load_strictly(network: torch.nn.Module, state: dict[str, Tensor], *, path: Path, name: str) -> None:
    """Load `state` strictly into `network`, leaving out heads and decoders that it does not have.

    Raises ValueError saying what `path` lacks, has too much or has in another shape than the architecture `name`.
    """
    wanted = network.state_dict()
    state = {key: value for key, value in state.items() if key in wanted or not key.startswith(BESIDE)}
    if lacking := [key for key in wanted if key not in state]:
        reason = f"it lacks {_listed(lacking)}"
    elif unknown := [key for key in state if key not in wanted]:
        reason = f"it has {_listed(unknown)}, unknown there"
    elif other := [key for key in wanted if state[key].shape != wanted[key].shape]:
        shapes = (" x ".join(map(str, found[other[0]].shape)) for found in (state, wanted))
        reason = "its {} is {}, there {}".format(other[0], *shapes)
    else:
        network.load_state_dict(state)
        return
    raise ValueError(f"{path} does not hold the weights of {name}: {reason}")


def _listed(keys: list[str]) -> str:
    return keys[0] + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")


def load_mae_encoder(
    path: Path, *, img_size: int | None = None, num_heads: int | None = None
) -> tuple[VisionTransformer, dict[str, Any]]:
    """The encoder in an MAE-format file, frozen, and the config that `vit.save` writes beside it.

    Everything is read off the weights but `num_heads` (by default as in HEADS). `img_size` in pixels resamples the
    positions; by default they stay as they are. A fine-tuned file's norm after pooling becomes the norm of the tokens.
    Raises ValueError for a file of another format.
    """
    state = read_state_dict(path)
    if "fc_norm.weight" in state and "norm.weight" not in state:
        state |= {f"norm.{part}": state[f"fc_norm.{part}"] for part in ("weight", "bias")}
    config = _shape(path, state, num_heads)
    network = vit.build(config)
    load_strictly(network, state, path=path, name="an MAE encoder")
    positions = "sine-cosine" if is_sincos(state["pos_embed"].float()) else "its own"
    config |= {"mean": vit.MEAN, "std": vit.STD}
    config["imported"] = {"file": path.name, "sha256": file_digest(path), "positions": positions}
    if img_size is not None:
        config = vit.resize(network, config, img_size)
    return network.eval().requires_grad_(False), config


def is_mae(state: dict[str, Tensor]) -> bool:
    """Whether these are weights of MAE's: its decoder is there, or (its published encoders have none) its positions."""
    return any(key.startswith("decoder_") for key in state) or (
        "pos_embed" in state and state["pos_embed"].ndim == 3 and is_sincos(state["pos_embed"].float())
    )


def is_self_distilled(state: dict[str, Tensor]) -> bool:
    """Whether these are laid out as the backbones of DINO and iBOT: a plain ViT with biases, without a classifier."""
    kept = [key for key in state if not key.startswith(PROJECTION)]
    return "blocks.0.attn.qkv.bias" in kept and all(PLAIN.fullmatch(key) for key in kept)


def is_sincos(positions: Float[Tensor, "1 t d"]) -> bool:
    """Whether these are our fixed positions, whatever the order of sine, cosine, row and column among the channels."""
    side, width = math.isqrt(positions.shape[1] - 1), positions.shape[2]
    if positions.shape[1] != side**2 + 1 or width % 4:
        return False
    quarters = vit.sincos_positions(side, width).unflatten(2, (4, -1))
    orders = (quarters[:, :, list(order)].flatten(2) for order in itertools.permutations(range(4)))
    return any(torch.allclose(positions, order, atol=1e-3) for order in orders)  # 1e-3: half precision


def _shape(path: Path, state: dict[str, Tensor], num_heads: int | None) -> dict[str, Any]:
    """vit.CONFIG of the ViT whose weights these are."""
    for key in ("patch_embed.proj.weight", "pos_embed", "cls_token", "blocks.0.attn.qkv.weight"):
        if key not in state:
            raise ValueError(f"{path} is no MAE-format checkpoint: it lacks {key}")
    patch, positions = state["patch_embed.proj.weight"].shape, state["pos_embed"].shape
    if len(patch) != 4 or patch[1] != 3 or patch[2] != patch[3] or len(positions) != 3:
        found = " x ".join(map(str, patch))
        raise ValueError(f"{path} is no MAE-format checkpoint: its patches are {found}, not width x 3 x p x p")
    width, side = patch[0], math.isqrt(positions[1] - 1)
    if side**2 != positions[1] - 1:
        raise ValueError(f"{path} has {positions[1]} positions; expected a class token and a square of patches")
    if num_heads is None and width not in HEADS:
        raise ValueError(
            f"{path} has width {width}, and only of {', '.join(map(str, HEADS))} is the number of heads known; "
            "give --num-heads"
        )
    return {
        "img_size": side * patch[2], "patch_size": patch[2], "embed_dim": width,
        "depth": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "num_heads": num_heads or HEADS[width],
    }  # fmt: skip
