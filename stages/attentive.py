"""attentive: an attentive probe of frozen patch tokens, compared with an untrained encoder and the teacher.

    python -m stages.attentive <dataset>

Reads  data/pretrain (encoder), data/teacher, data/shards/<dataset>: heads are trained on train without a hold-out;
       the head with the highest accuracy on the hold-out is scored on val
Calls  attentive_loop.train_probes, scores.write, curve_files.write, predictions.write
Writes results/attentive/<dataset>.json; curves/<dataset>/: learning curves of the chosen head;
       predictions/<dataset>.tsv: the predicted class of every sample of val
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core import distributed, stage
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, load_config, with_overrides
from semmae.core.digests import file_digest
from semmae.core.model_files import model_digest
from semmae.data.dataset import Reader
from semmae.evaluation import (
    baselines,
    classification_metrics,
    curve_files,
    features,
    predictions,
    score_comparison,
    scores,
    splits,
)
from semmae.evaluation.scores import Scores
from semmae.models import teacher, vit
from semmae.runs.run import Run
from semmae.training.attentive_loop import AttentiveProbe, AttentiveRecipe, train_probes

OUT, PRETRAIN, TEACHER = Path("results/attentive"), Path("data/pretrain"), Path("data/teacher")


@dataclass(frozen=True, config=STRICT)
class AttentiveProtocol(AttentiveRecipe):
    """Settings that are the same for all datasets."""

    baselines: bool
    checkpoint_minutes: NonNegativeFloat
    compute: ComputeConfig


@dataclass(frozen=True, config=STRICT)
class AttentiveOverrides:
    """Settings for one dataset. A value that is null or absent is taken from the protocol."""

    epochs: PositiveInt | None = None


@dataclass(frozen=True, config=STRICT)
class AttentiveConfig:
    """The section `attentive` of params.yaml."""

    protocol: AttentiveProtocol
    datasets: dict[str, AttentiveOverrides]


def main() -> None:
    """Score the encoder on the dataset named on the command line."""
    section = load_config(AttentiveConfig, "attentive")
    name, overrides = stage.dataset_from_command_line(section.datasets, "attentive")
    protocol = with_overrides(section.protocol, overrides)
    shards, compute = Path("data/shards") / name, protocol.compute
    train, val = splits.open_labeled_splits(shards)
    network, config = vit.load(PRETRAIN)
    inputs = [file_digest(shards / "shards.json"), model_digest(PRETRAIN, "encoder")]
    with distributed.world(compute.device) as world:
        options: dict[str, Any] = {"device": world.device, "precision": compute.precision}
        encoders = {"encoder": (features.build_token_encoder(network, **options), config["img_size"])}
        if protocol.baselines:
            inputs.append(model_digest(TEACHER, "teacher"))
            frozen_teacher = teacher.load_teacher(TEACHER)
            encoders |= baselines.build_token_encoders(config, frozen_teacher, seed=protocol.seed, **options)
        probes = {
            network_name: AttentiveProbe(
                encode_tokens,
                img_size,
                num_classes=train.num_classes,
                recipe=protocol,
                compute=compute,
                world=world,
            )
            for network_name, (encode_tokens, img_size) in encoders.items()
        }
        with Run(
            "attentive",
            world,
            out=OUT / name,
            params=protocol,
            inputs=inputs,
            checkpoint_minutes=protocol.checkpoint_minutes,
        ) as run:
            train_probes(probes, train, protocol, compute=compute, world=world, run=run)
            if world.is_main:
                write_results(name, probes, val, run)


def write_results(name: str, probes: dict[str, AttentiveProbe], val: Reader, run: Run) -> None:
    """Score the best heads on val; write scores, curves and predictions."""
    labels = torch.from_numpy(val.labels)
    logits = {network_name: probe.predict_all(val, run) for network_name, probe in probes.items()}
    encoder_logits = logits.pop("encoder")
    result = Scores(
        classification_metrics.compute(encoder_logits, labels) | probes["encoder"].best_setting,
        {baseline: classification_metrics.compute_baseline(x, labels) for baseline, x in logits.items()},
    )
    scores.write(OUT / f"{name}.json", result)
    curve_files.write(OUT / "curves" / name, {n: probe.curves.history() for n, probe in probes.items()})
    predictions.write(OUT / f"predictions/{name}.tsv", val.keys, encoder_logits, labels, val.class_names)
    print(f"{name}: attentive probe {score_comparison.format_top1(result)}")


if __name__ == "__main__":
    stage.main(main)
