"""A difference counts as noise below three standard errors of the difference of independent accuracies."""

import math

import pytest

from semmae.evaluation.score_comparison import compare, describe, format_top1
from semmae.evaluation.scores import Scores


def accuracy(top1: float, error: float = 0.03) -> dict[str, float]:
    return {"top1": top1, "top1_se": error}


@pytest.mark.parametrize("errors", [(0.03, 0.04), (0.0, 0.05), (0.05, 0.0)])
def test_three_standard_errors_of_the_difference_are_the_border(errors: tuple[float, float]):
    assert math.hypot(*errors) == pytest.approx(0.05)
    for difference, verdict in ((0.16, "above"), (0.14, "within noise of"), (0.0, "within noise of")):
        assert compare(accuracy(0.5 + difference, errors[0]), accuracy(0.5, errors[1])) == verdict
    assert compare(accuracy(0.34, errors[0]), accuracy(0.5, errors[1])) == "below"


@pytest.mark.parametrize(
    ("untrained", "thumbnail", "words"),
    [
        (0.2, 0.3, "above an untrained encoder and thumbnails"),
        (0.5, 0.3, "above thumbnails, within noise of an untrained encoder"),
        (0.2, 0.9, "above an untrained encoder, below thumbnails"),
        (0.9, 0.9, "below an untrained encoder and thumbnails"),
    ],
)
def test_the_description_groups_baselines_and_leaves_out_the_teacher(untrained, thumbnail, words):
    baselines = {"thumbnail": accuracy(thumbnail), "untrained": accuracy(untrained), "teacher": accuracy(0.1)}
    scores = Scores(accuracy(0.5), baselines)
    assert describe(scores) == words
    assert format_top1(scores).startswith("top-1 0.500 ± 0.030, thumbnail ")
    assert format_top1(scores).endswith(f"teacher 0.100: {words}")


def test_scores_without_baselines_are_not_described():
    assert describe(Scores(accuracy(0.5))) == ""
    assert format_top1(Scores(accuracy(0.5))) == "top-1 0.500 ± 0.030"
