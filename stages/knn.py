"""knn: weighted nearest neighbours on frozen features, beside thumbnails, an untrained encoder and the teacher.

    python -m stages.knn <dataset>

Reads  data/pretrain (encoder), data/teacher, data/shards/<dataset>: train votes, val is scored
Calls  features.extract, metrics.knn_votes, metrics.classification
Writes results/knn/<dataset>.json
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from semmae import artifact, baselines, dist, features, metrics, params, stage, teacher, vit
from semmae.params import STRICT
from semmae.reader import Reader

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=STRICT)
class Protocol:
    """How every dataset is scored."""

    k: Positive
    temperature: Annotated[float, Field(gt=0)]
    pool: features.Pool
    baselines: bool
    seed: int  # of the untrained encoder
    batch_size: Positive
    workers: Annotated[int, Field(ge=0)]
    device: dist.Device
    precision: dist.Precision


@dataclass(frozen=True, config=STRICT)
class Dataset:
    """Nothing differs between datasets."""


@dataclass(frozen=True, config=STRICT)
class Knn:
    """The section `knn` of params.yaml."""

    protocol: Protocol
    datasets: dict[str, Dataset]


def main() -> None:
    """Score the dataset named on the command line."""
    section = params.load(Knn, "knn")
    protocol, name = section.protocol, " ".join(sys.argv[1:])
    if name not in section.datasets:
        raise ValueError(f"knn has no dataset {name!r}; params.yaml has {', '.join(section.datasets) or 'none'}")
    splits = features.labelled_splits(Path("data/shards") / name)
    network, config = vit.load(Path("data/pretrain"))
    device = dist.choose_device(protocol.device)
    how: dict[str, Any] = {"pool": protocol.pool, "device": device, "precision": protocol.precision}
    encode = features.pooled(network, **how)
    scores = scored(encode, config["img_size"], splits, protocol, device)
    if protocol.baselines:
        lines = baselines.beside(config, teacher.load(Path("data/teacher")), seed=protocol.seed, **how)
        for line, (encode, img_size) in lines.items():
            scores[line] = {"top1": scored(encode, img_size, splits, protocol, device)["top1"]}
    artifact.write_json(Path("results/knn") / f"{name}.json", {"knn": {name: scores}})
    beside = "".join(f", {line} {scores[line]['top1']:.3f}" for line in scores if isinstance(scores[line], dict))
    print(f"{name}: kNN top-1 {scores['top1']:.3f} ± {scores['standard_error']:.3f}{beside}")


def scored(
    encode: features.Encode, img_size: int, splits: tuple[Reader, Reader], protocol: Protocol, device: torch.device
) -> dict[str, Any]:
    """The scores of val when train votes."""
    train, val = (
        features.extract(encode, reader, img_size=img_size, batch_size=protocol.batch_size, workers=protocol.workers)
        for reader in splits
    )
    train_labels, val_labels = (torch.from_numpy(reader.labels) for reader in splits)
    votes = metrics.knn_votes(
        train.to(device), train_labels.to(device), val.to(device),
        num_classes=splits[0].num_classes, k=protocol.k, temperature=protocol.temperature,
    )  # fmt: skip
    return metrics.classification(votes.cpu(), val_labels)


if __name__ == "__main__":
    stage.main(main)
