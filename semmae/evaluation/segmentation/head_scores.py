"""Score the segmentation heads on one dataset: train each head, choose its setting, and score it on val."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass as pydantic_dataclass
from timm.models.vision_transformer import VisionTransformer

from semmae.core.compute import ComputeConfig
from semmae.core.config import STRICT, PositiveBelow1
from semmae.core.model_files import model_digest
from semmae.data.dataset import Reader
from semmae.evaluation import baselines, curve_files
from semmae.evaluation.features import TokenEncoder, build_token_encoder
from semmae.evaluation.scores import Scores
from semmae.evaluation.segmentation import heads, metrics, sliding_window, transforms
from semmae.evaluation.segmentation.knn import KnnSegmentationConfig, fit_knn
from semmae.evaluation.segmentation.linear import LinearSegmentationConfig, fit_linear
from semmae.evaluation.segmentation.sliding_window import SlidingWindowOptions
from semmae.evaluation.segmentation.upernet import UPerNetConfig, build_upernet, finetune_upernet
from semmae.models import teacher, vit
from semmae.runs.run import Run

HeadName = Literal["linear", "knn", "upernet"]


@pydantic_dataclass(frozen=True, config=STRICT)
class SegmentationConfig:
    """Settings of the training and the scoring of heads."""

    short_side: PositiveInt  # short side of a resized image, in pixels
    crop: PositiveInt | None  # side of windows and training crops in pixels; null: img_size of the encoder
    stride: PositiveInt  # distance between windows, in pixels
    training_crops: transforms.SegmentationCropConfig
    num_images: PositiveInt | None  # number of training images; null: all
    shuffle_shards: PositiveInt | None  # shards that are shuffled together; null: all
    holdout: PositiveBelow1  # share of train that is held out to choose the settings of the frozen heads
    linear: LinearSegmentationConfig
    knn: KnnSegmentationConfig
    upernet: UPerNetConfig
    baselines: bool
    batch_size: PositiveInt  # windows per batch at inference
    seed: int
    compute: ComputeConfig


@dataclass(frozen=True)
class SegmentationTask:
    """The objects that all heads share.

    Attributes:
        pretrain_folder: Folder of the pretrained encoder.
        teacher_folder: Folder of the teacher.
        start_run: A function from the head, the name of its network and the digest of this network to a new run.
    """

    config: SegmentationConfig
    pretrain_folder: Path
    teacher_folder: Path
    train: heads.TrainSplit
    val: Reader
    crops: transforms.TrainCrop
    options: SlidingWindowOptions
    start_run: Callable[[HeadName, str, str], Run]

    def score(self, predict: sliding_window.Predictor, options: SlidingWindowOptions) -> Scores:
        """Score a predictor with a single variant on val."""
        counts = sliding_window.evaluate(predict, self.val, options, num_classes=self.train.num_classes)
        return metrics.scores(counts[0], self.val.mask_names, seed=self.config.seed)


class HeadResult(NamedTuple):
    """The scores of a head, its learning curves, its predictor, and the options of the sliding windows."""

    scores: Scores
    curves: dict[str, curve_files.History]
    predict: sliding_window.Predictor
    options: SlidingWindowOptions


def score_linear(task: SegmentationTask) -> HeadResult:
    """Score the linear head on the frozen encoder and, with baselines, on an untrained encoder and the teacher."""
    network, config, digest = load_encoder(task)
    device, precision = task.options.world.device, task.config.compute.precision
    encode = build_token_encoder(network, device=device, precision=precision)
    head, options = fit_linear_head(task, "encoder", encode, network.embed_dim, digest)
    result, baseline_metrics = with_setting(task.score(head.predict, options), head.setting), {}
    curves: dict[str, curve_files.History] = {"linear": head.history}
    if task.config.baselines:
        frozen_teacher = teacher.load_teacher(task.teacher_folder)
        check_window_side(task, "teacher", frozen_teacher.patch_size)
        untrained: Any = baselines.create_untrained(config, seed=task.config.seed)
        encode_untrained = build_token_encoder(untrained, device=device, precision=precision)
        encode_teacher = baselines.build_teacher_token_encoder(frozen_teacher, device=device, precision=precision)
        for baseline, encode_tokens, width, network_digest in (
            ("untrained", encode_untrained, untrained.embed_dim, digest),
            ("teacher", encode_teacher, frozen_teacher.embed_dim, frozen_teacher.digest),
        ):
            baseline_head, baseline_options = fit_linear_head(task, baseline, encode_tokens, width, network_digest)
            baseline_metrics[baseline] = metrics.baseline_metrics(task.score(baseline_head.predict, baseline_options))
            curves[f"linear_{baseline}"] = baseline_head.history
    return HeadResult(replace(result, baselines=baseline_metrics), curves, head.predict, options)


def fit_linear_head(
    task: SegmentationTask, network_name: str, encode_tokens: TokenEncoder, width: int, digest: str
) -> tuple[heads.TrainedHead, SlidingWindowOptions]:
    """Train linear heads on a frozen network with tokens of size `width`, and choose the best one."""
    run = task.start_run("linear", network_name, digest)
    options = replace(task.options, exit_if_stopped=run.exit_if_stopped)
    encode = task.config.compute.compile_function(heads.build_token_map_encoder(encode_tokens))
    head = fit_linear(task.config.linear, encode, task.train, width=width, crops=task.crops, options=options, run=run)
    return head, options


def score_knn(task: SegmentationTask) -> HeadResult:
    """Score the vote of the nearest patches, by the tokens of the frozen encoder."""
    network, _, digest = load_encoder(task)
    compute = task.config.compute
    run = task.start_run("knn", "encoder", digest)
    options = replace(task.options, exit_if_stopped=run.exit_if_stopped)
    encode_tokens = build_token_encoder(network, device=options.world.device, precision=compute.precision)
    encode = compute.compile_function(heads.build_token_map_encoder(encode_tokens))
    head = fit_knn(task.config.knn, encode, task.train, options=options, seed=task.config.seed)
    return HeadResult(with_setting(task.score(head.predict, options), head.setting), {}, head.predict, options)


def score_upernet(task: SegmentationTask) -> HeadResult:
    """Score the encoder fine-tuned with a UPerNet on all images of train."""
    network, config, digest = load_encoder(task)
    settings, run = task.config, task.start_run("upernet", "encoder", digest)
    options = replace(task.options, exit_if_stopped=run.exit_if_stopped)
    model = build_upernet(settings.upernet, network, config, num_classes=task.train.num_classes, seed=settings.seed)
    predict = finetune_upernet(
        settings.upernet,
        model,
        task.train.reader,
        crops=task.crops,
        compute=settings.compute,
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
    network, config = vit.load(task.pretrain_folder)
    check_window_side(task, "encoder", config["patch_size"])
    return network, config, model_digest(task.pretrain_folder, "encoder")


def check_window_side(task: SegmentationTask, network_name: str, patch_size: int) -> None:
    """Raise ValueError if the side of a window is not a multiple of the patch size."""
    if (side := task.options.grid.side) % patch_size:
        given = side if task.config.crop else f"null, which stands for the encoder's img_size, {side}"
        raise ValueError(
            f"segment.protocol.crop is {given}; it must be a multiple of the {network_name}'s patch size, {patch_size}"
        )
