"""Attentive probes of frozen patch tokens: a bank of heads, one per learning rate and weight decay, trained at once.

A head is efficient probing (Psomas et al. 2025, arXiv 2506.10178): learned queries u_1 ... u_q attend to the tokens
x_1 ... x_n themselves, with no projection to keys, and each reads a slice of d / q values of its own,

    a_j = softmax_n(u_j . x_n / sqrt(d)),    y_j = V_j sum_n a_jn x_n,    logits = W norm(y_1 ... y_q) + b,

where norm is batch norm without parameters. A weight sums tokens rather than their values V_j x_n, which gives the same
y_j and saves projecting every token. AdamW has a group per head, with its rate and decay (CAPI's grid).
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
NAMES = ("query", "value", "weight", "bias")


def grid(base_lrs: list[float], weight_decays: list[float]) -> list[dict[str, float]]:
    """A head's settings per learning rate and weight decay, the lowest first."""
    pairs = product(sorted(base_lrs), sorted(weight_decays))
    return [{"base_lr": base_lr, "weight_decay": weight_decay} for base_lr, weight_decay in pairs]


class AttentiveHeads(nn.Module):
    """`num_heads` heads for tokens of one width: equal at first, then independent."""

    def __init__(self, width: int, num_classes: int, *, num_heads: int, queries: int, seed: int) -> None:
        super().__init__()
        if width % queries:
            raise ValueError(f"attentive.protocol.queries is {queries}; it must divide the width of a token, {width}")
        generator = torch_generator(seed, "attentive head")
        first = {
            "query": torch.randn(queries, width, generator=generator) * QUERY_STD,
            "value": torch.randn(queries, width, width // queries, generator=generator) / math.sqrt(width),
            "weight": torch.randn(width, num_classes, generator=generator) * WEIGHT_STD,
            "bias": torch.zeros(num_classes),
        }
        self.heads = nn.ModuleList(nn.ParameterDict(copy.deepcopy(first)) for _ in range(num_heads))
        self.norm = nn.BatchNorm1d(num_heads * width, eps=EPSILON, affine=False)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b l c"]:
        """The logits of every head."""
        query, value, weight, bias = (torch.stack([getattr(head, name) for head in self.heads]) for name in NAMES)
        scores = torch.einsum("bnd,lqd->blqn", tokens, query) / math.sqrt(tokens.shape[2])
        pooled = torch.einsum("blqn,bnd->blqd", scores.softmax(3), tokens)
        y = torch.einsum("blqd,lqde->blqe", pooled, value)
        y = self.norm(y.flatten(1).float()).unflatten(1, (len(self.heads), -1))
        return torch.einsum("bld,ldc->blc", y, weight) + bias


def adamw(bank: AttentiveHeads, settings: list[dict[str, float]], *, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW with a group per head; it starts at rate zero, see `set_rates`."""
    groups = [
        {"params": list(head.parameters()), **setting} for head, setting in zip(bank.heads, settings, strict=True)
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, *, batch_size: int, schedule: float) -> list[float]:
    """Let every head learn at base_lr * batch_size / 256 times `schedule`, which is 1 at the peak; those rates."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * batch_size / 256 * schedule
    return [group["lr"] for group in optimizer.param_groups]


def losses(logits: Float[Tensor, "b l c"], labels: Integer[Tensor, " b"]) -> Float[Tensor, " l"]:
    """The mean cross entropy of every head."""
    labels = labels[:, None].expand(-1, logits.shape[1])
    return F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none").mean(0)


class Curve:
    """Per epoch and head: rate, mean loss, hold-out top-1; in a checkpoint, what there is of it so far."""

    def __init__(self, num_heads: int, device: torch.device) -> None:
        self.rows: list[dict[str, list[float]]] = []
        self.losses, self.steps = torch.zeros(num_heads, dtype=torch.float64, device=device), 0  # of this epoch

    def add(self, losses: Float[Tensor, " l"]) -> None:
        """The losses of one more step, on all ranks alike: any of them may be gone on from."""
        self.losses, self.steps = self.losses + losses.detach(), self.steps + 1

    def close(self, *, lr: list[float], holdout_top1: list[float]) -> None:
        """This epoch is over."""
        train_loss = (self.losses / self.steps).tolist()
        self.rows.append({"lr": lr, "train_loss": train_loss, "holdout_top1": holdout_top1})
        self.losses, self.steps = torch.zeros_like(self.losses), 0

    @property
    def best(self) -> int:
        """The head that does best on the hold-out after the last epoch; of equal ones the first."""
        top1 = self.rows[-1]["holdout_top1"]
        return top1.index(max(top1))

    def history(self) -> list[dict[str, float]]:
        """The curve of the best head."""
        return [
            {"epoch": epoch} | {name: values[self.best] for name, values in row.items()}
            for epoch, row in enumerate(self.rows, start=1)
        ]

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "losses": self.losses, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows, self.losses, self.steps = state["rows"], state["losses"], state["steps"]
