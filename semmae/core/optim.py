"""AdamW as MAE and iBOT use it: no decay on vectors, rates by layer if asked for, linear warm-up, half a cosine."""

import math

import torch
from jaxtyping import Bool
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn


def adamw(model: nn.Module, *, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of `model`; biases, norms and single tokens are not decayed.

    Learning rate and decay are set at every step (`set_rate`), so the optimizer starts at zero.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrix = [p for name, p in trainable if p.squeeze().ndim > 1]
    vector = [p for name, p in trainable if p.squeeze().ndim <= 1]
    groups = [
        {"params": matrix, "weight_decay": weight_decay, "decayed": True},
        {"params": vector, "weight_decay": 0.0, "decayed": False},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def layer_decayed_adamw(
    model: VisionTransformer, *, weight_decay: float, layer_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """AdamW whose rate falls by `layer_decay` with every layer below the head (BEiT, MAE): `lr_scale` of a group is
    1 for the head, layer_decay ** (depth + 1 - i) for block i = 1...depth, layer_decay ** (depth + 1) below them.

    The groups are timm's. Vectors, the class token and the positions are not decayed.
    """
    groups = param_groups_layer_decay(
        model, weight_decay, no_weight_decay_list=model.no_weight_decay(), layer_decay=layer_decay
    )
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def clip(model: nn.Module, max_norm: float | None) -> Tensor:
    """The norm of the gradient, which is scaled down to `max_norm` where it is larger (None: to nothing)."""
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


def step_if(allowed: Bool[Tensor, ""], optimizer: torch.optim.AdamW) -> None:
    """One update, unless the flag on the device forbids it: then neither weights nor moments move. Nobody waits to
    know: it is the switch that torch's fused optimizers have for gradients that were scaled.
    """
    vars(optimizer)["found_inf"] = (~allowed).float()
    optimizer.step()
    del vars(optimizer)["found_inf"]


def warmup_cosine(step: int, *, steps: int, warmup: int, peak: float, end: float) -> float:
    """The value at `step` of 0...steps-1: linear up to `peak` over `warmup` steps, then half a cosine to `end`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_poly(step: int, *, steps: int, warmup: int, peak: float, end: float, power: float) -> float:
    """The value at `step` of 0...steps-1: linear up to `peak` over `warmup` steps, then as (1 - progress) ** power
    to `end`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return end + (peak - end) * (1 - progress) ** power


def set_rate(optimizer: torch.optim.Optimizer, rate: float, *, weight_decay: float | None = None) -> None:
    """The learning rate of all groups, times a group's `lr_scale`; if given, the weight decay of `adamw`'s first."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
        if weight_decay is not None and group["decayed"]:
            group["weight_decay"] = weight_decay
