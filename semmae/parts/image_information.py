"""The objective of the part learner: the information of part labels about the patches of an image."""

import torch
from jaxtyping import Float
from torch import Tensor

MIN_SHARE = 1e-9  # smallest share whose logarithm is taken
SEARCH_STEPS = 40  # of the search for a temperature
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 10.0


def entropy(shares: Float[Tensor, "*b k"]) -> Float[Tensor, "*b"]:
    """Compute the entropy of distributions over labels, in nats."""
    return -(shares * shares.clamp(min=MIN_SHARE).log()).sum(-1)


def image_information(shares: Float[Tensor, "b n k"], weight: Float[Tensor, "b n"]) -> Float[Tensor, ""]:
    """Compute the mutual information of label and patch, given the image: I(label; patch | image).

    It is the entropy of the labels of an image minus the mean entropy of the labels of its patches. Both are averaged
    over the patches of the batch. The information is high if every patch has one label, and if the patches of each
    image have many different labels. It is 0 if all patches of an image have the same distribution of labels. A label
    for a kind of image, such as dark photographs, therefore gains nothing, and a label for a part of an object does.
    The mutual information without the image is the objective of Gomes, Krause & Perona, "Discriminative Clustering by
    Regularized Information Maximization", NeurIPS 2010.

    Args:
        shares: The distribution over labels of each patch.
        weight: The weight of each patch, at least 0; patches of the background have weight 0.

    Returns:
        The information in nats, from 0 to log(k).
    """
    total, size = weight.sum(), weight.sum(1)
    labels_of_image = (shares * weight[:, :, None]).sum(1) / size.clamp(min=MIN_SHARE)[:, None]
    between = (entropy(labels_of_image) * size).sum() / total
    within = (entropy(shares) * weight).sum() / total
    return between - within


def temperature_of_entropy(cosine: Float[Tensor, "m k"], share: float) -> float:
    """Find the temperature at which softmax(cosine / temperature) has a given mean entropy.

    The cosines of good tokens differ by more than those of noisy ones. This temperature makes up for the difference.

    Args:
        cosine: The cosine of each patch and part.
        share: The mean entropy, as a share of log(k); between 0 and 1.
    """
    maximum = entropy(torch.full((cosine.shape[1],), 1 / cosine.shape[1]))
    low, high = MIN_TEMPERATURE, MAX_TEMPERATURE
    for _ in range(SEARCH_STEPS):
        middle = (low * high) ** 0.5
        is_cold = entropy((cosine / middle).softmax(-1)).mean() < share * maximum
        low, high = (middle, high) if is_cold else (low, middle)
    return (low * high) ** 0.5
