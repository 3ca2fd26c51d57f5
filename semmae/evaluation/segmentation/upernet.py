"""UPerNet (Xiao et al. 2018) on a plain ViT, fine-tuned end to end as BEiT and MAE do on ADE20K.

- `taps`: the blocks that are read: after a third, half, two thirds of the depth and at its end (3, 5, 7, 11 of 12).
- `UPerNet`: their patch tokens as a pyramid of 4, 2, 1 and 1/2 times their grid (two transposed convolutions, one,
  none, max pooling), transformers' UPerNet head on it, and its auxiliary head on the third tap.
- `groups`: parameters with their share of the learning rate, smaller by `layer_decay` from block to block.
- `finetune`: the training loop.
"""

from typing import Annotated, Any

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as params
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from semmae.core import async_copy, distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, Below1, Betas, Portion
from semmae.core.rng import fold
from semmae.data.dataset import Reader
from semmae.evaluation.segmentation.sliding_window import Predict, pixel_loss
from semmae.evaluation.segmentation.transforms import TrainCrop
from semmae.models import vit
from semmae.runs.run import Run

DEPTHS = (1 / 3, 1 / 2, 2 / 3, 1.0)


@params(frozen=True, config=STRICT)
class UPerNetConfig:
    """How the encoder is fine-tuned under a UPerNet; `lr = base_lr * batch_size / 256`."""

    width: PositiveInt  # channels of the decoder
    auxiliary_width: PositiveInt
    auxiliary_weight: NonNegativeFloat  # of the auxiliary head's loss; 0: no such head
    epochs: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]  # 2 per process, for batch norm
    base_lr: PositiveFloat
    min_lr: NonNegativeFloat
    warmup_epochs: NonNegativeFloat
    power: PositiveFloat  # of the polynomial decay; 1: a straight line
    weight_decay: NonNegativeFloat
    betas: Betas
    layer_decay: Portion
    drop_path: Below1


def taps(depth: int) -> list[int]:
    """Which blocks are read, from 0; some of them more than once in a network of fewer than four."""
    return [max(0, round(depth * share) - 1) for share in DEPTHS]


class UPerNet(nn.Module):
    """A ViT, the pyramid of its tokens, and the heads; logits come at 4 times the patch grid."""

    def __init__(
        self, encoder: VisionTransformer, *, num_classes: int, width: int, auxiliary_width: int, auxiliary: bool
    ) -> None:
        from transformers.models.upernet.modeling_upernet import UperNetConfig, UperNetFCNHead, UperNetHead

        super().__init__()
        self.encoder, self.taps = encoder, taps(len(encoder.blocks))
        d = encoder.embed_dim

        def twice() -> nn.Module:
            return nn.ConvTranspose2d(d, d, kernel_size=2, stride=2)

        self.pyramid = nn.ModuleList(
            [
                nn.Sequential(twice(), nn.BatchNorm2d(d), nn.GELU(), twice()),
                twice(),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, ceil_mode=True),
            ]
        )
        config = UperNetConfig(hidden_size=width, auxiliary_channels=auxiliary_width)
        config.num_labels = num_classes
        self.head = UperNetHead(config, in_channels=[d] * 4)
        self.auxiliary = UperNetFCNHead(config, in_channels=[d] * 4) if auxiliary else None

    def features(self, images: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b d _ _"]]:
        """The pyramid, finest first. Blocks are read before the encoder's last norm, as BEiT does."""
        wanted = sorted(set(self.taps))
        found = self.encoder.forward_intermediates(images, indices=wanted, intermediates_only=True)
        maps = dict(zip(wanted, found, strict=True))
        return [level(maps[tap]) for level, tap in zip(self.pyramid, self.taps, strict=True)]

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor | None]:
        """Logits of the decoder and, in training, of the auxiliary head: (b, c, h, w) on grids of their own."""
        found = self.features(images)
        if self.training and self.auxiliary is not None:
            return self.head(found), self.auxiliary(found)
        return self.head(found), None


def build(
    recipe: UPerNetConfig, pretrained: VisionTransformer, config: dict[str, Any], *, num_classes: int, seed: int
) -> UPerNet:
    """A fresh decoder on a copy of the encoder, with drop path, all of it trainable but what is not used."""
    encoder = vit.build(config, drop_path=recipe.drop_path)
    encoder.load_state_dict(pretrained.state_dict(), strict=True)
    encoder.norm.requires_grad_(False)  # after the last tap
    torch.manual_seed(fold(seed, "decoder"))
    return UPerNet(
        encoder, num_classes=num_classes, width=recipe.width, auxiliary_width=recipe.auxiliary_width,
        auxiliary=recipe.auxiliary_weight > 0,
    )  # fmt: skip


def groups(model: UPerNet, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameters by weight decay (none on vectors) and `lr_scale`: 1 in the decoder, layer_decay in the last block,
    its powers down to the patch embedding.
    """
    encoder = param_groups_layer_decay(
        model.encoder, weight_decay, model.encoder.no_weight_decay(), layer_decay=layer_decay
    )
    found = [
        {"params": group["params"], "weight_decay": group["weight_decay"], "lr_scale": layer_decay * group["lr_scale"]}
        for group in encoder  # timm knows of no decoder, and gives the last block 1
    ]
    rest = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    for decay, is_matrix in ((weight_decay, True), (0.0, False)):
        found.append({"params": [p for p in rest if (p.ndim > 1) == is_matrix], "weight_decay": decay, "lr_scale": 1.0})
    return found


def finetune(
    recipe: UPerNetConfig,
    model: UPerNet,
    reader: Reader,
    *,
    crops: TrainCrop,
    compute: ComputeConfig,
    world: distributed.World,
    run: Run,
) -> Predict:
    """Train `model` in place; the predictor that it is then."""
    if world.size > 1 and world.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(world.device).train()
    vit.use_fastest_attention(model, world.device)
    compute.compile_in_place(model)
    parallel = distributed.parallel(model, world)
    parameters = groups(model, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=recipe.betas)
    rate = recipe.base_lr * recipe.batch_size / 256

    for step in run.steps(
        reader, crops, batch_size=recipe.batch_size, epochs=recipe.epochs, seed=crops.seed, workers=compute.workers,
        state={"model": model, "optimizer": optimizer},
    ):  # fmt: skip
        lr = optim.warmup_poly(
            step.number, steps=step.steps, warmup=round(recipe.warmup_epochs * step.per_epoch), peak=rate,
            end=recipe.min_lr, power=recipe.power,
        )  # fmt: skip
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        images, mask = (async_copy.to_device(world.device, step.batch[name]) for name in ("image", "mask"))
        torch.manual_seed(fold(crops.seed, "drop path", step.number, world.rank))
        with distributed.autocast(world.device, compute.precision):
            logits, auxiliary = parallel(vit.normalize(images))
        loss = pixel_loss(logits, mask)
        if auxiliary is not None:
            loss = loss + recipe.auxiliary_weight * pixel_loss(auxiliary, mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.record(loss=loss, lr=lr)
    model.eval()

    def predict(images: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b 1 c h w"]:
        with torch.inference_mode(), distributed.autocast(world.device, compute.precision):
            return model(vit.normalize(images))[0].float()[:, None]

    return predict
