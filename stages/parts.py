"""parts: make the part method, which decides which patches belong to the same part in different images.

    python -m stages.parts

Reads  data/shards/<parts.dataset>, data/teacher
Calls  PartLearner.fit and train_part_learner, train_paper_learner, or KMeansParts.fit; others need no training
Writes data/parts/: parts.safetensors, parts.json, history.json; results/parts/: metrics.json and the curves
"""

import math
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
from semmae.data.dataset import Reader, TrainingImages, verify_shards
from semmae.data.loader import batches
from semmae.data.transforms import FullImage
from semmae.models import vit
from semmae.models.teacher import Teacher, load_teacher
from semmae.parts.grid_parts import grid_shape
from semmae.parts.kmeans_parts import KMeansParts
from semmae.parts.paper_learner import PaperPartLearner
from semmae.parts.part_learner import PartLearner
from semmae.parts.part_method import PartMethod
from semmae.parts.part_methods import PART_METHODS, save_parts
from semmae.parts.truth_parts import check_masks
from semmae.runs.fingerprint import artifact_params
from semmae.runs.history_files import write_history
from semmae.runs.run import Run
from semmae.training.paper_parts_loop import PaperLearnerConfig, train_paper_learner
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
    method: Literal["learned", "paper", "kmeans", "attention", "grid", "truth"]
    num_parts: Annotated[int, Field(ge=1, le=254)]  # part maps are bytes, and the background needs a label
    num_images: Annotated[int, Field(ge=2)]  # number of images that the methods learned and kmeans are fitted to
    learned: PartLearnerConfig
    paper: PaperLearnerConfig
    kmeans: KMeansConfig
    seed: int
    checkpoint_minutes: NonNegativeFloat
    compute: ComputeConfig


def main() -> None:
    """Make the part method in `parts.method`, and write it with its metrics."""
    section = load_config(PartsConfig, "parts")
    shards = SHARDS / section.dataset
    verify_shards(shards)
    reader = Reader(shards, "train").with_shuffle_shards(section.paper.shuffle_shards)
    teacher = load_teacher(TEACHER)
    config = method_config(section, teacher)
    inputs, minutes = [file_digest(shards / "shards.json"), teacher.digest], section.checkpoint_minutes
    with (
        distributed.world(section.compute.device) as world,
        Run("parts", world, out=OUT, params=section, inputs=inputs, checkpoint_minutes=minutes) as run,
    ):
        method, metrics, history = fit_parts(section, config, reader, teacher, run)
        if world.is_main:
            with atomic_write(OUT) as folder:
                save_parts(folder, method)
                write_json(folder / "history.json", history)
            write_json(RESULTS / "metrics.json", {"parts": metrics})
            write_history(RESULTS / "live", "parts", history)


def fit_parts(
    section: PartsConfig, config: dict[str, Any], images: TrainingImages, teacher: Teacher, run: Run
) -> tuple[PartMethod, dict[str, float], list[dict[str, float]]]:
    """Create the part method in `parts.method`, fit it to a sample of images, and train it if necessary.

    Args:
        section: The parameters.
        config: The config of the method, from `method_config`.
        images: The training images.
        teacher: The teacher; it is moved to the device of the run.
        run: The run that keeps the checkpoints of the training.

    Returns:
        The method, its metrics, and the history of its training, which is empty without training.
    """
    device = run.world.device
    teacher.to(device)
    vit.use_fastest_attention(teacher, device, frozen_grid=config["grid"])
    torch.manual_seed(fold(section.seed, "parts"))
    method = PART_METHODS[section.method](config | run.adopted)
    metrics: dict[str, float] = {"num_parts": method.num_parts}
    history: list[dict[str, float]] = []
    if isinstance(method, KMeansParts | PartLearner):
        tokens = sample_tokens(section, images, teacher, run)
        metrics |= method.fit(tokens, seed=fold(section.seed, "kmeans"))
        if isinstance(method, PartLearner):
            history = train_part_learner(section.learned, method, tokens, seed=section.seed, run=run)
    elif isinstance(method, PaperPartLearner):
        train_paper_learner(
            section.paper, method, teacher, images=images, img_size=section.img_size, seed=section.seed,
            compute=section.compute, world=run.world, run=run,
        )  # fmt: skip
        history = run.history
    if history:
        metrics |= {name: value for name, value in history[-1].items() if name != "epoch"}
    return method, metrics, history


def method_config(section: PartsConfig, teacher: Teacher) -> dict[str, Any]:
    """Return the config of the part method in `parts.method`.

    Raises:
        ValueError: The method is `truth`, and an image of the dataset has no mask of foreground or of parts.
    """
    grid = teacher.grid(section.img_size)
    config = {
        "method": section.method, "num_parts": section.num_parts, "background": False, "img_size": section.img_size,
        "grid": grid, "embed_dim": teacher.embed_dim, "teacher": teacher.digest, "params": artifact_params(section),
    }  # fmt: skip
    match section.method:
        case "learned":
            return config | asdict(section.learned) | {"background": section.learned.foreground is not None}
        case "paper":
            config |= {"background": True, "num_heads": teacher.num_heads, "patch_size": teacher.patch_size}
            return config | asdict(section.paper)
        case "kmeans":
            return config | asdict(section.kmeans)
        case "attention":
            return config | {"num_parts": teacher.num_heads, "background": True}
        case "grid":
            return config | {"num_parts": math.prod(grid_shape(grid, section.num_parts))}
        case "truth":
            images = Reader(SHARDS / section.dataset)  # all splits, because part maps are made of all
            check_masks(images)
            names = images.mask_names
            return config | {"num_parts": len(names) - 1, "background": True, "mask_names": names}


def sample_tokens(section: PartsConfig, images: TrainingImages, teacher: Teacher, run: Run) -> Float[Tensor, "s n d"]:
    """Return the patch tokens of `num_images` random training images, on the CPU."""
    indices = numpy_generator(section.seed, "sample").permutation(len(images))[: section.num_images]
    transform = FullImage(section.img_size, section.seed, flip=0.0)
    patches = []
    for batch in batches(images, np.sort(indices), transform, batch_size=64, workers=section.compute.workers):
        patches.append(teacher.encode(batch["image"].to(run.world.device)).patch.cpu())
        run.exit_if_stopped("before its first step", together=True)
    return torch.cat(patches)


if __name__ == "__main__":
    stage.main(main)
