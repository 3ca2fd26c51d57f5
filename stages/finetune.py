"""finetune: the pretrained encoder, trained end to end to classify, beside the same network without pretraining.

    python -m stages.finetune <dataset>

Reads  data/pretrain (encoder), data/shards/<dataset>: the classifier learns on train; val chooses nothing, the last
       epoch is reported
Calls  classifier.from_encoder, finetuning.finetune, metrics.classification
Writes data/finetune/<dataset>/: classifier.safetensors, classifier.json;
       results/finetune/<dataset>.json, curves/<dataset>/, predictions/<dataset>.tsv
"""

from contextlib import ExitStack
from dataclasses import dataclass as plain
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semmae.core import distributed, stage
from semmae.core.atomic_files import atomic_write
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, load_config, with_overrides
from semmae.core.digests import file_digest
from semmae.core.model_files import model_digest
from semmae.data.dataset import Reader
from semmae.evaluation import baselines, classification_metrics, curve_files, features, predictions, scores, subsets
from semmae.evaluation.scores import Scores
from semmae.models import classifier, vit
from semmae.runs import run
from semmae.runs.fingerprint import artifact_params
from semmae.training import finetune_loop

OUT, RESULTS = Path("data/finetune"), Path("results/finetune")
SHARDS, PRETRAIN = Path("data/shards"), Path("data/pretrain")


@dataclass(frozen=True, config=STRICT)
class FinetuneProtocol:
    """How every dataset is fine-tuned and scored."""

    img_size: PositiveInt | None  # null: the encoder's
    pool: classifier.Pool
    recipe: finetune_loop.FinetuneRecipe
    eval_every_epochs: NonNegativeInt  # 0: after the last alone
    eval_batch_size: PositiveInt
    baselines: bool
    low_shot: list[subsets.Shots]
    seed: int
    checkpoint_minutes: NonNegativeFloat
    compute: ComputeConfig


@dataclass(frozen=True, config=STRICT)
class FinetuneRecipeOverrides:
    """The keys of the recipe that a dataset may set for itself."""

    epochs: PositiveInt | None = None
    base_lr: PositiveFloat | None = None


@dataclass(frozen=True, config=STRICT)
class FinetuneOverrides:
    """The keys of the protocol that a dataset may set for itself."""

    recipe: FinetuneRecipeOverrides | None = None
    low_shot: list[subsets.Shots] | None = None


@dataclass(frozen=True, config=STRICT)
class FinetuneConfig:
    """The section `finetune` of params.yaml."""

    protocol: FinetuneProtocol
    datasets: dict[str, FinetuneOverrides]


@plain
class Tuned:
    """A network after its training, its scores of val and its history."""

    model: VisionTransformer
    scores: Tensor
    labels: Tensor
    history: list[dict[str, float]]

    def measured(self) -> dict[str, float]:
        """The metrics of its scores."""
        return classification_metrics.classification(self.scores, self.labels)


def main() -> None:
    """Fine-tune on the dataset named on the command line."""
    section = load_config(FinetuneConfig, "finetune")
    name, own = stage.dataset_from_command_line(section.datasets, "finetune")
    protocol = with_overrides(section.protocol, own)
    train, val = features.labeled_splits(SHARDS / name)
    encoder, config = vit.load(PRETRAIN)
    config |= {"img_size": protocol.img_size or config["img_size"]}
    with distributed.world(protocol.compute.device) as world, ExitStack() as runs:
        curves: dict[str, curve_files.History] = {}

        def tuned(what: str, network: VisionTransformer, reader: Reader, **changed: Any) -> Tuned:
            if world.is_main:
                print(f"{name}: {what}, {len(reader)} images to learn from", flush=True)
            now = run.Run(
                "finetune", world, out=OUT / name / what, params=protocol, inputs=[*inputs(name), what],
                checkpoint_minutes=protocol.checkpoint_minutes,
            )  # fmt: skip
            runs.enter_context(now)  # its checkpoints stay until all is done
            how = replace(protocol, recipe=replace(protocol.recipe, **changed))
            splits = (reader.with_shuffle_shards(protocol.recipe.shuffle_shards), val)
            result = trained(how, network, config, splits=splits, world=world, now=now)
            curves[what] = result.history
            return result

        result = tuned("encoder", encoder, train)
        baseline_metrics, low_shot = {}, {}
        if protocol.baselines:
            fresh = baselines.untrained(config, seed=protocol.seed)
            assert isinstance(fresh, VisionTransformer)
            bare = tuned("untrained", fresh, train, layer_decay=1.0)  # no layer has anything to keep
            baseline_metrics["untrained"] = classification_metrics.baseline_classification(bare.scores, bare.labels)
        for shots in protocol.low_shot:
            few = train.select(subsets.low_shot(train.labels, shots, seed=protocol.seed))
            low_shot[shots.name] = tuned(shots.name, encoder, few).measured()
        if world.is_main:
            evaluated = Scores(result.measured(), baseline_metrics, low_shot=low_shot)
            write(name, protocol, config, result, evaluated, curves, val)


def inputs(name: str) -> list[str]:
    """The digests of what the stage reads."""
    return [file_digest(SHARDS / name / "shards.json"), model_digest(PRETRAIN, "encoder")]


def trained(
    protocol: FinetuneProtocol, encoder: VisionTransformer, config: dict[str, Any], *, splits: tuple[Reader, Reader],
    world: distributed.World, now: run.Run,
) -> Tuned:  # fmt: skip
    """Fine-tune a copy of `encoder` on train, and score val."""
    train, val = splits
    model = classifier.from_encoder(
        encoder, config, num_classes=train.num_classes, pool=protocol.pool, drop_path=protocol.recipe.drop_path,
        seed=protocol.seed,
    )  # fmt: skip
    validation = finetune_loop.Validation(
        val, img_size=config["img_size"], batch_size=protocol.eval_batch_size,
        every_epochs=protocol.eval_every_epochs, compute=protocol.compute, world=world,
    )  # fmt: skip
    model = finetune_loop.finetune(
        protocol.recipe, model, reader=train, seed=protocol.seed, compute=protocol.compute, world=world, run=now,
        validation=validation,
    )  # fmt: skip
    scores = validation.scores(model) if validation.last is None else validation.last  # None: stopped after all steps
    return Tuned(model, scores, validation.labels, now.history)


def write(
    name: str, protocol: FinetuneProtocol, config: dict[str, Any], result: Tuned, evaluated: Scores,
    curves: dict[str, curve_files.History], val: Reader,
) -> None:  # fmt: skip
    """The classifier, its scores, its curves and what it says of every sample of val."""
    shape = {key: config[key] for key in vit.CONFIG_KEYS}
    known = {"pool": protocol.pool, "class_names": val.class_names, "mean": vit.MEAN, "std": vit.STD}
    with atomic_write(OUT / name) as folder:
        classifier.save(folder, result.model, shape | known | {"params": artifact_params(protocol)})
    scores.write(RESULTS / f"{name}.json", evaluated)
    curve_files.write(RESULTS / "curves" / name, curves)
    predictions.write(
        RESULTS / f"predictions/{name}.tsv", val.keys, result.scores, result.labels, val.class_names, logits=False
    )
    print(f"{name}: fine-tuned {classification_metrics.summary(evaluated)}")


if __name__ == "__main__":
    stage.main(main)
