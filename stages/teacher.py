"""teacher: a frozen self-supervised ViT, learned on your own shards, an encoder of an earlier run, or taken from timm.

    python -m stages.teacher

Reads  data/shards/<teacher.dataset>, and data/shards/<teacher.online_eval.dataset> to watch the quality of the tokens
Calls  pretraining.pretrain (mae), distillation.distil (ibot), teacher.from_timm or teacher.from_encoder (semmae)
Writes data/teacher/: teacher.safetensors, teacher.json, history.json; results/teacher/: metrics.json and the curves
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer

from semmae.core import distributed, stage
from semmae.core.atomic_files import atomic_write, write_json
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, Share, load_config
from semmae.core.digests import file_digest
from semmae.core.paths import raw_path
from semmae.core.rng import fold
from semmae.data.dataset import Reader, verify_shards
from semmae.models import teacher, vit
from semmae.runs import run
from semmae.runs.fingerprint import artifact_params
from semmae.runs.history_files import write_history
from semmae.training import ibot_loop, mae_loop
from semmae.training.online_eval import OnlineEvalConfig, OnlineEvaluator

OUT, RESULTS, SHARDS = Path("data/teacher"), Path("results/teacher"), Path("data/shards")


@dataclass(frozen=True, config=STRICT)
class TeacherMAEConfig:
    """Plain MAE: random masks."""

    mask_ratio: Share
    recipe: mae_loop.MAERecipe


@dataclass(frozen=True, config=STRICT)
class CheckpointFile:
    """A file that a user brings, and its digest."""

    path: str
    sha256: str


@dataclass(frozen=True, config=STRICT)
class TeacherConfig:
    """The section `teacher` of params.yaml."""

    dataset: str
    source: Literal["mae", "ibot", "timm", "semmae"]
    seed: int
    checkpoint_minutes: NonNegativeFloat
    img_size: PositiveInt
    network: mae_loop.ViTConfig
    mae: TeacherMAEConfig
    ibot: ibot_loop.IBOTRecipe
    model: str
    checkpoint: CheckpointFile | None
    online_eval: OnlineEvalConfig
    compute: ComputeConfig


def main() -> None:
    """Freeze a teacher from the source that teacher.source names."""
    section = load_config(TeacherConfig, "teacher")
    verify_shards(SHARDS / section.dataset)
    reader = Reader(SHARDS / section.dataset, "train")
    inputs = [file_digest(SHARDS / section.dataset / "shards.json")]
    minutes = section.checkpoint_minutes
    with (
        distributed.world(section.compute.device) as world,
        run.Run("teacher", world, out=OUT, params=section, inputs=inputs, checkpoint_minutes=minutes) as now,
    ):
        watch = OnlineEvaluator(
            section.online_eval, SHARDS / section.online_eval.dataset, img_size=section.img_size, device=world.device,
            pool="class" if section.source == "ibot" else "patch_mean", shown=world.is_main,
        )  # fmt: skip
        source = {"mae": from_mae, "ibot": from_ibot, "timm": from_timm, "semmae": from_semmae}[section.source]
        network, config = source(section, reader, watch, world, now)
        watch.pool = "class" if config["class_token"] else "patch_mean"
        if world.is_main:
            with atomic_write(OUT) as folder:
                described = {"source": section.source, "params": artifact_params(section)} | now.adopted
                teacher.save_teacher(folder, network, config | described)
                write_json(folder / "history.json", now.history)
            quality = watch.measure(network.eval()) | ({"loss": now.history[-1]["loss"]} if now.history else {})
            write_json(RESULTS / "metrics.json", {"teacher": quality})
            write_history(RESULTS / "live", "teacher", now.history)


def from_mae(
    section: TeacherConfig, reader: Reader, watch: OnlineEvaluator, world: distributed.World, now: run.Run
) -> tuple[vit.Network, dict[str, Any]]:
    """A masked autoencoder's encoder. Nothing trains its class token, so it is not offered as one."""
    config = {"img_size": section.img_size, **vars(section.network)}
    torch.manual_seed(fold(section.seed, "encoder"))
    reader = reader.with_shuffle_shards(section.mae.recipe.shuffle_shards)
    unused = mae_loop.CurriculumConfig(start=0.0, end=0.0, power=1.0)
    model = mae_loop.pretrain(
        section.mae.recipe,
        mae_loop.MaskingConfig(strategy="random", mask_ratio=section.mae.mask_ratio, curriculum=unused),
        vit.build(config), reader=reader, maps=None, seed=section.seed, compute=section.compute, world=world, run=now,
        measure=watch.after_epoch,
    )  # fmt: skip
    return model.encoder, config | {"class_token": False, "mean": vit.MEAN, "std": vit.STD}


def from_ibot(
    section: TeacherConfig, reader: Reader, watch: OnlineEvaluator, world: distributed.World, now: run.Run
) -> tuple[vit.Network, dict[str, Any]]:
    """The teacher at the end of self-distillation, which begins at an encoder of ours where there is a checkpoint."""
    config, start = {"img_size": section.img_size, **vars(section.network)}, None
    if section.checkpoint is not None:
        start, begun = from_encoder(section.checkpoint, section.img_size)
        if other := [key for key in config if begun[key] != config[key]]:
            raise ValueError(
                f"teacher.checkpoint has {other[0]} {begun[other[0]]}, teacher has {config[other[0]]}; make them equal"
            )
    reader = reader.with_shuffle_shards(section.ibot.shuffle_shards)
    network = ibot_loop.distill(
        section.ibot, section.network, img_size=section.img_size, reader=reader, seed=section.seed,
        compute=section.compute, world=world, run=now, measure=watch.after_epoch, start=start,
    )  # fmt: skip
    return network, config | {"class_token": True, "mean": vit.MEAN, "std": vit.STD}


def from_timm(
    section: TeacherConfig, reader: Reader, watch: OnlineEvaluator, world: distributed.World, now: run.Run
) -> tuple[vit.Network, dict[str, Any]]:
    """A timm model with timm's weights, or with those of a checkpoint whose digest is the one in params.yaml."""
    file, sha256 = None, None
    if section.checkpoint is not None:
        file, sha256 = raw_path(section.checkpoint.path), section.checkpoint.sha256
    network, config = teacher.from_timm(section.model, img_size=section.img_size, checkpoint=file, sha256=sha256)
    return network.to(world.device), config


def from_semmae(
    section: TeacherConfig, reader: Reader, watch: OnlineEvaluator, world: distributed.World, now: run.Run
) -> tuple[vit.Network, dict[str, Any]]:
    """The encoder of an earlier run, which `semmae promote` has kept."""
    if section.checkpoint is None:
        raise ValueError("teacher.source is semmae, but teacher.checkpoint is null; semmae promote prints what to set")
    network, config = from_encoder(section.checkpoint, section.img_size)
    return network.to(world.device), config


def from_encoder(checkpoint: CheckpointFile, img_size: int) -> tuple[VisionTransformer, dict[str, Any]]:
    """The encoder in a file under data/raw, or elsewhere, whose digest is known."""
    return teacher.from_encoder(raw_path(checkpoint.path), checkpoint.sha256, img_size=img_size)


if __name__ == "__main__":
    stage.main(main)
