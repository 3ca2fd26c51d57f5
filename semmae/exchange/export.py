"""Export encoders to timm and transformers.

An export holds the weights, named as in published checkpoints. It also holds the configuration, and the preprocessing
that the evaluations use. Each export is verified before its folder appears: the target library loads it, and its
outputs must equal those of the original in float64.
"""

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
from semmae.exchange import verification
from semmae.models import classifier, frozen_encoder, mae, vit
from semmae.models.frozen_encoder import FrozenEncoder

ARCHITECTURE = "vit_base_patch16_224"  # timm's plain ViT; `model_args` sets all of its sizes
LAYERS = {  # layers of a block: timm's name -> the name in transformers' published checkpoints
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def export(folder: Path, out: Path, *, to: Literal["timm", "transformers"], with_decoder: bool) -> str:
    """Export a network.

    Args:
        folder: An encoder, a teacher, or (for timm) a fine-tuned classifier.
        out: The folder to write. If it exists, it must be empty.
        to: The library that will load the export.
        with_decoder: Export the encoder with its decoder (transformers only).

    Returns:
        The Python expression that loads the export.

    Raises:
        ValueError: The library does not support the network, or `out` is not empty.
    """
    is_classifier = (folder / "classifier.json").is_file()
    if is_classifier and to != "timm":
        raise ValueError(f"{folder} holds a classifier, which cannot be exported to {to}; use --to timm")
    encoder = _load_classifier(folder) if is_classifier else frozen_encoder.load_encoder(folder)
    if to == "timm":
        if with_decoder:
            raise ValueError("timm has no model with a decoder; omit --with-decoder, or use --to transformers")
        to_timm(encoder, out)
        return f'timm.create_model("local-dir:{out}", pretrained=True)'
    to_transformers(encoder, out, decoder=mae.load(folder) if with_decoder else None)
    if with_decoder:
        return f'transformers.ViTMAEForPreTraining.from_pretrained("{out}")'
    return f'transformers.ViTModel.from_pretrained("{out}", add_pooling_layer=False)'


def _load_classifier(folder: Path) -> FrozenEncoder:
    network, config = classifier.load(folder)
    return FrozenEncoder(network, config, model_digest(folder, "classifier"))


def to_timm(encoder: FrozenEncoder, out: Path) -> None:
    """Write model.safetensors and config.json in the format of timm's models on the Hugging Face hub.

    The export of a classifier includes its head and the names of its classes.

    Raises:
        ValueError: `out` is not empty, or the outputs differ from those of the original.
    """
    network, config, classes = encoder.network, encoder.config, encoder.config.get("class_names", [])
    model_args = {"img_size": config["img_size"], "dynamic_img_size": True}
    if "timm" not in config:
        model_args |= {key: config[key] for key in vit.CONFIG_KEYS} | {"global_pool": network.global_pool}
    content = {
        "architecture": config.get("timm", ARCHITECTURE).split(".")[0],
        "num_classes": len(classes),
        "num_features": network.num_features,
        "global_pool": network.global_pool,
        "label_names": classes,
        "model_args": model_args,
        "pretrained_cfg": {
            "input_size": [3, config["img_size"], config["img_size"]],
            "fixed_input_size": True,
            "pool_size": None,
            "interpolation": "bicubic",
            "crop_pct": CENTER_CROP,
            "crop_mode": "center",
            "mean": list(config["mean"]),
            "std": list(config["std"]),
            "num_classes": len(classes),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    with atomic_write(require_empty(out)) as folder:
        folder.mkdir()
        _write_weights(folder, network.state_dict(), encoder.digest)
        write_json(folder / "config.json", content)
        exported: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
        if classes:
            verification.verify_outputs(encoder, exported, exported, original_outputs=torch.nn.Module.__call__)
        else:
            verification.verify_outputs(encoder, exported, exported.forward_features)


def to_transformers(
    encoder: FrozenEncoder, out: Path, *, decoder: tuple[mae.MAE, dict[str, Any]] | None = None
) -> None:
    """Write model.safetensors, config.json and preprocessor_config.json in the format of transformers.

    Args:
        encoder: The encoder, exported as a ViTModel.
        out: The folder to write.
        decoder: The MAE and the config of its decoder. With it, the export is a ViTMAEForPreTraining.

    Raises:
        ValueError: `out` is not empty, the network is not a plain ViT, or the outputs differ from those of the
            original.
    """
    transformers = _import_transformers()
    state = encoder_state(encoder)
    with atomic_write(require_empty(out)) as folder:
        folder.mkdir()
        if decoder is None:
            model_class, options = transformers.ViTModel, {"add_pooling_layer": False}
            config = transformers.ViTConfig(architectures=["ViTModel"], **_sizes(encoder))
        else:
            model_class, options = transformers.ViTMAEForPreTraining, {}
            config = transformers.ViTMAEConfig(
                architectures=["ViTMAEForPreTraining"], **_sizes(encoder), **_decoder_sizes(*decoder)
            )
            state = {f"vit.{name}": value for name, value in state.items()} | decoder_state(decoder[0])
        config.save_pretrained(folder)
        _write_weights(folder, state, encoder.digest)
        _image_processor(transformers, encoder).save_pretrained(folder)
        exported, report = model_class.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **options
        )
        if problems := {name: keys for name, keys in report.items() if keys}:
            raise ValueError(
                f"transformers {transformers.__version__} cannot load the exported weights: {problems}; "
                "install the version in constraints.txt"
            )
        if decoder is None:
            verification.verify_outputs(encoder, exported, lambda images: exported(images).last_hidden_state)
        else:
            verification.verify_decoder(decoder[0], exported, encoder.config["img_size"])


def encoder_state(encoder: FrozenEncoder) -> dict[str, Tensor]:
    """Return the weights under the names of a ViTModel of transformers.

    Raises:
        ValueError: The network is not a plain ViT.
    """
    state = dict(encoder.network.state_dict())
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    try:
        renamed = {new: state.pop(old) for old, new in names.items()}
        for number in range(len(encoder.network.blocks)):
            renamed |= _rename_block(state, f"blocks.{number}.", f"encoder.layer.{number}.")
    except KeyError as error:
        raise ValueError(f"the network has no {error}, which the ViT of transformers needs; use --to timm") from None
    if state:
        raise ValueError(f"the network has {', '.join(state)}, which the ViT of transformers lacks; use --to timm")
    return renamed


def decoder_state(model: mae.MAE) -> dict[str, Tensor]:
    """Return the decoder's weights and fixed positions under the names of a ViTMAEForPreTraining of transformers."""
    state = dict(model.decoder.state_dict())
    renamed = {"decoder.mask_token": model.mask_token, "decoder.decoder_pos_embed": model.positions}
    for name in ("embed", "norm", "pred"):
        renamed |= {f"decoder.decoder_{name}.{kind}": state.pop(f"{name}.{kind}") for kind in ("weight", "bias")}
    blocks: Any = model.decoder["blocks"]
    for number in range(len(blocks)):
        renamed |= _rename_block(state, f"blocks.{number}.", f"decoder.decoder_layers.{number}.")
    return renamed


def _rename_block(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """Remove the weights of one block from `state` and return them renamed.

    Args:
        state: Weights under the names of timm.
        old: The prefix of the block in timm.
        new: The prefix of the block in transformers, which holds query, key and value separately.
    """
    renamed = {}
    for kind in ("weight", "bias"):
        qkv = state.pop(f"{old}attn.qkv.{kind}").chunk(3)
        for name, part in zip(("query", "key", "value"), qkv, strict=True):
            renamed[f"{new}attention.attention.{name}.{kind}"] = part
        renamed |= {f"{new}{target}.{kind}": state.pop(f"{old}{source}.{kind}") for source, target in LAYERS.items()}
    return renamed


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


def _image_processor(transformers: ModuleType, encoder: FrozenEncoder) -> Any:
    """Return the processor that equals `views.CenterView`: it resizes the short side, then crops the center.

    It is a BitImageProcessor, because ViTImageProcessor cannot crop.
    """
    size = encoder.config["img_size"]
    return transformers.BitImageProcessor(
        size={"shortest_edge": round(size / CENTER_CROP)},
        crop_size={"height": size, "width": size},
        image_mean=list(encoder.config["mean"]),
        image_std=list(encoder.config["std"]),
    )


def _import_transformers() -> ModuleType:
    import transformers  # on demand, because the import takes seconds

    transformers.utils.logging.disable_progress_bar()
    return transformers


def require_empty(out: Path) -> Path:
    """Return `out`; raise a ValueError if it is a file or a folder with files."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder; choose another folder with --out")
    return out


def _write_weights(folder: Path, state: dict[str, Tensor], digest: str) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "semmae": digest})
