"""An encoder as timm or transformers loads it: strictly, with equal outputs, with the evaluation view beside it.

- `export`: a folder of the project, by name; `to_timm`, `to_transformers`: a loaded encoder, to timm a classifier too.
- `encoder_state`, `decoder_state`: weights under the names that transformers' published checkpoints have.

Each is loaded back and compared with its origin in float64 before the folder appears: an export that is there is right.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from semmae.core.atomic_files import atomic_write, write_json
from semmae.core.model_files import model_digest
from semmae.evaluation.views import CENTER_CROP
from semmae.models import classifier, frozen_encoder, mae, masking, vit
from semmae.models.frozen_encoder import FrozenEncoder

TOLERANCE = 1e-5
ARCHITECTURE = "vit_base_patch16_224"  # of timm: any plain ViT, once its sizes are given
LAYERS = {  # of a block, as timm names them and as transformers' published checkpoints do; qkv comes apart
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def export(folder: Path, out: Path, *, to: Literal["timm", "transformers"], with_decoder: bool) -> str:
    """Export the encoder or the fine-tuned classifier in `folder` to `out`; the line of Python that loads it there."""
    tuned = (folder / "classifier.json").is_file()
    if tuned and to != "timm":
        raise ValueError(f"{folder} holds a classifier, which only timm takes; use --to timm")
    encoder = _classifier(folder) if tuned else frozen_encoder.load_encoder(folder)
    if to == "timm":
        if with_decoder:
            raise ValueError("timm has no masked autoencoder; leave out --with-decoder, or use --to transformers")
        to_timm(encoder, out)
        return f'timm.create_model("local-dir:{out}", pretrained=True)'
    to_transformers(encoder, out, decoder=mae.load(folder) if with_decoder else None)
    if with_decoder:
        return f'transformers.ViTMAEForPreTraining.from_pretrained("{out}")'
    return f'transformers.ViTModel.from_pretrained("{out}", add_pooling_layer=False)'


def _classifier(folder: Path) -> FrozenEncoder:
    network, config = classifier.load(folder)
    return FrozenEncoder(network, config, model_digest(folder, "classifier"))


def to_timm(encoder: FrozenEncoder, out: Path) -> None:
    """Write model.safetensors and config.json, in the format of timm's models on the hub; of a classifier with its
    head and the names of its classes. ValueError: `out` exists.
    """
    network, config, classes = encoder.network, encoder.config, encoder.config.get("class_names", [])
    sizes = {"img_size": config["img_size"], "dynamic_img_size": True}
    if "timm" not in config:
        sizes |= {key: config[key] for key in vit.CONFIG_KEYS} | {"global_pool": network.global_pool}
    content = {
        "architecture": config.get("timm", ARCHITECTURE).split(".")[0],
        "num_classes": len(classes),
        "num_features": network.num_features,
        "global_pool": network.global_pool,
        "label_names": classes,
        "model_args": sizes,
        "pretrained_cfg": {
            "input_size": [3, config["img_size"], config["img_size"]], "fixed_input_size": True, "pool_size": None,
            "interpolation": "bicubic", "crop_pct": CENTER_CROP, "crop_mode": "center", "mean": list(config["mean"]),
            "std": list(config["std"]), "num_classes": len(classes), "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }  # fmt: skip
    with atomic_write(_free(out)) as folder:
        folder.mkdir()
        _write(folder, network.state_dict(), encoder.digest)
        write_json(folder / "config.json", content)
        found: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
        if classes:
            _compare(encoder, found, found, ours=torch.nn.Module.__call__)
        else:
            _compare(encoder, found.forward_features, found)


def to_transformers(
    encoder: FrozenEncoder, out: Path, *, decoder: tuple[mae.MAE, dict[str, Any]] | None = None
) -> None:
    """Write model.safetensors, config.json and preprocessor_config.json: a ViTModel, with `decoder` (the autoencoder
    and the decoder's config) a ViTMAEForPreTraining.

    ValueError: `out` exists, or the network has what its ViT lacks.
    """
    transformers = _transformers()
    state = encoder_state(encoder)
    with atomic_write(_free(out)) as folder:
        folder.mkdir()
        if decoder is None:
            kind, how = transformers.ViTModel, {"add_pooling_layer": False}
            config = transformers.ViTConfig(architectures=["ViTModel"], **_sizes(encoder))
        else:
            kind, how = transformers.ViTMAEForPreTraining, {}
            config = transformers.ViTMAEConfig(
                architectures=["ViTMAEForPreTraining"], **_sizes(encoder), **_decoder_sizes(*decoder)
            )
            state = {f"vit.{name}": value for name, value in state.items()} | decoder_state(decoder[0])
        config.save_pretrained(folder)
        _write(folder, state, encoder.digest)
        _processor(transformers, encoder).save_pretrained(folder)
        found, report = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **how)
        if wrong := {name: keys for name, keys in report.items() if keys}:
            raise ValueError(f"transformers {transformers.__version__} does not load its own ViT's weights: {wrong}")
        if decoder is None:
            _compare(encoder, lambda images: found(images).last_hidden_state, found)
        else:
            _compare_decoder(decoder[0], found, encoder.config["img_size"])


def encoder_state(encoder: FrozenEncoder) -> dict[str, Tensor]:
    """The weights under the names of a transformers ViTModel. ValueError: there are others than a plain ViT's."""
    theirs = dict(encoder.network.state_dict())
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    try:
        state = {new: theirs.pop(old) for old, new in names.items()}
        for number in range(len(encoder.network.blocks)):
            state |= _block(theirs, f"blocks.{number}.", f"encoder.layer.{number}.")
    except KeyError as error:
        raise ValueError(f"the network has no {error}, so it is no ViT of transformers; use --to timm") from None
    if theirs:
        raise ValueError(f"the network has {', '.join(theirs)}, which transformers' ViT lacks; use --to timm")
    return state


def decoder_state(model: mae.MAE) -> dict[str, Tensor]:
    """The weights of the decoder under the names of a transformers ViTMAEForPreTraining, its fixed positions
    included.
    """
    theirs = dict(model.decoder.state_dict())
    state = {"decoder.mask_token": model.mask_token, "decoder.decoder_pos_embed": model.positions}
    for name in ("embed", "norm", "pred"):
        state |= {f"decoder.decoder_{name}.{kind}": theirs.pop(f"{name}.{kind}") for kind in ("weight", "bias")}
    blocks: Any = model.decoder["blocks"]
    for number in range(len(blocks)):
        state |= _block(theirs, f"blocks.{number}.", f"decoder.decoder_layers.{number}.")
    return state


def _block(theirs: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """One block's weights, taken out of `theirs` and renamed."""
    state = {}
    for kind in ("weight", "bias"):
        qkv = theirs.pop(f"{old}attn.qkv.{kind}").chunk(3)
        for name, part in zip(("query", "key", "value"), qkv, strict=True):
            state[f"{new}attention.attention.{name}.{kind}"] = part
        state |= {f"{new}{b}.{kind}": theirs.pop(f"{old}{a}.{kind}") for a, b in LAYERS.items()}
    return state


def _sizes(encoder: FrozenEncoder) -> dict[str, Any]:
    network: Any = encoder.network
    block = network.blocks[0]
    return {
        "image_size": encoder.config["img_size"], "patch_size": network.patch_embed.patch_size[0],
        "hidden_size": network.embed_dim, "num_hidden_layers": len(network.blocks),
        "num_attention_heads": block.attn.num_heads, "intermediate_size": block.mlp.fc1.out_features,
        "layer_norm_eps": network.norm.eps, "hidden_act": "gelu",
    }  # fmt: skip


def _decoder_sizes(model: mae.MAE, config: dict[str, Any]) -> dict[str, Any]:
    blocks: Any = model.decoder["blocks"]
    return {
        "norm_pix_loss": config["norm_pix_loss"],
        "decoder_hidden_size": model.mask_token.shape[-1], "decoder_num_hidden_layers": len(blocks),
        "decoder_num_attention_heads": blocks[0].attn.num_heads,
        "decoder_intermediate_size": blocks[0].mlp.fc1.out_features,
    }  # fmt: skip


def _processor(transformers: ModuleType, encoder: FrozenEncoder) -> Any:  # not ViT's own processor, which cannot crop
    """The evaluation view (views.CenterView): resize of the short side, then a center crop."""
    size = encoder.config["img_size"]
    return transformers.BitImageProcessor(
        size={"shortest_edge": round(size / CENTER_CROP)}, crop_size={"height": size, "width": size},
        image_mean=list(encoder.config["mean"]), image_std=list(encoder.config["std"]),
    )  # fmt: skip


def _transformers() -> ModuleType:
    import transformers  # here, for it takes seconds

    transformers.utils.logging.disable_progress_bar()
    return transformers


def _free(out: Path) -> Path:
    """`out`, where nothing is lost."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; name another one")
    return out


def _write(folder: Path, state: dict[str, Tensor], digest: str) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "semmae": digest})


@torch.no_grad()
def _compare(
    encoder: FrozenEncoder,
    theirs: Callable[..., Tensor],
    found: torch.nn.Module,
    *,
    ours: Callable[..., Tensor] = vit.encode_tokens,
) -> None:
    """ValueError unless `theirs`, a function of the module `found`, gives what `ours` gives of the encoder."""
    size = encoder.config["img_size"]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found.double().eval()
    _equal(theirs(images), ours(copy.deepcopy(encoder.network).double(), images))


@torch.no_grad()
def _compare_decoder(model: mae.MAE, found: Any, size: int) -> None:
    """ValueError unless the ViTMAE `found` predicts the same masked pixels from the patches that it happens to keep."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    output = found.double().eval()(images)
    mask = output.mask.bool()
    num_masked = masking.num_masked(mask.shape[1], found.config.mask_ratio)
    _equal(output.logits[mask], copy.deepcopy(model).double()(images, mask, num_masked)[mask])


def _equal(found: Tensor, expected: Tensor) -> None:
    difference = float((found - expected).abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(f"the exported network differs from its origin by {difference:.1e}; it was not written")
