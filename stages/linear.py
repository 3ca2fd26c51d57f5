"""linear: a linear probe of frozen features, beside thumbnails, an untrained encoder and the teacher.

    python -m stages.linear <dataset>

Reads  data/pretrain (encoder), data/teacher, data/shards/<dataset>: the probe learns on train, val is scored once
Calls  features.extract, heads.linear_probe, metrics.classification
Writes results/linear/<dataset>.json, and <dataset>.tsv: the curve of the chosen learning rate on a part of train
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from semmae import artifact, baselines, dist, features, heads, metrics, params, stage, subsets, teacher, vit
from semmae.params import STRICT
from semmae.reader import Reader

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class Protocol:
    """How every dataset is scored."""

    base_lrs: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
    holdout: Share  # of train, to choose the learning rate
    epochs: Positive
    warmup_epochs: Annotated[int, Field(ge=0)]
    views: Positive  # random crops per training image; epoch e shows view e modulo views
    batch_size: Positive  # of SGD
    pool: features.Pool
    baselines: bool
    seed: int
    encode_batch_size: Positive
    workers: Annotated[int, Field(ge=0)]
    device: dist.Device
    precision: dist.Precision


@dataclass(frozen=True, config=STRICT)
class Dataset:
    """What a dataset sets for itself; null or absent: as in the protocol."""

    epochs: Positive | None = None


@dataclass(frozen=True, config=STRICT)
class Linear:
    """The section `linear` of params.yaml."""

    protocol: Protocol
    datasets: dict[str, Dataset]


def main() -> None:
    """Probe the dataset named on the command line."""
    section = params.load(Linear, "linear")
    name = " ".join(sys.argv[1:])
    if name not in section.datasets:
        raise ValueError(f"linear has no dataset {name!r}; params.yaml has {', '.join(section.datasets) or 'none'}")
    protocol = replace(section.protocol, epochs=section.datasets[name].epochs or section.protocol.epochs)
    splits = features.labelled_splits(Path("data/shards") / name)
    network, config = vit.load(Path("data/pretrain"))
    device = dist.choose_device(protocol.device)
    how: dict[str, Any] = {"pool": protocol.pool, "device": device, "precision": protocol.precision}
    encode = features.pooled(network, **how)
    scores, history = probed(encode, config["img_size"], splits, protocol, device)
    if protocol.baselines:
        lines = baselines.beside(config, teacher.load(Path("data/teacher")), seed=protocol.seed, **how)
        for line, (encode, img_size) in lines.items():
            scores[line] = {"top1": probed(encode, img_size, splits, protocol, device)[0]["top1"]}
    out = Path("results/linear")
    artifact.write_json(out / f"{name}.json", {"linear": {name: scores}})
    with artifact.replacing(out / f"{name}.tsv") as temporary:
        pd.DataFrame(history).to_csv(temporary, sep="\t", index=False)
    beside = "".join(f", {line} {scores[line]['top1']:.3f}" for line in scores if isinstance(scores[line], dict))
    print(f"{name}: linear top-1 {scores['top1']:.3f} ± {scores['standard_error']:.3f}{beside}")


def probed(
    encode: features.Encode, img_size: int, splits: tuple[Reader, Reader], protocol: Protocol, device: torch.device
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The scores of val under the probe, and the curve by which its learning rate was chosen."""
    train, val = splits
    labels, val_labels = (torch.from_numpy(reader.labels) for reader in splits)
    held_out = subsets.stratified_split(train.labels, share=protocol.holdout, seed=protocol.seed)
    sizes = {"img_size": img_size, "batch_size": protocol.encode_batch_size, "workers": protocol.workers}
    probe = heads.linear_probe(
        heads.Samples(features.extract(encode, train, views=protocol.views, seed=protocol.seed, **sizes), labels),
        features.extract(encode, val, **sizes),
        num_classes=train.num_classes,
        base_lrs=sorted(protocol.base_lrs),
        recipe=heads.Recipe(protocol.epochs, protocol.warmup_epochs, protocol.batch_size, protocol.seed, device),
        held_out=held_out,
        holdout=heads.Samples(features.extract(encode, train.select(held_out), **sizes)[None], labels[held_out]),
    )
    return metrics.classification(probe.scores, val_labels) | {"base_lr": probe.base_lr}, probe.history


if __name__ == "__main__":
    stage.main(main)
