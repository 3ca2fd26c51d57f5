"""Check the inputs that the loop of MAE passes to a mask strategy, and part maps that lack a channel."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from semmae.core import config, distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.data.dataset import Reader
from semmae.models import masking, vit
from semmae.parts.part_maps import PartMaps
from semmae.runs.run import Run
from semmae.training import mae_loop

ALONE = distributed.World(0, 1, torch.device("cpu"))
COMPUTE = ComputeConfig(device="cpu", precision="fp32", compile=False, workers=0)
RECIPE = config.load_config(
    mae_loop.MAERecipe, "pretrain", "recipe", file=Path(__file__).parents[1] / "toy/params.yaml"
)
MASKING = mae_loop.MaskingConfig(
    strategy="semantic", mask_ratio=0.75, curriculum=mae_loop.CurriculumConfig(start=0.0, end=1.0, power=2.0)
)
SHAPE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}


def pretrain(shards: Path, out: Path, channels: dict[str, np.ndarray]) -> list[dict[str, float]]:
    """Return the history of two epochs on the toy dataset, five steps of 8 images each."""
    reader, recipe = Reader(shards, "train"), dataclasses.replace(RECIPE, epochs=2, batch_size=8, resolution=None)
    maps = PartMaps(reader.keys, channels, {"grid": (4, 4)}, 0)
    with Run("toy", ALONE, out=out, params=recipe, inputs=[], checkpoint_minutes=60) as run:
        mae_loop.pretrain(
            recipe, MASKING, vit.build(SHAPE), reader=reader, maps=maps, seed=0, compute=COMPUTE, world=ALONE,
            run=run, online_eval=lambda *_: {},
        )  # fmt: skip
    return run.history


def test_a_strategy_receives_all_of_its_inputs(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received = []

    def core(noise: Tensor, mask_ratio: float, **inputs: Tensor) -> Tensor:
        received.append(inputs)
        n = noise.shape[1]
        return masking.top_k(noise * inputs["attention"] + inputs["part_map"], masking.num_masked(n, mask_ratio))

    inputs = ("part_map", "attention", "grid", "curriculum_weight")
    monkeypatch.setitem(masking.STRATEGIES, "semantic", masking.Strategy(lambda h, w: (h * w,), core, inputs))
    samples = len(Reader(toy_dataset, "train"))
    labels, levels = np.full((samples, 16), 3, np.uint8), np.full((samples, 16), 7, np.uint8)
    history = pretrain(toy_dataset, tmp_path / "out", {"part_map": labels, "attention": levels})
    assert len(received) == 10
    assert all(tuple(inputs) == ("part_map", "attention", "grid", "curriculum_weight") for inputs in received)
    assert all(torch.equal(inputs["part_map"], torch.full((8, 16), 3, dtype=torch.uint8)) for inputs in received)
    assert all(torch.equal(inputs["attention"], torch.full((8, 16), 7, dtype=torch.uint8)) for inputs in received)
    assert {inputs["grid"] for inputs in received} == {(4, 4)}
    expected = [(step / 9) ** 2 for step in range(10)]
    assert [float(inputs["curriculum_weight"]) for inputs in received] == pytest.approx(expected)
    assert [row["curriculum_weight"] for row in history] == pytest.approx(
        [np.mean(expected[:5]), np.mean(expected[5:])]
    )


def test_the_history_holds_the_mean_norm_of_the_gradient(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms, update = [], optim.step_if

    def step_if(allowed: Tensor, optimizer: torch.optim.AdamW) -> None:
        gradients = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))
        update(allowed, optimizer)

    monkeypatch.setattr(optim, "step_if", step_if)
    labels = np.zeros((len(Reader(toy_dataset, "train")), 16), np.uint8)
    history = pretrain(toy_dataset, tmp_path / "out", {"part_map": labels})
    assert [row["grad_norm"] for row in history] == pytest.approx([np.mean(norms[:5]), np.mean(norms[5:])], rel=1e-5)


def test_part_maps_without_a_channel_of_the_strategy_are_refused(toy_dataset: Path, tmp_path: Path) -> None:
    labels = np.zeros((len(Reader(toy_dataset, "train")), 16), np.uint8)
    message = "masking.strategy is semantic, which uses part_map, but the part maps hold attention"
    with pytest.raises(ValueError, match=message):
        pretrain(toy_dataset, tmp_path / "out", {"attention": labels})
