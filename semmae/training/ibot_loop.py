"""The iBOT training loop: a teacher from scratch on your own shards.

The recipe's pairs are where a schedule starts and ends. Per step a mask ratio is drawn, and the share `masked_share`
of the global crops is masked block by block at that ratio; the others stay whole (iBOT's "prediction ratio").
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semmae.core import async_copy, distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, Below1, Range, Share, UpTo1
from semmae.core.rng import fold, numpy_generator, torch_generator
from semmae.data.dataset import Reader
from semmae.data.transforms import ColorJitter, Crop, MultiCrop, apply_color_matrix
from semmae.models import ibot, masking, vit
from semmae.runs.run import Run
from semmae.runs.steps import Step
from semmae.training.mae_loop import ViTConfig


@dataclass(frozen=True, config=STRICT)
class IBOTRecipe:
    """iBOT's recipe (Zhou et al. 2022, section 4.1); `lr = base_lr * batch_size / 256`."""

    epochs: PositiveInt
    batch_size: PositiveInt
    shuffle_shards: PositiveInt | None  # shards whose samples are mixed at a time; null: all
    base_lr: NonNegativeFloat
    min_lr: NonNegativeFloat
    warmup_epochs: NonNegativeInt
    weight_decay: tuple[NonNegativeFloat, NonNegativeFloat]
    clip_grad: PositiveFloat
    drop_path: Below1
    momentum: tuple[UpTo1, UpTo1]
    student_temp: PositiveFloat
    teacher_temp: tuple[PositiveFloat, PositiveFloat]
    teacher_temp_warmup_epochs: NonNegativeInt
    centering: Literal["mean", "sinkhorn"]
    center_momentum: UpTo1
    prototypes: Annotated[int, Field(ge=2)]  # losses are told beside ln prototypes, the entropy of knowing nothing
    hidden_dim: PositiveInt
    bottleneck_dim: PositiveInt
    freeze_prototypes_epochs: NonNegativeInt
    mask_ratio: Range[Share]
    masked_share: UpTo1
    global_crop: Crop
    local_crop: Crop
    local_crops: NonNegativeInt
    local_size: PositiveInt
    color: ColorJitter


def distill(
    recipe: IBOTRecipe, network: ViTConfig, *, img_size: int, reader: Reader, seed: int, compute: ComputeConfig,
    world: distributed.World, run: Run,
    measure: Callable[[VisionTransformer, int, bool], dict[str, float]], start: VisionTransformer | None,
) -> VisionTransformer:  # fmt: skip
    """Train from scratch, or from the weights of `start`, and return the teacher's ViT; `measure(vit, epoch, last)`
    adds to an epoch's history.
    """
    b, grid = recipe.batch_size, (img_size // network.patch_size,) * 2
    if recipe.local_crops and recipe.local_size % network.patch_size:
        raise ValueError(
            f"ibot.local_size is {recipe.local_size}; it must be a multiple of network.patch_size, {network.patch_size}"
        )
    crops = MultiCrop(
        seed, recipe.global_crop, recipe.local_crop, recipe.local_crops, img_size, recipe.local_size, recipe.color
    )
    torch.manual_seed(fold(seed, "init"))
    student, teacher = (_network(recipe, network, img_size, drop_path) for drop_path in (recipe.drop_path, 0.0))
    if start is not None:
        student.vit.load_state_dict(start.state_dict())
    model = ibot.SelfDistillation(
        student, teacher, centering=recipe.centering, center_momentum=recipe.center_momentum, world=world
    ).to(world.device)
    vit.use_fastest_attention(model, world.device)
    compute.compile_in_place(model)
    parallel = distributed.parallel(model, world)
    optimizer = optim.adamw(model, weight_decay=recipe.weight_decay[0], betas=(0.9, 0.999))
    nothing_known = math.log(recipe.prototypes)

    for step in run.steps(
        reader, crops, batch_size=b, epochs=recipe.epochs, seed=seed, workers=compute.workers,
        state={"model": model, "optimizer": optimizer},
    ):  # fmt: skip
        lr, weight_decay, momentum, teacher_temp = _schedules(recipe, step)
        mask = _mask(recipe, grid, world, seed, step.number)
        global_crops, local_crops = _crops(step.batch, world.device)
        torch.manual_seed(fold(seed, "drop path", step.number, world.rank))
        with distributed.autocast(world.device, compute.precision):
            out = parallel(global_crops, local_crops, mask, student_temp=recipe.student_temp, teacher_temp=teacher_temp)
        optim.set_rate(optimizer, lr, weight_decay=weight_decay)
        optimizer.zero_grad(set_to_none=True)
        out["loss"].backward()
        if step.epoch < recipe.freeze_prototypes_epochs:
            student.head.prototypes.grad = None
        torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.clip_grad)
        optimizer.step()
        model.update(out["class_logits"], out["patch_logits"], momentum)
        run.record(
            loss=out["loss"], class_loss=out["class_loss"], patch_loss=out["patch_loss"], lr=lr,
            class_loss_by_ln_k=out["class_loss"] / nothing_known, patch_loss_by_ln_k=out["patch_loss"] / nothing_known,
            class_entropy_by_ln_k=out["class_entropy"] / nothing_known,
            patch_entropy_by_ln_k=out["patch_entropy"] / nothing_known,
        )  # fmt: skip
        if step.ends_epoch:
            run.log(**measure(teacher.vit, step.epoch + 1, step.ends_run))
    return teacher.vit


