"""Schedules at their end points, and the parameters with weight decay."""

import itertools

import pytest
import torch

from semmae.core import optim
from semmae.models import mae, vit


def test_warmup_then_half_a_cosine():
    values = [optim.warmup_cosine(s, steps=101, warmup=10, peak=1.0, end=0.2) for s in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == pytest.approx(1.0)
    assert values[10] == pytest.approx(1.0)
    assert values[55] == pytest.approx(0.6)
    assert values[100] == pytest.approx(0.2)
    assert all(a >= b for a, b in itertools.pairwise(values[10:]))


def test_a_schedule_may_rise():
    assert optim.warmup_cosine(0, steps=11, warmup=0, peak=0.99, end=1.0) == pytest.approx(0.99)
    assert optim.warmup_cosine(10, steps=11, warmup=0, peak=0.99, end=1.0) == pytest.approx(1.0)


def test_only_matrices_have_weight_decay_and_positions_are_not_trained():
    encoder = vit.build({"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2})
    model = mae.MAE(encoder, embed_dim=16, depth=1, num_heads=2)
    optimizer = optim.adamw(model, weight_decay=0.05, betas=(0.9, 0.95))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, free = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert all("weight" in name for name in decayed)
    assert {"mask_token", "encoder.cls_token", "encoder.norm.weight", "encoder.blocks.0.attn.qkv.bias"} <= free
    assert "encoder.pos_embed" not in decayed | free
    for start in (0.05, 0.0):
        optimizer = optim.adamw(model, weight_decay=start, betas=(0.9, 0.95))
        optim.set_rate(optimizer, 0.5, weight_decay=0.1)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert all(group["lr"] == 0.5 for group in optimizer.param_groups)
    assert torch.optim.AdamW is type(optimizer)


def test_a_skipped_update_changes_neither_weights_nor_moments():
    def updated(allowed: list[bool]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = torch.nn.Linear(3, 2)
        torch.nn.init.ones_(model.weight)
        optimizer = optim.adamw(model, weight_decay=0.1, betas=(0.9, 0.95))
        optim.set_rate(optimizer, 0.1)
        for number, flag in enumerate(allowed):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, float(number + 1) if flag else float("nan"))
            optim.step_if(torch.tensor(flag), optimizer)
        return model.weight.detach(), optimizer.state[model.weight]

    weight, state = updated([True, False, True, False])
    (model := torch.nn.Linear(3, 2)).load_state_dict({"weight": torch.ones(2, 3), "bias": torch.zeros(2)})
    optimizer = torch.optim.AdamW([model.weight], lr=0.1, weight_decay=0.1, betas=(0.9, 0.95), fused=True)
    for gradient in (1.0, 3.0):
        model.weight.grad = torch.full_like(model.weight, gradient)
        optimizer.step()
    assert torch.equal(weight, model.weight)
    assert all(torch.equal(state[name], value) for name, value in optimizer.state[model.weight].items())
