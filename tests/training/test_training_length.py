"""A training of n steps equals a training of n / steps per epoch epochs, also when its last epoch is incomplete."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from semmae.core import distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.core.config import load_config
from semmae.data.dataset import Reader
from semmae.models import vit
from semmae.runs.run import Run
from semmae.runs.training_length import FEW_STEPS, describe_short
from semmae.training import ibot_loop, mae_loop
from semmae.training.progressive_resolution import ResolutionConfig

ALONE = distributed.World(0, 1, torch.device("cpu"))
COMPUTE = ComputeConfig(device="cpu", precision="fp32", compile=False, workers=0)
TOY = Path(__file__).parents[1] / "toy/params.yaml"
MAE_RECIPE = replace(
    load_config(mae_loop.MAERecipe, "pretrain", "recipe", file=TOY), epochs=2, batch_size=8, warmup_epochs=1,
    resolution=ResolutionConfig(start=16, step=16, until=0.5),
)  # fmt: skip
IBOT_RECIPE = load_config(ibot_loop.IBOTRecipe, "teacher", "ibot", file=TOY)
RANDOM = mae_loop.MaskingConfig(
    strategy="random", mask_ratio=0.75, curriculum=mae_loop.CurriculumConfig(start=0.0, end=1.0, power=2.0)
)
VIT = mae_loop.ViTConfig(patch_size=8, embed_dim=32, depth=1, num_heads=2)
PER_EPOCH = 5  # 40 images in batches of 8

Weights = dict[str, torch.Tensor]
History = list[dict[str, float]]


class HaltError(Exception):
    """Raised in an online evaluation, instead of a killed process."""


def pretrain(
    shards: Path, recipe: mae_loop.MAERecipe, online_eval: Callable[..., dict[str, float]] = lambda *_: {}
) -> tuple[Weights, History]:
    """Return the weights and the history of a run that resumes from the checkpoints of its recipe."""
    with Run("toy", ALONE, out=shards / "out", params=recipe, inputs=[], checkpoint_minutes=60) as run:
        torch.manual_seed(0)
        model = mae_loop.pretrain(
            recipe, RANDOM, vit.build({"img_size": 32, **vars(VIT)}), reader=Reader(shards, "train"), maps=None,
            seed=0, compute=COMPUTE, world=ALONE, run=run, online_eval=online_eval,
        )  # fmt: skip
    assert run.num_steps == (recipe.steps or 2 * PER_EPOCH)
    return model.state_dict(), run.history


def assert_equal(found: tuple[Weights, History], expected: tuple[Weights, History]) -> None:
    assert found[1] == expected[1]
    assert all(torch.equal(value, expected[0][name]) for name, value in found[0].items())


def test_steps_equal_the_same_number_of_steps_in_epochs(toy_dataset: Path):
    by_epochs = pretrain(toy_dataset, MAE_RECIPE)
    assert_equal(pretrain(toy_dataset, replace(MAE_RECIPE, epochs=None, steps=2 * PER_EPOCH)), by_epochs)


def test_ibot_by_steps_equals_ibot_by_epochs(toy_dataset: Path):
    def distill(recipe: ibot_loop.IBOTRecipe) -> tuple[Weights, History]:
        with Run("toy", ALONE, out=toy_dataset / "out", params=recipe, inputs=[], checkpoint_minutes=60) as run:
            network = ibot_loop.distill(
                recipe, VIT, img_size=32, reader=Reader(toy_dataset, "train"), seed=0, compute=COMPUTE, world=ALONE,
                run=run, online_eval=lambda *_: {}, initial=None,
            )  # fmt: skip
        return network.state_dict(), run.history

    per_epoch = 40 // IBOT_RECIPE.batch_size
    by_steps = distill(replace(IBOT_RECIPE, epochs=None, steps=2 * per_epoch))
    assert_equal(by_steps, distill(replace(IBOT_RECIPE, epochs=2)))


def test_the_last_epoch_may_be_incomplete_and_schedules_end_with_it(toy_dataset: Path):
    calls = []

    def online_eval(_: object, epoch: int, is_last: bool) -> dict[str, float]:
        calls.append((epoch, is_last))
        return {}

    _, history = pretrain(toy_dataset, replace(MAE_RECIPE, epochs=None, steps=7), online_eval)
    assert calls == [(1, False), (2, True)]
    schedule = {"steps": 7, "warmup": PER_EPOCH, "peak": MAE_RECIPE.base_lr * 8 / 256, "end": MAE_RECIPE.min_lr}
    rates = [optim.warmup_cosine(step, **schedule) for step in range(7)]
    assert [row["lr"] for row in history] == pytest.approx([sum(rates[:5]) / 5, sum(rates[5:]) / 2])
    assert rates[-1] == pytest.approx(MAE_RECIPE.min_lr)


def test_a_resumed_training_by_steps_equals_an_uninterrupted_one(toy_dataset: Path):
    recipe = replace(MAE_RECIPE, epochs=None, steps=7)

    def halt_at_the_end(_: object, epoch: int, is_last: bool) -> dict[str, float]:
        if is_last:
            raise HaltError
        return {}

    whole = pretrain(toy_dataset, recipe)
    with contextlib.suppress(HaltError):
        pretrain(toy_dataset, recipe, halt_at_the_end)
    first_steps = []

    def remember(_: object, epoch: int, is_last: bool) -> dict[str, float]:
        first_steps.append(epoch)
        return {}

    assert_equal(pretrain(toy_dataset, recipe, remember), whole)
    assert first_steps == [2]


@pytest.mark.parametrize(
    ("epochs", "steps", "given"), [("8", "5", "epochs is 8 and steps is 5"), ("", "", "both are null")]
)
def test_exactly_one_of_epochs_and_steps_is_set(tmp_path: Path, epochs: str, steps: str, given: str):
    old = "  recipe:\n    epochs: 6\n    steps:\n"
    text = TOY.read_text()
    assert old in text
    file = tmp_path / "params.yaml"
    file.write_text(text.replace(old, f"  recipe:\n    epochs: {epochs}\n    steps: {steps}\n"))
    message = f"params.yaml: pretrain.recipe: {given}; expected one of epochs and steps. Set the other one to null"
    with pytest.raises(ValueError, match=message):
        load_config(mae_loop.MAERecipe, "pretrain", "recipe", file=file)


def test_a_short_training_is_announced(toy_dataset: Path, capsys: pytest.CaptureFixture[str]):
    pretrain(toy_dataset, replace(MAE_RECIPE, epochs=None, steps=1))
    assert f"toy: 1 steps in all; below {FEW_STEPS} expect little" in capsys.readouterr().err
    assert not describe_short(FEW_STEPS)
