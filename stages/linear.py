"""linear: a linear probe of frozen features, compared with thumbnails, an untrained encoder and the teacher.

    python -m stages.linear <dataset>

Reads  data/pretrain (encoder), data/teacher, data/shards/<dataset>: the probe is trained on train and scored on val
Calls  LinearProbe, scores.write, curve_files.write, predictions.write; eval_cache keeps the features of a killed run
Writes results/linear/<dataset>.json; curves/<dataset>/: learning curves at the chosen rate, without the hold-out;
       predictions/<dataset>.tsv: the predicted class of every sample of val
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core import distributed, stage
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, load_config, with_overrides
from semmae.core.digests import file_digest
from semmae.core.model_files import model_digest
from semmae.evaluation import (
    baselines,
    classification_metrics,
    curve_files,
    eval_cache,
    features,
    predictions,
    score_comparison,
    scores,
    splits,
    subsets,
)
from semmae.evaluation.linear_probe import LinearProbe, LinearProbeConfig
from semmae.evaluation.scores import Scores
from semmae.models import teacher, vit

OUT, PRETRAIN, TEACHER = Path("results/linear"), Path("data/pretrain"), Path("data/teacher")


@dataclass(frozen=True, config=STRICT)
class LinearProtocol(LinearProbeConfig):
    """Settings that are the same for all datasets."""

    low_shot: list[subsets.Shots]
    pool: features.Pool
    baselines: bool
    compute: ComputeConfig


@dataclass(frozen=True, config=STRICT)
class LinearOverrides:
    """Settings for one dataset. A value that is null or absent is taken from the protocol."""

    epochs: PositiveInt | None = None
    low_shot: list[subsets.Shots] | None = None


@dataclass(frozen=True, config=STRICT)
class LinearConfig:
    """The section `linear` of params.yaml."""

    protocol: LinearProtocol
    datasets: dict[str, LinearOverrides]


def main() -> None:
    """Score the encoder on the dataset named on the command line."""
    section = load_config(LinearConfig, "linear")
    name, overrides = stage.dataset_from_command_line(section.datasets, "linear")
    protocol = with_overrides(section.protocol, overrides)
    shards = Path("data/shards") / name
    train, val = splits.open_labeled_splits(shards)
    network, config = vit.load(PRETRAIN)
    device = distributed.choose_device(protocol.compute.device)
    options: dict[str, Any] = {"pool": protocol.pool, "device": device, "precision": protocol.compute.precision}
    inputs = [file_digest(shards / "shards.json"), model_digest(PRETRAIN, "encoder")]
    encoders = {"encoder": (features.build_feature_encoder(network, **options), config["img_size"])}
    if protocol.baselines:
        inputs.append(model_digest(TEACHER, "teacher"))
        frozen_teacher = teacher.load_teacher(TEACHER)
        encoders |= baselines.build_feature_encoders(config, frozen_teacher, seed=protocol.seed, **options)

    with eval_cache.resumable_folder("linear", out=OUT / name, params=protocol, inputs=inputs) as folder:
        probes = {
            network_name: LinearProbe(
                encode,
                img_size,
                train=train,
                val=val,
                config=protocol,
                compute=protocol.compute,
                device=device,
                folder=folder / network_name,
            )
            for network_name, (encode, img_size) in encoders.items()
        }
        curves = {network_name: probe.choice.history for network_name, probe in probes.items()}
        encoder, labels = probes.pop("encoder"), torch.from_numpy(val.labels)
        result = Scores(
            classification_metrics.compute(encoder.logits, labels) | {"base_lr": encoder.choice.base_lr},
            {baseline: classification_metrics.compute_baseline(p.logits, labels) for baseline, p in probes.items()},
            low_shot={shots.name: encoder.score_low_shot(shots) for shots in protocol.low_shot},
        )
        scores.write(OUT / f"{name}.json", result)
        curve_files.write(OUT / "curves" / name, curves | encoder.low_shot_curves)
        predictions.write(OUT / f"predictions/{name}.tsv", val.keys, encoder.logits, labels, val.class_names)
    print(f"{name}: linear probe {score_comparison.format_top1(result)}")


if __name__ == "__main__":
    stage.main(main)
