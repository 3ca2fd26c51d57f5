"""Scores of a classification: top-k, the mean over classes, how sure they are, and the weighted kNN vote.

- `topk_accuracy`, `per_class_accuracy`, `standard_error`: fractions in [0, 1].
- `classification`: all of them at once, as the evaluation stages report them.
- `knn_votes`: a neighbour votes for its class with the weight exp(cosine / temperature) (Wu et al. 2018; DINO).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

CHUNK = 4096  # similarities are computed in blocks of at most CHUNK x CHUNK, whatever the size of the sets


def topk_accuracy(scores: Float[Tensor, "b c"], labels: Integer[Tensor, " b"], *, k: int) -> float:
    """The share of samples whose label is among the k highest scores; of equal scores the lower class comes first."""
    top = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return float((top == labels[:, None]).any(1).double().mean())


def per_class_accuracy(predictions: Integer[Tensor, " b"], labels: Integer[Tensor, " b"]) -> float:
    """The mean, over the classes that occur in `labels`, of the share of their samples that are predicted right."""
    total = labels.bincount()
    right = labels[predictions == labels].bincount(minlength=len(total))
    return float((right.double() / total)[total > 0].mean())


def standard_error(accuracy: float, samples: int) -> float:
    """The standard deviation of an accuracy measured on that many independent samples."""
    return math.sqrt(accuracy * (1 - accuracy) / samples)


def classification(scores: Float[Tensor, "b c"], labels: Integer[Tensor, " b"]) -> dict[str, float]:
    """top1, top5 (1 where there are no more than five classes), per_class and the standard_error of top1."""
    top1 = topk_accuracy(scores, labels, k=1)
    return {
        "top1": top1,
        "top5": topk_accuracy(scores, labels, k=5),
        "per_class": per_class_accuracy(scores.argsort(dim=1, descending=True, stable=True)[:, 0], labels),
        "standard_error": standard_error(top1, len(labels)),
    }


def knn_votes(
    train: Float[Tensor, "n d"],
    train_labels: Integer[Tensor, " n"],
    val: Float[Tensor, "m d"],
    *,
    num_classes: int,
    k: int,
    temperature: float,
) -> Float[Tensor, "m c"]:
    """The votes of each val sample's k nearest train samples by cosine, summed per class; they sum to 1 per sample.

    With fewer than k train samples all of them vote. Weights are divided by their sum, which changes no ranking.
    """
    k = min(k, len(train))
    train, val = F.normalize(train, dim=1), F.normalize(val, dim=1)
    votes = []
    for queries in val.split(CHUNK):
        similarity, ids = _nearest(queries, train, k)
        weights = (similarity / temperature).softmax(1)
        votes.append(weights.new_zeros(len(queries), num_classes).scatter_add_(1, train_labels[ids], weights))
    return torch.cat(votes)


def _nearest(
    queries: Float[Tensor, "q d"], train: Float[Tensor, "n d"], k: int
) -> tuple[Float[Tensor, "q k"], Integer[Tensor, "q k"]]:
    """The k highest cosines of unit vectors and where they are, merged block by block."""
    best = queries.new_empty(len(queries), 0)
    ids = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start, block in zip(range(0, len(train), CHUNK), train.split(CHUNK), strict=True):
        here = torch.arange(start, start + len(block), device=queries.device).expand(len(queries), -1)
        best, chosen = torch.cat([best, queries @ block.T], dim=1).topk(min(k, best.shape[1] + len(block)), dim=1)
        ids = torch.cat([ids, here], dim=1).gather(1, chosen)
    return best, ids
