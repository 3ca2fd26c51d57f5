"""Scores of a classification: top-k, the mean over classes, how sure they are, and the weighted kNN vote.

- `topk_accuracy`, `per_class_accuracy`, `standard_error`: fractions in [0, 1].
- `classification`: all of them at once, as the evaluation stages report them; `brief`: what a line beside them keeps.
- `knn_votes`: a neighbor votes for its class with the weight exp(cosine / temperature) (Wu et al. 2018; DINO).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor

from semmae.evaluation.mapped_rows import Rows
from semmae.evaluation.scores import Scores

CHUNK = 1024  # samples at a time: scores and features may lie in files, and similarities come in CHUNK x CHUNK blocks


def highest(scores: Float[Tensor, "b c"], *, k: int) -> Integer[Tensor, "b k"]:
    """The k classes (all, if there are fewer) with the highest scores; of equal scores the lower class comes first."""
    return torch.cat([part.argsort(dim=1, descending=True, stable=True)[:, :k] for part in scores.split(CHUNK)])


def topk_accuracy(scores: Float[Tensor, "b c"], labels: Integer[Tensor, " b"], *, k: int) -> float:
    """The share of samples whose label is among the k highest scores."""
    return float((highest(scores, k=k) == labels[:, None]).any(1).double().mean())


def per_class_accuracy(predictions: Integer[Tensor, " b"], labels: Integer[Tensor, " b"]) -> float:
    """The mean, over the classes that occur in `labels`, of the share of their samples that are predicted right."""
    total = labels.bincount()
    right = labels[predictions == labels].bincount(minlength=len(total))
    return float((right.double() / total)[total > 0].mean())


def standard_error(accuracy: float, samples: int) -> float:
    """The standard deviation of an accuracy measured on that many independent samples."""
    return math.sqrt(accuracy * (1 - accuracy) / samples)


def classification(scores: Float[Tensor, "b c"], labels: Integer[Tensor, " b"]) -> dict[str, float]:
    """top1, top5 (1 where there are no more than five classes), per_class and top1_se, the standard error of top1."""
    top1 = topk_accuracy(scores, labels, k=1)
    return {
        "top1": top1,
        "top5": topk_accuracy(scores, labels, k=5),
        "per_class": per_class_accuracy(highest(scores, k=1)[:, 0], labels),
        "top1_se": standard_error(top1, len(labels)),
    }


def baseline_classification(scores: Float[Tensor, "b c"], labels: Integer[Tensor, " b"]) -> dict[str, float]:
    """Compute the metrics that are reported for a baseline: `top1` and `top1_se`."""
    metrics = classification(scores, labels)
    return {name: metrics[name] for name in ("top1", "top1_se")}


def summary(scores: Scores) -> str:
    """Format the top-1 accuracies of the encoder and of the baselines as one line of text."""
    baselines = "".join(f", {name} {metrics['top1']:.3f}" for name, metrics in scores.baselines.items())
    return f"top-1 {scores.encoder['top1']:.3f} ± {scores.encoder['top1_se']:.3f}{baselines}"


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
    """The votes of each val sample's k nearest train samples by cosine, summed per class; they sum to 1 per sample.

    With fewer than k train samples all of them vote. Weights are divided by their sum, which changes no ranking.
    Features are taken to the device chunk by chunk; the votes lie in a file.
    """
    votes = Rows(num_classes)
    for part in val.split(CHUNK):
        of_part = vote(train, train_labels, part.to(device), num_classes=num_classes, k=k, temperature=temperature)
        votes.append(of_part.cpu())
    return votes.tensor()


def vote(
    train: Float[Tensor, "n d"],
    train_labels: Integer[Tensor, " n"],
    queries: Float[Tensor, "q d"],
    *,
    num_classes: int,
    k: int,
    temperature: float,
) -> Float[Tensor, "q c"]:
    """`knn_votes` of as many queries as memory holds at a time, on their device."""
    similarity, ids = _nearest(F.normalize(queries, dim=1), train, min(k, len(train)))
    weights = (similarity / temperature).softmax(1)
    labels = train_labels[ids.to(train_labels.device)].to(queries.device)
    return weights.new_zeros(len(queries), num_classes).scatter_add_(1, labels, weights)


def _nearest(
    queries: Float[Tensor, "q d"], train: Float[Tensor, "n d"], k: int
) -> tuple[Float[Tensor, "q k"], Integer[Tensor, "q k"]]:
    """The k highest cosines of `queries`, which are unit vectors, and where they are, merged block by block."""
    best = queries.new_empty(len(queries), 0)
    ids = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start, block in zip(range(0, len(train), CHUNK), train.split(CHUNK), strict=True):
        block = F.normalize(block.to(queries.device), dim=1)
        here = torch.arange(start, start + len(block), device=queries.device).expand(len(queries), -1)
        best, chosen = torch.cat([best, queries @ block.T], dim=1).topk(min(k, best.shape[1] + len(block)), dim=1)
        ids = torch.cat([ids, here], dim=1).gather(1, chosen)
    return best, ids
