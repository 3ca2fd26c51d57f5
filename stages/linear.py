"""linear: a linear probe of frozen features, beside thumbnails, an untrained encoder and the teacher.

    python -m stages.linear <dataset>

Reads  data/pretrain (encoder), data/teacher, data/shards/<dataset>: the probe learns on train, val is scored once
Calls  features.extract, heads.choose_rate, heads.probe, metrics.classification, predictions.write; resume.folder keeps
       features that are done when the stage is killed
Writes results/linear/<dataset>.json; curves/<dataset>/: those of the chosen learning rate on a part of train;
       predictions/<dataset>.tsv: every answer beside the truth
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core import distributed, stage
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, Share, load_config, with_overrides
from semmae.core.digests import file_digest
from semmae.core.model_files import model_digest
from semmae.data.dataset import Reader
from semmae.evaluation import (
    baselines,
    classification_metrics,
    curve_files,
    eval_cache,
    features,
    linear_heads,
    predictions,
    scores,
    subsets,
)
from semmae.evaluation.linear_heads import FeatureSet, LinearHeadsRecipe
from semmae.evaluation.scores import Scores
from semmae.models import teacher, vit

OUT, PRETRAIN, TEACHER = Path("results/linear"), Path("data/pretrain"), Path("data/teacher")


@dataclass(frozen=True, config=STRICT)
class LinearProtocol:
    """How every dataset is scored."""

    base_lrs: Annotated[list[PositiveFloat], Field(min_length=1)]
    holdout: Share  # of train, to choose the learning rate
    epochs: PositiveInt
    warmup_epochs: NonNegativeInt
    views: PositiveInt  # random crops per training image; epoch e shows view e modulo views
    batch_size: PositiveInt  # of SGD
    low_shot: list[subsets.Shots]
    pool: features.Pool
    baselines: bool
    seed: int
    encode_batch_size: PositiveInt
    compute: ComputeConfig


@dataclass(frozen=True, config=STRICT)
class LinearOverrides:
    """What a dataset sets for itself; null or absent: as in the protocol."""

    epochs: PositiveInt | None = None
    low_shot: list[subsets.Shots] | None = None


@dataclass(frozen=True, config=STRICT)
class LinearConfig:
    """The section `linear` of params.yaml."""

    protocol: LinearProtocol
    datasets: dict[str, LinearOverrides]


def main() -> None:
    """Probe the dataset named on the command line."""
    section = load_config(LinearConfig, "linear")
    name, own = stage.dataset_from_command_line(section.datasets, "linear")
    protocol = with_overrides(section.protocol, own)
    shards = Path("data/shards") / name
    train, val = features.labeled_splits(shards)
    network, config = vit.load(PRETRAIN)
    device = distributed.choose_device(protocol.compute.device)
    how: dict[str, Any] = {"pool": protocol.pool, "device": device, "precision": protocol.compute.precision}
    inputs = [file_digest(shards / "shards.json"), model_digest(PRETRAIN, "encoder")]
    lines = {"encoder": (features.pooled(network, **how), config["img_size"])}
    if protocol.baselines:
        inputs.append(model_digest(TEACHER, "teacher"))
        lines |= baselines.beside(config, teacher.load_teacher(TEACHER), seed=protocol.seed, **how)
    with eval_cache.resumable_folder("linear", out=OUT / name, params=protocol, inputs=inputs) as folder:
        probes = {line: LinearProbe(*how, train, val, protocol, device, folder / line) for line, how in lines.items()}
        encoder = probes.pop("encoder")
        labels = torch.from_numpy(val.labels)
        result = Scores(
            encoder.scores | {"base_lr": encoder.choice.base_lr},
            {
                line: classification_metrics.baseline_classification(probe.logits, labels)
                for line, probe in probes.items()
            },
            low_shot={shots.name: encoder.low_shot(shots) for shots in protocol.low_shot},
        )
        scores.write(OUT / f"{name}.json", result)
        curves = {line: probe.choice.history for line, probe in {"encoder": encoder, **probes}.items()}
        curve_files.write(OUT / "curves" / name, curves | encoder.curves)
        predictions.write(OUT / f"predictions/{name}.tsv", val.keys, encoder.logits, labels, val.class_names)
    print(f"{name}: linear {classification_metrics.summary(result)}")


class LinearProbe:
    """Features of train and val by one encoder, and what a probe that learns from the former says of the latter."""

    def __init__(
        self, encode: features.Encode, img_size: int, train: Reader, val: Reader, protocol: LinearProtocol,
        device: torch.device, folder: Path,
    ) -> None:  # fmt: skip
        self.reader, self.protocol = train, protocol
        self.curves: dict[str, curve_files.History] = {}  # of low-shot scores
        self.recipe = LinearHeadsRecipe(
            protocol.epochs, protocol.warmup_epochs, protocol.batch_size, protocol.seed, device
        )
        self.extract: Callable[..., torch.Tensor] = partial(
            features.extract,
            protocol.compute.compile_function(encode),
            img_size=img_size,
            batch_size=protocol.encode_batch_size,
            workers=protocol.compute.workers,
        )
        views = self.extract(train, views=protocol.views, seed=protocol.seed, file=folder / "train")
        self.train = FeatureSet(views, torch.from_numpy(train.labels))
        self.val = FeatureSet(self.extract(val, file=folder / "val")[None], torch.from_numpy(val.labels))
        self.choice = self.choose(self.train, self.recipe, folder / "holdout")
        self.logits = self.learn(self.train, self.recipe, self.choice.base_lr)
        self.scores = classification_metrics.classification(self.logits, self.val.labels)

    def low_shot(self, shots: subsets.Shots) -> dict[str, float]:
        """The scores of val when a part of train is all there is: as many steps, the rate chosen on a part of it.

        Where no class has two samples nothing can be held out, and the rate is that of the whole train.
        """
        few = self.train.select(subsets.low_shot(self.reader.labels, shots, seed=self.protocol.seed))
        recipe = self.recipe.stretched(samples=len(self.train), few=len(few))
        spare = np.bincount(self.reader.labels[few.ids]).max() > 1
        choice = self.choose(few, recipe, None) if spare else self.choice._replace(history=[])
        self.curves[shots.name] = choice.history
        said = self.learn(few, recipe, choice.base_lr)
        return classification_metrics.classification(said, self.val.labels) | {"base_lr": choice.base_lr}

    def choose(self, train: FeatureSet, recipe: LinearHeadsRecipe, file: Path | None) -> linear_heads.Choice:
        """The learning rate, by a part of `train` that is held out and seen in the evaluation view."""
        labels = self.reader.labels[train.ids]
        held_out = subsets.stratified_split(labels, share=self.protocol.holdout, seed=self.protocol.seed)
        ids = train.ids[held_out]
        holdout = FeatureSet(self.extract(self.reader.select(ids), file=file)[None], self.train.labels[ids])
        return linear_heads.choose_rate(
            train, num_classes=self.reader.num_classes, base_lrs=sorted(self.protocol.base_lrs), recipe=recipe,
            held_out=held_out, holdout=holdout,
        )  # fmt: skip

    def learn(self, train: FeatureSet, recipe: LinearHeadsRecipe, base_lr: float) -> torch.Tensor:
        """The logits of val, (m, classes)."""
        return linear_heads.probe(train, self.val, num_classes=self.reader.num_classes, base_lr=base_lr, recipe=recipe)


if __name__ == "__main__":
    stage.main(main)
