"""Cues for the foreground that need no labels and no training: functions of patch tokens alone.

A score is positive on the foreground and negative on the background. `FirstComponent` compares the patches of a
dataset; `normalized_cut` compares the patches of each image.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

CUT_THRESHOLD = 0.2  # of the cosine between two patches that belong together (TokenCut)
WEAK_EDGE = 1e-5  # weight of the edge between all other patches, so that the graph is connected (TokenCut)


class FirstComponent(NamedTuple):
    """The first principal component of the patch tokens of a dataset (as in DINOv2: Oquab et al., 2023).

    Attributes:
        mean: The mean token.
        axis: The direction of the largest variance, of unit length.
    """

    mean: Float[Tensor, " d"]
    axis: Float[Tensor, " d"]

    def score(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n"]:
        """Project tokens on the component."""
        return (tokens - self.mean) @ self.axis


def first_component(tokens: Float[Tensor, "s n d"], *, grid: tuple[int, int]) -> FirstComponent:
    """Fit the first principal component to the tokens of a sample of images.

    The component has no sign of its own. The sign is chosen so that the patches on the border of the images have a
    lower mean score than the others.
    """
    flat = tokens.flatten(0, 1).double()
    mean = flat.mean(0)
    axis = torch.linalg.eigh((flat - mean).T @ (flat - mean)).eigenvectors[:, -1]
    component = FirstComponent(mean.to(tokens.dtype), axis.to(tokens.dtype))
    score, border = component.score(tokens).mean(0), torch.ones(grid, dtype=torch.bool, device=tokens.device)
    border[1:-1, 1:-1] = False
    return component if score[border.flatten()].mean() <= score.mean() else component._replace(axis=-component.axis)


def normalized_cut(tokens: Float[Tensor, "b n d"], *, threshold: float = CUT_THRESHOLD) -> Float[Tensor, "b n"]:
    """Cut each image in two by the normalized cut of its token graph, on the CPU.

    Two patches are joined by an edge of weight 1 if the cosine of their tokens is above `threshold`, and of weight
    `WEAK_EDGE` otherwise. With W the weights and D their row sums, the score is the eigenvector of the second smallest
    eigenvalue of (D - W) y = lambda D y, minus its mean. The foreground is the side that holds the largest absolute
    value of y. Source: Wang et al., "TokenCut: Segmenting Objects in Images and Videos with Self-supervised Transformer
    and Normalized Cut", CVPR 2022, section 3.2.
    """
    unit = functional.normalize(tokens.cpu().double(), dim=-1)
    weights = (unit @ unit.transpose(1, 2) > threshold).double().clamp(min=WEAK_EDGE)
    vectors = torch.from_numpy(np.stack([_second_eigenvector(image) for image in weights.numpy()]))
    score = vectors - vectors.mean(1, keepdim=True)
    seed = vectors.abs().argmax(1, keepdim=True)
    return (score * score.gather(1, seed).sign()).to(tokens)


def _second_eigenvector(weights: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " n"]:
    """Return y = D^-1/2 z, where z is the second eigenvector of the symmetric D^-1/2 W D^-1/2."""
    from scipy.linalg import eigh  # a slow import

    scale = weights.sum(1) ** -0.5
    second = len(weights) - 2  # eigenvalues ascend; those of D^-1 (D - W) are 1 minus these
    _, vectors = eigh(scale[:, None] * weights * scale, subset_by_index=(second, second))
    return scale * vectors[:, 0]
