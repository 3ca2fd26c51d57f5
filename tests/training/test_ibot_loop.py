"""Check the training loop of iBOT: its history, frozen prototypes, schedules and masks."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from semmae.core import distributed
from semmae.core.compute import ComputeConfig
from semmae.core.config import load_config
from semmae.data.dataset import Reader
from semmae.models import ibot
from semmae.runs.run import Run
from semmae.runs.steps import Step
from semmae.training import ibot_loop
from semmae.training.mae_loop import ViTConfig

ALONE = distributed.World(0, 1, torch.device("cpu"))
COMPUTE = ComputeConfig(device="cpu", precision="fp32", compile=False, workers=0)
NETWORK = ViTConfig(patch_size=8, embed_dim=32, depth=1, num_heads=2)
RECIPE = load_config(ibot_loop.IBOTRecipe, "teacher", "ibot", file=Path(__file__).parents[1] / "toy/params.yaml")


def distilled(
    shards: Path, recipe: ibot_loop.IBOTRecipe, online_eval: Callable[..., dict[str, float]] = lambda *_: {}
) -> list[dict[str, float]]:
    """Return the history of a run on creatures of 32 pixels, with two steps of 16 images per epoch."""
    with Run("teacher", ALONE, out=shards, params=recipe, inputs=[], checkpoint_minutes=60) as run:
        ibot_loop.distill(
            recipe, NETWORK, img_size=32, reader=Reader(shards, "train"), seed=0, compute=COMPUTE, world=ALONE,
            run=run, online_eval=online_eval, initial=None,
        )  # fmt: skip
    return run.history


def test_the_history_holds_losses_and_entropies_relative_to_the_largest_entropy(toy_dataset: Path):
    calls = []

    def online_eval(_: object, epoch: int, is_last: bool) -> dict[str, float]:
        calls.append((epoch, is_last))
        return {"measured": 10.0 * epoch}

    history = distilled(toy_dataset, replace(RECIPE, epochs=2), online_eval)
    assert calls == [(1, False), (2, True)]
    assert [(row["epoch"], row["measured"]) for row in history] == [(1, 10.0), (2, 20.0)]
    for row in history:
        assert row["loss"] == pytest.approx(row["class_loss"] + row["patch_loss"])
        for of in ("class", "patch"):
            assert row[f"{of}_loss_by_ln_k"] == pytest.approx(row[f"{of}_loss"] / math.log(RECIPE.prototypes))
            assert 0 < row[f"{of}_entropy_by_ln_k"] < 1
            assert row[f"{of}_loss_by_ln_k"] > row[f"{of}_entropy_by_ln_k"]  # a cross entropy is at least the entropy


def test_frozen_prototypes_do_not_change(toy_dataset: Path, monkeypatch: pytest.MonkeyPatch):
    models, weights = [], []

    class Recorded(ibot.SelfDistillation):
        def __init__(self, *arguments, **keywords):
            super().__init__(*arguments, **keywords)
            models.append(self)
            record()

    def record(*_: object) -> dict[str, float]:
        head = models[0].student.head
        weights.append((head.prototypes.detach().clone(), head.mlp[0].weight.detach().clone()))
        return {}

    monkeypatch.setattr(ibot, "SelfDistillation", Recorded)
    distilled(toy_dataset, replace(RECIPE, epochs=3, freeze_prototypes_epochs=2), record)
    initial, first, second, third = (prototypes for prototypes, _ in weights)
    assert torch.equal(initial, first)
    assert torch.equal(initial, second)
    assert not torch.equal(initial, third)
    assert not torch.equal(weights[0][1], weights[1][1])  # the MLP before them learns from the first step


def test_schedules_start_and_end_at_the_values_of_the_recipe():
    recipe = replace(RECIPE, warmup_epochs=2, teacher_temp_warmup_epochs=2)
    first, heated, last = (Step(number, 50, 5, number // 5, {}, False) for number in (0, 10, 49))
    peak = recipe.base_lr * recipe.batch_size / 256
    assert ibot_loop.schedules(recipe, first) == pytest.approx((peak / 10, 0.04, 0.99, 0.04))
    assert ibot_loop.schedules(recipe, heated)[0::3] == pytest.approx((peak, 0.07))
    assert ibot_loop.schedules(recipe, last) == pytest.approx((recipe.min_lr, 0.4, 1.0, 0.07))


def test_masks_cover_a_share_of_the_crops_block_by_block():
    grid, recipe = (8, 8), replace(RECIPE, batch_size=400, mask_ratio=(0.25, 0.25), masked_share=0.5)
    mask = ibot_loop.draw_masks(recipe, grid, ALONE, 0, 0)
    assert mask.shape == (800, 64)
    assert set(mask.sum(1).tolist()) == {0, 16}
    assert mask.any(1).float().mean() == pytest.approx(0.5, abs=0.06)


def test_local_size_must_be_a_multiple_of_the_patch_size(toy_dataset: Path):
    with pytest.raises(ValueError, match=r"ibot\.local_size is 20; it must be a multiple of network\.patch_size, 8"):
        distilled(toy_dataset, replace(RECIPE, local_size=20))
