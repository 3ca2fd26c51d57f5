"""parts: learn which patches belong to the same part in different images, from the tokens of the teacher.

    python -m stages.parts

Reads  data/shards/<parts.dataset>, data/teacher
Calls  train_part_learner, or KMeansParts.fit
Writes data/parts/: parts.safetensors, parts.json, history.json; results/parts/: metrics.json and the curves
"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from semmae.core import distributed, stage
from semmae.core.atomic_files import atomic_write, write_json
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, load_config
from semmae.core.digests import file_digest
from semmae.core.rng import fold, numpy_generator
from semmae.data.dataset import Reader, verify_shards
from semmae.data.loader import batches
from semmae.data.transforms import FullImage
from semmae.models import vit
from semmae.models.teacher import Teacher, load_teacher
from semmae.parts.kmeans_parts import KMeansParts
from semmae.parts.part_learner import PartLearner
from semmae.parts.part_method import PartMethod
from semmae.parts.part_methods import save_parts
from semmae.runs.fingerprint import artifact_params
from semmae.runs.history_files import write_history
from semmae.runs.run import Run
from semmae.training.parts_loop import PartLearnerConfig, train_part_learner

OUT, RESULTS, SHARDS, TEACHER = Path("data/parts"), Path("results/parts"), Path("data/shards"), Path("data/teacher")


@dataclass(frozen=True, config=STRICT)
class KMeansConfig:
    """Spherical k-means."""

    temperature: PositiveFloat  # of the softmax over clusters; part maps, its argmax, do not depend on it


@dataclass(frozen=True, config=STRICT)
class PartsConfig:
    """The section `parts` of params.yaml."""

    dataset: str
    img_size: PositiveInt
    method: Literal["learned", "kmeans"]
    num_parts: Annotated[int, Field(ge=1, le=254)]  # part maps are bytes, and the background needs a label
    num_images: Annotated[int, Field(ge=2)]  # number of images for fitting the whitening, the foreground and k-means
    learned: PartLearnerConfig
    kmeans: KMeansConfig
    seed: int
    checkpoint_minutes: NonNegativeFloat
    compute: ComputeConfig


def main() -> None:
    """Learn parts by the method in `parts.method`."""
    section = load_config(PartsConfig, "parts")
    shards = SHARDS / section.dataset
    verify_shards(shards)
    reader = Reader(shards, "train").with_shuffle_shards(section.learned.shuffle_shards)
    teacher = load_teacher(TEACHER)
    grid = teacher.grid(section.img_size)
    config = {
        "method": section.method, "num_parts": section.num_parts, "img_size": section.img_size, "grid": grid,
        "embed_dim": teacher.embed_dim, "teacher": teacher.digest, "params": artifact_params(section),
    }  # fmt: skip
    inputs, minutes = [file_digest(shards / "shards.json"), teacher.digest], section.checkpoint_minutes
    with (
        distributed.world(section.compute.device) as world,
        Run("parts", world, out=OUT, params=section, inputs=inputs, checkpoint_minutes=minutes) as run,
    ):
        teacher = teacher.to(world.device)
        vit.use_fastest_attention(teacher, world.device, frozen_grid=grid)
        tokens = sample_tokens(section, reader, teacher, run)
        model: PartMethod
        if section.method == "kmeans":
            model = KMeansParts(config | asdict(section.kmeans) | {"background": False})
            metrics = {"cosine": model.fit(tokens, seed=fold(section.seed, "kmeans"))}
        else:
            model = build_learner(section, config | run.adopted, teacher, tokens)
            train_part_learner(
                section.learned, model, teacher, reader=reader, img_size=section.img_size, seed=section.seed,
                compute=section.compute, world=world, run=run,
            )  # fmt: skip
            metrics = {name: value for name, value in run.history[-1].items() if name != "epoch"}
        if world.is_main:
            with atomic_write(OUT) as folder:
                save_parts(folder, model)
                write_json(folder / "history.json", run.history)
            write_json(RESULTS / "metrics.json", {"parts": metrics})
            write_history(RESULTS / "live", "parts", run.history)


def sample_tokens(section: PartsConfig, reader: Reader, teacher: Teacher, run: Run) -> Float[Tensor, "s n d"]:
    """Return the patch tokens of `num_images` random training images, on the CPU."""
    indices = numpy_generator(section.seed, "sample").permutation(len(reader))[: section.num_images]
    transform = FullImage(section.img_size, section.seed, flip=0.0)
    patches = []
    for batch in batches(reader, np.sort(indices), transform, batch_size=64, workers=section.compute.workers):
        patches.append(teacher.encode(batch["image"].to(run.world.device)).patch.cpu())
        run.exit_if_stopped("before its first step", together=True)
    return torch.cat(patches)


def build_learner(
    section: PartsConfig, config: dict[str, Any], teacher: Teacher, tokens: Float[Tensor, "s n d"]
) -> PartLearner:
    """Create a part learner and fit its foreground and its initial queries to the tokens of a sample of images."""
    recipe = section.learned
    config = config | asdict(recipe) | {
        "background": recipe.foreground is not None,
        "class_token": teacher.class_token,
        "target_dim": 3 * teacher.patch_size**2 if recipe.target == "pixels" else teacher.embed_dim,
    }  # fmt: skip
    torch.manual_seed(fold(section.seed, "parts"))
    learner = PartLearner(config)
    learner.fit(tokens, seed=fold(section.seed, "kmeans"))
    return learner


if __name__ == "__main__":
    stage.main(main)
