"""finetune: fine-tune the encoder end to end as a classifier; compare it with the same network without pretraining.

    python -m stages.finetune <dataset>

Reads  data/pretrain (encoder), data/shards/<dataset>: the classifier is trained on train and scored on val after the
       last epoch
Calls  classifier.from_encoder, finetune_loop.finetune, scores.write, curve_files.write, predictions.write
Writes data/finetune/<dataset>/: classifier.safetensors, classifier.json; results/finetune/<dataset>.json;
       curves/<dataset>/: learning curves; predictions/<dataset>.tsv: the predicted class of every sample of val
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Float, Integer
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as pydantic_dataclass
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from semmae.core import distributed, stage
from semmae.core.atomic_files import atomic_write
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, load_config, with_overrides
from semmae.core.digests import file_digest
from semmae.core.model_files import model_digest
from semmae.data.dataset import Reader
from semmae.evaluation import (
    baselines,
    classification_metrics,
    curve_files,
    predictions,
    score_comparison,
    scores,
    splits,
    subsets,
)
from semmae.evaluation.scores import Scores
from semmae.models import classifier, vit
from semmae.runs.fingerprint import artifact_params
from semmae.runs.run import Run
from semmae.training import finetune_loop

OUT, RESULTS = Path("data/finetune"), Path("results/finetune")
SHARDS, PRETRAIN = Path("data/shards"), Path("data/pretrain")


@pydantic_dataclass(frozen=True, config=STRICT)
class FinetuneProtocol:
    """Settings that are the same for all datasets."""

    img_size: PositiveInt | None  # null: the image size of the encoder
    pool: classifier.Pool
    recipe: finetune_loop.FinetuneRecipe
    eval_every_epochs: NonNegativeInt  # 0: after the last epoch only
    eval_batch_size: PositiveInt
    baselines: bool
    low_shot: list[subsets.Shots]
    seed: int
    checkpoint_minutes: NonNegativeFloat
    compute: ComputeConfig


@pydantic_dataclass(frozen=True, config=STRICT)
class FinetuneRecipeOverrides:
    """Settings of the recipe for one dataset. A value that is null or absent is taken from the protocol."""

    epochs: PositiveInt | None = None
    base_lr: PositiveFloat | None = None


@pydantic_dataclass(frozen=True, config=STRICT)
class FinetuneOverrides:
    """Settings for one dataset. A value that is null or absent is taken from the protocol."""

    recipe: FinetuneRecipeOverrides | None = None
    low_shot: list[subsets.Shots] | None = None


@pydantic_dataclass(frozen=True, config=STRICT)
class FinetuneConfig:
    """The section `finetune` of params.yaml."""

    protocol: FinetuneProtocol
    datasets: dict[str, FinetuneOverrides]


class FinetunedClassifier(NamedTuple):
    """A trained classifier with its class probabilities for val, the labels of val, and its learning curve."""

    model: VisionTransformer
    probabilities: Float[Tensor, "n c"]
    labels: Integer[Tensor, " n"]
    history: curve_files.History


@dataclass(frozen=True)
class FinetuneTask:
    """The objects that all trainings on a dataset share.

    Attributes:
        name: Name of the dataset.
        config: The config of the encoder with the image size of the protocol.
        runs: Keeps the checkpoints of every training until the stage has succeeded.
    """

    name: str
    protocol: FinetuneProtocol
    config: dict[str, Any]
    val: Reader
    world: distributed.World
    runs: ExitStack

    def train(
        self, training_name: str, network: VisionTransformer, train: Reader, **recipe_overrides: Any
    ) -> FinetunedClassifier:
        """Fine-tune `network` on `train`; the checkpoints are kept under `training_name`."""
        if self.world.is_main:
            print(f"{self.name}: training {training_name} on {len(train)} images", flush=True)
        inputs = [file_digest(SHARDS / self.name / "shards.json"), model_digest(PRETRAIN, "encoder"), training_name]
        run = self.runs.enter_context(
            Run(
                "finetune",
                self.world,
                out=OUT / self.name / training_name,
                params=self.protocol,
                inputs=inputs,
                checkpoint_minutes=self.protocol.checkpoint_minutes,
            )
        )
        protocol = with_overrides(self.protocol, {"recipe": recipe_overrides})
        return train_classifier(protocol, network, self.config, train=train, val=self.val, world=self.world, run=run)


def main() -> None:
    """Fine-tune the encoder on the dataset named on the command line."""
    section = load_config(FinetuneConfig, "finetune")
    name, overrides = stage.dataset_from_command_line(section.datasets, "finetune")
    protocol = with_overrides(section.protocol, overrides)
    train, val = splits.open_labeled_splits(SHARDS / name)
    encoder, config = vit.load(PRETRAIN)
    config |= {"img_size": protocol.img_size or config["img_size"]}
    with distributed.world(protocol.compute.device) as world, ExitStack() as runs:
        task = FinetuneTask(name, protocol, config, val, world, runs)
        finetuned = task.train("encoder", encoder, train)
        curves = {"encoder": finetuned.history}
        baseline_metrics, low_shot = {}, {}
        if protocol.baselines:
            untrained = baselines.create_untrained(config, seed=protocol.seed)
            assert isinstance(untrained, VisionTransformer)
            # Without pretraining, all layers learn from scratch, so all layers have the same rate.
            result = task.train("untrained", untrained, train, layer_decay=1.0)
            curves["untrained"] = result.history
            baseline_metrics["untrained"] = classification_metrics.compute_baseline(result.probabilities, result.labels)
        for shots in protocol.low_shot:
            subset = train.select(subsets.low_shot(train.labels, shots, seed=protocol.seed))
            result = task.train(shots.name, encoder, subset)
            curves[shots.name] = result.history
            low_shot[shots.name] = classification_metrics.compute(result.probabilities, result.labels)
        if world.is_main:
            metrics = classification_metrics.compute(finetuned.probabilities, finetuned.labels)
            write_results(task, finetuned, Scores(metrics, baseline_metrics, low_shot=low_shot), curves)


def train_classifier(
    protocol: FinetuneProtocol,
    encoder: VisionTransformer,
    config: dict[str, Any],
    *,
    train: Reader,
    val: Reader,
    world: distributed.World,
    run: Run,
) -> FinetunedClassifier:
    """Fine-tune a copy of `encoder` on train, and predict val."""
    model = classifier.from_encoder(
        encoder,
        config,
        num_classes=train.num_classes,
        pool=protocol.pool,
        drop_path=protocol.recipe.drop_path,
        seed=protocol.seed,
    )
    validation = finetune_loop.Validation(
        val,
        img_size=config["img_size"],
        batch_size=protocol.eval_batch_size,
        every_epochs=protocol.eval_every_epochs,
        compute=protocol.compute,
        world=world,
    )
    model = finetune_loop.finetune(
        protocol.recipe,
        model,
        reader=train.with_shuffle_shards(protocol.recipe.shuffle_shards),
        seed=protocol.seed,
        compute=protocol.compute,
        world=world,
        run=run,
        validation=validation,
    )
    # If the run was resumed after its last step, `validation` has not predicted val.
    probabilities = validation.predict(model) if validation.last is None else validation.last
    return FinetunedClassifier(model, probabilities, validation.labels, run.history)


def write_results(
    task: FinetuneTask, finetuned: FinetunedClassifier, result: Scores, curves: dict[str, curve_files.History]
) -> None:
    """Write the classifier, the scores, the learning curves and the predictions."""
    name, val = task.name, task.val
    config = {key: task.config[key] for key in vit.CONFIG_KEYS}
    config |= {"pool": task.protocol.pool, "class_names": val.class_names, "mean": vit.MEAN, "std": vit.STD}
    config |= {"params": artifact_params(task.protocol)}
    with atomic_write(OUT / name) as folder:
        classifier.save(folder, finetuned.model, config)
    scores.write(RESULTS / f"{name}.json", result)
    curve_files.write(RESULTS / "curves" / name, curves)
    path = RESULTS / f"predictions/{name}.tsv"
    predictions.write(path, val.keys, finetuned.probabilities, finetuned.labels, val.class_names, logits=False)
    print(f"{name}: fine-tuned {score_comparison.format_top1(result)}")


if __name__ == "__main__":
    stage.main(main)
