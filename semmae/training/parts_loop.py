"""The training loop of the part learner."""

from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from semmae.core.config import STRICT, PositiveBelow1
from semmae.core.rng import torch_generator
from semmae.parts.image_information import image_information
from semmae.parts.part_learner import PartLearner
from semmae.runs.run import Run

ROWS = 10  # rows of the history


@dataclass(frozen=True, config=STRICT)
class ClusterForegroundConfig:
    """Settings of `semmae.parts.foreground.ClusterForeground`."""

    clusterings: PositiveInt  # number of clusterings, over which scores are averaged
    clusters: Annotated[int, Field(ge=2)]  # number of clusters in each clustering
    center_prior: NonNegativeFloat  # weight of a patch's own position relative to its content
    diffusion_steps: NonNegativeInt  # number of steps in which scores diffuse among similar patches
    threshold_classes: Annotated[int, Field(ge=2)]  # number of classes of patch scores; the highest class is foreground


@dataclass(frozen=True, config=STRICT)
class PartLearnerConfig:
    """Settings of the part learner and of its training."""

    keys: Literal["auto", "content", "position"]  # how patches are compared; auto chooses by the tokens
    smoothing_steps: NonNegativeInt  # of keys by content: steps in which tokens are averaged with similar ones
    position_weight: NonNegativeFloat  # of keys by position: weight of the position on the object
    foreground: ClusterForegroundConfig | None  # of keys by position; null, for both kinds: no background
    initial_entropy: PositiveBelow1  # entropy of a patch's shares at the start, relative to equal shares
    steps: NonNegativeInt  # training steps; with 0, the queries stay as k-means found them
    batch_size: PositiveInt  # images
    lr: NonNegativeFloat


def train_part_learner(
    recipe: PartLearnerConfig, model: PartLearner, patch: Float[Tensor, "s n d"], *, seed: int, run: Run
) -> list[dict[str, Any]]:
    """Train the queries of a part learner in place, on the tokens that it was fitted to.

    Training lowers the scores in two cases, in which the queries therefore keep their start: with keys by position, and
    without a background, where most of the information is about the background.
    All processes of a run train on the same batches, and get the same queries.

    Args:
        recipe: The settings.
        model: The part learner, after `fit`.
        patch: The patch tokens of a sample of training images.
        seed: Seed of the batches.
        run: The run, which may be stopped.

    Returns:
        The history: the mean information of the labels over a tenth of the steps per row. It has fewer rows if there
        are fewer steps.
    """
    if recipe.steps == 0 or model.config["keys"] == "position" or model.background is None:
        return []
    keys, share = model.compute_keys(patch)
    weight = (share > 0.5).float()
    optimizer = torch.optim.Adam([model.queries, model.bias], lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 - 2 * step / recipe.steps))
    generator = torch_generator(seed, "parts")
    history: list[dict[str, Any]] = []
    for steps in np.array_split(range(recipe.steps), min(ROWS, recipe.steps)):
        total = 0.0
        for _ in steps:
            images = torch.randperm(len(keys), generator=generator)[: recipe.batch_size]
            information = image_information(model.divide(keys[images]), weight[images])
            optimizer.zero_grad(set_to_none=True)
            (-information).backward()
            optimizer.step()
            schedule.step()
            total += information.item()
        history.append({"epoch": len(history) + 1, "information": total / len(steps)})
        run.tracking.log(int(steps[-1]) + 1, history[-1])
        run.exit_if_stopped("during training", together=True)
    return history
