"""Arrange scores and parameters as rows of tables, with display names."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from semmae.evaluation.object_position import describe_place
from semmae.evaluation.scores import Metrics, Scores

DISPLAY_NAMES = {
    "untrained": "untrained encoder",
    "thumbnail": "16 × 16 thumbnail",
    "center_mask": "one mask for all images",
    "position": "most frequent class at each position",
    "grid": "grid of rectangles",
    "color_kmeans": "k-means of patch colors",
    "untrained_kmeans": "k-means of an untrained ViT’s tokens",
    "teacher_kmeans": "k-means of the teacher’s tokens",
    "centered_kmeans": "k-means of the teacher’s tokens minus their mean",
    "foreground_kmeans": "k-means in the foreground that attention finds",
    "attention_heads": "the teacher’s attention heads",
    "attention_best_head": "foreground: the teacher’s best head",
    "pca_foreground": "foreground: first principal component",
    "normalized_cut": "foreground: normalized cut",
    "readout": "supervised linear read-out of the teacher",
    "silhouette": "true foreground as one part",
    "perfect": "true parts, one label per patch",
    "most_frequent": "most frequent class everywhere",
}
HEADS = {"linear": "linear head, frozen", "knn": "nearest patches, frozen", "upernet": "UPerNet, fine-tuned"}
HEAD_INDEPENDENT = ("most_frequent", "position")  # baselines that are the same for every head
PART_METRICS = {
    "labels": "labels",
    "fg_iou": "foreground IoU",
    "miou": "part mIoU",
    "nmi_fg": "NMI, foreground",
    "ari_fg": "ARI, foreground",
    "nmi_all": "NMI, all",
    "ari_all": "ARI, all",
    "consistency": "consistency",
    "used": "labels in use",
    "background_share": "background in one label",
    "place": "explained by position",
    "stable_shift": "kept when shifted",
    "stable_flip": "kept when flipped",
    "stable_zoom": "kept when zoomed",
}
REFERENCES = "references that use the true masks"
LEVELS = {"patch": "per patch", "pixel": "per pixel"}


class Bar(NamedTuple):
    """An accuracy with its standard error.

    Attributes:
        name: The encoder or a baseline.
        value: The accuracy, in [0, 1].
        error: The standard error of the accuracy; None if it is unknown.
        width: The length of the bar as a fraction of the axis.
        whisker: The standard error as a fraction of the axis.
    """

    name: str
    value: float
    error: float | None
    width: float
    whisker: float


class LowShotScore(NamedTuple):
    """A top-1 accuracy with few labels, e.g. `labels="5 per class"`."""

    labels: str
    value: float
    error: float | None


class SegmentationRow(NamedTuple):
    """Segmentation scores of the encoder or of a baseline; `error` is the standard error of mIoU, or None."""

    name: str
    miou: float
    error: float | None
    pixel_accuracy: float
    is_encoder: bool


class PartTable(NamedTuple):
    """Part scores at one level.

    Attributes:
        title: The level.
        columns: The names of the metrics.
        groups: Pairs of a title ("" for the parts) and rows (name, cells). The cell of a missing value is "–".
    """

    title: str
    columns: list[str]
    groups: list[tuple[str, list[tuple[str, list[str]]]]]


def display_name(baseline: str) -> str:
    """Return the display name of a baseline."""
    return DISPLAY_NAMES.get(baseline, baseline.replace("_", " "))


def accuracy_bars(scores: Scores) -> list[Bar]:
    """Return a bar for the encoder, then one for each baseline, the best first."""
    baselines = {display_name(name): metrics for name, metrics in scores.baselines.items()}
    rows = {"encoder": scores.encoder} | dict(sorted(baselines.items(), key=lambda item: -item[1]["top1"]))
    longest = max(metrics["top1"] + metrics.get("top1_se", 0.0) for metrics in rows.values())
    axis_max = max(math.ceil(10 * longest) / 10, 0.1)
    errors = {name: metrics.get("top1_se") for name, metrics in rows.items()}
    return [
        Bar(name, metrics["top1"], errors[name], metrics["top1"] / axis_max, (errors[name] or 0.0) / axis_max)
        for name, metrics in rows.items()
    ]


def other_accuracies(scores: Scores) -> dict[str, float]:
    """Return top-5 accuracy and the mean accuracy over classes, by display name."""
    values = {"top-5": scores.encoder.get("top5"), "mean over classes": scores.encoder.get("per_class")}
    return {name: value for name, value in values.items() if value is not None}


def low_shot_scores(scores: Scores) -> list[LowShotScore]:
    """Return the accuracies with few labels, then the accuracy with all labels; [] without low-shot scores."""
    if not scores.low_shot:
        return []
    rows = [*((_label_count(name), metrics) for name, metrics in scores.low_shot.items()), ("all", scores.encoder)]
    return [LowShotScore(labels, metrics["top1"], metrics.get("top1_se")) for labels, metrics in rows]


def _label_count(name: str) -> str:
    """Format `5_per_class` as "5 per class" and `0_5_percent` as "0.5 %"."""
    percent = name.removesuffix("_percent")
    return name.replace("_", " ") if percent == name else f"{percent.replace('_', '.')} %"


def segmentation_heads(scores: Mapping[str, Scores]) -> dict[str, str]:
    """Return the heads that have scores, with their display names."""
    return {head: name for head, name in HEADS.items() if head in scores}


def segmentation_rows(scores: Mapping[str, Scores]) -> list[SegmentationRow]:
    """Return a row for each head, followed by its baselines; then the baselines in HEAD_INDEPENDENT.

    Args:
        scores: The scores of each head.
    """
    heads, rows = segmentation_heads(scores), []

    def add(name: str, metrics: Metrics, is_encoder: bool) -> None:
        error = metrics.get("miou_se") if is_encoder else None
        rows.append(SegmentationRow(name, metrics["miou"], error, metrics["pixel_accuracy"], is_encoder))

    for head, name in heads.items():
        add(name, scores[head].encoder, True)
        for baseline, metrics in scores[head].baselines.items():
            if baseline not in HEAD_INDEPENDENT:
                add(f"{display_name(baseline)}, {name}", metrics, False)
    baselines = {name: metrics for head in heads for name, metrics in scores[head].baselines.items()}
    for baseline in HEAD_INDEPENDENT:
        if baseline in baselines:
            add(display_name(baseline), baselines[baseline], False)
    return rows


def class_iou_rows(scores: Mapping[str, Scores]) -> list[tuple[str, list[float | None]]]:
    """Return each class with its IoU for each head of `segmentation_heads`."""
    by_head = [scores[head].class_iou for head in segmentation_heads(scores)]
    return [(name, [class_iou[name] for class_iou in by_head]) for name in by_head[0]]


def part_tables(scores: Mapping[str, Scores]) -> list[PartTable]:
    """Return a table for each level of part scores: the parts, baselines and references."""
    return [_part_table(title, scores[level]) for level, title in LEVELS.items()]


def _part_table(title: str, scores: Scores) -> PartTable:
    metrics = [metric for metric in PART_METRICS if metric in scores.encoder]

    def format_rows(methods: Mapping[str, Metrics]) -> list[tuple[str, list[str]]]:
        return [
            (
                display_name(name),
                [_format_score(m.get(key), scores.deviations.get(name, {}).get(key)) for key in metrics],
            )
            for name, m in methods.items()
        ]

    groups = [("", {"parts": scores.encoder}), ("baselines", scores.baselines), (REFERENCES, scores.references)]
    rows = [(group, format_rows(methods)) for group, methods in groups if methods]
    return PartTable(title, [PART_METRICS[metric] for metric in metrics], rows)


def _format_score(value: float | None, deviation: float | None) -> str:
    """Format a score with its deviation, if it has one; a number of labels has no digits."""
    if value is None:
        return "–"
    text = str(value) if isinstance(value, int) else f"{round(value, 3) + 0:.3f}".replace("-", "−")
    return text if deviation is None else f"{text} ± {deviation:.3f}"


def place_sentence(scores: Mapping[str, Scores]) -> str:
    """Tell how far the position on the object explains the parts; "" for scores without `place`.

    Args:
        scores: The part scores by level.
    """
    parts = scores["patch"].encoder.get("place")
    true_parts = scores["patch"].references.get("perfect", {}).get("place")
    return "" if parts is None else describe_place(parts, true_parts)


def flatten_params(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) for each value of a section; a list is one value."""
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from flatten_params(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value
