"""transformers' ViTMAE with the weights of an `MAE`: the reference for its loss and its speed."""

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from semmae.models import mae


def to_vitmae(model: mae.MAE, *, norm_pix_loss: bool) -> ViTMAEForPreTraining:
    """Return transformers' model with the shape and the weights of `model`, masking three quarters."""
    encoder, blocks = model.encoder, model.decoder["blocks"]
    width, narrow = encoder.embed_dim, model.mask_token.shape[2]
    config = ViTMAEConfig(
        hidden_size=width, num_hidden_layers=len(encoder.blocks), num_attention_heads=encoder.blocks[0].attn.num_heads,
        intermediate_size=4 * width, image_size=encoder.patch_embed.img_size[0], patch_size=model.patch_size,
        decoder_hidden_size=narrow, decoder_num_hidden_layers=len(blocks),
        decoder_num_attention_heads=blocks[0].attn.num_heads, decoder_intermediate_size=4 * narrow,
        mask_ratio=0.75, norm_pix_loss=norm_pix_loss, layer_norm_eps=1e-6,
    )  # fmt: skip
    reference = ViTMAEForPreTraining(config).eval()
    state = {}

    def linear(to: str, weight: torch.Tensor, bias: torch.Tensor) -> None:
        state[f"{to}.weight"], state[f"{to}.bias"] = weight, bias

    def block(to: str, module: torch.nn.Module, names: dict[str, str]) -> None:
        width = module.attn.qkv.weight.shape[1]
        for i, part in enumerate(("query", "key", "value")):
            rows = slice(i * width, (i + 1) * width)
            linear(f"{to}.{names[part]}", module.attn.qkv.weight[rows], module.attn.qkv.bias[rows])
        linear(f"{to}.{names['proj']}", module.attn.proj.weight, module.attn.proj.bias)
        linear(f"{to}.{names['fc1']}", module.mlp.fc1.weight, module.mlp.fc1.bias)
        linear(f"{to}.{names['fc2']}", module.mlp.fc2.weight, module.mlp.fc2.bias)
        linear(f"{to}.layernorm_before", module.norm1.weight, module.norm1.bias)
        linear(f"{to}.layernorm_after", module.norm2.weight, module.norm2.bias)

    names = layer_names(reference)
    state["vit.embeddings.cls_token"] = encoder.cls_token
    state["vit.embeddings.position_embeddings"] = encoder.pos_embed
    linear("vit.embeddings.patch_embeddings.projection", encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias)
    linear("vit.layernorm", encoder.norm.weight, encoder.norm.bias)
    prefix = names.pop("encoder")
    for i, module in enumerate(encoder.blocks):
        block(f"{prefix}.{i}", module, names)
    for i, module in enumerate(blocks):
        block(f"decoder.decoder_layers.{i}", module, names)
    state["decoder.mask_token"], state["decoder.decoder_pos_embed"] = model.mask_token, model.positions
    linear("decoder.decoder_embed", model.decoder["embed"].weight, model.decoder["embed"].bias)
    linear("decoder.decoder_norm", model.decoder["norm"].weight, model.decoder["norm"].bias)
    linear("decoder.decoder_pred", model.decoder["pred"].weight, model.decoder["pred"].bias)
    reference.load_state_dict(state, strict=True)
    return reference


def layer_names(reference: ViTMAEForPreTraining) -> dict[str, str]:
    """Return the names of a layer's weights in the installed version of transformers."""
    keys = list(reference.state_dict())
    layer = next(key for key in keys if key.startswith("vit.") and ".0." in key)
    prefix = layer.split(".0.")[0]
    inside = {key.removeprefix(f"{prefix}.0.").rsplit(".", 1)[0] for key in keys if key.startswith(f"{prefix}.0.")}
    endings = {
        "query": ("q_proj", "query"), "key": ("k_proj", "key"), "value": ("v_proj", "value"),
        "proj": ("o_proj", "attention.output.dense"), "fc1": ("fc1", "intermediate.dense"),
    }  # fmt: skip
    names = {name: next(k for k in inside for e in ends if k.endswith(e)) for name, ends in endings.items()}
    taken = {*names.values(), "layernorm_before", "layernorm_after"}
    (names["fc2"],) = inside - taken
    return names | {"encoder": prefix}
