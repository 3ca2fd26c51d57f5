"""The training loop of the paper's part learner (SemMAE, section 3.1)."""

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core import async_copy, distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, UpTo1
from semmae.data.dataset import TrainingImages
from semmae.data.transforms import FullImage
from semmae.models.teacher import Teacher
from semmae.models.vit import normalize
from semmae.parts.paper_learner import PaperPartLearner
from semmae.parts.soft_maps import diversity_loss
from semmae.runs.run import Run


@dataclass(frozen=True, config=STRICT)
class PaperLearnerConfig:
    """Settings of the paper's part learner and of its training. The reconstruction loss has weight 1."""

    epochs: PositiveInt
    batch_size: PositiveInt  # over all processes
    base_lr: NonNegativeFloat  # learning rate = base_lr * batch_size / 256
    warmup_epochs: NonNegativeInt
    weight_decay: NonNegativeFloat
    flip: UpTo1  # probability of a horizontal flip
    blur_sigma: NonNegativeFloat  # standard deviation of the blur of attention maps, in patches
    decoder_width: PositiveInt  # channels at the resolution of the maps
    diversity: NonNegativeFloat  # weight of the diversity loss
    shuffle_shards: PositiveInt | None  # shards that are shuffled together; null: all


def train_paper_learner(
    recipe: PaperLearnerConfig,
    model: PaperPartLearner,
    teacher: Teacher,
    *,
    images: TrainingImages,
    img_size: int,
    seed: int,
    compute: ComputeConfig,
    world: distributed.World,
    run: Run,
) -> None:
    """Train the paper's part learner in place to reconstruct whole images from its maps and the class token.

    Args:
        recipe: Loss weight and schedule.
        model: The part learner.
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

    for step in run.steps(
        images, FullImage(img_size, seed, recipe.flip), batch_size=recipe.batch_size, epochs=recipe.epochs, seed=seed,
        workers=compute.workers, state={"model": model, "optimizer": optimizer},
    ):  # fmt: skip
        pixels = async_copy.to_device(world.device, step.batch["image"])
        with distributed.autocast(world.device, compute.precision):
            tokens = encode(pixels)
        maps, output = parallel(tokens)
        reconstruction = (output - normalize(pixels)).square().mean()
        diversity = diversity_loss(maps)
        loss = reconstruction + recipe.diversity * diversity
        warmup = recipe.warmup_epochs * step.per_epoch
        lr = optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup, peak=peak_lr, end=0.0)
        optim.set_rate(optimizer, lr)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.record(loss=loss, reconstruction=reconstruction, diversity=diversity)
