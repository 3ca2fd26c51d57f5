"""Masked autoencoders of other libraries with the shape of ours, for the comparison in `benchmarks/step.py`."""

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

from semmae.models import mae, vit
from tests.vitmae import to_vitmae


def transformers(model: mae.MAE) -> nn.Module:
    """Build `ViTMAEForPreTraining` with the weights of `model`."""
    return to_vitmae(model, norm_pix_loss=True)


def has_lightly() -> bool:
    """Return whether lightly is installed (pip install lightly)."""
    return importlib.util.find_spec("lightly") is not None


def lightly(
    shape: dict[str, int], decoder: dict[str, int], mask_ratio: float, *, device: torch.device, compiled: str | None
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Build the encoder, the decoder and the loss of lightly, combined as in its documentation."""
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM

    encoder = MaskedVisionTransformerTIMM(vit=vit.build(shape))
    n, patch = encoder.sequence_length, shape["patch_size"]
    model = nn.ModuleDict(
        {
            "encoder": encoder,
            "decoder": MAEDecoderTIMM(
                num_patches=n - 1, patch_size=patch, embed_dim=shape["embed_dim"],
                decoder_embed_dim=decoder["embed_dim"], decoder_depth=decoder["depth"],
                decoder_num_heads=decoder["num_heads"],
            ),
        }
    ).to(device).train()  # fmt: skip
    for module in model.values() if compiled else ():
        module.compile(mode=compiled)

    def loss(images: Tensor) -> Tensor:
        b = len(images)
        keep, hide = utils.random_token_mask(size=(b, n), mask_ratio=mask_ratio, device=images.device)
        visible = model["decoder"].embed(model["encoder"].encode(images=images, idx_keep=keep))
        x = utils.repeat_token(model["decoder"].mask_token, (b, n))
        x = model["decoder"].decode(utils.set_at_index(x, keep, visible.type_as(x)))
        pred = model["decoder"].predict(utils.get_at_index(x, hide))
        target = utils.get_at_index(utils.patchify(images, patch), hide - 1)
        return nn.functional.mse_loss(pred, utils.normalize_mean_var(target, dim=-1))

    return model, loss
