"""Segmentation by a linear head on frozen patch tokens, as in CAPI (Darcet et al. 2025) and Pixio."""

import copy
from typing import Annotated

import torch
from jaxtyping import Float, UInt8
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as pydantic_dataclass
from torch import Tensor, nn

from semmae.core import async_copy, distributed, optim
from semmae.core.config import STRICT
from semmae.core.rng import torch_generator
from semmae.data.dataset import Reader
from semmae.evaluation.linear_heads import INIT_STD
from semmae.evaluation.segmentation.heads import TokenMapEncoder, TrainedHead, TrainSplit
from semmae.evaluation.segmentation.sliding_window import SlidingWindowOptions, pixel_loss
from semmae.evaluation.segmentation.transforms import TrainCrop
from semmae.runs.run import Run

BETAS = (0.9, 0.95)  # as the probes of CAPI


@pydantic_dataclass(frozen=True, config=STRICT)
class LinearSegmentationConfig:
    """Settings of the linear head; lr = base_lr * batch_size / 256."""

    base_lrs: Annotated[list[PositiveFloat], Field(min_length=1)]
    weight_decay: NonNegativeFloat
    epochs: PositiveInt
    warmup_epochs: NonNegativeInt
    batch_size: PositiveInt


class LinearSegmentationHeads(nn.Module):
    """Linear classifiers of the same normalized tokens, one per learning rate, with equal initial weights.

    The norm has no parameters. It averages its statistics over all training steps. Old statistics stay valid, because
    the tokens are frozen.
    """

    def __init__(self, width: int, num_classes: int, num_heads: int, seed: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        head = nn.Conv2d(width, num_classes, kernel_size=1)
        head.weight.data.copy_(torch.randn(head.weight.shape, generator=torch_generator(seed, "head")) * INIT_STD)
        head.bias.data.zero_()  # type: ignore[union-attr]  # it has a bias
        self.heads = nn.ModuleList(copy.deepcopy(head) for _ in range(num_heads))

    def forward(self, tokens: Float[Tensor, "b d h w"]) -> list[Float[Tensor, "b c h w"]]:
        """Compute the logits of every head."""
        x = self.norm(tokens)
        return [head(x) for head in self.heads]


def train_heads(
    config: LinearSegmentationConfig,
    encode: TokenMapEncoder,
    reader: Reader,
    *,
    width: int,
    crops: TrainCrop,
    workers: int,
    world: distributed.World,
    run: Run,
) -> LinearSegmentationHeads:
    """Train a head per learning rate on the same crops.

    The history of the run holds the mean `loss`, the `loss_<base_lr>` of each head, and `lr_share`, which is the
    learning rate divided by base_lr.

    Args:
        width: Size of a token.
    """
    model = LinearSegmentationHeads(width, len(reader.mask_names), len(config.base_lrs), crops.seed).to(world.device)
    parallel = distributed.parallel(model, world)
    groups = [{"params": list(head.parameters())} for head in model.heads]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=BETAS, weight_decay=config.weight_decay)

    for step in run.steps(
        reader,
        crops,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=crops.seed,
        workers=workers,
        state={"model": model, "optimizer": optimizer},
    ):
        warmup = config.warmup_epochs * step.per_epoch
        lr = optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup, peak=config.batch_size / 256, end=0.0)
        for group, base_lr in zip(optimizer.param_groups, config.base_lrs, strict=True):
            group["lr"] = base_lr * lr
        model.norm.momentum = 1 / (step.number + 1)  # same as None, which would read a count from the device
        mask = async_copy.to_device(world.device, step.batch["mask"])
        with torch.no_grad():
            tokens = encode(async_copy.to_device(world.device, step.batch["image"]))
        logits = parallel(tokens)
        losses, gradients = zip(*(_loss_and_gradient(x, mask) for x in logits), strict=True)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(logits, gradients)
        optimizer.step()
        head_losses = {f"loss_{base_lr:g}": loss for base_lr, loss in zip(config.base_lrs, losses, strict=True)}
        run.record(loss=torch.stack(losses).mean(), lr_share=lr, **head_losses)
    return model.eval()


def fit_linear(
    config: LinearSegmentationConfig,
    encode: TokenMapEncoder,
    train: TrainSplit,
    *,
    width: int,
    crops: TrainCrop,
    options: SlidingWindowOptions,
    run: Run,
) -> TrainedHead:
    """Train a head per learning rate, and choose one on the held-out samples.

    Args:
        width: Size of a token.
    """
    kept, world = train.reader.select(train.kept), options.world
    model = train_heads(config, encode, kept, width=width, crops=crops, workers=options.workers, world=world, run=run)
    best = train.best_variant(lambda images: torch.stack(model(encode(images)), dim=1), options)
    base_lr, head = config.base_lrs[best], model.heads[best]
    history = [
        {"epoch": row["epoch"], "lr": base_lr * row["lr_share"], "loss": row[f"loss_{base_lr:g}"]}
        for row in run.history
    ]
    return TrainedHead(lambda images: head(model.norm(encode(images)))[:, None], {"base_lr": base_lr}, history)


def _loss_and_gradient(
    logits: Float[Tensor, "b c h w"], mask: UInt8[Tensor, "b H W"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "b c h w"]]:
    """Compute the loss of one head and its gradient at the logits.

    Call it for one head after another, so that memory holds the pixel logits of a single head.
    """
    leaf = logits.detach().requires_grad_()
    loss = pixel_loss(leaf, mask)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient
