"""UPerNet (Xiao et al. 2018) on a plain ViT, fine-tuned end to end as BEiT and MAE do on ADE20K.

The decoder reads the patch tokens after a third, a half, two thirds and the whole of the depth. A pyramid resizes them
to 4, 2, 1 and 1/2 times the patch grid: by two transposed convolutions, one, none, and max pooling. The UPerNet head is
that of transformers; its auxiliary head reads the third level.
"""

from typing import Annotated, Any

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as pydantic_dataclass
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from semmae.core import async_copy, distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, Below1, Betas, PositiveUpTo1
from semmae.core.rng import fold
from semmae.data.dataset import Reader
from semmae.evaluation.segmentation.sliding_window import Predictor, pixel_loss
from semmae.evaluation.segmentation.transforms import TrainCrop
from semmae.models import vit
from semmae.runs.run import Run

DEPTH_SHARES = (1 / 3, 1 / 2, 2 / 3, 1.0)


@pydantic_dataclass(frozen=True, config=STRICT)
class UPerNetConfig:
    """How the encoder and the decoder are trained; lr = base_lr * batch_size / 256."""

    width: PositiveInt  # channels of the decoder
    auxiliary_width: PositiveInt
    auxiliary_weight: NonNegativeFloat  # of its loss; 0: no auxiliary head
    epochs: PositiveInt
    batch_size: Annotated[int, Field(ge=2)]  # batch norm needs 2 per process
    base_lr: PositiveFloat
    min_lr: NonNegativeFloat
    warmup_epochs: NonNegativeFloat
    power: PositiveFloat  # exponent of the polynomial decay; 1: linear
    weight_decay: NonNegativeFloat
    betas: Betas
    layer_decay: PositiveUpTo1
    drop_path: Below1


def block_indices(depth: int) -> list[int]:
    """Return the blocks that the decoder reads, counted from 0, e.g. 3, 5, 7, 11 of 12.

    In a network with fewer than four blocks some occur more than once.
    """
    return [max(0, round(depth * share) - 1) for share in DEPTH_SHARES]


class UPerNet(nn.Module):
    """A ViT, the pyramid of its tokens, the head and the auxiliary head.

    Args:
        width: Channels of the head.
        auxiliary_width: Channels of the auxiliary head.
        auxiliary: Whether to have an auxiliary head.
    """

    def __init__(
        self, encoder: VisionTransformer, *, num_classes: int, width: int, auxiliary_width: int, auxiliary: bool
    ) -> None:
        from transformers.models.upernet.modeling_upernet import UperNetConfig, UperNetFCNHead, UperNetHead

        super().__init__()
        self.encoder, self.block_indices = encoder, block_indices(len(encoder.blocks))
        d = encoder.embed_dim

        def upsample() -> nn.Module:
            return nn.ConvTranspose2d(d, d, kernel_size=2, stride=2)

        self.pyramid = nn.ModuleList(
            [
                nn.Sequential(upsample(), nn.BatchNorm2d(d), nn.GELU(), upsample()),
                upsample(),
                nn.Identity(),
                nn.MaxPool2d(kernel_size=2, ceil_mode=True),
            ]
        )
        config = UperNetConfig(hidden_size=width, auxiliary_channels=auxiliary_width)
        config.num_labels = num_classes
        self.head = UperNetHead(config, in_channels=[d] * 4)
        self.auxiliary = UperNetFCNHead(config, in_channels=[d] * 4) if auxiliary else None

    def features(self, images: Float[Tensor, "b 3 H W"]) -> list[Float[Tensor, "b d _ _"]]:
        """Compute the levels of the pyramid, the finest first, from tokens before the final norm (as BEiT)."""
        indices = sorted(set(self.block_indices))
        maps = self.encoder.forward_intermediates(images, indices=indices, intermediates_only=True)
        by_block = dict(zip(indices, maps, strict=True))
        return [level(by_block[index]) for level, index in zip(self.pyramid, self.block_indices, strict=True)]

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor | None]:
        """Compute the logits.

        Returns:
            Logits of the head, (b, c, h, w) on 4 times the patch grid, and of the auxiliary head on the patch grid
            (None in evaluation mode or without an auxiliary head).
        """
        levels = self.features(images)
        if self.training and self.auxiliary is not None:
            return self.head(levels), self.auxiliary(levels)
        return self.head(levels), None


def build_upernet(
    recipe: UPerNetConfig, pretrained: VisionTransformer, config: dict[str, Any], *, num_classes: int, seed: int
) -> UPerNet:
    """Build a new decoder on a copy of the encoder, which gets drop path; the unused final norm is frozen."""
    encoder = vit.build(config, drop_path=recipe.drop_path)
    encoder.load_state_dict(pretrained.state_dict(), strict=True)
    encoder.norm.requires_grad_(False)  # the decoder reads tokens before it
    torch.manual_seed(fold(seed, "decoder"))
    return UPerNet(
        encoder,
        num_classes=num_classes,
        width=recipe.width,
        auxiliary_width=recipe.auxiliary_width,
        auxiliary=recipe.auxiliary_weight > 0,
    )


def parameter_groups(model: UPerNet, *, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Return the parameter groups of the optimizer.

    Vectors have no weight decay. `lr_scale` is 1 in the decoder, layer_decay in the last block of the encoder, and
    smaller by another factor of layer_decay for each block below it.
    """
    encoder = param_groups_layer_decay(
        model.encoder, weight_decay, model.encoder.no_weight_decay(), layer_decay=layer_decay
    )
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"], "lr_scale": layer_decay * group["lr_scale"]}
        for group in encoder  # timm counts layers without the decoder, and gives the last block a scale of 1
    ]
    decoder = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
    for decay, is_matrix in ((weight_decay, True), (0.0, False)):
        members = [p for p in decoder if (p.ndim > 1) == is_matrix]
        groups.append({"params": members, "weight_decay": decay, "lr_scale": 1.0})
    return groups


def finetune_upernet(
    recipe: UPerNetConfig,
    model: UPerNet,
    reader: Reader,
    *,
    crops: TrainCrop,
    compute: ComputeConfig,
    world: distributed.World,
    run: Run,
) -> Predictor:
    """Train `model` in place, and return its predictor."""
    if world.size > 1 and world.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(world.device).train()
    vit.use_fastest_attention(model, world.device)
    compute.compile_in_place(model)
    parallel = distributed.parallel(model, world)
    parameters = parameter_groups(model, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay)
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=recipe.betas)
    peak_lr = recipe.base_lr * recipe.batch_size / 256

    for step in run.steps(
        reader,
        crops,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        seed=crops.seed,
        workers=compute.workers,
        state={"model": model, "optimizer": optimizer},
    ):
        lr = optim.warmup_poly(
            step.number,
            steps=step.steps,
            warmup=round(recipe.warmup_epochs * step.per_epoch),
            peak=peak_lr,
            end=recipe.min_lr,
            power=recipe.power,
        )
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
