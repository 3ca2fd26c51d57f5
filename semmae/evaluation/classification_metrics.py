"""Metrics of a classifier, and the weighted kNN vote. Accuracies are fractions in [0, 1]."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from semmae.evaluation.mapped_rows import MappedRows

CHUNK = 1024  # samples processed at a time, because scores and features may be larger than memory


def compute(scores: Float[Tensor, "b c"], labels: Integer[Tensor, " b"]) -> dict[str, float]:
    """Compute all metrics of a classifier.

    Returns:
        `top1` and `top5` (top-k accuracy; top5 is 1 with five classes or fewer), `per_class` (mean of the accuracies of
        the classes) and `top1_se` (standard error of top1).
    """
    top1 = topk_accuracy(scores, labels, k=1)
    return {
        "top1": top1,
        "top5": topk_accuracy(scores, labels, k=5),
        "per_class": per_class_accuracy(top_classes(scores, k=1)[:, 0], labels),
        "top1_se": standard_error(top1, len(labels)),
    }


def compute_baseline(scores: Float[Tensor, "b c"], labels: Integer[Tensor, " b"]) -> dict[str, float]:
    """Compute the metrics that are reported for a baseline: `top1` and `top1_se`."""
    metrics = compute(scores, labels)
    return {name: metrics[name] for name in ("top1", "top1_se")}


def top_classes(scores: Float[Tensor, "b c"], *, k: int) -> Integer[Tensor, "b k"]:
    """Return the k classes with the highest scores (all classes, if there are fewer).

    If classes have equal scores, the lower class comes first.
    """
    return torch.cat([chunk.argsort(dim=1, descending=True, stable=True)[:, :k] for chunk in scores.split(CHUNK)])


def topk_accuracy(scores: Float[Tensor, "b c"], labels: Integer[Tensor, " b"], *, k: int) -> float:
    """Return the fraction of samples whose label is among the k highest scores."""
    return float((top_classes(scores, k=k) == labels[:, None]).any(1).double().mean())


def per_class_accuracy(predictions: Integer[Tensor, " b"], labels: Integer[Tensor, " b"]) -> float:
    """Return the mean of the accuracies of the classes. Classes without samples are left out."""
    total = labels.bincount()
    correct = labels[predictions == labels].bincount(minlength=len(total))
    return float((correct.double() / total)[total > 0].mean())


def standard_error(accuracy: float, num_samples: int) -> float:
    """Return the standard deviation of an accuracy over `num_samples` independent samples (binomial)."""
    return math.sqrt(accuracy * (1 - accuracy) / num_samples)


def knn_votes(
    train: Float[Tensor, "n d"],
    train_labels: Integer[Tensor, " n"],
    val: Float[Tensor, "m d"],
    *,
    num_classes: int,
    k: int,
    temperature: float,
    device: torch.device,
) -> Float[Tensor, "m c"]:
    """Sum the votes of the k nearest train samples per class (Wu et al. 2018, arXiv 1805.01978; DINO).

    A neighbor votes for its class with the weight exp(cosine / temperature). The weights are divided by their sum,
    which does not change the ranking. If train has fewer than k samples, all of them vote. Features are copied to the
    device in chunks.

    Returns:
        The votes, memory-mapped; every row sums to 1.
    """
    votes = MappedRows(num_classes)
    for chunk in val.split(CHUNK):
        chunk_votes = knn_votes_of_chunk(
            train, train_labels, chunk.to(device), num_classes=num_classes, k=k, temperature=temperature
        )
        votes.append(chunk_votes.cpu())
    return votes.as_tensor()


def knn_votes_of_chunk(
    train: Float[Tensor, "n d"],
    train_labels: Integer[Tensor, " n"],
    queries: Float[Tensor, "q d"],
    *,
    num_classes: int,
    k: int,
    temperature: float,
) -> Float[Tensor, "q c"]:
    """Compute `knn_votes` of queries that fit in memory, on the device of the queries."""
    similarity, indices = _nearest(F.normalize(queries, dim=1), train, min(k, len(train)))
    weights = (similarity / temperature).softmax(1)
    labels = train_labels[indices.to(train_labels.device)].to(queries.device)
    return weights.new_zeros(len(queries), num_classes).scatter_add_(1, labels, weights)


def _nearest(
    queries: Float[Tensor, "q d"], train: Float[Tensor, "n d"], k: int
) -> tuple[Float[Tensor, "q k"], Integer[Tensor, "q k"]]:
    """Return the k highest cosines of each query with train, and the indices in train.

    Args:
        queries: Unit vectors.
        train: Vectors of any length, processed in blocks.
    """
    best = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start, block in zip(range(0, len(train), CHUNK), train.split(CHUNK), strict=True):
        block = F.normalize(block.to(queries.device), dim=1)
        block_indices = torch.arange(start, start + len(block), device=queries.device).expand(len(queries), -1)
        best, chosen = torch.cat([best, queries @ block.T], dim=1).topk(min(k, best.shape[1] + len(block)), dim=1)
        indices = torch.cat([indices, block_indices], dim=1).gather(1, chosen)
    return best, indices
