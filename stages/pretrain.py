"""pretrain: train SemMAE, a masked autoencoder whose masks follow the cached part maps.

    python -m stages.pretrain

Reads  data/shards/<pretrain.dataset>, data/part_maps/<pretrain.dataset>, the digests of data/teacher and data/parts,
       and data/shards/<pretrain.online_eval.dataset> to score the encoder
Calls  mae_loop.pretrain
Writes data/pretrain/: encoder.safetensors, encoder.json, decoder.safetensors, decoder.json, history.json;
       results/pretrain/: metrics.json and curves
"""

from pathlib import Path

import torch
from pydantic import NonNegativeFloat, PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core import distributed, hash_cache, stage
from semmae.core.atomic_files import atomic_write, write_json
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, load_config
from semmae.core.digests import file_digest
from semmae.core.model_files import model_digest
from semmae.core.rng import fold
from semmae.data.dataset import Reader, verify_shards
from semmae.models import mae, vit
from semmae.parts import part_maps
from semmae.runs.fingerprint import artifact_params
from semmae.runs.history_files import write_history
from semmae.runs.run import Run
from semmae.training import mae_loop
from semmae.training.online_eval import OnlineEvalConfig, OnlineEvaluator

OUT, RESULTS, SHARDS = Path("data/pretrain"), Path("results/pretrain"), Path("data/shards")
TEACHER, PARTS, PART_MAPS = Path("data/teacher"), Path("data/parts"), Path("data/part_maps")


@dataclass(frozen=True, config=STRICT)
class PretrainConfig:
    """The section `pretrain` of params.yaml."""

    dataset: str
    seed: int
    checkpoint_minutes: NonNegativeFloat
    img_size: PositiveInt
    encoder: mae_loop.ViTConfig
    masking: mae_loop.MaskingConfig
    recipe: mae_loop.MAERecipe
    online_eval: OnlineEvalConfig
    compute: ComputeConfig


def main() -> None:
    """Pretrain an encoder from scratch."""
    section = load_config(PretrainConfig, "pretrain")
    shards = SHARDS / section.dataset
    verify_shards(shards)
    reader = Reader(shards, "train").with_shuffle_shards(section.recipe.shuffle_shards)
    digests = {"teacher": model_digest(TEACHER, "teacher"), "parts": model_digest(PARTS, "parts")}
    maps = part_maps.join(PART_MAPS / section.dataset, reader, **digests)
    map_files = sorted((PART_MAPS / section.dataset).glob("*.parquet"))
    inputs = [file_digest(shards / "shards.json"), *digests.values(), *map(hash_cache.cached_digest, map_files)]
    minutes = section.checkpoint_minutes
    with (
        distributed.world(section.compute.device) as world,
        Run("pretrain", world, out=OUT, params=section, inputs=inputs, checkpoint_minutes=minutes) as run,
    ):
        online_eval = OnlineEvaluator(
            section.online_eval, SHARDS / section.online_eval.dataset, pool="patch_mean", img_size=section.img_size,
            device=world.device, verbose=world.is_main,
        )  # fmt: skip
        config = {"img_size": section.img_size, **vars(section.encoder)}
        torch.manual_seed(fold(section.seed, "encoder"))
        model = mae_loop.pretrain(
            section.recipe,
            section.masking,
            vit.build(config),
            reader=reader,
            maps=maps,
            seed=section.seed,
            compute=section.compute,
            world=world,
            run=run,
            online_eval=online_eval.after_epoch,
        )
        if world.is_main:
            origin = {"mean": vit.MEAN, "std": vit.STD, "steps": run.num_steps, "params": artifact_params(section)}
            origin |= run.adopted
            decoder = vars(section.recipe.decoder) | {"norm_pix_loss": section.recipe.norm_pix_loss}
            with atomic_write(OUT) as folder:
                mae.save(folder, model, encoder=config | origin, decoder=decoder)
                write_json(folder / "history.json", run.history)
            scores = {name: value for name, value in run.history[-1].items() if name != "epoch"}
            write_json(RESULTS / "metrics.json", {"pretrain": scores})
            write_history(RESULTS / "live", "pretrain", run.history)


if __name__ == "__main__":
    stage.main(main)
