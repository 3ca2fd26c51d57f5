"""The training loop of iBOT (Zhou et al. 2022), which makes a teacher from your own shards.

A student learns to match its moving average, the teacher, on other crops of the same image and on masked patches. Each
step draws one mask ratio, iBOT's "prediction ratio". About `masked_share` of the global crops get a block mask of this
ratio, and the others get an empty mask.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from jaxtyping import Bool
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semmae.core import async_copy, distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, Below1, PositiveBelow1, Range, UpTo1
from semmae.core.rng import fold, numpy_generator, torch_generator
from semmae.data.dataset import Reader
from semmae.data.transforms import ColorJitter, Crop, MultiCrop, apply_color_matrix
from semmae.models import ibot, masking, vit
from semmae.runs.run import Run
from semmae.runs.steps import Step
from semmae.runs.training_length import TrainingLength
from semmae.training.mae_loop import ViTConfig


@dataclass(frozen=True, config=STRICT)
class IBOTRecipe(TrainingLength):
    """Hyperparameters of iBOT (Zhou et al. 2022, section 4.1). The peak learning rate is base_lr * batch_size / 256.

    A pair of numbers holds the first and the last value of a schedule. Exception: `mask_ratio` is drawn from the range
    between its two numbers.
    """

    batch_size: PositiveInt
    shuffle_shards: PositiveInt | None  # shards that are shuffled together; null: all
    base_lr: NonNegativeFloat
    min_lr: NonNegativeFloat
    warmup_epochs: NonNegativeInt
    weight_decay: tuple[NonNegativeFloat, NonNegativeFloat]  # half-cosine schedule
    clip_grad: PositiveFloat
    drop_path: Below1
    momentum: tuple[UpTo1, UpTo1]  # of the moving average; half-cosine schedule
    student_temp: PositiveFloat
    teacher_temp: tuple[PositiveFloat, PositiveFloat]  # linear over teacher_temp_warmup_epochs, then constant
    teacher_temp_warmup_epochs: NonNegativeInt
    centering: Literal["mean", "sinkhorn"]
    center_momentum: UpTo1
    prototypes: Annotated[int, Field(ge=2)]  # at least 2: losses are divided by ln(prototypes)
    hidden_dim: PositiveInt
    bottleneck_dim: PositiveInt
    freeze_prototypes_epochs: NonNegativeInt  # number of first epochs that do not update the prototypes
    mask_ratio: Range[PositiveBelow1]
    masked_share: UpTo1  # probability that a global crop is masked
    global_crop: Crop
    local_crop: Crop
    local_crops: NonNegativeInt
    local_size: PositiveInt
    color: ColorJitter


def distill(
    recipe: IBOTRecipe,
    vit_config: ViTConfig,
    *,
    img_size: int,
    reader: Reader,
    seed: int,
    compute: ComputeConfig,
    world: distributed.World,
    run: Run,
    online_eval: Callable[[VisionTransformer, int, bool], dict[str, float]],
    initial: VisionTransformer | None,
) -> VisionTransformer:
    """Train a ViT by self-distillation.

    Args:
        recipe: hyperparameters.
        vit_config: shape of the ViT.
        img_size: side of the global crops in pixels.
        reader: the samples to train on.
        seed: seed of weights, data order, crops, masks and stochastic depth.
        compute: device settings.
        world: rank, number of ranks and device.
        run: checkpoints and history.
        online_eval: called as `online_eval(teacher, epoch, is_last)` after each epoch; its scores go to the history.
        initial: the encoder to start from; None starts from random weights.

    Returns:
        The ViT of the teacher.

    Raises:
        ValueError: the patch size does not divide `local_size`.
    """
    patch_size = vit_config.patch_size
    grid = (img_size // patch_size, img_size // patch_size)
    if recipe.local_crops and recipe.local_size % patch_size:
        raise ValueError(
            f"ibot.local_size is {recipe.local_size}; it must be a multiple of network.patch_size, {patch_size}"
        )
    crops = MultiCrop(
        seed, recipe.global_crop, recipe.local_crop, recipe.local_crops, img_size, recipe.local_size, recipe.color
    )
    torch.manual_seed(fold(seed, "init"))
    student, teacher = (
        _build_network(recipe, vit_config, img_size, drop_path) for drop_path in (recipe.drop_path, 0.0)
    )
    if initial is not None:
        student.vit.load_state_dict(initial.state_dict())
    model = ibot.SelfDistillation(
        student, teacher, centering=recipe.centering, center_momentum=recipe.center_momentum, world=world
    ).to(world.device)
    vit.use_fastest_attention(model, world.device)
    compute.compile_in_place(model)
    parallel_model = distributed.parallel(model, world)
    optimizer = optim.adamw(model, weight_decay=recipe.weight_decay[0], betas=(0.9, 0.999))
    max_entropy = math.log(recipe.prototypes)

    for step in run.steps(
        reader, crops, batch_size=recipe.batch_size, epochs=recipe.epochs, steps=recipe.steps, seed=seed,
        workers=compute.workers, state={"model": model, "optimizer": optimizer}, warn_if_short=True,
    ):  # fmt: skip
        lr, weight_decay, momentum, teacher_temp = schedules(recipe, step)
        mask = draw_masks(recipe, grid, world, seed, step.number)
        global_crops, local_crops = _load_crops(step.batch, world.device)
        torch.manual_seed(fold(seed, "drop path", step.number, world.rank))
        with distributed.autocast(world.device, compute.precision):
            out = parallel_model(
                global_crops, local_crops, mask, student_temp=recipe.student_temp, teacher_temp=teacher_temp
            )
        optim.set_rate(optimizer, lr, weight_decay=weight_decay)
        optimizer.zero_grad(set_to_none=True)
        out["loss"].backward()
        if step.epoch < recipe.freeze_prototypes_epochs:
            student.head.prototypes.grad = None
        grad_norm = torch.nn.utils.clip_grad_norm_(student.parameters(), recipe.clip_grad)  # before clipping
        optimizer.step()
        model.update(out["class_logits"], out["patch_logits"], momentum)
        run.record(
            loss=out["loss"], class_loss=out["class_loss"], patch_loss=out["patch_loss"], lr=lr, grad_norm=grad_norm,
            class_loss_by_ln_k=out["class_loss"] / max_entropy, patch_loss_by_ln_k=out["patch_loss"] / max_entropy,
            class_entropy_by_ln_k=out["class_entropy"] / max_entropy,
            patch_entropy_by_ln_k=out["patch_entropy"] / max_entropy,
        )  # fmt: skip
        if step.ends_epoch:
            run.log(**online_eval(teacher.vit, step.epoch + 1, step.ends_run))
    return teacher.vit


def _build_network(recipe: IBOTRecipe, vit_config: ViTConfig, img_size: int, drop_path: float) -> ibot.IBOTNetwork:
    encoder = vit.build({"img_size": img_size, **vars(vit_config)}, drop_path=drop_path)
    head = ibot.ProjectionHead(
        vit_config.embed_dim, hidden=recipe.hidden_dim, bottleneck=recipe.bottleneck_dim, prototypes=recipe.prototypes
    )
    return ibot.IBOTNetwork(encoder, head)


def schedules(recipe: IBOTRecipe, step: Step) -> tuple[float, float, float, float]:
    """Return learning rate, weight decay, teacher momentum and teacher temperature of a step."""
    peak, warmup = recipe.base_lr * recipe.batch_size / 256, recipe.warmup_epochs * step.per_epoch
    lr = optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup, peak=peak, end=recipe.min_lr)
    weight_decay, momentum = (
        optim.warmup_cosine(step.number, steps=step.steps, warmup=0, peak=start, end=end)
        for start, end in (recipe.weight_decay, recipe.momentum)
    )
    start, end = recipe.teacher_temp
    warmup_progress = min(1.0, step.number / max(1, recipe.teacher_temp_warmup_epochs * step.per_epoch))
    return lr, weight_decay, momentum, start + (end - start) * warmup_progress


def draw_masks(
    recipe: IBOTRecipe, grid: tuple[int, int], world: distributed.World, seed: int, step_number: int
) -> Bool[Tensor, "gb n"]:
    """Draw the block masks of a step for the global batch, and return this rank's rows.

    The rows of the first global crops come first, then those of the second global crops. Each crop has an empty mask
    with probability 1 - `masked_share`.
    """
    ratio = float(numpy_generator(seed, "mask ratio", step_number).uniform(*recipe.mask_ratio))
    generator = torch_generator(seed, "mask", step_number)
    masks = [masking.block(recipe.batch_size, grid, ratio, generator=generator) for _ in range(2)]
    is_masked = [torch.rand(recipe.batch_size, 1, generator=generator) < recipe.masked_share for _ in range(2)]
    rows = torch.cat([world.slice(mask & selected) for mask, selected in zip(masks, is_masked, strict=True)])
    return async_copy.to_device(world.device, rows)


def _load_crops(batch: dict[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Move the crops to the device, jitter their colors and normalize them; order them by crop, then by image."""
    color = async_copy.to_device(device, batch["color"]).transpose(0, 1)  # (crops, b, 3, 4)

    def load(name: str, color: Tensor) -> Tensor:
        crops = async_copy.to_device(device, batch[name]).transpose(0, 1)
        return vit.normalize(apply_color_matrix(crops.flatten(0, 1), color.flatten(0, 1)))

    return load("global", color[:2]), load("local", color[2:]) if "local" in batch else None
