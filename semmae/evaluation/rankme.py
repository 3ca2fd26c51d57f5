"""RankMe (Garrido et al. 2023): the effective rank of features, which shows without labels whether they collapse."""

import torch
from jaxtyping import Float
from torch import Tensor


def rankme(features: Float[Tensor, "n d"]) -> float:
    """Return the exponential of the entropy of the singular values, divided by their sum.

    The features are not centered, as in the paper (equation 1).

    Returns:
        A number from 1, if all features are multiples of one vector, to min(n, d), if all singular values are equal.
    """
    singular_values = torch.linalg.svdvals(features.double())
    share = singular_values / singular_values.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.special.entr(share).sum().exp())
