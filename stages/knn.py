"""knn: weighted nearest neighbors on frozen features, beside thumbnails, an untrained encoder and the teacher.

    python -m stages.knn <dataset>

Reads  data/pretrain (encoder), data/teacher, data/shards/<dataset>: train votes, val is scored
Calls  features.extract, whitening.whiten, metrics.knn_votes, metrics.classification, predictions.write
Writes results/knn/<dataset>.json, and predictions/<dataset>.tsv: every answer beside the truth
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core import distributed, stage
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, load_config
from semmae.data.dataset import Reader
from semmae.evaluation import baselines, classification_metrics, features, predictions, scores, whitening
from semmae.evaluation.scores import Scores
from semmae.models import teacher, vit


@dataclass(frozen=True, config=STRICT)
class KnnProtocol:
    """How every dataset is scored."""

    k: PositiveInt
    temperature: PositiveFloat
    whiten: bool  # every direction of the features counts alike, as principal components of train see it
    pool: features.Pool
    baselines: bool
    seed: int  # of the untrained encoder
    batch_size: PositiveInt
    compute: ComputeConfig


@dataclass(frozen=True, config=STRICT)
class KnnOverrides:
    """Nothing differs between datasets."""


@dataclass(frozen=True, config=STRICT)
class KnnConfig:
    """The section `knn` of params.yaml."""

    protocol: KnnProtocol
    datasets: dict[str, KnnOverrides]


def main() -> None:
    """Score the dataset named on the command line."""
    section = load_config(KnnConfig, "knn")
    protocol, (name, _) = section.protocol, stage.dataset_from_command_line(section.datasets, "knn")
    splits = features.labeled_splits(Path("data/shards") / name)
    network, config = vit.load(Path("data/pretrain"))
    device = distributed.choose_device(protocol.compute.device)
    how: dict[str, Any] = {"pool": protocol.pool, "device": device, "precision": protocol.compute.precision}
    encode = features.pooled(network, **how)
    votes = voted(encode, config["img_size"], splits, protocol, device)
    val = splits[1]
    labels = torch.from_numpy(val.labels)
    baseline_metrics = {}
    if protocol.baselines:
        lines = baselines.beside(config, teacher.load_teacher(Path("data/teacher")), seed=protocol.seed, **how)
        for line, (encode, img_size) in lines.items():
            beside = voted(encode, img_size, splits, protocol, device)
            baseline_metrics[line] = classification_metrics.baseline_classification(beside, labels)
    out = Path("results/knn")
    result = Scores(classification_metrics.classification(votes, labels), baseline_metrics)
    scores.write(out / f"{name}.json", result)
    predictions.write(out / f"predictions/{name}.tsv", val.keys, votes, labels, val.class_names, logits=False)
    print(f"{name}: kNN {classification_metrics.summary(result)}")


def voted(
    encode: features.Encode, img_size: int, splits: tuple[Reader, Reader], protocol: KnnProtocol, device: torch.device
) -> torch.Tensor:
    """The votes of train for every sample of val, (m, classes)."""
    encode = protocol.compute.compile_function(encode)
    train, val = (
        features.extract(
            encode, reader, img_size=img_size, batch_size=protocol.batch_size, workers=protocol.compute.workers
        )
        for reader in splits
    )
    if protocol.whiten:
        fitted = whitening.fit(train)
        train, val = (whitening.whiten(split, *fitted) for split in (train, val))
    return classification_metrics.knn_votes(
        train, torch.from_numpy(splits[0].labels), val, num_classes=splits[0].num_classes, k=protocol.k,
        temperature=protocol.temperature, device=device,
    )  # fmt: skip


if __name__ == "__main__":
    stage.main(main)
