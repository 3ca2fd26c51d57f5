"""AdamW and learning-rate schedules as in MAE and iBOT: no weight decay on vectors, layer-wise learning rates, linear
warmup and half a cosine.
"""

import math

import torch
from jaxtyping import Bool
from timm.models.vision_transformer import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn


def adamw(model: nn.Module, *, weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters of `model`.

    Parameters that are vectors have no weight decay: biases, norms, class and mask tokens. The initial learning rate is
    0; call `set_rate` before every step.
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
    """Return AdamW whose learning rate decays with each layer below the head, as in BEiT and MAE.

    `lr_scale` of a parameter group is layer_decay ** (depth + 1 - i) for block i = 1...depth. It is 1 for the head, and
    layer_decay ** (depth + 1) for the layers below the blocks. Vectors, the class token and the position embedding have
    no weight decay.
    """
    groups = param_groups_layer_decay(
        model, weight_decay, no_weight_decay_list=model.no_weight_decay(), layer_decay=layer_decay
    )
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)


def clip(model: nn.Module, max_norm: float | None) -> Tensor:
    """Return the norm of the gradient, then clip the gradient to `max_norm`, unless it is None."""
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if max_norm is not None:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


def step_if(allowed: Bool[Tensor, ""], optimizer: torch.optim.AdamW) -> None:
    """Update the weights if `allowed`, else leave weights and moments unchanged.

    Avoids a device sync: uses `found_inf`, the AMP hook of the fused optimizers.

    Args:
        allowed: A flag on the device.
    """
    vars(optimizer)["found_inf"] = (~allowed).float()
    optimizer.step()
    del vars(optimizer)["found_inf"]


def warmup_cosine(step: int, *, steps: int, warmup: int, peak: float, end: float) -> float:
    """Return the value at `step` (0...steps-1): linear warmup to `peak`, then half a cosine to `end`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_poly(step: int, *, steps: int, warmup: int, peak: float, end: float, power: float) -> float:
    """Return the value at `step` (0...steps-1): linear warmup to `peak`, then polynomial decay to `end`.

    The decay factor is (1 - progress) ** power.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return end + (peak - end) * (1 - progress) ** power


def set_rate(optimizer: torch.optim.Optimizer, rate: float, *, weight_decay: float | None = None) -> None:
    """Set the learning rate of each parameter group to `rate` times its `lr_scale`.

    Args:
        weight_decay: New weight decay of the decayed group of `adamw`; None: unchanged.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
        if weight_decay is not None and group["decayed"]:
            group["weight_decay"] = weight_decay
