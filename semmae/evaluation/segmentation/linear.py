"""Segmentation by a linear head on frozen patch tokens, as CAPI and Pixio probe.

- `LinearHeads`: batch norm without parameters and a linear layer per patch, one head per learning rate.
- `train_heads`: logits made as large as the mask, cross entropy of pixels, AdamW, warm-up and half a cosine.
- `linear`: all heads learn on a part of train; the one that does best on the rest is the probe.
"""

import copy
from typing import Annotated

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as params
from torch import Tensor, nn

from semmae.core import async_copy, distributed, optim
from semmae.core.config import STRICT
from semmae.core.rng import torch_generator
from semmae.data.dataset import Reader
from semmae.evaluation.linear_heads import INIT_STD
from semmae.evaluation.segmentation.heads import Encode, Train, TrainedHead
from semmae.evaluation.segmentation.sliding_window import SlidingWindowOptions, pixel_loss
from semmae.evaluation.segmentation.transforms import TrainCrop
from semmae.runs.run import Run

BETAS = (0.9, 0.95)  # CAPI's probes


@params(frozen=True, config=STRICT)
class LinearSegmentationConfig:
    """The linear probe; `lr = base_lr * batch_size / 256`."""

    base_lrs: Annotated[list[PositiveFloat], Field(min_length=1)]
    weight_decay: NonNegativeFloat
    epochs: PositiveInt
    warmup_epochs: NonNegativeInt
    batch_size: PositiveInt


class LinearHeads(nn.Module):
    """Linear classifiers of the same normalized tokens, one per learning rate: equal at first, then independent.

    The statistics of the norm are those of all that was seen in training: the tokens are frozen, so none are outdated.
    """

    def __init__(self, width: int, num_classes: int, num_heads: int, seed: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        head = nn.Conv2d(width, num_classes, kernel_size=1)
        head.weight.data.copy_(torch.randn(head.weight.shape, generator=torch_generator(seed, "head")) * INIT_STD)
        head.bias.data.zero_()  # type: ignore[union-attr]  # it has one
        self.heads = nn.ModuleList(copy.deepcopy(head) for _ in range(num_heads))

    def forward(self, tokens: Float[Tensor, "b d h w"]) -> list[Float[Tensor, "b c h w"]]:
        """The logits of every head."""
        x = self.norm(tokens)
        return [head(x) for head in self.heads]


def train_heads(
    recipe: LinearSegmentationConfig, encode: Encode, reader: Reader, *, width: int, crops: TrainCrop, workers: int,
    world: distributed.World, run: Run,
) -> LinearHeads:  # fmt: skip
    """Train a head per learning rate at once; the run's history has their mean loss, and each under its rate."""
    model = LinearHeads(width, len(reader.mask_names), len(recipe.base_lrs), crops.seed).to(world.device)
    parallel = distributed.parallel(model, world)
    groups = [{"params": list(head.parameters())} for head in model.heads]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, weight_decay=recipe.weight_decay)

    for step in run.steps(
        reader, crops, batch_size=recipe.batch_size, epochs=recipe.epochs, seed=crops.seed, workers=workers,
        state={"model": model, "optimizer": optimizer},
    ):  # fmt: skip
        warmup = recipe.warmup_epochs * step.per_epoch
        lr = optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup, peak=recipe.batch_size / 256, end=0.0)
        for group, base_lr in zip(optimizer.param_groups, recipe.base_lrs, strict=True):
            group["lr"] = base_lr * lr
        model.norm.momentum = 1 / (step.number + 1)  # as None means, which reads the count off the device
        mask = async_copy.to_device(world.device, step.batch["mask"])
        with torch.no_grad():
            tokens = encode(async_copy.to_device(world.device, step.batch["image"]))
        logits = parallel(tokens)
        losses, gradients = zip(*(_loss_and_gradient(x, mask) for x in logits), strict=True)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(logits, gradients)
        optimizer.step()
        each = {f"loss_{base_lr:g}": loss for base_lr, loss in zip(recipe.base_lrs, losses, strict=True)}
        run.record(loss=torch.stack(losses).mean(), lr_share=lr, **each)
    return model.eval()


def linear(
    recipe: LinearSegmentationConfig,
    encode: Encode,
    train: Train,
    *,
    width: int,
    crops: TrainCrop,
    how: SlidingWindowOptions,
    run: Run,
) -> TrainedHead:
    """The head of the learning rate that does best on the held-out samples."""
    kept = train.reader.select(train.kept)
    model = train_heads(recipe, encode, kept, width=width, crops=crops, workers=how.workers, world=how.world, run=run)
    best = train.best(lambda images: torch.stack(model(encode(images)), dim=1), how)
    base_lr, head = recipe.base_lrs[best], model.heads[best]
    history = [
        {"epoch": row["epoch"], "lr": base_lr * row["lr_share"], "loss": row[f"loss_{base_lr:g}"]}
        for row in run.history
    ]
    return TrainedHead(lambda images: head(model.norm(encode(images)))[:, None], {"base_lr": base_lr}, history)


def _loss_and_gradient(
    logits: Float[Tensor, "b c h w"], mask: UInt8[Tensor, "b H W"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "b c h w"]]:
    """The loss of one head and its gradient at the patches, so that one head's pixels are in memory at a time."""
    leaf = logits.detach().requires_grad_()
    loss = pixel_loss(leaf, mask)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
