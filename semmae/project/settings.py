"""The settings that `semmae init` chooses, and the reasons for them."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from semmae.project.image_survey import ImageSurvey
from semmae.project.machine import Machine
from semmae.project.mask_survey import MaskSurvey
from semmae.training.mae_loop import DecoderConfig, ViTConfig

MIN_GRID = 8  # patches per side
MIN_STEPS = 2000  # of a training: larger networks are chosen only if they train for so long
PARTS_SIDE = 2  # parts are learned on images of this many times the side of the teacher's images
VAL_FRACTION = 0.1
MIN_VAL = 20  # images; fewer give scores that say nothing


class NetworkShape(NamedTuple):
    """Shapes of an encoder and its decoder in training."""

    vit: ViTConfig
    decoder: DecoderConfig


class Tier(NamedTuple):
    """A size of the networks.

    Attributes:
        img_size: Side of the images in pixels, unless the images are smaller.
        width: Width of the ViT.
        depth: Number of its blocks.
        heads: Number of its heads.
        decoder: Shape of the decoder.
        batch_size: Images per step.
        base_lr: Learning rate for 256 images.
    """

    img_size: int
    width: int
    depth: int
    heads: int
    decoder: DecoderConfig
    batch_size: int
    base_lr: float

    def shape(self, patch_size: int) -> NetworkShape:
        """Return the shapes with patches of this side in pixels."""
        return NetworkShape(ViTConfig(patch_size, self.width, self.depth, self.heads), self.decoder)


SMALL_DECODER, LARGE_DECODER = DecoderConfig(128, 2, 4), DecoderConfig(512, 8, 16)
CPU_TIERS = (  # from the best to the fastest
    Tier(96, 192, 6, 6, SMALL_DECODER, 64, 8e-3),
    Tier(96, 128, 4, 4, SMALL_DECODER, 64, 8e-3),
    Tier(64, 128, 4, 4, SMALL_DECODER, 64, 8e-3),
)
GPU_TIERS = (  # the learning rate of large networks is that of MAE
    Tier(224, 768, 12, 12, LARGE_DECODER, 256, 1.5e-4),
    Tier(224, 384, 12, 6, LARGE_DECODER, 256, 1.5e-4),
    Tier(96, 192, 6, 6, SMALL_DECODER, 256, 2e-3),
)


@dataclass(frozen=True)
class PublishedTeacher:
    """Weights of a published model, used as the teacher.

    Attributes:
        model: A model of timm.
        checkpoint: Absolute path and SHA-256 of a file with its weights; None: timm downloads them.
    """

    model: str
    checkpoint: tuple[str, str] | None
    img_size: int
    patch_size: int


@dataclass(frozen=True)
class Settings:
    """What is set in params.yaml for a person's images."""

    img_size: int
    shape: NetworkShape
    batch_size: int
    base_lr: float
    published: PublishedTeacher | None  # None: a teacher is trained on the images
    teacher_epochs: int
    epochs: int
    parts_img_size: int
    num_parts: int
    num_images: int  # images that parts are fitted to
    val_fraction: float | None
    max_rejects: float
    evaluations: list[str]
    workers: int  # processes that load images

    @property
    def warmup_epochs(self) -> int:
        """Epochs of warm-up in pretraining: a tenth."""
        return self.epochs // 10

    @property
    def teacher_warmup_epochs(self) -> int:
        """Epochs of warm-up of the teacher: a tenth."""
        return self.teacher_epochs // 10


def image_side(tier: Tier, survey: ImageSurvey) -> tuple[int, int]:
    """Return the sides of images and patches in pixels for a tier.

    Images are not enlarged beyond their median short side. Patches are as large as possible with `MIN_GRID` patches
    per side, and with 12 for images of 96 pixels or more.
    """
    side = min(tier.img_size, max(32, survey.sample.short_side // 16 * 16))
    min_grid = 12 if side >= 96 else MIN_GRID
    patch = next(patch for patch in (16, 8, 4) if side // patch >= min_grid)
    return side, patch


def parts_side(published: PublishedTeacher | None, img_size: int, patch_size: int, survey: ImageSurvey) -> int:
    """Return the side of the images that parts are learned on, in pixels.

    A published teacher uses its own size. A teacher trained on the images uses a larger size than in its training, up
    to the size of the images, because it gives finer maps.
    """
    if published is not None:
        return published.img_size
    return max(img_size, min(PARTS_SIDE * img_size, survey.sample.short_side // patch_size * patch_size))


def count_train(survey: ImageSurvey, val_fraction: float | None) -> int:
    """Return the number of training images, after `val_fraction` has moved some to val."""
    return survey.num_train - math.ceil(survey.num_train * (val_fraction or 0))


def choose_val_fraction(survey: ImageSurvey) -> float | None:
    """Return the share of train that becomes val; None if the images have a split val already."""
    if survey.splits.get("val"):
        return None
    return min(0.5, max(VAL_FRACTION, MIN_VAL / survey.num_train))


def choose_batch_size(tier: Tier, num_train: int) -> int:
    """Return the batch size: that of the tier, or a power of 2 that is at most a quarter of the images."""
    return min(tier.batch_size, 2 ** int(math.log2(max(num_train / 4, 1))))


def choose_max_rejects(survey: ImageSurvey, masks: MaskSurvey | None, *, labels: bool) -> float:
    """Return the share of inputs that may be rejected: the share of the sample, and a margin for its chance."""
    decoded = len(survey.sample.sizes) + len(survey.sample.broken)
    inputs = survey.num_images + survey.others
    broken = len(survey.sample.broken) / decoded + (survey.others + len(survey.refused)) / inputs
    if labels:
        broken += survey.unclassed / inputs
    if masks is not None:
        broken += len(masks.broken) / (masks.decoded + len(masks.broken))
    margin = 3 * math.sqrt(broken * (1 - min(broken, 1)) / decoded)
    return min(0.99, math.ceil((broken + margin) * 100 + 1) / 100)


def choose_evaluations(survey: ImageSurvey, masks: MaskSurvey | None, *, labels: bool) -> list[str]:
    """Return the evaluations that labels and masks allow, without those that take as long as pretraining."""
    chosen = ["knn", "linear", "attentive"] if labels else []
    if masks is not None and masks.kind != "classes":
        chosen.append("part_scores")
    return [*chosen, "segment"] if masks is not None else chosen


def choose_workers(machine: Machine) -> int:
    """Return the number of loading processes: they pay only beside a GPU."""
    return min(8, machine.cores - 1) if machine.has_gpu else 0
