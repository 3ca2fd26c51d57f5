"""knn: weighted nearest neighbors on frozen features, compared with thumbnails, an untrained encoder and the teacher.

    python -m stages.knn <dataset>

Reads  data/pretrain (encoder), data/teacher, data/shards/<dataset>: samples of val are scored by neighbors in train
Calls  features.extract, whitening.whiten, classification_metrics.knn_votes, scores.write, predictions.write
Writes results/knn/<dataset>.json; predictions/<dataset>.tsv: the predicted class of every sample of val
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor

from semmae.core import distributed, stage
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, load_config
from semmae.data.dataset import Reader
from semmae.evaluation import (
    baselines,
    classification_metrics,
    features,
    predictions,
    score_comparison,
    scores,
    splits,
    whitening,
)
from semmae.evaluation.scores import Scores
from semmae.models import teacher, vit

OUT, PRETRAIN, TEACHER = Path("results/knn"), Path("data/pretrain"), Path("data/teacher")


@dataclass(frozen=True, config=STRICT)
class KnnProtocol:
    """Settings that are the same for all datasets."""

    k: PositiveInt
    temperature: PositiveFloat
    whiten: bool  # PCA whitening, fitted on train
    pool: features.Pool
    baselines: bool
    seed: int  # seed of the untrained encoder
    batch_size: PositiveInt
    compute: ComputeConfig


@dataclass(frozen=True, config=STRICT)
class KnnOverrides:
    """Settings for one dataset; no setting of the protocol can be overridden."""


@dataclass(frozen=True, config=STRICT)
class KnnConfig:
    """The section `knn` of params.yaml."""

    protocol: KnnProtocol
    datasets: dict[str, KnnOverrides]


def main() -> None:
    """Score the encoder on the dataset named on the command line."""
    section = load_config(KnnConfig, "knn")
    protocol, (name, _) = section.protocol, stage.dataset_from_command_line(section.datasets, "knn")
    train, val = splits.open_labeled_splits(Path("data/shards") / name)
    network, config = vit.load(PRETRAIN)
    device = distributed.choose_device(protocol.compute.device)
    options: dict[str, Any] = {"pool": protocol.pool, "device": device, "precision": protocol.compute.precision}
    encode = features.build_feature_encoder(network, **options)
    votes = compute_votes(encode, config["img_size"], train, val, protocol, device)
    labels = torch.from_numpy(val.labels)
    baseline_metrics = {}
    if protocol.baselines:
        frozen_teacher = teacher.load_teacher(TEACHER)
        encoders = baselines.build_feature_encoders(config, frozen_teacher, seed=protocol.seed, **options)
        for baseline, (encode, img_size) in encoders.items():
            baseline_votes = compute_votes(encode, img_size, train, val, protocol, device)
            baseline_metrics[baseline] = classification_metrics.compute_baseline(baseline_votes, labels)
    result = Scores(classification_metrics.compute(votes, labels), baseline_metrics)
    scores.write(OUT / f"{name}.json", result)
    predictions.write(OUT / f"predictions/{name}.tsv", val.keys, votes, labels, val.class_names, logits=False)
    print(f"{name}: kNN {score_comparison.format_top1(result)}")


def compute_votes(
    encode: features.FeatureEncoder,
    img_size: int,
    train: Reader,
    val: Reader,
    protocol: KnnProtocol,
    device: torch.device,
) -> Float[Tensor, "m c"]:
    """Compute the votes of the neighbors in train for every sample of val."""
    compute, encode = protocol.compute, protocol.compute.compile_function(encode)
    train_features, val_features = (
        features.extract(encode, reader, img_size=img_size, batch_size=protocol.batch_size, workers=compute.workers)
        for reader in (train, val)
    )
    if protocol.whiten:
        mean, matrix = whitening.fit(train_features)
        train_features, val_features = (whitening.whiten(x, mean, matrix) for x in (train_features, val_features))
    return classification_metrics.knn_votes(
        train_features,
        torch.from_numpy(train.labels),
        val_features,
        num_classes=train.num_classes,
        k=protocol.k,
        temperature=protocol.temperature,
        device=device,
    )


if __name__ == "__main__":
    stage.main(main)
