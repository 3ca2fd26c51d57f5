"""teacher: make a frozen self-supervised ViT, from whose patch tokens the stage `parts` learns.

    python -m stages.teacher

Reads  data/shards/<teacher.dataset> for training, data/shards/<teacher.online_eval.dataset> for scores
Calls  mae_loop.pretrain (source mae), ibot_loop.distill (ibot), teacher.from_timm (timm), teacher.from_encoder (semmae)
Writes data/teacher/: teacher.safetensors, teacher.json, history.json; results/teacher/: metrics.json and curves
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
from semmae.core.config import STRICT, PositiveBelow1, load_config
from semmae.core.digests import file_digest
from semmae.core.paths import raw_path
from semmae.core.rng import fold
from semmae.data.dataset import Reader, verify_shards
from semmae.models import teacher, vit
from semmae.runs.fingerprint import artifact_params
from semmae.runs.history_files import write_history
from semmae.runs.run import Run
from semmae.training import ibot_loop, mae_loop
from semmae.training.online_eval import OnlineEvalConfig, OnlineEvaluator

OUT, RESULTS, SHARDS = Path("data/teacher"), Path("results/teacher"), Path("data/shards")


@dataclass(frozen=True, config=STRICT)
class TeacherMAEConfig:
    """Training of a teacher by MAE, with random masks."""

    mask_ratio: PositiveBelow1
    recipe: mae_loop.MAERecipe


@dataclass(frozen=True, config=STRICT)
class CheckpointFile:
    """A file of weights and its SHA-256."""

    path: str  # absolute, or relative to data/raw
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
    model: str  # a model of timm, for the source timm
    checkpoint: CheckpointFile | None  # published weights (timm), promoted weights (semmae), or initial weights (ibot)
    online_eval: OnlineEvalConfig
    compute: ComputeConfig


def main() -> None:
    """Train or load the teacher, as `teacher.source` selects."""
    section = load_config(TeacherConfig, "teacher")
    verify_shards(SHARDS / section.dataset)
    reader = Reader(SHARDS / section.dataset, "train")
    inputs = [file_digest(SHARDS / section.dataset / "shards.json")]
    minutes = section.checkpoint_minutes
    with (
        distributed.world(section.compute.device) as world,
        Run("teacher", world, out=OUT, params=section, inputs=inputs, checkpoint_minutes=minutes) as run,
    ):
        online_eval = OnlineEvaluator(
            section.online_eval, SHARDS / section.online_eval.dataset, img_size=section.img_size, device=world.device,
            pool="class" if section.source == "ibot" else "patch_mean", verbose=world.is_main,
        )  # fmt: skip
        network: vit.Network
        match section.source:
            case "mae":
                network, config = from_mae(section, reader, online_eval, world, run)
            case "ibot":
                network, config = from_ibot(section, reader, online_eval, world, run)
            case "timm":
                network, config = from_timm(section)
            case "semmae":
                network, config = from_semmae(section)
        online_eval.pool = "class" if config["class_token"] else "patch_mean"
        if world.is_main:
            origin: dict[str, Any] = {
                "source": section.source,
                "steps": run.num_steps,
                "params": artifact_params(section),
            }
            origin |= run.adopted
            with atomic_write(OUT) as folder:
                teacher.save_teacher(folder, network, config | origin)
                write_json(folder / "history.json", run.history)
            scores = online_eval.measure(network.to(world.device).eval())
            if run.history:
                scores["loss"] = run.history[-1]["loss"]
            write_json(RESULTS / "metrics.json", {"teacher": scores})
            write_history(RESULTS / "live", "teacher", run.history)


def from_mae(
    section: TeacherConfig, reader: Reader, online_eval: OnlineEvaluator, world: distributed.World, run: Run
) -> tuple[VisionTransformer, dict[str, Any]]:
    """Train an encoder by MAE. No loss reaches its class token, so its config marks the class token as untrained."""
    config = {"img_size": section.img_size, **vars(section.network)}
    torch.manual_seed(fold(section.seed, "encoder"))
    no_curriculum = mae_loop.CurriculumConfig(start=0.0, end=0.0, power=1.0)
    model = mae_loop.pretrain(
        section.mae.recipe,
        mae_loop.MaskingConfig(strategy="random", mask_ratio=section.mae.mask_ratio, curriculum=no_curriculum),
        vit.build(config),
        reader=reader.with_shuffle_shards(section.mae.recipe.shuffle_shards),
        maps=None,
        seed=section.seed,
        compute=section.compute,
        world=world,
        run=run,
        online_eval=online_eval.after_epoch,
    )
    return model.encoder, config | {"class_token": False, "mean": vit.MEAN, "std": vit.STD}


def from_ibot(
    section: TeacherConfig, reader: Reader, online_eval: OnlineEvaluator, world: distributed.World, run: Run
) -> tuple[VisionTransformer, dict[str, Any]]:
    """Train a ViT by iBOT, from random weights or from the encoder in `teacher.checkpoint`."""
    config = {"img_size": section.img_size, **vars(section.network)}
    network = ibot_loop.distill(
        section.ibot,
        section.network,
        img_size=section.img_size,
        reader=reader.with_shuffle_shards(section.ibot.shuffle_shards),
        seed=section.seed,
        compute=section.compute,
        world=world,
        run=run,
        online_eval=online_eval.after_epoch,
        initial=None if section.checkpoint is None else _load_initial(section.checkpoint, config),
    )
    return network, config | {"class_token": True, "mean": vit.MEAN, "std": vit.STD}


def _load_initial(checkpoint: CheckpointFile, config: dict[str, Any]) -> VisionTransformer:
    """Load the encoder that iBOT starts from; raise ValueError if its shape differs from teacher.network."""
    initial, initial_config = _load_encoder(checkpoint, config["img_size"])
    for key, value in config.items():
        if initial_config[key] != value:
            raise ValueError(
                f"teacher.checkpoint has {key} {initial_config[key]}, but teacher.network has {value}; make them equal"
            )
    return initial


def from_timm(section: TeacherConfig) -> tuple[vit.Network, dict[str, Any]]:
    """Load a timm model with timm's weights, or with the weights in `teacher.checkpoint`."""
    path, sha256 = None, None
    if section.checkpoint is not None:
        path, sha256 = raw_path(section.checkpoint.path), section.checkpoint.sha256
    return teacher.from_timm(section.model, img_size=section.img_size, checkpoint=path, sha256=sha256)


def from_semmae(section: TeacherConfig) -> tuple[VisionTransformer, dict[str, Any]]:
    """Load the encoder of an earlier run, which `semmae promote` has stored."""
    if section.checkpoint is None:
        raise ValueError(
            "teacher.source is semmae, but teacher.checkpoint is null; expected a file. Run semmae promote, and set "
            "the keys that it prints"
        )
    return _load_encoder(section.checkpoint, section.img_size)


def _load_encoder(checkpoint: CheckpointFile, img_size: int) -> tuple[VisionTransformer, dict[str, Any]]:
    return teacher.from_encoder(raw_path(checkpoint.path), checkpoint.sha256, img_size=img_size)


if __name__ == "__main__":
    stage.main(main)
