"""segment: semantic segmentation by the encoder, frozen (a linear head, neighbors) and fine-tuned (UPerNet), beside an
untrained encoder, the teacher, and what needs no image at all.

    python -m stages.segment <dataset>

Reads  data/pretrain (encoder), data/teacher, data/shards/<dataset>: the samples that have masks; train teaches, val is
       scored once
Calls  segmentation_linear.linear, segmentation_knn.knn, segmentation_upernet.finetune, segmentation.evaluate
Writes results/segment/<dataset>.json; curves/<dataset>/: the loss by epoch; examples/<dataset>/<protocol>/<key>.png:
       masks of some of val as each protocol predicts them
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass as plain
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass
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
from semmae.evaluation.scores import Scores
from semmae.evaluation.segmentation import heads, metrics, sliding_window, transforms
from semmae.evaluation.segmentation import knn as segmentation_knn
from semmae.evaluation.segmentation import linear as segmentation_linear
from semmae.evaluation.segmentation import upernet as segmentation_upernet
from semmae.models import teacher, vit
from semmae.runs import run

OUT, RESULTS, SHARDS = Path("results/segment/examples"), Path("results/segment"), Path("data/shards")
PRETRAIN, TEACHER = Path("data/pretrain"), Path("data/teacher")

Name = Literal["linear", "knn", "upernet"]
Names = Annotated[list[Name], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class SegmentProtocol:
    """How every dataset is scored."""

    heads: Names
    short_side: PositiveInt  # pixels of a resized image
    crop: PositiveInt | None  # pixels, side of a window and of a training crop; null: img_size of the encoder
    stride: PositiveInt  # pixels from one window to the next
    training_crops: transforms.Crops
    num_images: PositiveInt | None  # images of train that teach; null: all
    shuffle_shards: PositiveInt | None  # shards whose samples are mixed at a time; null: all
    holdout: Share  # of those, to choose the settings of frozen protocols
    linear: segmentation_linear.LinearSegmentationConfig
    knn: segmentation_knn.KnnSegmentationConfig
    upernet: segmentation_upernet.UPerNetConfig
    baselines: bool
    examples: NonNegativeInt
    batch_size: PositiveInt  # windows at a time, in inference
    seed: int
    checkpoint_minutes: NonNegativeFloat
    compute: ComputeConfig


@dataclass(frozen=True, config=STRICT)
class SegmentOverrides:
    """What a dataset sets for itself; null or absent: as in the protocol."""

    heads: Names | None = None
    short_side: PositiveInt | None = None
    stride: PositiveInt | None = None


@dataclass(frozen=True, config=STRICT)
class SegmentConfig:
    """The section `segment` of params.yaml."""

    protocol: SegmentProtocol
    datasets: dict[str, SegmentOverrides]


@plain(frozen=True)
class SegmentationTask:
    """What all protocols share: the settings, the masked samples, where it is computed, how a run is begun."""

    protocol: SegmentProtocol
    train: heads.Train
    val: Reader
    crops: transforms.TrainCrop
    how: sliding_window.SlidingWindowOptions
    begin: Callable[[Name, str, str], run.Run]  # of a protocol, a line and the digest of its network

    def score(self, predict: sliding_window.Predict, how: sliding_window.SlidingWindowOptions) -> Scores:
        """What a predictor of one variant scores on val."""
        counts = sliding_window.evaluate(predict, self.val, how, num_classes=self.train.num_classes)
        return metrics.scores(counts[0], self.val.mask_names, seed=self.protocol.seed)


class Scored(NamedTuple):
    """What a protocol gives: scores, the curves of what it trained, and the predictor with how it was asked."""

    scores: Scores
    curves: dict[str, curve_files.History]
    predict: sliding_window.Predict
    how: sliding_window.SlidingWindowOptions


def main() -> None:
    """Score the dataset named on the command line."""
    section = load_config(SegmentConfig, "segment")
    name, dataset = stage.dataset_from_command_line(section.datasets, "segment")
    protocol = with_overrides(section.protocol, dataset)
    train, counts = transforms.masked_split(SHARDS / name, "train")
    val, val_counts = transforms.masked_split(SHARDS / name, "val")
    if missing := [c for c, t, v in zip(val.mask_names, counts.sum(0), val_counts.sum(0), strict=True) if v and not t]:
        raise ValueError(
            f"{SHARDS / name}: val's masks show classes that train's lack ({', '.join(missing[:5])}), which "
            f"nothing can learn; add images of them to train, in the sources of shards.datasets.{name}"
        )
    verify_shards(SHARDS / name)
    with distributed.world(protocol.compute.device) as world, ExitStack() as runs:
        task = prepared(protocol, train, val, world, partial(begun, name, protocol, world, runs))
        scored = {which: PROTOCOLS[which](task) for which in dict.fromkeys(protocol.heads)}
        if world.is_main:
            write_examples(OUT / name, task, scored)
            beside = sliding_window.trivial(counts, val, seed=protocol.seed) if protocol.baselines else {}
            groups = {
                which: replace(found.scores, baselines={**found.scores.baselines, **beside})
                for which, found in scored.items()
            }
            write_scores(
                name, groups, {line: history for which in scored for line, history in scored[which].curves.items()}
            )


def write_scores(name: str, groups: dict[Name, Scores], curves: dict[str, curve_files.History]) -> None:
    """The metrics and the curves, and a line for who waits."""
    curve_files.write(RESULTS / "curves" / name, curves)
    scores.write(RESULTS / f"{name}.json", groups)
    said = (f"{line} {found.encoder['miou']:.3f}" for line, found in groups.items())
    print(f"{name}: segmentation mIoU of {', '.join(said)}")


def begun(
    name: str, protocol: SegmentProtocol, world: distributed.World, runs: ExitStack, which: Name, line: str, digest: str
) -> run.Run:
    """The run of a protocol; its checkpoints stay until the whole stage has succeeded."""
    now = run.Run(
        f"segment.{which}", world, out=OUT / name / which / line, params=protocol,
        inputs=[file_digest(SHARDS / name / "shards.json"), line, digest],
        checkpoint_minutes=protocol.checkpoint_minutes,
    )  # fmt: skip
    return runs.enter_context(now)


def prepared(
    protocol: SegmentProtocol,
    train: Reader,
    val: Reader,
    world: distributed.World,
    begin: Callable[[Name, str, str], run.Run],
) -> SegmentationTask:
    """The settings that follow from each other."""
    side = protocol.crop or read_json(PRETRAIN / "encoder.json")["img_size"]
    windows = sliding_window.Windows(protocol.short_side, side, protocol.stride)
    taught = train.select(
        np.sort(numpy_generator(protocol.seed, "sample").permutation(len(train))[: protocol.num_images])
    )
    taught = taught.with_shuffle_shards(protocol.shuffle_shards)
    return SegmentationTask(
        protocol,
        heads.hold_out(taught, share=protocol.holdout, seed=protocol.seed),
        val,
        transforms.TrainCrop(protocol.seed, protocol.training_crops, protocol.short_side, side),
        sliding_window.SlidingWindowOptions(windows, protocol.batch_size, protocol.compute.workers, world),
        begin,
    )


def linear(task: SegmentationTask) -> Scored:
    """The linear head on the frozen encoder and, with baselines, on others."""
    network, config, digest = encoder(task)
    probe, how = probed(task, "encoder", network, digest)
    result, beside = with_settings(task.score(probe.predict, how), probe.chosen), {}
    curves: dict[str, curve_files.History] = {"linear": probe.history}
    if task.protocol.baselines:
        elder = teacher.load_teacher(TEACHER)
        fitting(task, "teacher", elder.patch_size)
        fresh: Any = baselines.untrained(config, seed=task.protocol.seed)
        for line, other, made_by in (("untrained", fresh, digest), ("teacher", elder, elder.digest)):
            fitted, other_how = probed(task, line, other, made_by)
            found = task.score(fitted.predict, other_how)
            beside[line] = {name: found.encoder[name] for name in sliding_window.BESIDE}
            curves[f"linear_{line}"] = fitted.history
    return Scored(replace(result, baselines=beside), curves, probe.predict, how)


def probed(
    task: SegmentationTask, line: str, network: VisionTransformer | teacher.Teacher, digest: str
) -> tuple[heads.TrainedHead, sliding_window.SlidingWindowOptions]:
    """The linear probe of a frozen network."""
    now = task.begin("linear", line, digest)
    how = replace(task.how, exit_if_stopped=now.exit_if_stopped)
    encode = token_maps(task, network)
    probe = segmentation_linear.linear(
        task.protocol.linear, encode, task.train, width=network.embed_dim, crops=task.crops, how=how, run=now
    )
    return probe, how


def knn(task: SegmentationTask) -> Scored:
    """The vote of the frozen encoder's nearest patches."""
    network, _, digest = encoder(task)
    how = replace(task.how, exit_if_stopped=task.begin("knn", "encoder", digest).exit_if_stopped)
    encode = token_maps(task, network)
    probe = segmentation_knn.knn(task.protocol.knn, encode, task.train, how=how, seed=task.protocol.seed)
    return Scored(with_settings(task.score(probe.predict, how), probe.chosen), {}, probe.predict, how)


