"""attentive: an attentive probe of frozen patch tokens, beside that of an untrained encoder and of the teacher.

    python -m stages.attentive <dataset>

Reads  data/pretrain (encoder), data/teacher, data/shards/<dataset>: heads learn on a part of train, the rest chooses
       one of them, val is scored once
Calls  features.seen, attentive.Bank, metrics.classification, predictions.write
Writes results/attentive/<dataset>.json; curves/<dataset>/: those of the chosen head; predictions/<dataset>.tsv: every
       answer beside the truth
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core import async_copy, distributed, optim, stage
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, Betas, Share, load_config, with_overrides
from semmae.core.digests import file_digest
from semmae.core.model_files import model_digest
from semmae.data.dataset import Reader
from semmae.evaluation import (
    attentive_heads,
    baselines,
    classification_metrics,
    curve_files,
    features,
    predictions,
    scores,
    subsets,
)
from semmae.evaluation.scores import Scores
from semmae.models import teacher, vit
from semmae.runs import run

OUT, PRETRAIN, TEACHER = Path("results/attentive"), Path("data/pretrain"), Path("data/teacher")


@dataclass(frozen=True, config=STRICT)
class AttentiveProtocol:
    """How every dataset is scored."""

    queries: PositiveInt  # of a head; they divide the width of the tokens among them
    base_lrs: Annotated[list[PositiveFloat], Field(min_length=1)]
    weight_decays: Annotated[list[NonNegativeFloat], Field(min_length=1)]
    holdout: Share  # of train, to choose the head
    epochs: PositiveInt
    warmup_epochs: NonNegativeInt
    batch_size: PositiveInt  # over all processes
    shuffle_shards: PositiveInt | None  # shards whose samples are mixed at a time; null: all
    betas: Betas
    baselines: bool
    seed: int
    checkpoint_minutes: NonNegativeFloat
    compute: ComputeConfig


@dataclass(frozen=True, config=STRICT)
class AttentiveOverrides:
    """What a dataset sets for itself; null or absent: as in the protocol."""

    epochs: PositiveInt | None = None


@dataclass(frozen=True, config=STRICT)
class AttentiveConfig:
    """The section `attentive` of params.yaml."""

    protocol: AttentiveProtocol
    datasets: dict[str, AttentiveOverrides]


def main() -> None:
    """Probe the dataset named on the command line."""
    section = load_config(AttentiveConfig, "attentive")
    name, own = stage.dataset_from_command_line(section.datasets, "attentive")
    protocol = with_overrides(section.protocol, own)
    shards, minutes = Path("data/shards") / name, protocol.checkpoint_minutes
    train, val = features.labeled_splits(shards)
    network, config = vit.load(PRETRAIN)
    inputs = [file_digest(shards / "shards.json"), model_digest(PRETRAIN, "encoder")]
    with distributed.world(protocol.compute.device) as world:
        how: dict[str, Any] = {"device": world.device, "precision": protocol.compute.precision}
        lines = {"encoder": (features.seen(network, **how), config["img_size"])}
        if protocol.baselines:
            inputs.append(model_digest(TEACHER, "teacher"))
            lines |= baselines.tokens_beside(config, teacher.load_teacher(TEACHER), seed=protocol.seed, **how)
        probes = {line: AttentiveProbe(*look, train.num_classes, protocol, world) for line, look in lines.items()}
        with run.Run(
            "attentive", world, out=OUT / name, params=protocol, inputs=inputs, checkpoint_minutes=minutes
        ) as now:
            learn(probes, train, protocol, world, now)
            if world.is_main:
                write(name, probes, val, now)


class AttentiveProbe:
    """A frozen network and the bank of heads that learns from its patch tokens."""

    def __init__(
        self, see: features.See, img_size: int, num_classes: int, protocol: AttentiveProtocol, world: distributed.World
    ) -> None:
        self.see, self.img_size, self.world, self.precision = see, img_size, world, protocol.compute.precision
        width = see(torch.zeros(1, 3, img_size, img_size, dtype=torch.uint8))[1].shape[2]
        self.settings = attentive_heads.grid(protocol.base_lrs, protocol.weight_decays)
        self.bank = attentive_heads.AttentiveHeads(
            width, num_classes, num_heads=len(self.settings), queries=protocol.queries, seed=protocol.seed
        ).to(world.device)
        protocol.compute.compile_in_place(self.bank)
        self.parallel = distributed.parallel(self.bank, world)
        self.optimizer = attentive_heads.adamw(self.bank, self.settings, betas=protocol.betas)
        self.curve = attentive_heads.Curve(len(self.settings), world.device)
        self.extract = partial(
            features.extract, img_size=img_size, batch_size=protocol.batch_size, workers=protocol.compute.workers
        )

    @property
    def state(self) -> dict[str, run.Stateful]:
        """What a checkpoint keeps."""
        return {"bank": self.bank, "optimizer": self.optimizer, "curve": self.curve}

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One update of every head; their losses before it. One that diverges harms no other."""
        _, tokens = self.see(images)
        with distributed.autocast(self.world.device, self.precision):
            logits = self.parallel.train()(tokens)
        losses = attentive_heads.losses(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self.optimizer.step()
        return losses.detach()

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """What every head says of images, (b, heads, classes)."""
        _, tokens = self.see(images)
        with distributed.autocast(self.world.device, self.precision):
            return self.bank.eval()(tokens).float()

    def top1(self, reader: Reader) -> list[float]:
        """The accuracy of every head on a reader's samples."""
        found = self.extract(lambda images: self.logits(images).argmax(2).float(), reader)
        return (found == torch.from_numpy(reader.labels)[:, None]).double().mean(0).tolist()

    def scores(self, reader: Reader, now: run.Run) -> torch.Tensor:
        """The logits of the chosen head, (n, classes)."""

        def chosen(images: torch.Tensor) -> torch.Tensor:
            now.exit_if_stopped()
            return self.logits(images)[:, self.curve.best]

        return self.extract(chosen, reader)


def learn(
    probes: dict[str, AttentiveProbe],
    train: Reader,
    protocol: AttentiveProtocol,
    world: distributed.World,
    now: run.Run,
) -> None:
    """Train every bank on the same crops of a part of train, and see after each epoch how its heads do on the rest."""
    held_out = subsets.stratified_split(train.labels, share=protocol.holdout, seed=protocol.seed)
    kept, holdout = train.select(np.setdiff1d(np.arange(len(train)), held_out)), train.select(held_out)
    kept = kept.with_shuffle_shards(protocol.shuffle_shards)
    views = features.RandomViews(tuple({probe.img_size for probe in probes.values()}), protocol.seed)
    state = {f"{line} {part}": owner for line, probe in probes.items() for part, owner in probe.state.items()}

    for step in now.steps(
        kept, views, batch_size=protocol.batch_size, epochs=protocol.epochs, seed=protocol.seed,
        workers=protocol.compute.workers, state=state,
    ):  # fmt: skip
        warmup = protocol.warmup_epochs * step.per_epoch
        schedule = optim.warmup_cosine(step.number, steps=step.steps, warmup=warmup, peak=1.0, end=0.0)
        labels, total = async_copy.to_device(world.device, step.batch["label"]), torch.zeros((), device=world.device)
        for line, probe in probes.items():
            rates = attentive_heads.set_rates(probe.optimizer, batch_size=protocol.batch_size, schedule=schedule)
            losses = distributed.mean(probe.step(step.batch[f"image{probe.img_size}"], labels), world)
            probe.curve.add(losses)
            total += losses.where(losses.isfinite(), torch.nan).nanmean()  # nan where every head has diverged
            if step.ends_epoch:
                probe.curve.close(lr=rates, holdout_top1=probe.top1(holdout))
                now.log(**{f"{line}_holdout_top1": max(probe.curve.rows[-1]["holdout_top1"])})
        now.record(loss=total / len(probes))


def write(name: str, probes: dict[str, AttentiveProbe], val: Reader, now: run.Run) -> None:
    """Score val by the chosen heads."""
    labels = torch.from_numpy(val.labels)
    logits = {line: probe.scores(val, now) for line, probe in probes.items()}
    encoder = probes["encoder"]
    result = Scores(
        classification_metrics.classification(logits["encoder"], labels) | encoder.settings[encoder.curve.best],
        {
            line: classification_metrics.baseline_classification(beside, labels)
            for line, beside in logits.items()
            if line != "encoder"
        },
    )
    scores.write(OUT / f"{name}.json", result)
    curve_files.write(OUT / "curves" / name, {line: probe.curve.history() for line, probe in probes.items()})
    predictions.write(OUT / f"predictions/{name}.tsv", val.keys, logits["encoder"], labels, val.class_names)
    print(f"{name}: attentive {classification_metrics.summary(result)}")


if __name__ == "__main__":
    stage.main(main)
