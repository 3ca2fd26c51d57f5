"""Attentive classifiers of frozen patch tokens, one per learning rate and weight decay, trained at once.

A head is efficient probing (Psomas et al. 2025, arXiv 2506.10178). Learned queries u_1 ... u_q attend to the tokens
x_1 ... x_n without a key projection. Each query has a value projection of d / q dimensions:

    a_j = softmax_n(u_j . x_n / sqrt(d)),    y_j = V_j sum_n a_jn x_n,    logits = W norm(y_1 ... y_q) + b,

where norm is batch norm without parameters. The value projection is applied after the sum over the tokens. The result
is the same, but only q vectors per image are projected. AdamW has a parameter group per head. The grid of learning
rates and weight decays follows CAPI (Darcet et al. 2025, arXiv 2502.08769).
"""

import copy
import math
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from torch import Tensor, nn

from semmae.core.rng import torch_generator

QUERY_STD, WEIGHT_STD, EPSILON = 0.02, 0.01, 1e-6
PARAMETERS = ("query", "value", "weight", "bias")


def grid(base_lrs: list[float], weight_decays: list[float]) -> list[dict[str, float]]:
    """Return the settings of the heads: every pair of a learning rate and a weight decay, in ascending order."""
    pairs = product(sorted(base_lrs), sorted(weight_decays))
    return [{"base_lr": base_lr, "weight_decay": weight_decay} for base_lr, weight_decay in pairs]


class AttentiveHeads(nn.Module):
    """Attentive classifiers of the same tokens, with equal initial weights.

    Args:
        width: Size of a token.
        num_heads: Number of classifiers.
        queries: Number of queries of each classifier.

    Raises:
        ValueError: `queries` does not divide `width`.
    """

    def __init__(self, width: int, num_classes: int, *, num_heads: int, queries: int, seed: int) -> None:
        super().__init__()
        if width % queries:
            raise ValueError(f"attentive.protocol.queries is {queries}; it must divide the width of a token, {width}")
        generator = torch_generator(seed, "attentive head")
        initial = {
            "query": torch.randn(queries, width, generator=generator) * QUERY_STD,
            "value": torch.randn(queries, width, width // queries, generator=generator) / math.sqrt(width),
            "weight": torch.randn(width, num_classes, generator=generator) * WEIGHT_STD,
            "bias": torch.zeros(num_classes),
        }
        self.heads = nn.ModuleList(nn.ParameterDict(copy.deepcopy(initial)) for _ in range(num_heads))
        self.norm = nn.BatchNorm1d(num_heads * width, eps=EPSILON, affine=False)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b l c"]:
        """Compute the logits of every head."""
        query, value, weight, bias = (torch.stack([getattr(head, name) for head in self.heads]) for name in PARAMETERS)
        scores = torch.einsum("bnd,lqd->blqn", tokens, query) / math.sqrt(tokens.shape[2])
        pooled = torch.einsum("blqn,bnd->blqd", scores.softmax(3), tokens)
        y = torch.einsum("blqd,lqde->blqe", pooled, value)
        y = self.norm(y.flatten(1).float()).unflatten(1, (len(self.heads), -1))
        return torch.einsum("bld,ldc->blc", y, weight) + bias


def build_optimizer(
    heads: AttentiveHeads, settings: list[dict[str, float]], *, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Build AdamW with a parameter group per head; the learning rates are zero until `set_rates`."""
    groups = [
        {"params": list(head.parameters()), **setting} for head, setting in zip(heads.heads, settings, strict=True)
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, *, batch_size: int, schedule: float) -> list[float]:
    """Set and return the learning rate of every head: base_lr * batch_size / 256 * schedule.

    Args:
        schedule: Factor in [0, 1], 1 at the peak.
    """
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * batch_size / 256 * schedule
    return [group["lr"] for group in optimizer.param_groups]


def cross_entropy(logits: Float[Tensor, "b l c"], labels: Integer[Tensor, " b"]) -> Float[Tensor, " l"]:
    """Compute the mean cross entropy of every head."""
    labels = labels[:, None].expand(-1, logits.shape[1])
    return F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").mean(0)


class HeadCurves:
    """The learning curve of every head: learning rate, mean loss and hold-out accuracy per epoch.

    A checkpoint stores the rows of completed epochs and the sums of the epoch in progress.
    """

    def __init__(self, num_heads: int, device: torch.device) -> None:
        self.rows: list[dict[str, list[float]]] = []
        self.losses, self.steps = torch.zeros(num_heads, dtype=torch.float64, device=device), 0  # of this epoch

    def add_losses(self, losses: Float[Tensor, " l"]) -> None:
        """Add the losses of a step, which must be equal on all ranks: a checkpoint stores the sums of one rank."""
        self.losses, self.steps = self.losses + losses.detach(), self.steps + 1

    def end_epoch(self, *, lr: list[float], holdout_top1: list[float]) -> None:
        """Append the row of this epoch."""
        train_loss = (self.losses / self.steps).tolist()
        self.rows.append({"lr": lr, "train_loss": train_loss, "holdout_top1": holdout_top1})
        self.losses, self.steps = torch.zeros_like(self.losses), 0

    @property
    def best(self) -> int:
        """The index of the first head with the highest hold-out accuracy after the last epoch."""
        top1 = self.rows[-1]["holdout_top1"]
        return top1.index(max(top1))

    def history(self) -> list[dict[str, float]]:
        """Return the rows of the best head."""
        return [
            {"epoch": epoch} | {name: values[self.best] for name, values in row.items()}
            for epoch, row in enumerate(self.rows, start=1)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "losses": self.losses, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.losses, self.steps = state["rows"], state["losses"], state["steps"]
