"""Compare an encoder with its baselines, in words.

A difference below three standard errors counts as noise, because a run has several scores. The error is that of the
difference of two accuracies on independent images. Both are measured on the same images, so the true error is usually
smaller. The seed of pretraining also changes scores, which this error does not include.
"""

import math
from collections.abc import Mapping
from typing import Literal, get_args

from semmae.evaluation.scores import Metrics, Scores

NOISE = 3.0  # standard errors of a difference below which it counts as noise
BASELINES = {"untrained": "an untrained encoder", "thumbnail": "thumbnails"}  # each must be exceeded to show learning

Verdict = Literal["above", "within noise of", "below"]


def compare(encoder: Metrics, baseline: Metrics, metric: str = "top1") -> Verdict:
    """Compare a metric, which has a standard error, of an encoder and a baseline."""
    difference = encoder[metric] - baseline[metric]
    if abs(difference) <= NOISE * math.hypot(encoder[f"{metric}_se"], baseline[f"{metric}_se"]):
        return "within noise of"
    return "above" if difference > 0 else "below"


def compare_with_baselines(scores: Scores) -> dict[str, Verdict]:
    """Compare the encoder with each of BASELINES that has scores."""
    return {
        name: compare(scores.encoder, scores.baselines[name])
        for name in BASELINES
        if "top1_se" in scores.baselines.get(name, {})
    }


def describe(scores: Scores) -> str:
    """Describe `compare_with_baselines` in words, e.g. "above thumbnails, within noise of an untrained encoder"."""
    verdicts = {BASELINES[name]: verdict for name, verdict in compare_with_baselines(scores).items()}
    return ", ".join(f"{verdict} {join_names(names)}" for verdict, names in group_by_verdict(verdicts).items())


def group_by_verdict(verdicts: Mapping[str, Verdict]) -> dict[Verdict, list[str]]:
    """Return the names with each verdict, the best verdict first; a verdict without names is left out."""
    names = {kind: [name for name, verdict in verdicts.items() if verdict == kind] for kind in get_args(Verdict)}
    return {kind: found for kind, found in names.items() if found}


def join_names(names: list[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def format_top1(scores: Scores) -> str:
    """Format the top-1 accuracies of the encoder and of the baselines as one line of text, with `describe`."""
    baselines = "".join(f", {name} {metrics['top1']:.3f}" for name, metrics in scores.baselines.items())
    comparison = f": {text}" if (text := describe(scores)) else ""
    return f"top-1 {scores.encoder['top1']:.3f} ± {scores.encoder['top1_se']:.3f}{baselines}{comparison}"
