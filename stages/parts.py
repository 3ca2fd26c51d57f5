"""parts: learn which patches belong together across images, from the teacher's tokens alone.

    python -m stages.parts

Reads  data/shards/<parts.dataset>, data/teacher
Calls  parts.PartLearner (trained here: the loop) or parts.KMeansParts (fitted on a sample)
Writes data/parts/: parts.safetensors, parts.json, history.json; results/parts/: metrics.json and the curves
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core import async_copy, distributed, optim, stage
from semmae.core.atomic_files import atomic_write, write_json
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, Share, UpTo1, load_config
from semmae.core.digests import file_digest
from semmae.core.rng import fold, numpy_generator
from semmae.data.dataset import Reader, verify_shards
from semmae.data.loader import batches
from semmae.data.transforms import Whole
from semmae.models import teacher, vit
from semmae.parts import part_learner
from semmae.runs import run
from semmae.runs.fingerprint import artifact_params
from semmae.runs.history_files import write_history

OUT, RESULTS, SHARDS, TEACHER = Path("data/parts"), Path("results/parts"), Path("data/shards"), Path("data/teacher")


@dataclass(frozen=True, config=STRICT)
class KMeansConfig:
    """Spherical k-means; the temperature only shapes the confidence, not the map."""

    temperature: PositiveFloat


@dataclass(frozen=True, config=STRICT)
class ForegroundConfig:
    """How the background is told from the parts: by several clusterings, a patch's place, those that look alike."""

    clusterings: PositiveInt
    clusters: Annotated[int, Field(ge=2)]
    center_prior: NonNegativeFloat
    diffusion_steps: NonNegativeInt
    threshold_classes: Annotated[int, Field(ge=2)]


@dataclass(frozen=True, config=STRICT)
class PartLearnerConfig:
    """The part learner and how it is trained; weights of its losses beside the reconstruction's 1."""

    foreground: ForegroundConfig | None
    position_weight: NonNegativeFloat
    temperature: PositiveFloat
    blur_sigma: NonNegativeFloat
    target: Literal["features", "pixels"]
    decoder_width: PositiveInt
    decoder_depth: PositiveInt
    diversity: NonNegativeFloat
    balance: NonNegativeFloat
    balance_floor: Share
    epochs: PositiveInt
    batch_size: PositiveInt
    shuffle_shards: PositiveInt | None  # shards whose samples are mixed at a time; null: all
    base_lr: NonNegativeFloat
    warmup_epochs: NonNegativeInt
    weight_decay: NonNegativeFloat
    flip: UpTo1


@dataclass(frozen=True, config=STRICT)
class PartsConfig:
    """The section `parts` of params.yaml."""

    dataset: str
    seed: int
    checkpoint_minutes: NonNegativeFloat
    method: Literal["learned", "kmeans"]
    img_size: PositiveInt
    num_parts: Annotated[int, Field(ge=1, le=254)]  # labels are bytes: one is the background's, 255 stays unknown
    num_images: Annotated[int, Field(ge=2)]  # one image has no mean at a place to differ from
    kmeans: KMeansConfig
    learned: PartLearnerConfig
    compute: ComputeConfig


def main() -> None:
    """Learn parts by the method that parts.method names."""
    section = load_config(PartsConfig, "parts")
    verify_shards(SHARDS / section.dataset)
    reader = Reader(SHARDS / section.dataset, "train").with_shuffle_shards(section.learned.shuffle_shards)
    elder = teacher.load_teacher(TEACHER)
    config = {
        "method": section.method, "num_parts": section.num_parts, "img_size": section.img_size,
        "grid": elder.grid(section.img_size), "embed_dim": elder.embed_dim, "teacher": elder.digest,
        "params": artifact_params(section),
    }  # fmt: skip
    inputs = [file_digest(SHARDS / section.dataset / "shards.json"), elder.digest]
    minutes = section.checkpoint_minutes
    with (
        distributed.world(section.compute.device) as world,
        run.Run("parts", world, out=OUT, params=section, inputs=inputs, checkpoint_minutes=minutes) as now,
    ):
        elder = elder.to(world.device)
        vit.use_fastest_attention(elder, world.device, frozen_at=elder.grid(section.img_size))
        sample = patch_sample(section, reader, elder, world.device, now)
        learn = {"learned": learned, "kmeans": kmeans}[section.method]
        model, quality = learn(section, config, sample, reader, elder, world, now)
        if world.is_main:
            with atomic_write(OUT) as folder:
                part_learner.save_parts(folder, model)
                write_json(folder / "history.json", now.history)
            write_json(RESULTS / "metrics.json", {"parts": quality})
            write_history(RESULTS / "live", "parts", now.history)


