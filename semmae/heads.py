"""Linear read-outs of frozen features.

- `train_heads`: the linear probe, one head per learning rate, all of them in one matrix product (MAE, table 10: batch
  norm without parameters, then a linear layer; SGD with momentum, no weight decay, warm-up and half a cosine).
- `linear_probe`: the rate that does best on a held-out part of train, then that rate alone on all of train.
- `linear_readout`: a logistic regression of patch tokens, the ceiling for any part method that builds on them.
"""

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from semmae.optim import warmup_cosine
from semmae.rng import numpy_generator, torch_generator

MOMENTUM, INIT_STD, EPSILON = 0.9, 0.01, 1e-6
READOUT_STEPS = 100  # of L-BFGS: enough to be within a few tenths of a point of convergence


@dataclass(frozen=True)
class Recipe:
    """How heads are trained; a batch is never larger than the set, and lr = base_lr * batch size / 256."""

    epochs: int
    warmup_epochs: int
    batch_size: int
    seed: int
    device: torch.device


class Samples(NamedTuple):
    """Features in one or more views, and the labels they share."""

    features: Float[Tensor, "v n d"]
    labels: Integer[Tensor, " n"]

    def select(self, ids: Integer[np.ndarray, " k"]) -> "Samples":
        """The samples at `ids`."""
        return Samples(self.features[:, ids], self.labels[ids])


class Probe(NamedTuple):
    """A linear probe: what it says of val, and how its learning rate was chosen."""

    scores: Float[Tensor, "m c"]
    base_lr: float
    history: list[dict[str, float]]  # per epoch of the choice, at the chosen rate: epoch, lr, train_loss, holdout_top1


class Heads:
    """Linear classifiers on the same normalised features, one per learning rate: equal at first, then independent."""

    def __init__(self, width: int, num_classes: int, num_heads: int, recipe: Recipe) -> None:
        weight = torch.randn(width, 1, num_classes, generator=torch_generator(recipe.seed, "head")) * INIT_STD
        self.weight = weight.repeat(1, num_heads, 1).to(recipe.device)  # (d, l, c)
        self.bias = torch.zeros(num_heads, num_classes, device=recipe.device)
        self.momenta = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.norm = nn.BatchNorm1d(width, eps=EPSILON, affine=False).to(recipe.device)

    @torch.no_grad()
    def scores(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b l c"]:
        """The logits of every head, under the statistics gathered in training, on the CPU."""
        return self._logits(self.norm.eval()(features.to(self.bias.device))).cpu()

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
    train: Samples, *, num_classes: int, base_lrs: list[float], recipe: Recipe, holdout: Samples | None = None
) -> tuple[Heads, list[dict[str, list[float]]]]:
    """Train a head per learning rate; with `holdout`, each epoch also says how they do there.

    Epoch e shows view e modulo the number of views; what does not fill a batch is left to other epochs. The history
    has, per epoch and head, the rate at the last step, the mean loss of the steps, and the hold-out's top-1.
    """
    views, n, width = train.features.shape
    batch_size = min(recipe.batch_size, n)
    per_epoch = n // batch_size
    steps, warmup = recipe.epochs * per_epoch, recipe.warmup_epochs * per_epoch
    peak = torch.tensor(base_lrs, dtype=torch.float64, device=recipe.device) * batch_size / 256
    heads, history = Heads(width, num_classes, len(base_lrs), recipe), []
    for epoch in range(recipe.epochs):
        order = numpy_generator(recipe.seed, "order", epoch).permutation(n)[: per_epoch * batch_size]
        losses = torch.zeros_like(peak)
        for step, ids in enumerate(np.split(order, per_epoch), start=epoch * per_epoch):
            features, labels = (x.to(recipe.device) for x in (train.features[epoch % views, ids], train.labels[ids]))
            lr = peak * warmup_cosine(step, steps=steps, warmup=warmup, peak=1.0, end=0.0)
            losses += heads.step(features, labels, lr.float())
        row = {"lr": lr.tolist(), "train_loss": (losses / per_epoch).tolist()}
        history.append(row | ({"holdout_top1": _top1(heads, holdout)} if holdout else {}))
    return heads, history


def linear_probe(
    train: Samples,
    val: Float[Tensor, "m d"],
    *,
    num_classes: int,
    base_lrs: list[float],
    recipe: Recipe,
    held_out: Integer[np.ndarray, " h"],
    holdout: Samples,
) -> Probe:
    """Choose the rate on the samples `held_out` of train, then train with it on all of train; val is seen once.

    `holdout` has those samples in the evaluation view. Of rates that do equally well the first is taken.
    """
    kept = np.setdiff1d(np.arange(len(train.labels)), held_out)
    _, sweep = train_heads(
        train.select(kept), num_classes=num_classes, base_lrs=base_lrs, recipe=recipe, holdout=holdout
    )
    best = int(np.argmax(sweep[-1]["holdout_top1"]))
    heads, _ = train_heads(train, num_classes=num_classes, base_lrs=[base_lrs[best]], recipe=recipe)
    history = [
        {"epoch": epoch, **{name: per_head[best] for name, per_head in row.items()}}
        for epoch, row in enumerate(sweep, start=1)
    ]
    return Probe(heads.scores(val)[:, 0], base_lrs[best], history)


def linear_readout(
    train_tokens: Float[np.ndarray, "n d"],
    train_labels: Integer[np.ndarray, " n"],
    val_tokens: Float[np.ndarray, "m d"],
    *,
    num_classes: int,
) -> Integer[np.ndarray, " m"]:
    """The labels that a logistic regression fitted on train predicts for val: `fit_readout` and its `predict`."""
    return fit_readout(train_tokens, train_labels, num_classes=num_classes).predict(val_tokens)


def fit_readout(tokens: Float[np.ndarray, "n d"], labels: Integer[np.ndarray, " n"], *, num_classes: int) -> Pipeline:
    """Standardise the channels, then regress; labels from num_classes up (255 = ignore) are left out.

    Logistic rather than ridge on one-hot labels: where most patches are background, ridge favours it (0.85 against 0.91
    on synthetic tokens with known classes), and 100,000 tokens of 128 channels take under a second of L-BFGS.
    """
    known = labels < num_classes
    if len(np.unique(labels[known])) < 2:
        raise ValueError("the masks of train show fewer than two labels; there is nothing to read out")
    readout = make_pipeline(StandardScaler(), LogisticRegression(max_iter=READOUT_STEPS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return readout.fit(tokens[known], labels[known])


def _top1(heads: Heads, samples: Samples) -> list[float]:
    """The accuracy of every head."""
    right = heads.scores(samples.features[0]).argmax(2) == samples.labels[:, None]
    return right.double().mean(0).tolist()
