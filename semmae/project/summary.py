"""What `semmae init` tells: what it found, what it chose and why, and what the run will cost."""

from collections import Counter
from typing import NamedTuple

from semmae.project.image_survey import ImageSurvey
from semmae.project.machine import Machine
from semmae.project.mask_survey import MaskSurvey
from semmae.project.plan import Plan, Request, steps_per_epoch
from semmae.project.settings import Settings
from semmae.runs.training_length import describe_short


class Row(NamedTuple):
    """A line of a table: what it is about, the value, and an explanation."""

    subject: str
    value: str
    reason: str = ""


def describe_images(survey: ImageSurvey, masks: MaskSurvey | None, *, labels: bool) -> list[Row]:
    """Describe what was found in a folder or a tar."""
    sample = survey.sample
    heights, widths = zip(*sample.sizes, strict=True)
    decoded = len(sample.sizes) + len(sample.broken)
    rows = [
        Row("images", f"{survey.num_images:,}", _join(Counter(survey.splits))),
        Row("formats", _join(survey.formats), f"{survey.num_bytes / 1e6:,.0f} MB"),
        Row(
            "sizes", f"{min(heights)} to {max(heights)} x {min(widths)} to {max(widths)} pixels",
            f"height x width; median short side {sample.short_side}; {decoded:,} images decoded",
        ),
        Row("channels", _join(sample.modes), "as in the files; training uses RGB"),
        Row("broken", f"{len(sample.broken):,} of {decoded:,} decoded", _example(sample.broken)),
    ]  # fmt: skip
    if survey.others:
        rows.append(Row("other files", f"{survey.others:,}", "without the extension of an image; they are rejected"))
    if survey.refused:
        rows.append(Row("refused", f"{len(survey.refused):,} files", _example(survey.refused)))
    at_least = "" if survey.compared_all else "at least "
    rows.append(Row("duplicates", f"{at_least}{survey.duplicates:,}", "files equal to another file, byte for byte"))
    rows.append(_describe_classes(survey, labels=labels))
    if masks is not None:
        rows.append(Row("masks", f"{masks.masked:,} of kind {masks.kind}", masks.reason))
        if masks.broken:
            rows.append(Row("broken masks", f"{len(masks.broken):,}", _example(masks.broken)))
    elif survey.has_masks:
        rows.append(Row("masks", "not used", "there is a folder masks; add --masks to score parts and segmentation"))
    return rows


def describe_choices(plan: Plan, request: Request) -> list[Row]:
    """Describe the settings and their reasons."""
    settings, survey = plan.settings, request.survey
    shape = settings.shape.vit
    per_epoch = steps_per_epoch(request, settings)
    rows = [
        Row(
            "image size", f"{settings.img_size} pixels, patches of {shape.patch_size}",
            f"{(settings.img_size // shape.patch_size) ** 2} patches; median short side {survey.sample.short_side}",
        ),
        Row("encoder", f"ViT of width {shape.embed_dim} with {shape.depth} blocks", "the best that trains in the time"),
        _describe_teacher(settings, per_epoch),
        Row("parts", f"{settings.num_parts}, on {settings.parts_img_size} pixels", _reason_of_parts(settings, request)),
        Row("pretraining", f"{settings.epochs} epochs", _describe_steps(settings.epochs * per_epoch)),
        Row("batch", f"{settings.batch_size} images", f"{per_epoch} steps per epoch"),
        Row("evaluations", ", ".join(settings.evaluations) or "none", _reason_of_evaluations(request)),
    ]  # fmt: skip
    if settings.val_fraction is not None:
        rows.append(Row("val", f"{settings.val_fraction:.0%} of train", "the images have no split val"))
    return rows


def describe_cost(plan: Plan, machine: Machine, request: Request) -> list[Row]:
    """Describe time, memory and disk."""
    reason = f"measured here in a few steps; the budget is {format_time(request.budget)}"
    return [
        Row("time", format_time(plan.seconds), reason),
        Row("disk", f"{2 * plan.disk / 1e6:,.0f} MB", "shards and part maps, and their copies in DVC's cache"),
        Row("machine", machine.describe(), ""),
    ]


def format_time(seconds: float) -> str:
    """Return a time in the unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def _describe_classes(survey: ImageSurvey, *, labels: bool) -> Row:
    classes = survey.classes
    if labels:
        unclassed = f"; {survey.unclassed} images in no class folder are rejected" if survey.unclassed else ""
        counts = f"{min(classes.values())} to {max(classes.values())} images each"
        return Row("classes", f"{len(classes):,}", f"the names of the folders; {counts}{unclassed}")
    if len(classes) > 1:
        return Row("classes", "not used", f"{len(classes):,} folders; if their names are classes, add --labels")
    return Row("classes", "none")


def _describe_teacher(settings: Settings, per_epoch: int) -> Row:
    if settings.published is not None:
        weights = "your file" if settings.published.checkpoint else "downloaded by timm"
        return Row("teacher", settings.published.model, f"published weights, {weights}: parts follow the content")
    steps = _describe_steps(settings.teacher_epochs * per_epoch)
    return Row(
        "teacher", f"MAE on your images, {settings.teacher_epochs} epochs",
        f"{steps}; its parts follow the position on the object more than its content. With published weights "
        "(--teacher, --weights) they follow the content",
    )  # fmt: skip


def _describe_steps(steps: int) -> str:
    return describe_short(steps) or f"{steps:,} steps"


def _reason_of_parts(settings: Settings, request: Request) -> str:
    if request.masks is not None and request.masks.kind == "parts":
        return "as many as the masks name"
    return "the default"


def _reason_of_evaluations(request: Request) -> str:
    missing = [] if request.labels else ["knn, linear and attentive need --labels"]
    if request.masks is None:
        missing.append("part_scores and segment need --masks")
    elif request.masks.kind == "classes":
        missing.append("part_scores needs masks of parts or of the foreground")
    return "; ".join(missing) or "all that labels and masks allow, except finetune, which takes long"


def _join(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common(4))


def _example(problems: list[tuple[str, str]]) -> str:
    return f"e.g. {': '.join(problems[0])}" if problems else ""