def _network(recipe: IBOTRecipe, network: ViTConfig, img_size: int, drop_path: float) -> ibot.IBOTNetwork:
    encoder = vit.build({"img_size": img_size, **vars(network)}, drop_path=drop_path)
    head = ibot.ProjectionHead(
        network.embed_dim, hidden=recipe.hidden_dim, bottleneck=recipe.bottleneck_dim, prototypes=recipe.prototypes
    )
    return ibot.IBOTNetwork(encoder, head)


def _schedules(recipe: IBOTRecipe, step: Step) -> tuple[float, float, float, float]:
    """Learning rate, weight decay, teacher momentum and teacher temperature at a step."""
    peak, warmup = recipe.base_lr * recipe.batch_size / 256, recipe.warmup_epochs * step.per_epoch
    lr = optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup, peak=peak, end=recipe.min_lr)
    weight_decay, momentum = (
        optim.warmup_cosine(step.number, steps=step.steps, warmup=0, peak=start, end=end)
        for start, end in (recipe.weight_decay, recipe.momentum)
    )
    start, end = recipe.teacher_temp
    heated = min(1.0, step.number / max(1, recipe.teacher_temp_warmup_epochs * step.per_epoch))
    return lr, weight_decay, momentum, start + (end - start) * heated


def _mask(recipe: IBOTRecipe, grid: tuple[int, int], world: distributed.World, seed: int, number: int) -> Tensor:
    """Block masks for this rank's two global crops, crop-major; drawn for the global batch of crops."""
    ratio = float(numpy_generator(seed, "mask ratio", number).uniform(*recipe.mask_ratio))
    generator = torch_generator(seed, "mask", number)
    masks = [masking.block(recipe.batch_size, grid, ratio, generator=generator) for _ in range(2)]
    kept = [torch.rand(recipe.batch_size, 1, generator=generator) < recipe.masked_share for _ in range(2)]
    rows = torch.cat([world.slice(mask & keep) for mask, keep in zip(masks, kept, strict=True)])
    return async_copy.to_device(world.device, rows)


def _crops(batch: dict[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The colored, normalized crops on the device, crop-major: all first crops, then all second ones."""
    color = async_copy.to_device(device, batch["color"]).transpose(0, 1)  # (crops, b, 3, 4)

    def view(name: str, color: Tensor) -> Tensor:
        crops = async_copy.to_device(device, batch[name]).transpose(0, 1)
        return vit.normalize(apply_color_matrix(crops.flatten(0, 1), color.flatten(0, 1)))

    return view("global", color[:2]), view("local", color[2:]) if "local" in batch else None
