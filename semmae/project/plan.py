"""Choose the settings of a project and predict its cost, from speeds that are measured on this machine."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

from semmae.models import vit
from semmae.models.teacher import Teacher, create_network
from semmae.project import measurements as measured
from semmae.project import settings as choices
from semmae.project.image_survey import ImageSurvey
from semmae.project.machine import Machine
from semmae.project.mask_survey import MaskSurvey
from semmae.project.settings import MIN_STEPS, PublishedTeacher, Settings, Tier

TRAINING_SHARE = 0.7  # of the time, to choose the networks; what remains is for the other stages
TEACHER_SHARE = 0.55  # of the training time; pretraining has the rest
MAX_EPOCHS = 800
NUM_PARTS, FITTED_IMAGES = 10, 600
ATTENTIVE_STEPS = 200  # of the attentive probe, about


class Plan(NamedTuple):
    """Settings, the speeds they were chosen by, and what they cost.

    Attributes:
        settings: The settings.
        speeds: Measured speeds.
        costs: Predicted seconds by stage.
        disk: Predicted bytes on disk.
    """

    settings: Settings
    speeds: measured.Speeds
    costs: dict[str, float]
    disk: int

    @property
    def seconds(self) -> float:
        """Predicted time of the whole pipeline."""
        return sum(self.costs.values())


class Request(NamedTuple):
    """What a person wants: images with masks or not, folder names as labels or not, a teacher, and a time."""

    survey: ImageSurvey
    masks: MaskSurvey | None
    labels: bool
    published: PublishedTeacher | None
    budget: float  # seconds


def make_plan(request: Request, machine: Machine, startup: float) -> Plan:
    """Take the best networks whose trainings have `MIN_STEPS` in the time; with less time, the fastest.

    Args:
        request: What a person wants.
        machine: This machine.
        startup: Seconds in which a stage's process starts.

    Raises:
        ValueError: The time is too short even for an epoch of each training.
    """
    tiers = choices.GPU_TIERS if machine.has_gpu else choices.CPU_TIERS
    images = measured.BlobImages(request.survey.sample)
    for tier in tiers:
        settings = initial_settings(request, machine, tier)
        step = measured.measure_step(settings.shape, batch_size=settings.batch_size, img_size=settings.img_size)
        step += measured.measure_crops(images, settings.img_size) * settings.batch_size / max(settings.workers, 1)
        trainings = 1 if settings.published else 2
        if TRAINING_SHARE * request.budget / step >= trainings * MIN_STEPS:
            break
    plan = fit_to_budget(request, settings, measure(request, settings, step=step, startup=startup))
    if plan.seconds > 1.3 * request.budget:
        raise ValueError(
            f"the time is too short: {request.budget / 60:.0f} minutes; expected at least {plan.seconds / 60:.0f} "
            "minutes for these images on this machine. Give a longer --budget, or fewer images"
        )
    return plan


def initial_settings(request: Request, machine: Machine, tier: Tier) -> Settings:
    """Return the settings of a tier with one epoch of training."""
    survey, masks, published = request.survey, request.masks, request.published
    img_size, patch_size = choices.image_side(tier, survey)
    val_fraction = choices.choose_val_fraction(survey)
    num_train = choices.count_train(survey, val_fraction)
    batch_size = choices.choose_batch_size(tier, num_train)
    return Settings(
        img_size=img_size, shape=tier.shape(patch_size), batch_size=batch_size,
        base_lr=tier.base_lr, published=published, teacher_epochs=0 if published else 1, epochs=1,
        parts_img_size=choices.parts_side(published, img_size, patch_size, survey),
        num_parts=len(masks.names) - 1 if masks and masks.kind == "parts" else NUM_PARTS,
        num_images=min(FITTED_IMAGES, num_train), val_fraction=val_fraction,
        max_rejects=choices.choose_max_rejects(survey, masks, labels=request.labels),
        evaluations=choices.choose_evaluations(survey, masks, labels=request.labels),
        workers=choices.choose_workers(machine),
    )  # fmt: skip


def measure(request: Request, settings: Settings, *, step: float, startup: float) -> measured.Speeds:
    """Measure the other speeds of this machine with these settings."""
    sample = request.survey.sample
    images = measured.BlobImages(sample)
    config = {"img_size": settings.img_size, **vars(settings.shape.vit)}
    own = Teacher(vit.build(config), {"mean": vit.MEAN, "std": vit.STD, "class_token": False}, digest="")
    teacher = own
    if settings.published is not None:
        network = create_network(settings.published.model, settings.published.img_size)
        teacher = Teacher(network, {"mean": vit.MEAN, "std": vit.STD, "class_token": True}, digest="")
    encode, _ = measured.measure_encoding(images, own, settings.img_size)
    map_image, tokens = measured.measure_encoding(images, teacher, settings.parts_img_size)
    learner = part_config(settings, teacher)
    return measured.Speeds(
        startup=startup,
        convert=sample.seconds / len(sample.sizes),
        step=step,
        encode=encode, map_image=map_image, fit=measured.measure_fit(tokens, learner),
    )  # fmt: skip


def part_config(settings: Settings, teacher: Teacher) -> dict[str, Any]:
    """Return the config of a part learner for measuring; few parts, because its sample of images is small."""
    foreground = {
        "clusterings": 8, "clusters": 24, "center_prior": 1.0, "diffusion_steps": 10, "threshold_classes": 2
    }  # fmt: skip
    return {
        "num_parts": 4, "background": True, "img_size": settings.parts_img_size, "embed_dim": teacher.embed_dim,
        "grid": teacher.grid(settings.parts_img_size), "keys": "auto", "smoothing_steps": 4, "position_weight": 1.0,
        "foreground": foreground, "initial_entropy": 0.8,
    }  # fmt: skip


def steps_per_epoch(request: Request, settings: Settings) -> int:
    """Return the number of steps of an epoch."""
    return choices.count_train(request.survey, settings.val_fraction) // settings.batch_size


def fit_to_budget(request: Request, settings: Settings, speeds: measured.Speeds) -> Plan:
    """Choose the epochs that fill the time, and predict the cost."""
    fixed = sum(predict_costs(request, replace(settings, epochs=0, teacher_epochs=0), speeds).values())
    epoch = steps_per_epoch(request, settings) * speeds.step
    epochs = max(request.budget - fixed, 0) / epoch  # of both trainings together
    teacher_epochs = 0 if settings.published else min(MAX_EPOCHS, max(1, round(TEACHER_SHARE * epochs)))
    own_epochs = min(MAX_EPOCHS, max(1, math.floor(epochs - teacher_epochs)))
    settings = replace(settings, teacher_epochs=teacher_epochs, epochs=own_epochs)
    disk = request.survey.num_bytes + request.survey.num_images * (settings.parts_img_size // 8) ** 2 * 2
    return Plan(settings, speeds, predict_costs(request, settings, speeds), disk)


def predict_costs(request: Request, settings: Settings, speeds: measured.Speeds) -> dict[str, float]:
    """Predict the seconds of each stage.

    An evaluation encodes its images with the encoder, an untrained encoder and the teacher. The constants are the times
    of what remains, such as the training of linear heads, on two CPU cores.
    """
    num_images = request.survey.num_images
    num_train = choices.count_train(request.survey, settings.val_fraction)
    num_val = request.survey.splits.get("val", 0) or request.survey.num_train - num_train
    per_epoch, online = steps_per_epoch(request, settings), 2 * min(num_train, 400) * speeds.encode
    encode_all = 3 * (num_train + num_val) * speeds.encode
    work = {
        "shards": num_images * speeds.convert,
        "teacher": settings.teacher_epochs * per_epoch * speeds.step + 3 * online,
        "parts": settings.num_images * (speeds.map_image + speeds.fit) + 15,
        "part_maps": num_images * speeds.map_image,
        "pretrain": settings.epochs * per_epoch * speeds.step + 3 * online,
        "knn": encode_all + 1,
        "linear": encode_all + 20 + 60 * num_train * 2e-4,
        "attentive": 10 + 3 * ATTENTIVE_STEPS * settings.batch_size * 1.3 * speeds.encode,
        "part_scores": (num_train + num_val) * speeds.map_image + 60,
        "segment": 2 * encode_all + 30,
        "report": 40,
    }
    skipped = {"knn", "linear", "attentive", "part_scores", "segment"} - set(settings.evaluations)
    return {stage: seconds + speeds.startup + 1 for stage, seconds in work.items() if stage not in skipped}
