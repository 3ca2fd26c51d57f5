"""RankMe equals its closed form."""

import math

import pytest
import torch

from semmae.evaluation.rankme import rankme


def features(*singular_values: float) -> torch.Tensor:
    """Return 12 features of width 6 with these singular values."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 6, generator=generator)).Q for n in (12, 6))
    padded = torch.tensor([*singular_values, *[0.0] * (6 - len(singular_values))])
    return left * padded @ right.T


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_equal_singular_values_count(rank: int):
    assert rankme(features(*[3.0] * rank)) == pytest.approx(rank, rel=1e-4)


def test_unequal_singular_values_give_the_exponential_of_their_entropy():
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert rankme(features(6.0, 2.0)) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_features_of_zeros_have_rank_one():
    assert rankme(torch.zeros(4, 3)) == 1.0
