"""A step that is not finite is retried, skipped, or ends the run, whenever its values are read. A step reads no scalar
from its device.
"""

import dataclasses
import random
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from semmae.core import distributed, optim
from semmae.core.compute import ComputeConfig
from semmae.core.config import load_config
from semmae.core.distributed import World
from semmae.data.dataset import Reader
from semmae.data.epoch_order import epoch_order
from semmae.models import masking, vit
from semmae.parts.part_maps import PartMaps
from semmae.runs.run import Run
from semmae.runs.step_log import LossSpikes
from semmae.runs.steps import Step
from semmae.training import ibot_loop, mae_loop

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
COMPUTE = ComputeConfig(device="cpu", precision="fp32", compile=False, workers=0)
TOY = Path(__file__).parents[1] / "toy/params.yaml"
NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class Recipe:
    lr: float


def _load(reader: Reader, index: int, epoch: int) -> dict[str, object]:
    return {"key": reader.keys[index]}


def _run(
    dataset: Path, out: Path, losses: dict[tuple[int, bool], float], *, delay: int = 0, epochs: int = 1,
    signaled_at: int | None = None, **kwargs: int,
) -> tuple[Run, list[tuple[int, bool]], float]:  # fmt: skip
    """Run epochs of 5 steps; return the run, (step, is_retry) of its steps in their order, and the weight.

    The loss is 2, or the value in `losses` for (step, is_retry). Each step with a finite loss moves the weight by 1.
    """
    order: list[tuple[int, bool]] = []
    model = torch.nn.ParameterList([torch.zeros(1)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.0, fused=True)
    with Run("toy", ALONE, out=out, params=Recipe(0.1), inputs=[], checkpoint_minutes=60) as run:
        run.step_log.delay = delay
        for step in run.steps(
            Reader(dataset, "train"), _load, batch_size=8, epochs=epochs, seed=0, workers=0,
            state={"model": model, "optimizer": optimizer}, **kwargs,
        ):  # fmt: skip
            if step.number == signaled_at:
                signal.raise_signal(signal.SIGTERM)
            order.append((step.number, step.is_retry))
            loss = torch.tensor(losses.get(order[-1], 2.0))
            model[0].grad = -(loss / loss).expand(1)  # 1 or nan
            optim.step_if(run.all_finite(loss=loss), optimizer)
            run.record(loss=loss, constant=1.0)
            if step.ends_epoch:
                run.log(weight=float(model[0].detach()))
    return run, order, float(model[0].detach())


@pytest.mark.parametrize("delay", [0, 1])
def test_a_step_that_is_not_finite_is_retried_and_then_counts(
    toy_dataset: Path, tmp_path: Path, delay: int, capsys: pytest.CaptureFixture[str]
):
    plain, _, _ = _run(toy_dataset, tmp_path / "plain", {}, epochs=2)
    losses = {(1, False): NAN, (1, True): 4.0, (4, False): float("inf"), (4, True): 4.0}
    run, order, weight = _run(toy_dataset, tmp_path / "out", losses, delay=delay, epochs=2, retry=True)
    late = [(2, False), (1, True)] if delay else [(1, True), (2, False)]  # a GPU has launched the next step before
    rest = [(number, False) for number in (5, 6, 7, 8, 9)]
    assert order == [(0, False), (1, False), *late, (3, False), (4, False), (4, True), *rest]
    assert weight == pytest.approx(plain.history[-1]["weight"], abs=1e-3)
    assert run.step_log.skipped == 0
    assert [row["loss"] for row in run.history] == [pytest.approx((2 * 3 + 4 * 2) / 5), 2.0]
    assert run.history[0]["weight"] == pytest.approx(5, abs=1e-3)  # measured again after the retry of the last step
    assert [row["constant"] for row in run.history] == [1.0, 1.0]
    output = capsys.readouterr().err
    assert "toy: the loss is nan at step 1; retrying it in fp32\n" in output
    assert "toy: the loss is inf at step 4; retrying it in fp32\n" in output


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("retry", [False, True])
def test_a_step_whose_retry_is_not_finite_is_skipped_if_that_is_allowed(
    toy_dataset: Path, tmp_path: Path, delay: int, retry: bool, capsys: pytest.CaptureFixture[str]
):
    losses = {(number, again): NAN for number in (1, 3) for again in (False, True)}
    run, _, weight = _run(toy_dataset, tmp_path / "out", losses, delay=delay, retry=retry, max_skipped_steps=2)
    assert (run.step_log.skipped, run.history[-1]["loss"]) == (2, 2.0)
    assert weight == pytest.approx(3, abs=1e-3)
    keys = [Reader(toy_dataset, "train").keys[i] for i in epoch_order(40, seed=0, epoch=0)]
    output = capsys.readouterr().err
    assert f"toy: the loss is nan at step 1 on rank 0; its samples: {keys[8]}, " in output
    assert output.count("; the step is skipped") == 2
    output = f"toy: the loss is nan at step 3 on rank 0; its samples: {keys[24]}, .*; lower base_lr or set precision to"
    with pytest.raises(FloatingPointError, match=output):
        _run(toy_dataset, tmp_path / "other", losses, delay=delay, retry=retry, max_skipped_steps=1)


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("number", [0, 3, 4, 8, 9])
def test_a_stopped_run_is_resumed_and_ends_the_same(toy_dataset: Path, tmp_path: Path, delay: int, number: int):
    losses = {(number, again): 3.0 for number in (3, 7) for again in (False, True)}
    whole, steps, weight = _run(toy_dataset, tmp_path / "whole", losses, delay=delay, epochs=2)
    with pytest.raises(SystemExit, match="143"):
        _run(toy_dataset, tmp_path / "out", losses, delay=delay, epochs=2, signaled_at=number)
    run, rest, weight_again = _run(toy_dataset, tmp_path / "out", losses, delay=delay, epochs=2)
    stopped_after = number + 1 + (delay if number % 5 < 4 else 0)  # a GPU has launched the next step
    assert rest == steps[stopped_after:]
    assert (weight_again, run.history) == (weight, whole.history)


def test_a_rank_with_a_finite_loss_ends_with_a_rank_whose_loss_is_not(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(distributed, "maximum", lambda values, world: torch.ones_like(values))  # of another rank
    with pytest.raises(FloatingPointError, match="toy: a value of another rank is not finite at step 0"):
        _run(toy_dataset, tmp_path / "out", {})


def test_a_loss_spike_is_printed_with_its_samples(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    _run(toy_dataset, tmp_path / "out", {(55, False): 50.0}, epochs=12)
    (message,) = [line for line in capsys.readouterr().err.splitlines() if "spike" in line]
    assert message.startswith("toy: loss spike at step 55: 50, moving mean 2; its samples: ")


def falling_losses(steps: int) -> list[float]:
    """Return losses that fall with some noise, as those of a training do."""
    noise = random.Random(0)
    return [1 + 2 / (1 + step / 20) + noise.gauss(0, 0.02) for step in range(steps)]


def test_falling_losses_have_no_spikes_and_a_jump_is_one():
    spikes = LossSpikes()
    assert not any(spikes.is_spike(loss) for loss in falling_losses(400))
    assert spikes.is_spike(3.0)
    assert not spikes.is_spike(1.1)


def test_nothing_is_a_spike_during_the_warmup():
    spikes = LossSpikes()
    assert not any(spikes.is_spike(loss) for loss in [1.0] * (LossSpikes.WARMUP - 1) + [100.0])


def test_constant_losses_may_vary_a_little():
    spikes = LossSpikes()
    for _ in range(LossSpikes.WARMUP):
        spikes.is_spike(1.0)
    assert not spikes.is_spike(1.2)
    assert spikes.is_spike(2.0)


def test_a_checkpoint_keeps_the_moving_mean_of_the_loss():
    spikes, restored = LossSpikes(), LossSpikes()
    for loss in falling_losses(100):
        spikes.is_spike(loss)
    restored.load_state_dict(spikes.state_dict())
    assert [spikes.is_spike(loss) for loss in (1.1, 9.0, 1.1)] == [restored.is_spike(loss) for loss in (1.1, 9.0, 1.1)]
    assert spikes.state_dict() == restored.state_dict()


READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique", "equal.default")


class Reads(TorchDispatchMode):
    """Counts the reads of tensors that would wait for a GPU: by `item`, `float`, `if`, or for a shape.

    It does not count copies; `test_no_step_waits_for_a_gpu` covers them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += any(name in str(function) for name in READS)
        return function(*args, **(kwargs or {}))


def test_the_read_of_a_scalar_is_counted():
    with Reads() as reads:
        float(torch.ones(()) + 1)
        torch.ones(3).nonzero()
        if torch.ones(()) > 0:
            torch.ones(3).unique()
        assert torch.equal(torch.ones(3), torch.ones(3))
    assert reads.count == 5


class Counting(Run):
    """A run that counts the reads in each step of the loop."""

    def steps(self, *args: Any, **keywords: Any) -> Iterator[Step]:
        self.reads: list[int] = []
        for step in super().steps(*args, **keywords):
            with Reads() as reads:
                yield step
            self.reads.append(reads.count)


def _pretrained(run: Run, dataset: Path, strategy: Any, decode_fraction: float = 1.0, world: World = ALONE) -> None:
    reader = Reader(dataset, "train")
    labels = np.random.default_rng(0).integers(0, 4, (2, len(reader), 16), dtype=np.uint8)
    maps = PartMaps(reader.keys, {"part_map": labels[0], "attention": labels[1]}, {"grid": [4, 4]}, 0)
    recipe = dataclasses.replace(
        load_config(mae_loop.MAERecipe, "pretrain", "recipe", file=TOY),
        epochs=2,
        batch_size=8,
        decode_fraction=decode_fraction,
    )
    masks = mae_loop.MaskingConfig(strategy, 0.75, mae_loop.CurriculumConfig(start=0.0, end=1.0, power=2.0))
    encoder = vit.build({"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2})
    mae_loop.pretrain(
        recipe, masks, encoder, reader=reader, maps=maps, seed=0, compute=COMPUTE, world=world, run=run,
        online_eval=lambda *_: {},
    )  # fmt: skip


def _distilled(run: Run, dataset: Path, centering: Any, world: World = ALONE) -> None:
    recipe = dataclasses.replace(
        load_config(ibot_loop.IBOTRecipe, "teacher", "ibot", file=TOY), epochs=2, batch_size=8, centering=centering
    )
    network = mae_loop.ViTConfig(patch_size=8, embed_dim=32, depth=1, num_heads=2)
    ibot_loop.distill(
        recipe, network, img_size=32, reader=Reader(dataset, "train"), seed=0, compute=COMPUTE, world=world, run=run,
        online_eval=lambda *_: {}, initial=None,
    )  # fmt: skip


@pytest.mark.parametrize(("strategy", "decode_fraction"), [("random", 1.0), ("semantic", 0.5), ("attention", 1.0)])
def test_pretraining_reads_no_scalar_from_its_device(
    toy_dataset: Path, tmp_path: Path, strategy: str, decode_fraction: float
):
    with Counting("toy", ALONE, out=tmp_path / "out", params=Recipe(0.1), inputs=[], checkpoint_minutes=60) as run:
        _pretrained(run, toy_dataset, strategy, decode_fraction)
    assert run.reads == [0] * 10


@pytest.mark.parametrize("centering", ["sinkhorn", "mean"])
def test_self_distillation_reads_no_scalar_from_its_device(toy_dataset: Path, tmp_path: Path, centering: str):
    with Counting("toy", ALONE, out=tmp_path / "out", params=Recipe(0.1), inputs=[], checkpoint_minutes=60) as run:
        _distilled(run, toy_dataset, centering)
    assert run.reads == [0] * 10


class Watched(Run):
    """A run whose loop must not wait for the GPU, except in the first step, which creates the optimizer state."""

    def steps(self, *args: Any, **keywords: Any) -> Iterator[Step]:
        for step in super().steps(*args, **keywords):
            torch.cuda.set_sync_debug_mode("error" if step.number else "default")
            yield step
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU shows whether a step waits for it")
@pytest.mark.parametrize(
    "train",
    [
        *(partial(_pretrained, strategy=strategy) for strategy in masking.STRATEGIES),
        *(partial(_distilled, centering=centering) for centering in ("sinkhorn", "mean")),
    ],
)
def test_no_step_waits_for_a_gpu(toy_dataset: Path, tmp_path: Path, train: Callable[..., None]):
    world = World(rank=0, size=1, device=torch.device("cuda", 0))
    with Watched("toy", world, out=tmp_path / "out", params=Recipe(0.1), inputs=[], checkpoint_minutes=60) as run:
        train(run, toy_dataset, world=world)
