"""The training loop of the part learner (SemMAE, section 3.1)."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core import async_copy, distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, PositiveBelow1, UpTo1
from semmae.data.dataset import TrainingImages
from semmae.data.transforms import FullImage
from semmae.models.teacher import Teacher
from semmae.parts.part_decoder import balance_loss, diversity_loss, pixel_targets
from semmae.parts.part_learner import PartLearner
from semmae.runs.run import Run


@dataclass(frozen=True, config=STRICT)
class ForegroundConfig:
    """Settings of `semmae.parts.foreground.Foreground`."""

    clusterings: PositiveInt  # number of clusterings, over which scores are averaged
    clusters: Annotated[int, Field(ge=2)]  # number of clusters in each clustering
    center_prior: NonNegativeFloat  # weight of a patch's own position relative to its content
    diffusion_steps: NonNegativeInt  # number of steps in which scores diffuse among similar patches
    threshold_classes: Annotated[int, Field(ge=2)]  # number of classes of patch scores; the highest class is foreground


@dataclass(frozen=True, config=STRICT)
class PartLearnerConfig:
    """Settings of the part learner and of its training. The reconstruction loss has weight 1."""

    epochs: PositiveInt
    batch_size: PositiveInt  # over all processes
    base_lr: NonNegativeFloat  # learning rate = base_lr * batch_size / 256
    warmup_epochs: NonNegativeInt
    weight_decay: NonNegativeFloat
    flip: UpTo1  # probability of a horizontal flip
    foreground: ForegroundConfig | None  # null: every patch belongs to a part
    position_weight: NonNegativeFloat  # weight of the position on the object in a patch's key
    temperature: PositiveFloat  # temperature of the softmax over parts
    blur_sigma: NonNegativeFloat  # standard deviation of the blur of part maps before the decoder, in patches
    target: Literal["features", "pixels"]  # what the decoder reconstructs
    decoder_width: PositiveInt
    decoder_depth: PositiveInt
    diversity: NonNegativeFloat  # weight of the diversity loss
    balance: NonNegativeFloat  # weight of the balance loss
    balance_floor: PositiveBelow1  # smallest share of a label without a penalty
    shuffle_shards: PositiveInt | None  # shards that are shuffled together; null: all


def train_part_learner(
    recipe: PartLearnerConfig,
    model: PartLearner,
    teacher: Teacher,
    *,
    images: TrainingImages,
    img_size: int,
    seed: int,
    compute: ComputeConfig,
    world: distributed.World,
    run: Run,
) -> None:
    """Train a part learner in place to reconstruct the teacher's tokens or the pixels from its part maps.

    Args:
        recipe: Loss weights and schedule.
        model: The part learner, after `fit`.
        teacher: The frozen teacher, on the device.
        images: The training images.
        img_size: Side of the images for the teacher, in pixels.
        seed: Seed of the order of samples and of the flips.
        compute: Precision of the teacher, compilation and workers.
        world: The processes of the run.
        run: The run that keeps checkpoints and records the losses.
    """
    model.to(world.device)
    compute.compile_in_place(model)
    encode = compute.compile_function(teacher.encode)
    parallel = distributed.parallel(model, world)
    optimizer = optim.adamw(model, weight_decay=recipe.weight_decay, betas=(0.9, 0.95))
    peak_lr = recipe.base_lr * recipe.batch_size / 256
    transform = FullImage(img_size, seed, recipe.flip)

    for step in run.steps(
        images, transform, batch_size=recipe.batch_size, epochs=recipe.epochs, seed=seed,
        workers=compute.workers, state={"model": model, "optimizer": optimizer},
    ):  # fmt: skip
        pixels = async_copy.to_device(world.device, step.batch["image"])
        with distributed.autocast(world.device, compute.precision):
            tokens = encode(pixels)
        if recipe.target == "pixels":
            target = pixel_targets(pixels, teacher.patch_size)
        else:
            target = model.prepare_tokens(tokens.patch)
        maps, output = parallel(tokens)
        reconstruction = (output - target).square().mean()
        diversity = diversity_loss(maps)
        balance = balance_loss(distributed.mean(maps.mean((0, 2)), world), recipe.balance_floor)
        loss = reconstruction + recipe.diversity * diversity + recipe.balance * balance
        warmup = recipe.warmup_epochs * step.per_epoch
        lr = optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup, peak=peak_lr, end=0.0)
        optim.set_rate(optimizer, lr)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.record(loss=loss, reconstruction=reconstruction, diversity=diversity, balance=balance)