def finetuned(task: SegmentationTask) -> Scored:
    """The encoder under a UPerNet, fine-tuned on all of train."""
    network, config, digest = encoder(task)
    protocol, now = task.protocol, task.begin("upernet", "encoder", digest)
    how = replace(task.how, exit_if_stopped=now.exit_if_stopped)
    model = segmentation_upernet.build(
        protocol.upernet, network, config, num_classes=task.train.num_classes, seed=protocol.seed
    )
    predict = segmentation_upernet.finetune(
        protocol.upernet, model, task.train.reader, crops=task.crops, compute=protocol.compute, world=how.world, run=now
    )
    return Scored(task.score(predict, how), {"upernet": now.history}, predict, how)


def with_settings(scores: Scores, settings: dict[str, float]) -> Scores:
    """Add the chosen settings of a head to its metrics."""
    return replace(scores, encoder={**scores.encoder, **settings})


PROTOCOLS = {"linear": linear, "knn": knn, "upernet": finetuned}


def encoder(task: SegmentationTask) -> tuple[VisionTransformer, dict[str, Any], str]:
    """The pretrained encoder, its config and its digest."""
    network, config = vit.load(PRETRAIN)
    fitting(task, "encoder", config["patch_size"])
    return network, config, model_digest(PRETRAIN, "encoder")


