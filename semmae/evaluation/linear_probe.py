"""The linear probe of one encoder: extract features, choose the learning rate, and score on val."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, PositiveBelow1
from semmae.data.dataset import Reader
from semmae.evaluation import classification_metrics, curve_files, features, linear_heads, subsets
from semmae.evaluation.linear_heads import FeatureSet, LinearHeadsRecipe


@dataclass(frozen=True, config=STRICT)
class LinearProbeConfig:
    """Settings of the training of a probe; lr = base_lr * batch_size / 256."""

    base_lrs: Annotated[list[PositiveFloat], Field(min_length=1)]
    holdout: PositiveBelow1  # share of train that is held out to choose the learning rate
    epochs: PositiveInt
    warmup_epochs: NonNegativeInt
    views: PositiveInt  # random crops per training image; epoch e uses view e modulo views
    batch_size: PositiveInt  # samples per step of SGD
    seed: int
    encode_batch_size: PositiveInt  # images per forward pass of the encoder


class LinearProbe:
    """A linear probe. The constructor trains it on the features of train, and predicts val.

    Args:
        encode: Maps a batch of images to features.
        img_size: Side of these images in pixels.
        folder: Folder for the features; the caller deletes it after the stage has succeeded.

    Attributes:
        choice: The learning rate that is used on all of train, and its learning curve.
        logits: Logits for val, (m, classes).
        low_shot_curves: The curves of the low-shot probes by `Shots.name`.
    """

    def __init__(
        self,
        encode: features.FeatureEncoder,
        img_size: int,
        *,
        train: Reader,
        val: Reader,
        config: LinearProbeConfig,
        compute: ComputeConfig,
        device: torch.device,
        folder: Path,
    ) -> None:
        self.reader, self.config = train, config
        self.low_shot_curves: dict[str, curve_files.History] = {}
        self.recipe = LinearHeadsRecipe(config.epochs, config.warmup_epochs, config.batch_size, config.seed, device)
        self._extract: Callable[..., Tensor] = partial(
            features.extract,
            compute.compile_function(encode),
            img_size=img_size,
            batch_size=config.encode_batch_size,
            workers=compute.workers,
        )
        views = self._extract(train, views=config.views, seed=config.seed, file=folder / "train")
        self.train = FeatureSet(views, torch.from_numpy(train.labels))
        self.val = FeatureSet(self._extract(val, file=folder / "val")[None], torch.from_numpy(val.labels))
        self.choice = self._choose_base_lr(self.train, self.recipe, file=folder / "holdout")
        self.logits = self._predict(self.train, self.recipe, self.choice.base_lr)

    def score_low_shot(self, shots: subsets.Shots) -> dict[str, float]:
        """Train a probe on a low-shot subset of train with as many steps as on all of train, and score it on val.

        The learning rate is chosen on a hold-out of the subset. If no class has two samples in the subset, the rate of
        all of train is used.
        """
        subset = self.train.select(subsets.low_shot(self.reader.labels, shots, seed=self.config.seed))
        recipe = self.recipe.with_equal_steps(len(subset), reference=len(self.train))
        can_hold_out = np.bincount(self.reader.labels[subset.indices]).max() > 1
        choice = self._choose_base_lr(subset, recipe) if can_hold_out else self.choice._replace(history=[])
        self.low_shot_curves[shots.name] = choice.history
        logits = self._predict(subset, recipe, choice.base_lr)
        return classification_metrics.compute(logits, self.val.labels) | {"base_lr": choice.base_lr}

    def _choose_base_lr(
        self, train: FeatureSet, recipe: LinearHeadsRecipe, *, file: Path | None = None
    ) -> linear_heads.ChosenRate:
        """Choose the rate on a hold-out of `train`. The features of the hold-out are those of the center view."""
        labels = self.reader.labels[train.indices]
        held_out = subsets.stratified_split(labels, share=self.config.holdout, seed=self.config.seed)
        indices = train.indices[held_out]
        center_features = self._extract(self.reader.select(indices), file=file)
        return linear_heads.choose_base_lr(
            train,
            num_classes=self.reader.num_classes,
            base_lrs=sorted(self.config.base_lrs),
            recipe=recipe,
            held_out=held_out,
            holdout=FeatureSet(center_features[None], self.train.labels[indices]),
        )

    def _predict(self, train: FeatureSet, recipe: LinearHeadsRecipe, base_lr: float) -> Float[Tensor, "m c"]:
        num_classes = self.reader.num_classes
        return linear_heads.train_and_predict(train, self.val, num_classes=num_classes, base_lr=base_lr, recipe=recipe)
