"""UPerNet (Xiao et al. 2018) on a plain ViT, fine-tuned end to end as BEiT and MAE do on ADE20K.

The decoder reads the patch tokens after 1/3, 1/2, 2/3 and all of the blocks. A pyramid of four levels resizes them to
4, 2, 1 and 1/2 times the patch grid. Transposed convolutions double the size, and max pooling halves it. The head and
the auxiliary head are `UperNetHead` and `UperNetFCNHead` of transformers. The auxiliary head reads the third level.
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
    """Settings of the fine-tuning of encoder and decoder; lr = base_lr * batch_size / 256."""

    width: PositiveInt  # channels of the decoder
    auxiliary_width: PositiveInt  # channels of the auxiliary head
    auxiliary_weight: NonNegativeFloat  # weight of the loss of the auxiliary head; 0: no auxiliary head
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
    """Return the indices of the blocks that the decoder reads, e.g. 3, 5, 7 and 11 for a depth of 12.

    In a network with fewer than four blocks, some indices occur more than once.
    """
    return [max(0, round(depth * share) - 1) for share in DEPTH_SHARES]


class UPerNet(nn.Module):
    """A ViT with a pyramid of its tokens, a head and an auxiliary head.

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
        """Compute the levels of the pyramid, the finest first, from the tokens before the final norm (as in BEiT)."""
        indices = sorted(set(self.block_indices))
        maps = self.encoder.forward_intermediates(images, indices=indices, intermediates_only=True)
        by_block = dict(zip(indices, maps, strict=True))
        return [level(by_block[index]) for level, index in zip(self.pyramid, self.block_indices, strict=True)]

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, Tensor | None]:
        """Compute the logits.

        Returns:
            The logits of the head, (b, c, h, w) on 4 times the patch grid, and those of the auxiliary head on the patch
            grid. The latter are None in evaluation mode and without an auxiliary head.
        """
        levels = self.features(images)
        if self.training and self.auxiliary is not None:
            return self.head(levels), self.auxiliary(levels)
        return self.head(levels), None


def build_upernet(
    recipe: UPerNetConfig, pretrained: VisionTransformer, config: dict[str, Any], *, num_classes: int, seed: int
) -> UPerNet:
    """Build a UPerNet with a new decoder and a copy of the encoder.

    The copy has drop path. Its final norm is frozen, because no output depends on it.
    """
    encoder = vit.build(config, drop_path=recipe.drop_path)
    encoder.load_state_dict(pretrained.state_dict(), strict=True)
    encoder.norm.requires_grad_(False)  # the decoder reads the tokens before this norm
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

    Vectors have no weight decay. `lr_scale` is 1 in the decoder and layer_decay in the last block of the encoder. Each
    block below has the scale of the block above, times layer_decay.
    """
    encoder = param_groups_layer_decay(
        model.encoder, weight_decay, model.encoder.no_weight_decay(), layer_decay=layer_decay
    )
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"], "lr_scale": layer_decay * group["lr_scale"]}
        for group in encoder  # timm does not count the decoder as a layer, so its scale of the last block is 1
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
