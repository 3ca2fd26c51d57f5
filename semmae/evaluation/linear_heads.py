"""The linear probe of frozen features, one head per learning rate, all of them in one matrix product.

- `train_heads`: batch norm without parameters, then a linear layer (MAE, table 10: SGD with momentum, no weight decay,
  warm-up and half a cosine).
- `choose_rate`: the rate that does best on a held-out part of train; `probe`: that rate alone on all of train.

Features may lie in a file: they are read batch by batch, and what the heads say of them goes to a file again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from semmae.core.optim import warmup_cosine
from semmae.core.rng import numpy_generator, torch_generator
from semmae.evaluation.mapped_rows import Rows

MOMENTUM, INIT_STD, EPSILON = 0.9, 0.01, 1e-6
CHUNK = 1024  # samples scored at a time


@dataclass(frozen=True)
class LinearHeadsRecipe:
    """How heads are trained; a batch is never larger than the set, and lr = base_lr * batch size / 256."""

    epochs: int
    warmup_epochs: int
    batch_size: int
    seed: int
    device: torch.device

    def steps_per_epoch(self, samples: int) -> int:
        """The batches that `samples` fill."""
        return samples // min(self.batch_size, samples)

    def stretched(self, *, samples: int, few: int) -> "LinearHeadsRecipe":
        """The recipe that takes as many steps (or just over) on `few` samples as this one takes on `samples`."""
        times = self.steps_per_epoch(samples) / self.steps_per_epoch(few)
        return replace(self, epochs=math.ceil(self.epochs * times), warmup_epochs=math.ceil(self.warmup_epochs * times))


class FeatureSet:
    """Features in one or more views, the labels they share, and which of them these are (none named: all)."""

    def __init__(
        self,
        features: Float[Tensor, "v m d"],
        labels: Integer[Tensor, " m"],
        ids: Integer[np.ndarray, " n"] | None = None,
    ) -> None:
        self.features, self.labels = features, labels
        self.ids = np.arange(len(labels)) if ids is None else ids

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, places: Integer[np.ndarray, " k"]) -> "FeatureSet":
        """The samples at `places` among these; no feature is copied."""
        return FeatureSet(self.features, self.labels, self.ids[places])

    def batch(self, view: int, places: Integer[np.ndarray, " b"]) -> tuple[Float[Tensor, "b d"], Integer[Tensor, " b"]]:
        """Features and labels of the samples at `places`."""
        ids = torch.from_numpy(self.ids[places])
        return self.features[view, ids], self.labels[ids]

    def chunks(self) -> Iterator[tuple[Float[Tensor, "b d"], Integer[Tensor, " b"]]]:
        """All samples in order, in their first view."""
        for start in range(0, len(self), CHUNK):
            yield self.batch(0, np.arange(start, min(start + CHUNK, len(self))))


class Choice(NamedTuple):
    """A learning rate and how it was chosen."""

    base_lr: float
    history: list[dict[str, float]]  # per epoch, at the chosen rate: epoch, lr, train_loss, holdout_top1


class Heads:
    """Linear classifiers on the same normalized features, one per learning rate: equal at first, then independent."""

    def __init__(self, width: int, num_classes: int, num_heads: int, recipe: LinearHeadsRecipe) -> None:
        weight = torch.randn(width, 1, num_classes, generator=torch_generator(recipe.seed, "head")) * INIT_STD
        self.weight = weight.repeat(1, num_heads, 1).to(recipe.device)  # (d, l, c)
        self.bias = torch.zeros(num_heads, num_classes, device=recipe.device)
        self.momenta = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.norm = nn.BatchNorm1d(width, eps=EPSILON, affine=False).to(recipe.device)

    @torch.no_grad()
    def scores(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b l c"]:
        """The logits of every head, under the statistics gathered in training, on the CPU."""
        return self._logits(self.norm.eval()(features.to(self.bias.device))).cpu()

    def top1(self, samples: FeatureSet) -> list[float]:
        """The accuracy of every head."""
        right = [(self.scores(x).argmax(2) == labels[:, None]).double().sum(0) for x, labels in samples.chunks()]
        return (torch.stack(right).sum(0) / len(samples)).tolist()

    @torch.no_grad()
    def step(
        self, features: Float[Tensor, "b d"], labels: Integer[Tensor, " b"], lr: Float[Tensor, " l"]
    ) -> Float[Tensor, " l"]:
        """One step of SGD on the cross entropy, whose gradient is (softmax - one-hot) / b; the losses before it."""
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


def train_heads(
    train: FeatureSet,
    *,
    num_classes: int,
    base_lrs: list[float],
    recipe: LinearHeadsRecipe,
    holdout: FeatureSet | None = None,
) -> tuple[Heads, list[dict[str, list[float]]]]:
    """Train a head per learning rate; with `holdout`, each epoch also says how they do there.

    Epoch e shows view e modulo the number of views; what does not fill a batch is left to other epochs. The history
    has, per epoch and head, the rate at the last step, the mean loss of the steps, and the hold-out's top-1.
    """
    (views, _, width), n = train.features.shape, len(train)
    batch_size, per_epoch = min(recipe.batch_size, n), recipe.steps_per_epoch(n)
    steps, warmup = recipe.epochs * per_epoch, recipe.warmup_epochs * per_epoch
    peak = torch.tensor(base_lrs, dtype=torch.float64, device=recipe.device) * batch_size / 256
    heads, history = Heads(width, num_classes, len(base_lrs), recipe), []
    for epoch in range(recipe.epochs):
        order = numpy_generator(recipe.seed, "order", epoch).permutation(n)[: per_epoch * batch_size]
        losses = torch.zeros_like(peak)
        for step, places in enumerate(np.split(order, per_epoch), start=epoch * per_epoch):
            features, labels = (x.to(recipe.device) for x in train.batch(epoch % views, places))
            lr = peak * warmup_cosine(step, steps=steps, warmup=warmup, peak=1.0, end=0.0)
            losses += heads.step(features, labels, lr.float())
        row = {"lr": lr.tolist(), "train_loss": (losses / per_epoch).tolist()}
        history.append(row | ({"holdout_top1": heads.top1(holdout)} if holdout else {}))
    return heads, history


def choose_rate(
    train: FeatureSet,
    *,
    num_classes: int,
    base_lrs: list[float],
    recipe: LinearHeadsRecipe,
    held_out: Integer[np.ndarray, " h"],
    holdout: FeatureSet,
) -> Choice:
    """The rate that does best on the samples at `held_out` of train after learning from the others.

    `holdout` has those samples in the evaluation view. Of rates that do equally well the first is taken.
    """
    kept = train.select(np.setdiff1d(np.arange(len(train)), held_out))
    _, sweep = train_heads(kept, num_classes=num_classes, base_lrs=base_lrs, recipe=recipe, holdout=holdout)
    best = int(np.argmax(sweep[-1]["holdout_top1"]))
    history = [
        {"epoch": epoch, **{name: per_head[best] for name, per_head in row.items()}}
        for epoch, row in enumerate(sweep, start=1)
    ]
    return Choice(base_lrs[best], history)


def probe(
    train: FeatureSet, val: FeatureSet, *, num_classes: int, base_lr: float, recipe: LinearHeadsRecipe
) -> Float[Tensor, "m c"]:
    """The logits of val, in a file, by a head that learned from all of train."""
    heads, _ = train_heads(train, num_classes=num_classes, base_lrs=[base_lr], recipe=recipe)
    rows = Rows(num_classes)
    for features, _ in val.chunks():
        rows.append(heads.scores(features)[:, 0])
    return rows.tensor()
