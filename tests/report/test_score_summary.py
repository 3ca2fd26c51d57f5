"""The summary of a run calls a score good, mixed or poor by its baselines and standard errors."""

import pytest

from semmae.evaluation import scores
from semmae.evaluation.scores import Scores
from semmae.report.score_summary import Verdict, summarize


def classified(top1: float, se: float = 0.02, **baselines: float) -> Scores:
    others = {name: {"top1": value, "top1_se": se} for name, value in baselines.items()}
    return Scores({"top1": top1, "top1_se": se}, others)


def only(results) -> Verdict:
    (verdict,) = summarize(results)
    return verdict


def test_an_encoder_above_all_is_good(tmp_path):
    scores.write(tmp_path / "linear/main.json", classified(0.71, thumbnail=0.52, untrained=0.43, teacher=0.70))
    assert only(tmp_path) == Verdict(
        "linear probe, main: top-1", "0.710 ± 0.020", "good",
        "above thumbnails (0.520) and the untrained encoder (0.430) by more than three standard errors; "
        "no clear difference to the teacher (0.700)",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("thumbnail", "untrained", "grade"), [(0.4, 0.9, "mixed"), (0.9, 0.9, "poor"), (0.6, 0.6, "poor")]
)
def test_grades(tmp_path, thumbnail, untrained, grade):
    scores.write(tmp_path / "knn/main.json", classified(0.61, thumbnail=thumbnail, untrained=untrained))
    assert only(tmp_path).grade == grade


def test_three_standard_errors_of_the_difference(tmp_path):
    """With equal standard errors s, a difference is clear above 3 * sqrt(2) * s."""
    for untrained, grade in ((0.5 - 0.084, "poor"), (0.5 - 0.086, "good")):
        scores.write(tmp_path / "knn/main.json", classified(0.5, untrained=untrained))
        assert only(tmp_path).grade == grade


def test_the_teacher_does_not_change_the_grade(tmp_path):
    scores.write(tmp_path / "knn/main.json", classified(0.5, untrained=0.2, teacher=0.9))
    assert only(tmp_path).grade == "good"
    assert "below the teacher (0.900)" in only(tmp_path).words


def test_without_baselines_nothing_is_claimed(tmp_path):
    scores.write(tmp_path / "attentive/main.json", classified(0.9))
    assert only(tmp_path)[2:] == ("not compared", "no baseline was scored")


def test_the_attentive_probe_is_compared_with_the_thumbnails_of_the_linear_probe(tmp_path):
    scores.write(tmp_path / "linear/main.json", classified(0.7, thumbnail=0.3, untrained=0.2))
    scores.write(tmp_path / "attentive/main.json", classified(0.8, untrained=0.2))
    linear, attentive = summarize(tmp_path)
    assert (linear.grade, attentive.grade) == ("good", "good")
    assert "thumbnails (0.300)" in attentive.words


def test_parts_and_segmentation_are_compared_without_errors(tmp_path):
    patch = Scores(
        {"fg_iou": 0.8, "nmi_fg": 0.1},
        {"center_mask": {"fg_iou": 0.4}, "centered_kmeans": {"fg_iou": 0.6, "nmi_fg": 0.3}},
    )
    scores.write(tmp_path / "part_scores/main.json", {"patch": patch})
    linear = Scores({"miou": 0.3, "miou_se": 0.01}, {"most_frequent": {"miou": 0.1}, "untrained": {"miou": 0.4}})
    scores.write(tmp_path / "segment/main.json", {"linear": linear})
    segmentation, foreground, inside = summarize(tmp_path)
    assert segmentation.words == "not above the untrained encoder (0.400); above the most frequent class (0.100)"
    assert (segmentation.grade, foreground.grade, inside.grade) == ("mixed", "good", "poor")


def test_masks_of_the_foreground_alone_have_no_verdict_on_parts_inside(tmp_path):
    scores.write(
        tmp_path / "part_scores/main.json", {"patch": Scores({"fg_iou": 0.8}, {"center_mask": {"fg_iou": 0.4}})}
    )
    assert only(tmp_path).score == "parts, main: foreground IoU"
