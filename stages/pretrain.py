"""pretrain: SemMAE, a masked autoencoder whose masks follow the cached part maps, from a share of each part to whole
parts.

    python -m stages.pretrain

Reads  data/shards/<pretrain.dataset>, data/part_maps/<pretrain.dataset>, data/teacher and data/parts (their
digests), and data/shards/<pretrain.online_eval.dataset> to watch the encoder
Calls  pretraining.pretrain
Writes data/pretrain/: encoder.safetensors, encoder.json, decoder.safetensors, decoder.json, history.json;
       results/pretrain/: metrics.json and the curves
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
from semmae.runs import run
from semmae.runs.fingerprint import artifact_params
from semmae.runs.history_files import write_history
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
    made_by = {
        "teacher": model_digest(TEACHER, "teacher"),
        "parts": model_digest(PARTS, "parts"),
    }
    maps = part_maps.join(PART_MAPS / section.dataset, reader, **made_by)
    files = sorted((PART_MAPS / section.dataset).glob("*.parquet"))
    inputs = [file_digest(shards / "shards.json"), *made_by.values(), *map(hash_cache.cached_digest, files)]
    minutes = section.checkpoint_minutes
    with (
        distributed.world(section.compute.device) as world,
        run.Run("pretrain", world, out=OUT, params=section, inputs=inputs, checkpoint_minutes=minutes) as now,
    ):
        watch = OnlineEvaluator(
            section.online_eval, SHARDS / section.online_eval.dataset, pool="patch_mean", img_size=section.img_size,
            device=world.device, shown=world.is_main,
        )  # fmt: skip
        config = {"img_size": section.img_size, **vars(section.encoder)}
        torch.manual_seed(fold(section.seed, "encoder"))
        model = mae_loop.pretrain(
            section.recipe, section.masking, vit.build(config), reader=reader, maps=maps, seed=section.seed,
            compute=section.compute, world=world, run=now, measure=watch.after_epoch,
        )  # fmt: skip
        if world.is_main:
            with atomic_write(OUT) as folder:
                encoder = config | {"mean": vit.MEAN, "std": vit.STD, "params": artifact_params(section)} | now.adopted
                decoder = vars(section.recipe.decoder) | {"norm_pix_loss": section.recipe.norm_pix_loss}
                mae.save(folder, model, encoder=encoder, decoder=decoder)
                write_json(folder / "history.json", now.history)
            final = {name: value for name, value in now.history[-1].items() if name != "epoch"}
            write_json(RESULTS / "metrics.json", {"pretrain": final})
            write_history(RESULTS / "live", "pretrain", now.history)


if __name__ == "__main__":
    stage.main(main)
