"""Differences between settings with 95 % intervals, which tell differences from noise."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd
from scipy import stats

LEVEL = 0.95
NORMAL_QUANTILE = float(stats.norm.ppf(0.5 + LEVEL / 2))


class Difference(NamedTuple):
    """The mean score of a setting minus that of the reference.

    Attributes:
        score: The name of the column.
        setting: The label of the setting.
        reference: The label of the setting that is subtracted.
        value: The difference.
        margin: Half the width of the interval; None if the runs have no information about it.
        method: How the interval was computed.
    """

    score: str
    setting: str
    reference: str
    value: float
    margin: float | None
    method: str

    @property
    def verdict(self) -> str:
        """`higher` or `lower` than the reference, `noise` if the interval contains 0, or `unknown`."""
        if self.margin is None:
            return "unknown"
        if abs(self.value) <= self.margin:
            return "noise"
        return "higher" if self.value > 0 else "lower"

    @property
    def interval(self) -> str:
        """The interval as text, e.g. "+0.010 to +0.032"."""
        if self.margin is None:
            return "-"
        return f"{self.value - self.margin:+.3f} to {self.value + self.margin:+.3f}"

    def sentence(self) -> str:
        """Describe the difference in one sentence."""
        size = f"{self.value:+.3f}"
        match self.verdict:
            case "unknown":
                return (
                    f"{self.setting} differs from {self.reference} by {size}; its error is unknown, so run more seeds."
                )
            case "noise":
                return (
                    f"The difference between {self.setting} and {self.reference} is noise: {size}, 95 % interval "
                    f"{self.interval} ({self.method})."
                )
            case verdict:
                return (
                    f"{self.setting} is {verdict} than {self.reference} by {abs(self.value):.3f}, 95 % interval "
                    f"{self.interval} ({self.method})."
                )


def compute(groups: Mapping[str, pd.DataFrame], score: str, reference: str) -> list[Difference]:
    """Compare the score of each setting with that of the reference.

    The interval is the first of these that the runs allow:

    1. paired: Student's t interval of the differences of two or more pairs of runs with equal seeds;
    2. Welch's t interval, for two or more runs in both settings;
    3. Student's t interval with a common variance, or interval 4 if it is wider, if one of the settings has one run;
    4. for one run in both settings: the normal interval from the standard errors of the scores on the validation
       images, which leaves out the noise of the seeds.

    Args:
        groups: The runs of each setting.
        score: The name of the column.
        reference: One of the settings.
    """
    first = groups[reference]
    return [
        _compare(score, setting, reference, runs, first)
        for setting, runs in groups.items()
        if setting != reference and runs[score].notna().any() and first[score].notna().any()
    ]


def sampling_error(runs: pd.DataFrame, score: str) -> float | None:
    """Return the mean standard error of the scores of single runs, which the validation images cause; None: unknown."""
    name = f"{score}_se"
    errors = runs.loc[runs[score].notna(), name].dropna() if name in runs else pd.Series(dtype=float)
    return None if errors.empty else float(errors.mean())


def _compare(score: str, setting: str, reference: str, runs: pd.DataFrame, first: pd.DataFrame) -> Difference:
    a, b = first[score].dropna(), runs[score].dropna()
    pairs = _paired(score, runs, first)
    if len(pairs) > 1:
        margin = _t_quantile(len(pairs) - 1) * pairs.std() / math.sqrt(len(pairs))
        return Difference(
            score, setting, reference, float(pairs.mean()), float(margin), f"paired over {len(pairs)} seeds"
        )
    margin, method = _unpaired_margin(a, b, sampling_error(first, score), sampling_error(runs, score))
    return Difference(score, setting, reference, float(b.mean() - a.mean()), margin, method)


def _unpaired_margin(
    a: pd.Series, b: pd.Series, error_a: float | None, error_b: float | None
) -> tuple[float | None, str]:
    """Return the margin of the difference of two means, and the method; see `compute`."""
    n, m = len(a), len(b)
    if min(n, m) > 1:
        parts = a.var() / n, b.var() / m
        squares = parts[0] ** 2 / (n - 1) + parts[1] ** 2 / (m - 1)
        freedom = sum(parts) ** 2 / squares if squares else n + m - 2
        return float(_t_quantile(freedom) * math.sqrt(sum(parts))), f"unpaired, {n} and {m} runs"
    sampling = None if error_a is None or error_b is None else NORMAL_QUANTILE * math.hypot(error_a, error_b)
    if n + m > 2:
        several = a if n > 1 else b
        margin = float(_t_quantile(len(several) - 1) * several.std() * math.sqrt(1 + 1 / len(several)))
        if sampling is None or margin > sampling:
            return margin, f"unpaired, {n} and {m} runs, common variance"
    if sampling is None:
        return None, "one run each, no sampling error"
    count = "one run each" if n + m == 2 else f"{n} and {m} runs"
    return sampling, f"{count}, error of the validation images without that of seeds"


def _paired(score: str, runs: pd.DataFrame, first: pd.DataFrame) -> pd.Series:
    """Return the differences of runs with equal seeds; empty if the seeds do not identify the runs of a setting."""
    seeds = [name for name in runs if name.rpartition(".")[2] == "seed"]
    if not seeds:
        return pd.Series(dtype=float)
    a, b = (group.dropna(subset=[score]).set_index(seeds)[score] for group in (first, runs))
    if not (a.index.is_unique and b.index.is_unique):
        return pd.Series(dtype=float)
    return (b - a).dropna()


def _t_quantile(freedom: float) -> float:
    return float(stats.t.ppf(0.5 + LEVEL / 2, freedom))
