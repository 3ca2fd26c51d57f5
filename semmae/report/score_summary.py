"""Say in words how the scores of a run compare with those of its baselines: what is good, and what is not."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from semmae.evaluation import scores
from semmae.evaluation.score_comparison import compare, join_names
from semmae.evaluation.scores import Metrics, Scores

CLASSIFIERS = {"knn": "kNN", "linear": "linear probe", "attentive": "attentive probe", "finetune": "fine-tuning"}
BASELINES = {"thumbnail": "thumbnails", "untrained": "the untrained encoder", "teacher": "the teacher"}
PART_BASELINES = {
    "centered_kmeans": "k-means of the teacher's tokens",
    "color_kmeans": "k-means of colors",
    "center_mask": "one mask for all images",
}
RELATIONS = {
    "above": "above {} by more than three standard errors",
    "within noise of": "no clear difference to {}",
    "below": "below {} by more than three standard errors",
}


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
            relation = _relation(encoder, other, metric)
            groups.setdefault(relation, []).append(f"{name} ({other[metric]:.3f})")
            beaten += [relation.startswith("above")] if key != "teacher" else []
    grade = "not compared" if not beaten else "good" if all(beaten) else "mixed" if any(beaten) else "poor"
    text = f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"
    sentences = [relation.format(join_names(compared)) for relation, compared in groups.items()]
    return Verdict(title, text, grade, "; ".join(sentences) or "no baseline was scored")


def _relation(encoder: Metrics, baseline: Metrics, metric: str) -> str:
    """Return a phrase with a gap for the names of the baselines.

    Without both standard errors, only the sign of the difference is known.
    """
    if f"{metric}_se" in encoder and f"{metric}_se" in baseline:
        return RELATIONS[compare(encoder, baseline, metric)]
    return "above {}" if encoder[metric] > baseline[metric] else "not above {}"