def patch_sample(
    section: PartsConfig, reader: Reader, elder: teacher.Teacher, device: torch.device, now: run.Run
) -> torch.Tensor:
    """The patch tokens of `sample` training images, (images, n, d): enough for statistics and for k-means."""
    ids = numpy_generator(section.seed, "sample").permutation(len(reader))[: section.num_images]
    loader = batches(
        reader, np.sort(ids), Whole(section.img_size, section.seed, 0.0), batch_size=64, workers=section.compute.workers
    )
    found = []
    for batch in loader:
        found.append(elder.encode(batch["image"].to(device)).patch.cpu())
        now.exit_if_stopped("before its first step", together=True)
    return torch.cat(found)


def kmeans(
    section: PartsConfig, config: dict[str, Any], sample: torch.Tensor, reader: Reader, elder: teacher.Teacher,
    world: distributed.World, now: run.Run,
) -> tuple[part_learner.PartMethod, dict[str, float]]:  # fmt: skip
    """The training-free baseline."""
    model = part_learner.KMeansParts(config | asdict(section.kmeans) | {"background": False})
    return model, {"cosine": model.fit(sample, seed=fold(section.seed, "kmeans"))}


def learned(
    section: PartsConfig, config: dict[str, Any], sample: torch.Tensor, reader: Reader, elder: teacher.Teacher,
    world: distributed.World, now: run.Run,
) -> tuple[part_learner.PartMethod, dict[str, float]]:  # fmt: skip
    """The part learner, trained to rebuild the teacher's tokens or the image's pixels from its maps."""
    recipe, pixels = section.learned, section.learned.target == "pixels"
    config |= asdict(recipe) | {
        "background": recipe.foreground is not None,
        "class_token": elder.class_token,
        "target_dim": 3 * elder.patch_size**2 if pixels else elder.embed_dim,
        **now.adopted,
    }
    torch.manual_seed(fold(section.seed, "parts"))
    model = part_learner.PartLearner(config)
    model.fit(sample, seed=fold(section.seed, "kmeans"))
    model.to(world.device)
    section.compute.compile_in_place(model)
    encode = section.compute.compile_function(elder.encode)
    parallel = distributed.parallel(model, world)
    optimizer = optim.adamw(model, weight_decay=recipe.weight_decay, betas=(0.9, 0.95))
    rate = recipe.base_lr * recipe.batch_size / 256
    view = Whole(section.img_size, section.seed, recipe.flip)

    for step in now.steps(
        reader, view, batch_size=recipe.batch_size, epochs=recipe.epochs, seed=section.seed,
        workers=section.compute.workers, state={"model": model, "optimizer": optimizer},
    ):  # fmt: skip
        images = async_copy.to_device(world.device, step.batch["image"])
        with distributed.autocast(world.device, section.compute.precision):
            tokens = encode(images)
        target = part_learner.pixel_targets(images, elder.patch_size) if pixels else model.prepare(tokens.patch)
        maps, rebuilt = parallel(tokens)
        reconstruction = (rebuilt - target).square().mean()
        diversity = part_learner.diversity_loss(maps)
        balance = part_learner.balance_loss(distributed.mean(maps.mean((0, 2)), world), recipe.balance_floor)
        loss = reconstruction + recipe.diversity * diversity + recipe.balance * balance
        warmup = recipe.warmup_epochs * step.per_epoch
        optim.set_rate(optimizer, optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup, peak=rate, end=0.0))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        now.record(loss=loss, reconstruction=reconstruction, diversity=diversity, balance=balance)
    return model, {name: value for name, value in now.history[-1].items() if name != "epoch"}


if __name__ == "__main__":
    stage.main(main)
