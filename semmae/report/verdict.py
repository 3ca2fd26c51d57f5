"""The sentences at the head of the report: what the scores of the encoder show, and no more."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from semmae.evaluation.score_comparison import (
    BASELINES,
    NOISE,
    Verdict,
    compare_with_baselines,
    group_by_verdict,
    join_names,
)
from semmae.evaluation.scores import Scores
from semmae.runs.training_length import describe_short

WORDS: dict[Verdict, str] = {"above": "higher", "within noise of": "within noise", "below": "lower"}


class ClassifierScores(NamedTuple):
    """The scores of one classifier on one dataset; `name` is e.g. "kNN on main"."""

    name: str
    scores: Scores


def verdict_sentences(num_steps: Mapping[str, int], results: Sequence[ClassifierScores]) -> list[str]:
    """Return sentences about the lengths of the trainings and the baselines.

    Args:
        num_steps: Number of steps of each training by its name; 0 for a network that was not trained here.
        results: All classification scores of the run.
    """
    short = {name: describe_short(steps) for name, steps in num_steps.items() if steps}
    sentences = [f"{name.capitalize()} had {sentence}." for name, sentence in short.items() if sentence]
    verdicts = {result.name: compare_with_baselines(result.scores) for result in results}
    for baseline, words in BASELINES.items():
        if compared := {name: verdict[baseline] for name, verdict in verdicts.items() if baseline in verdict}:
            sentences.append(f"Compared with {words}, the encoder is {_by_verdict(compared)}.")
    if not any(verdicts.values()):
        return [
            *sentences,
            "No score compares the encoder with an untrained one, so nothing shows what it has learned.",
        ]
    if all(verdict.get("untrained", "below") != "above" for verdict in verdicts.values()):
        sentences.append("So no score shows that pretraining has improved the encoder.")
    return [
        *sentences,
        f"Noise means less than {NOISE:g} standard errors of the difference. They come from the number of validation "
        "images; another seed changes the scores too.",
    ]


def _by_verdict(verdicts: dict[str, Verdict]) -> str:
    """Group the names of scores: "higher in linear probe on main; lower in kNN on main"."""
    found = group_by_verdict(verdicts)
    return "; ".join(f"{WORDS[verdict]} in {join_names(names)}" for verdict, names in found.items())
