"""The head of the report claims no more than the scores show."""

from semmae.evaluation.scores import Scores
from semmae.report.verdict import ClassifierScores, verdict_sentences
from semmae.runs.training_length import FEW_STEPS

LONG = {"the teacher": 0, "pretraining": FEW_STEPS}  # a published teacher


def result(name: str, encoder: float, **baselines: float) -> ClassifierScores:
    scores = {baseline: {"top1": top1, "top1_se": 0.01} for baseline, top1 in baselines.items()}
    return ClassifierScores(name, Scores({"top1": encoder, "top1_se": 0.01}, scores))


def test_baselines_are_named_with_the_scores_in_which_they_are_exceeded():
    results = [
        result("kNN on pets", 0.3, untrained=0.31, thumbnail=0.6),
        result("linear probe on pets", 0.5, untrained=0.3, thumbnail=0.4),
        result("linear probe on birds", 0.5, untrained=0.3),
    ]
    untrained, thumbnails, noise = verdict_sentences(LONG, results)
    assert untrained == (
        "Compared with an untrained encoder, the encoder is higher in linear probe on pets and linear probe on birds; "
        "within noise in kNN on pets."
    )
    assert thumbnails == (
        "Compared with thumbnails, the encoder is higher in linear probe on pets; lower in kNN on pets."
    )
    assert noise.startswith("Noise means less than 3 standard errors")


def test_a_short_run_without_a_gain_says_both():
    teacher, short, untrained, nothing, _ = verdict_sentences(
        {"the teacher": 12, "pretraining": 64}, [result("kNN on pets", 0.2, untrained=0.4)]
    )
    assert teacher == f"The teacher had 12 steps in all; below {FEW_STEPS} expect little."
    assert short == f"Pretraining had 64 steps in all; below {FEW_STEPS} expect little."
    assert untrained == "Compared with an untrained encoder, the encoder is lower in kNN on pets."
    assert nothing == "So no score shows that pretraining has improved the encoder."


def test_without_an_untrained_encoder_nothing_is_claimed():
    for results in ([], [result("kNN on pets", 0.9)]):
        (sentence,) = verdict_sentences(LONG, results)
        assert sentence.startswith("No score compares the encoder with an untrained one")
    sentences = verdict_sentences(LONG, [result("kNN on pets", 0.9, thumbnail=0.1)])
    assert "So no score shows that pretraining has improved the encoder." in sentences