def token_maps(task: SegmentationTask, network: VisionTransformer | teacher.Teacher) -> heads.Encode:
    """What a frozen network says of images."""
    device, compute = task.how.world.device, task.protocol.compute
    return compute.compile_function(heads.token_maps(network, device=device, precision=compute.precision))


def fitting(task: SegmentationTask, network: str, patch_size: int) -> None:
    """ValueError where windows are no whole number of patches."""
    if (side := task.how.windows.side) % patch_size:
        given = side if task.protocol.crop else f"null, so that windows have the encoder's img_size, {side}"
        raise ValueError(
            f"segment.protocol.crop is {given}; it must be a multiple of the {network}'s patch size, {patch_size}"
        )


def write_examples(folder: Path, task: SegmentationTask, scored: dict[Name, Scored]) -> None:
    """The masks of some samples of val as each protocol predicts them, 8-bit PNG of indices."""
    ids = np.sort(numpy_generator(task.protocol.seed, "examples").permutation(len(task.val))[: task.protocol.examples])
    chosen, alone = task.val.select(ids), distributed.World(0, 1, task.how.world.device)
    with atomic_write(folder) as temporary:
        for which, found in scored.items():
            (temporary / which).mkdir(parents=True)
            for index, labels, _ in replace(found.how, world=alone).labels(found.predict, chosen):
                pixels = labels[0].to(torch.uint8).cpu().numpy()
                (temporary / which / f"{chosen.keys[index]}.png").write_bytes(decoding.encode_png(pixels))


if __name__ == "__main__":
    stage.main(main)
