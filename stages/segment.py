"""segment: semantic segmentation by the encoder: frozen (a linear head, nearest patches) and fine-tuned (UPerNet).

    python -m stages.segment <dataset>

Baselines are the linear head on an untrained encoder and on the teacher, and two predictions without an image.

Reads  data/pretrain (encoder), data/teacher, data/shards/<dataset>: the samples that have masks; heads are trained on
       train and scored on val
Calls  linear.fit_linear, knn.fit_knn, upernet.finetune_upernet, sliding_window.evaluate, scores.write
Writes results/segment/<dataset>.json; curves/<dataset>/: the loss per epoch; examples/<dataset>/<head>/<key>.png:
       predicted masks of some samples of val
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass as pydantic_dataclass
from timm.models.vision_transformer import VisionTransformer

from semmae.core import distributed, stage
from semmae.core.atomic_files import atomic_write, read_json
from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, Share, load_config, with_overrides
from semmae.core.digests import file_digest
from semmae.core.model_files import model_digest
from semmae.core.rng import numpy_generator
from semmae.data import decoding
from semmae.data.dataset import Reader, verify_shards
from semmae.evaluation import baselines, curve_files, scores
from semmae.evaluation.features import TokenEncoder, build_token_encoder
from semmae.evaluation.scores import Metrics, Scores
from semmae.evaluation.segmentation import heads, metrics, sliding_window, splits, transforms
from semmae.evaluation.segmentation.image_free_baselines import score_image_free_baselines
from semmae.evaluation.segmentation.knn import KnnSegmentationConfig, fit_knn
from semmae.evaluation.segmentation.linear import LinearSegmentationConfig, fit_linear
from semmae.evaluation.segmentation.sliding_window import SlidingWindowOptions
from semmae.evaluation.segmentation.upernet import UPerNetConfig, build_upernet, finetune_upernet
from semmae.models import teacher, vit
from semmae.runs.run import Run

RESULTS, SHARDS = Path("results/segment"), Path("data/shards")
PRETRAIN, TEACHER = Path("data/pretrain"), Path("data/teacher")

HeadName = Literal["linear", "knn", "upernet"]
HeadNames = Annotated[list[HeadName], Field(min_length=1)]


@pydantic_dataclass(frozen=True, config=STRICT)
class SegmentProtocol:
    """How every dataset is scored."""

    heads: HeadNames
    short_side: PositiveInt  # of a resized image, in pixels
    crop: PositiveInt | None  # side of windows and training crops in pixels; null: img_size of the encoder
    stride: PositiveInt  # between windows, in pixels
    training_crops: transforms.SegmentationCropConfig
    num_images: PositiveInt | None  # of train; null: all
    shuffle_shards: PositiveInt | None  # shards whose samples are mixed at a time; null: all
    holdout: Share  # of train, to choose the settings of the frozen heads
    linear: LinearSegmentationConfig
    knn: KnnSegmentationConfig
    upernet: UPerNetConfig
    baselines: bool
    examples: NonNegativeInt
    batch_size: PositiveInt  # windows per batch at inference
    seed: int
    checkpoint_minutes: NonNegativeFloat
    compute: ComputeConfig


@pydantic_dataclass(frozen=True, config=STRICT)
class SegmentOverrides:
    """Values of the protocol for one dataset; null or absent: as in the protocol."""

    heads: HeadNames | None = None
    short_side: PositiveInt | None = None
    stride: PositiveInt | None = None


@pydantic_dataclass(frozen=True, config=STRICT)
class SegmentConfig:
    """The section `segment` of params.yaml."""

    protocol: SegmentProtocol
    datasets: dict[str, SegmentOverrides]


@dataclass(frozen=True)
class SegmentationTask:
    """What all heads share.

    Attributes:
        start_run: Starts a run, given the head, the name of its network, and the digest of that network.
    """

    protocol: SegmentProtocol
    train: heads.TrainSplit
    val: Reader
    crops: transforms.TrainCrop
    options: SlidingWindowOptions
    start_run: Callable[[HeadName, str, str], Run]

    def score(self, predict: sliding_window.Predictor, options: SlidingWindowOptions) -> Scores:
        """Score a predictor with a single variant on val."""
        counts = sliding_window.evaluate(predict, self.val, options, num_classes=self.train.num_classes)
        return metrics.scores(counts[0], self.val.mask_names, seed=self.protocol.seed)


class HeadResult(NamedTuple):
    """The scores of a head, the curves of its trainings, and its predictor with the options it was scored with."""

    scores: Scores
    curves: dict[str, curve_files.History]
    predict: sliding_window.Predictor
    options: SlidingWindowOptions


def main() -> None:
    """Score the encoder on the dataset named on the command line."""
    section = load_config(SegmentConfig, "segment")
    name, overrides = stage.dataset_from_command_line(section.datasets, "segment")
    protocol = with_overrides(section.protocol, overrides)
    train, counts = splits.open_masked_split(SHARDS / name, "train")
    val, val_counts = splits.open_masked_split(SHARDS / name, "val")
    in_train, in_val = counts.any(0), val_counts.any(0)
    if missing := [val.mask_names[label] for label in np.flatnonzero(in_val & ~in_train)]:
        raise ValueError(
            f"{SHARDS / name}: val's masks show classes that train's lack ({', '.join(missing[:5])}), and no head can "
            f"learn them. Add images of them to train, in the sources of shards.datasets.{name}"
        )
    verify_shards(SHARDS / name)
    with distributed.world(protocol.compute.device) as world, ExitStack() as runs:
        task = prepare_task(protocol, train, val, world, partial(start_run, name, protocol, world, runs))
        results = {head: HEADS[head](task) for head in dict.fromkeys(protocol.heads)}
        if world.is_main:
            write_examples(RESULTS / "examples" / name, task, results)
            shared = score_image_free_baselines(counts, val, seed=protocol.seed) if protocol.baselines else {}
            write_results(name, results, shared)


def prepare_task(
    protocol: SegmentProtocol,
    train: Reader,
    val: Reader,
    world: distributed.World,
    start_run: Callable[[HeadName, str, str], Run],
) -> SegmentationTask:
    """Draw the training images and derive the size of windows and crops."""
    side = protocol.crop or read_json(PRETRAIN / "encoder.json")["img_size"]
    grid = sliding_window.WindowGrid(protocol.short_side, side, protocol.stride)
    order = numpy_generator(protocol.seed, "sample").permutation(len(train))
    train = train.select(np.sort(order[: protocol.num_images])).with_shuffle_shards(protocol.shuffle_shards)
    return SegmentationTask(
        protocol,
        heads.hold_out(train, share=protocol.holdout, seed=protocol.seed),
        val,
        transforms.TrainCrop(protocol.seed, protocol.training_crops, protocol.short_side, side),
        SlidingWindowOptions(grid, protocol.batch_size, protocol.compute.workers, world),
        start_run,
    )


def start_run(
    name: str,
    protocol: SegmentProtocol,
    world: distributed.World,
    runs: ExitStack,
    head: HeadName,
    network_name: str,
    digest: str,
) -> Run:
    """Start the run of a head; `runs` keeps its checkpoints until the stage has succeeded."""
    run = Run(
        f"segment.{head}",
        world,
        out=RESULTS / "examples" / name / head / network_name,
        params=protocol,
        inputs=[file_digest(SHARDS / name / "shards.json"), network_name, digest],
        checkpoint_minutes=protocol.checkpoint_minutes,
    )
    return runs.enter_context(run)


def score_linear(task: SegmentationTask) -> HeadResult:
    """Score the linear head on the frozen encoder and, with baselines, on an untrained encoder and the teacher."""
    network, config, digest = load_encoder(task)
    device, precision = task.options.world.device, task.protocol.compute.precision
    encode = build_token_encoder(network, device=device, precision=precision)
    head, options = fit_linear_head(task, "encoder", encode, network.embed_dim, digest)
    result, baseline_metrics = with_setting(task.score(head.predict, options), head.setting), {}
    curves: dict[str, curve_files.History] = {"linear": head.history}
    if task.protocol.baselines:
        frozen_teacher = teacher.load_teacher(TEACHER)
        check_window_side(task, "teacher", frozen_teacher.patch_size)
        untrained: Any = baselines.create_untrained(config, seed=task.protocol.seed)
        encode_untrained = build_token_encoder(untrained, device=device, precision=precision)
        encode_teacher = baselines.build_teacher_token_encoder(frozen_teacher, device=device, precision=precision)
        for baseline, encode_tokens, width, network_digest in (
            ("untrained", encode_untrained, untrained.embed_dim, digest),
            ("teacher", encode_teacher, frozen_teacher.embed_dim, frozen_teacher.digest),
        ):
            fitted, fitted_options = fit_linear_head(task, baseline, encode_tokens, width, network_digest)
            baseline_metrics[baseline] = metrics.baseline_metrics(task.score(fitted.predict, fitted_options))
            curves[f"linear_{baseline}"] = fitted.history
    return HeadResult(replace(result, baselines=baseline_metrics), curves, head.predict, options)


def fit_linear_head(
    task: SegmentationTask, network_name: str, encode_tokens: TokenEncoder, width: int, digest: str
) -> tuple[heads.TrainedHead, SlidingWindowOptions]:
    """Train and choose the linear head on a frozen network with tokens of size `width`."""
    run = task.start_run("linear", network_name, digest)
    options = replace(task.options, exit_if_stopped=run.exit_if_stopped)
    encode = task.protocol.compute.compile_function(heads.build_token_map_encoder(encode_tokens))
    head = fit_linear(task.protocol.linear, encode, task.train, width=width, crops=task.crops, options=options, run=run)
    return head, options


def score_knn(task: SegmentationTask) -> HeadResult:
    """Score the vote of the nearest patches of the frozen encoder."""
    network, _, digest = load_encoder(task)
    compute = task.protocol.compute
    run = task.start_run("knn", "encoder", digest)
    options = replace(task.options, exit_if_stopped=run.exit_if_stopped)
    encode_tokens = build_token_encoder(network, device=options.world.device, precision=compute.precision)
    encode = compute.compile_function(heads.build_token_map_encoder(encode_tokens))
    head = fit_knn(task.protocol.knn, encode, task.train, options=options, seed=task.protocol.seed)
    return HeadResult(with_setting(task.score(head.predict, options), head.setting), {}, head.predict, options)


def score_upernet(task: SegmentationTask) -> HeadResult:
    """Score the encoder fine-tuned with a UPerNet on all images of train."""
    network, config, digest = load_encoder(task)
    protocol, run = task.protocol, task.start_run("upernet", "encoder", digest)
    options = replace(task.options, exit_if_stopped=run.exit_if_stopped)
    model = build_upernet(protocol.upernet, network, config, num_classes=task.train.num_classes, seed=protocol.seed)
    predict = finetune_upernet(
        protocol.upernet,
        model,
        task.train.reader,
        crops=task.crops,
        compute=protocol.compute,
        world=options.world,
        run=run,
    )
    return HeadResult(task.score(predict, options), {"upernet": run.history}, predict, options)


HEADS = {"linear": score_linear, "knn": score_knn, "upernet": score_upernet}


def with_setting(result: Scores, setting: dict[str, float]) -> Scores:
    """Add the chosen setting of a head to its metrics."""
    return replace(result, encoder={**result.encoder, **setting})


def load_encoder(task: SegmentationTask) -> tuple[VisionTransformer, dict[str, Any], str]:
    """Load the pretrained encoder, its config and its digest."""
    network, config = vit.load(PRETRAIN)
    check_window_side(task, "encoder", config["patch_size"])
    return network, config, model_digest(PRETRAIN, "encoder")


def check_window_side(task: SegmentationTask, network_name: str, patch_size: int) -> None:
    """Raise ValueError if the side of a window is not a multiple of the patch size."""
    if (side := task.options.grid.side) % patch_size:
        given = side if task.protocol.crop else f"null, so that windows have the encoder's img_size, {side}"
        raise ValueError(
            f"segment.protocol.crop is {given}; it must be a multiple of the {network_name}'s patch size, {patch_size}"
        )


def write_results(name: str, results: dict[HeadName, HeadResult], shared: dict[str, Metrics]) -> None:
    """Write scores and curves; `shared` has the baselines that all heads have."""
    groups = {
        head: replace(result.scores, baselines={**result.scores.baselines, **shared})
        for head, result in results.items()
    }
    curve_files.write(
        RESULTS / "curves" / name, {k: v for result in results.values() for k, v in result.curves.items()}
    )
    scores.write(RESULTS / f"{name}.json", groups)
    miou = {head: group.encoder["miou"] for head, group in groups.items()}
    miou |= {baseline: baseline_metrics["miou"] for baseline, baseline_metrics in shared.items()}
    print(f"{name}: segmentation mIoU of {', '.join(f'{key} {value:.3f}' for key, value in miou.items())}")


def write_examples(folder: Path, task: SegmentationTask, results: dict[HeadName, HeadResult]) -> None:
    """Write the predicted masks of some samples of val by each head, as 8-bit PNG files of class indices."""
    order = numpy_generator(task.protocol.seed, "examples").permutation(len(task.val))
    subset = task.val.select(np.sort(order[: task.protocol.examples]))
    single_process = distributed.World(0, 1, task.options.world.device)
    with atomic_write(folder) as temporary:
        for head, result in results.items():
            (temporary / head).mkdir(parents=True)
            options = replace(result.options, world=single_process)
            for index, labels, _ in sliding_window.predict_labels(result.predict, subset, options):
                pixels = labels[0].to(torch.uint8).cpu().numpy()
                (temporary / head / f"{subset.keys[index]}.png").write_bytes(decoding.encode_png(pixels))


if __name__ == "__main__":
    stage.main(main)
