"""Linear classifiers on frozen features, one per learning rate, trained at once by a single matrix product.

The recipe is the linear probe of MAE (He et al. 2022, table 10). The model is a batch norm without parameters and a
linear layer. The optimizer is SGD with momentum, without weight decay. The learning rate has a warm-up and a cosine
decay. Features are read in batches, so they can be memory-mapped.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from semmae.core.config import with_overrides
from semmae.core.optim import warmup_cosine
from semmae.core.rng import numpy_generator, torch_generator
from semmae.evaluation.mapped_rows import MappedRows

MOMENTUM, INIT_STD, EPSILON = 0.9, 0.01, 1e-6
CHUNK = 1024  # samples per batch in evaluation


@dataclass(frozen=True)
class LinearHeadsRecipe:
    """Settings of the training of heads; lr = base_lr * batch size / 256.

    A batch is never larger than the training set.
    """

    epochs: int
    warmup_epochs: int
    batch_size: int
    seed: int
    device: torch.device

    def steps_per_epoch(self, num_samples: int) -> int:
        """Return the number of full batches in an epoch."""
        return num_samples // min(self.batch_size, num_samples)

    def with_equal_steps(self, num_samples: int, *, reference: int) -> "LinearHeadsRecipe":
        """Return a recipe for `num_samples` that takes at least as many steps as this one on `reference` samples.

        The difference is smaller than one epoch.
        """
        ratio = self.steps_per_epoch(reference) / self.steps_per_epoch(num_samples)
        epochs = {name: math.ceil(getattr(self, name) * ratio) for name in ("epochs", "warmup_epochs")}
        return with_overrides(self, epochs)


class FeatureSet:
    """A subset of samples: their labels, and their features in one or more views.

    Args:
        features: Features of all samples, (views, m, d).
        labels: Labels of all samples.
        indices: The indices of the samples of this set; None: all samples.
    """

    def __init__(
        self,
        features: Float[Tensor, "v m d"],
        labels: Integer[Tensor, " m"],
        indices: Integer[np.ndarray, " n"] | None = None,
    ) -> None:
        self.features, self.labels = features, labels
        self.indices = np.arange(len(labels)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def select(self, positions: Integer[np.ndarray, " k"]) -> "FeatureSet":
        """Return the samples at these positions of this set; features are not copied."""
        return FeatureSet(self.features, self.labels, self.indices[positions])

    def batch(
        self, view: int, positions: Integer[np.ndarray, " b"]
    ) -> tuple[Float[Tensor, "b d"], Integer[Tensor, " b"]]:
        """Return features and labels of the samples at these positions of this set."""
        indices = torch.from_numpy(self.indices[positions])
        return self.features[view, indices], self.labels[indices]

    def chunks(self) -> Iterator[tuple[Float[Tensor, "b d"], Integer[Tensor, " b"]]]:
        """Yield features of the first view and labels of all samples, in order."""
        for start in range(0, len(self), CHUNK):
            yield self.batch(0, np.arange(start, min(start + CHUNK, len(self))))


class LinearHeads:
    """Linear classifiers on the same normalized features, one per learning rate, with equal initial weights."""

    def __init__(self, width: int, num_classes: int, num_heads: int, recipe: LinearHeadsRecipe) -> None:
        weight = torch.randn(width, 1, num_classes, generator=torch_generator(recipe.seed, "head")) * INIT_STD
        self.weight = weight.repeat(1, num_heads, 1).to(recipe.device)  # (d, l, c)
        self.bias = torch.zeros(num_heads, num_classes, device=recipe.device)
        self.momenta = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.norm = nn.BatchNorm1d(width, eps=EPSILON, affine=False).to(recipe.device)

    @torch.no_grad()
    def predict(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b l c"]:
        """Compute the logits of every head with the running statistics of the norm. The result is on the CPU."""
        return self._logits(self.norm.eval()(features.to(self.bias.device))).cpu()

    def top1(self, samples: FeatureSet) -> list[float]:
        """Compute the accuracy of every head."""
        correct = [(self.predict(x).argmax(2) == labels[:, None]).double().sum(0) for x, labels in samples.chunks()]
        return (torch.stack(correct).sum(0) / len(samples)).tolist()

    @torch.no_grad()
    def step(
        self, features: Float[Tensor, "b d"], labels: Integer[Tensor, " b"], lr: Float[Tensor, " l"]
    ) -> Float[Tensor, " l"]:
        """Take a step of SGD on the cross entropy. Its gradient at the logits is (softmax - one-hot) / b.

        Returns:
            The loss of every head before the step.
        """
        x = self.norm.train()(features)
        log_p = self._logits(x).log_softmax(2)
        target = F.one_hot(labels, log_p.shape[2])[:, None]
        error = (log_p.exp() - target) / len(x)  # (b, l, c)
        gradients = (x.T @ error.flatten(1)).view_as(self.weight), error.sum(0)
        rates = lr[:, None]
        for value, momentum, gradient in zip((self.weight, self.bias), self.momenta, gradients, strict=True):
            value.sub_(rates * momentum.mul_(MOMENTUM).add_(gradient))
        return -(log_p * target).sum(2).mean(0)

    def _logits(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b l c"]:
        return (x @ self.weight.flatten(1)).unflatten(1, self.bias.shape) + self.bias


class ChosenRate(NamedTuple):
    """A base learning rate, and its learning curve: rows of `epoch`, `lr`, `train_loss` and `holdout_top1`."""

    base_lr: float
    history: list[dict[str, float]]


def train_heads(
    train: FeatureSet,
    *,
    num_classes: int,
    base_lrs: list[float],
    recipe: LinearHeadsRecipe,
    holdout: FeatureSet | None = None,
) -> tuple[LinearHeads, list[dict[str, list[float]]]]:
    """Train a head per learning rate.

    Epoch e uses view e modulo the number of views. The samples that do not fill a batch are skipped in that epoch.

    Args:
        holdout: Samples on which the accuracy of every head is measured after each epoch.

    Returns:
        The heads, and the history: for each epoch, lists with one value per head. The lists are `lr` (of the last
        step), `train_loss` (mean over steps) and, with `holdout`, `holdout_top1`.
    """
    (views, _, width), n = train.features.shape, len(train)
    batch_size, per_epoch = min(recipe.batch_size, n), recipe.steps_per_epoch(n)
    steps, warmup = recipe.epochs * per_epoch, recipe.warmup_epochs * per_epoch
    peak = torch.tensor(base_lrs, dtype=torch.float64, device=recipe.device) * batch_size / 256
    heads, history = LinearHeads(width, num_classes, len(base_lrs), recipe), []
    for epoch in range(recipe.epochs):
        order = numpy_generator(recipe.seed, "order", epoch).permutation(n)[: per_epoch * batch_size]
        losses = torch.zeros_like(peak)
        for step, positions in enumerate(np.split(order, per_epoch), start=epoch * per_epoch):
            features, labels = (x.to(recipe.device) for x in train.batch(epoch % views, positions))
            lr = peak * warmup_cosine(step, steps=steps, warmup=warmup, peak=1.0, end=0.0)
            losses += heads.step(features, labels, lr.float())
        row = {"lr": lr.tolist(), "train_loss": (losses / per_epoch).tolist()}
        history.append(row | ({"holdout_top1": heads.top1(holdout)} if holdout else {}))
    return heads, history


def choose_base_lr(
    train: FeatureSet,
    *,
    num_classes: int,
    base_lrs: list[float],
    recipe: LinearHeadsRecipe,
    held_out: Integer[np.ndarray, " h"],
    holdout: FeatureSet,
) -> ChosenRate:
    """Choose the rate with the highest accuracy on a hold-out of train; of equal rates, the first.

    Args:
        held_out: Positions in train of the samples that are held out.
        holdout: The held-out samples in the center view.
    """
    kept = train.select(np.setdiff1d(np.arange(len(train)), held_out))
    _, sweep = train_heads(kept, num_classes=num_classes, base_lrs=base_lrs, recipe=recipe, holdout=holdout)
    best = int(np.argmax(sweep[-1]["holdout_top1"]))
    history = [
        {"epoch": epoch, **{name: per_head[best] for name, per_head in row.items()}}
        for epoch, row in enumerate(sweep, start=1)
    ]
    return ChosenRate(base_lrs[best], history)


def train_and_predict(
    train: FeatureSet, val: FeatureSet, *, num_classes: int, base_lr: float, recipe: LinearHeadsRecipe
) -> Float[Tensor, "m c"]:
    """Train one head on all of train.

    Returns:
        The logits for val, memory-mapped.
    """
    heads, _ = train_heads(train, num_classes=num_classes, base_lrs=[base_lr], recipe=recipe)
    rows = MappedRows(num_classes)
    for features, _ in val.chunks():
        rows.append(heads.predict(features)[:, 0])
    return rows.as_tensor()
