"""Say in words how the scores of a run compare with those of its baselines: what is good, and what is not."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from semmae.evaluation import scores
from semmae.evaluation.scores import Metrics, Scores

CLASSIFIERS = {"knn": "kNN", "linear": "linear probe", "attentive": "attentive probe", "finetune": "fine-tuning"}
BASELINES = {"thumbnail": "thumbnails", "untrained": "the untrained encoder", "teacher": "the teacher"}
PART_BASELINES = {
    "centered_kmeans": "k-means of the teacher's tokens",
    "color_kmeans": "k-means of colors",
    "center_mask": "one mask for all images",
}
CLEAR = 3.0  # a difference is clear from this number of its standard errors


class Verdict(NamedTuple):
    """A score of a run, and how it compares with its baselines.

    Attributes:
        score: The name of the score and its dataset.
        value: The score, with its standard error if it has one.
        grade: "good": above all baselines that it must beat; "poor": above none of them; else "mixed".
        words: The comparison with each baseline.
    """

    score: str
    value: str
    grade: str
    words: str


def summarize(results: Path) -> list[Verdict]:
    """Compare all scores in a folder of results with their baselines, as the stages have written them.

    An encoder must beat thumbnails and the untrained encoder. Parts must beat k-means and one mask for all images. The
    teacher is listed, but has no influence on the grade. The attentive probe scores no thumbnails, so it is compared
    with those of the linear probe on the same dataset.
    """
    return [*_classifiers(results), *_segmentations(results), *_part_maps(results)]


def _classifiers(results: Path) -> Iterator[Verdict]:
    for stage, name in CLASSIFIERS.items():
        for path in sorted((results / stage).glob("*.json")):
            measured, linear = scores.read(path), results / "linear" / path.name
            baselines = dict(measured.baselines)
            if stage == "attentive" and baselines and linear.exists():
                thumbnail = scores.read(linear).baselines.get("thumbnail")
                baselines |= {"thumbnail": thumbnail} if thumbnail else {}
            yield _verdict(f"{name}, {path.stem}: top-1", measured.encoder, baselines, BASELINES, metric="top1")


def _segmentations(results: Path) -> Iterator[Verdict]:
    for path in sorted((results / "segment").glob("*.json")):
        for head, measured in scores.read_groups(path).items():
            required = {**BASELINES, "most_frequent": "the most frequent class", "position": "the class per position"}
            title = f"segmentation ({head}), {path.stem}: mIoU"
            yield _verdict(title, measured.encoder, measured.baselines, required, metric="miou")


def _part_maps(results: Path) -> Iterator[Verdict]:
    for path in sorted((results / "part_scores").glob("*.json")):
        measured: Scores = scores.read_groups(path)["patch"]
        for metric, name in (("fg_iou", "foreground IoU"), ("nmi_fg", "NMI in the foreground")):
            if metric in measured.encoder:  # masks of the foreground alone give no NMI
                title = f"parts, {path.stem}: {name}"
                yield _verdict(title, measured.encoder, measured.baselines, PART_BASELINES, metric=metric)


def _verdict(
    title: str, encoder: Metrics, baselines: Mapping[str, Metrics], names: Mapping[str, str], *, metric: str
) -> Verdict:
    """Compare a metric with those of `names` that `baselines` has."""
    value, error = encoder[metric], encoder.get(f"{metric}_se")
    groups: dict[str, list[str]] = {}
    beaten = []
    for key, name in names.items():
        if metric in (other := baselines.get(key, {})):
            relation = _relation(value - other[metric], error, other.get(f"{metric}_se"))
            groups.setdefault(relation, []).append(f"{name} ({other[metric]:.3f})")
            beaten += [relation.startswith("above")] if key != "teacher" else []
    grade = "not compared" if not beaten else "good" if all(beaten) else "mixed" if any(beaten) else "poor"
    text = f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"
    sentences = [relation.format(_enumerate(compared)) for relation, compared in groups.items()]
    return Verdict(title, text, grade, "; ".join(sentences) or "no baseline was scored")


def _relation(difference: float, error: float | None, other_error: float | None) -> str:
    """Return a phrase with a gap for the names of the baselines.

    Without both standard errors, only the sign of the difference is known.
    """
    if error is None or other_error is None:
        return "above {}" if difference > 0 else "not above {}"
    if abs(difference) <= CLEAR * math.hypot(error, other_error):
        return "no clear difference to {}"
    return ("above" if difference > 0 else "below") + " {} by more than three standard errors"


def _enumerate(names: list[str]) -> str:
    """Join names as "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
