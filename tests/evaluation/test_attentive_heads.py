"""Attentive heads against a loop over heads and queries, single heads, and data that only attention can classify."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semmae.core import distributed
from semmae.evaluation import attentive_heads
from semmae.evaluation.attentive_heads import AttentiveHeads

WORLD = distributed.World(0, 1, torch.device("cpu"))
SETTINGS = attentive_heads.grid([0.03, 0.003, 0.01], [0.0, 5.0])


def randomised(bank: AttentiveHeads, seed: int = 0) -> AttentiveHeads:
    """Give every head other parameters."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in bank.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return bank


def marked(n: int, *, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens with every class twice in random order; the label of a sample is the class of its marked token."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(2 * classes, generator=generator) for _ in range(n)]) % classes
    position = torch.randint(2 * classes, (n,), generator=generator)
    mark = F.one_hot(position, 2 * classes)[:, :, None].float()
    tokens = torch.cat([F.one_hot(order, classes).float(), mark, 1 - mark], dim=2)
    noise = 0.1 * torch.randn(n, 2 * classes, 2 * classes, generator=generator)
    tokens = F.pad(tokens, (0, 2 * classes - tokens.shape[2])) + noise - noise.mean(1, keepdim=True)
    return tokens, order.gather(1, position[:, None])[:, 0]


def trained(
    settings: list[dict[str, float]], tokens: Tensor, labels: Tensor, *, steps: int, classes: int = 4
) -> tuple[AttentiveHeads, list[list[float]]]:
    """Heads after some steps on batches of 32, and the losses of every step."""
    bank = AttentiveHeads(tokens.shape[2], classes, num_heads=len(settings), queries=2, seed=0)
    optimizer, losses_per_step = attentive_heads.build_optimizer(bank, settings, betas=(0.9, 0.95)), []
    for step in range(steps):
        rows = torch.arange(32 * step, 32 * step + 32) % len(tokens)
        attentive_heads.set_rates(optimizer, batch_size=256, schedule=min(1.0, (step + 1) / 4))
        losses = attentive_heads.cross_entropy(bank(tokens[rows]), labels[rows])
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        losses_per_step.append(losses.tolist())
    return bank.eval(), losses_per_step


def test_heads_equal_a_loop_over_heads_and_queries():
    bank = randomised(AttentiveHeads(12, 5, num_heads=3, queries=4, seed=0)).train()
    tokens = torch.randn(6, 7, 12, generator=torch.Generator().manual_seed(1))
    for i, head in enumerate(bank.heads):
        y = []
        for query, value in zip(head.query, head.value, strict=True):
            attention = (tokens @ query / math.sqrt(12)).softmax(1)  # (b, n)
            y.append((attention[:, :, None] * (tokens @ value)).sum(1))
        expected = F.batch_norm(torch.cat(y, dim=1), None, None, training=True, eps=1e-6) @ head.weight + head.bias
        torch.testing.assert_close(bank(tokens)[:, i], expected, rtol=1e-4, atol=1e-4)


def test_a_head_of_one_query_equals_torch_attention_with_tokens_as_keys():
    bank = randomised(AttentiveHeads(12, 5, num_heads=1, queries=1, seed=0)).train()
    tokens = torch.randn(6, 7, 12, generator=torch.Generator().manual_seed(1))
    head = bank.heads[0]
    values = tokens @ head.value[0]
    y = F.scaled_dot_product_attention(head.query.expand(6, -1, -1), tokens, values)[:, 0]
    expected = F.batch_norm(y, None, None, training=True, eps=1e-6) @ head.weight + head.bias
    torch.testing.assert_close(bank(tokens)[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_every_head_learns_as_if_it_was_trained_alone():
    tokens, labels = marked(64)
    bank, losses_per_step = trained(SETTINGS, tokens, labels, steps=8)
    assert len({losses for losses in losses_per_step[-1]}) == len(SETTINGS)  # all of them differ
    for i, setting in enumerate(SETTINGS):
        alone, curve = trained([setting], tokens, labels, steps=8)
        assert [losses[i] for losses in losses_per_step] == pytest.approx([losses[0] for losses in curve], rel=1e-3)
        torch.testing.assert_close(bank(tokens)[:, i], alone(tokens)[:, 0], rtol=1e-3, atol=1e-3)


def test_a_head_that_diverges_does_not_affect_the_others():
    tokens, labels = marked(64)
    diverging = {"base_lr": math.inf, "weight_decay": 0.0}
    bank, losses_per_step = trained([*SETTINGS, diverging], tokens, labels, steps=8)
    assert math.isnan(losses_per_step[-1][-1])
    expected, _ = trained(SETTINGS, tokens, labels, steps=8)
    torch.testing.assert_close(bank(tokens)[:, :-1], expected(tokens), rtol=1e-3, atol=1e-3)


def test_heads_learn_what_the_mean_of_the_tokens_does_not_show():
    (tokens, labels), (val, truth) = marked(512), marked(256, seed=1)
    mean = tokens.mean(1)
    assert (mean - mean.mean(0)).abs().max() < 1e-5  # every sample has the same
    bank, _ = trained([{"base_lr": 0.03, "weight_decay": 0.0}], tokens, labels, steps=150)
    assert (bank(val)[:, 0].argmax(1) == truth).double().mean() > 0.95


def test_queries_must_divide_the_width_of_a_token():
    with pytest.raises(ValueError, match=r"attentive\.protocol\.queries is 5; it must divide .* 12"):
        AttentiveHeads(12, 3, num_heads=1, queries=5, seed=0)


def test_the_history_is_that_of_the_first_head_with_the_best_final_accuracy():
    curve = attentive_heads.HeadCurves(3, WORLD.device)
    for top1 in ([0.9, 0.1, 0.1], [0.2, 0.7, 0.7]):
        for losses in ([1.0, 2.0, 3.0], [3.0, 4.0, 5.0]):
            curve.add_losses(torch.tensor(losses))
        curve.end_epoch(lr=[0.1, 0.2, 0.3], holdout_top1=top1)
    assert curve.best == 1
    assert curve.history() == [
        {"epoch": 1, "lr": 0.2, "train_loss": 3.0, "holdout_top1": 0.1},
        {"epoch": 2, "lr": 0.2, "train_loss": 3.0, "holdout_top1": 0.7},
    ]
