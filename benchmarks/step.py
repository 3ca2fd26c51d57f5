"""How many images a second a pretraining step takes: our MAE beside transformers' and lightly's, weights and all alike.

    python -m benchmarks.step [--models S/16 B/16 L/16 B/8] [--precision fp32 bf16] [--batch 8]
                              [--compile [reduce-overhead]] [--rounds 5] [--steps 1] [--json out.json]

Images of 224 pixels as tensors on the device, three quarters masked at random, MAE's decoder (512 wide, 8 deep),
norm-pix loss, fused AdamW. A step is mask, forward, backward, update. Before anything is timed the two models that
share weights must give the same loss. The rows:

- `semmae`: as the pretrain stage runs it, `semmae semantic` with part maps and a curriculum that moves; `semmae half`
  decodes half of the masked patches (`reconstruct: 0.5`).
- `transformers`: `ViTMAEForPreTraining` with our weights, its own masking and attention (sdpa).
- `lightly`: its timm encoder and decoder, put together as its documentation does; where lightly is installed.

Every round times every row once, in an order of its own, for whoever comes before a row leaves a mark on caches; the
table gives medians of images per second and of the ratio to `transformers` of the same round, and the share of the
ceiling: FLOPs counted in forward and backward (`torch.utils.flop_counter`: a multiplication and an addition are two)
times steps per second, over the rate of a square matrix product (4096; 1024 on CPUs) in the same precision and the same
run. Peak memory is the device's, of CUDA devices alone.
"""

import argparse
import json
import platform
import random
import re
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peers
from semmae.core import async_copy, distributed, optim, process
from semmae.models import mae, masking, vit

IMAGE, RATIO, PARTS = 224, 0.75, 7
DECODER = {"embed_dim": 512, "depth": 8, "num_heads": 16}
SHAPES = {
    "S/16": {"patch_size": 16, "embed_dim": 384, "depth": 12, "num_heads": 6},
    "B/16": {"patch_size": 16, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "L/16": {"patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16},
    "B/8": {"patch_size": 8, "embed_dim": 768, "depth": 12, "num_heads": 12},
}
PEER = "transformers"

Loss = Callable[[Tensor], Tensor]  # images to loss


def choosing(name: str, grid: tuple[int, int], device: torch.device) -> Callable[[int], Tensor]:
    """A function that draws the next step's masks for so many images."""
    strategy, generator, steps = masking.STRATEGIES[name], torch.Generator().manual_seed(0), count()

    def choose(b: int) -> Tensor:
        noise = async_copy.to_device(device, strategy.draw(b, grid, generator=generator))
        progress = torch.tensor(next(steps) % 100 / 100)
        return strategy(noise, RATIO, curriculum_weight=progress, **evidence(b, grid, device))

    return choose


def evidence(b: int, grid: tuple[int, int], device: torch.device) -> dict[str, Any]:
    """What any strategy may look at: bands of parts, attention that rises from patch to patch."""
    n = grid[0] * grid[1]
    patches = torch.arange(n, device=device).expand(b, -1)
    return {"grid": grid, "part_map": (patches * PARTS // n).to(torch.uint8), "attention": patches / n}


def ours(model: mae.MAE, strategy: str, device: torch.device, share: float = 1.0) -> Loss:
    """The loss of the pretrain stage: masks drawn on the CPU for the batch, sorted on the device, and a share of the
    masked patches decoded.
    """
    grid = model.encoder.patch_embed.grid_size
    choose, num_masked = choosing(strategy, grid, device), masking.num_masked(grid[0] * grid[1], RATIO)

    num_decoded = round(share * num_masked)

    def loss(images: Tensor) -> Tensor:
        mask = choose(len(images))
        if share == 1:
            pred = model(images, mask, num_masked)
        else:
            some = masking.subsample_mask(mask, async_copy.to_device(device, torch.rand(mask.shape)), num_decoded)
            pred, mask = model(images, mask, num_masked, some, num_decoded), some
        return mae.loss(pred, images, mask, patch_size=model.patch_size, norm_pix_loss=True)

    return loss


def rows(shape: dict[str, int], device: torch.device, *, compiled: str | None) -> dict[str, tuple[nn.Module, Loss]]:
    """Per row its module, in training, and its loss; the loss of ours is checked against transformers' first."""
    torch.manual_seed(0)
    model = mae.MAE(vit.build({"img_size": IMAGE, **shape}), **DECODER)
    peer = peers.transformers(model)
    _same_loss(model, peer)
    found: dict[str, tuple[nn.Module, Loss]] = {}
    model, peer = model.to(device).train(), peer.to(device).train()
    vit.use_fastest_attention(model, device)
    for module in (model, peer) if compiled else ():
        module.compile(mode=compiled)
    for name, strategy, share in (
        ("semmae", "random", 1),
        ("semmae semantic", "semantic", 1),
        ("semmae half", "random", 0.5),
    ):
        found[name] = (model, ours(model, strategy, device, share))
    found[PEER] = (peer, lambda images: peer(images).loss)
    if peers.has_lightly():
        found["lightly"] = peers.lightly({"img_size": IMAGE, **shape}, DECODER, RATIO, device=device, compiled=compiled)
    return found


def _same_loss(model: mae.MAE, peer: nn.Module) -> None:
    """Ours and transformers' agree on weights, images and mask, or there is nothing to compare (AssertionError)."""
    images, n = torch.randn(2, 3, IMAGE, IMAGE), model.positions.shape[1] - 1
    mask = masking.random(2, n, RATIO, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pred = model(images, mask, masking.num_masked(n, RATIO))
        loss = mae.loss(pred, images, mask, patch_size=model.patch_size, norm_pix_loss=True)
        torch.testing.assert_close(loss, peer(images, noise=mask.float()).loss, rtol=1e-5, atol=1e-5)


def stepping(module: nn.Module, loss: Loss, images: Tensor, precision: distributed.Precision) -> Callable[[], None]:
    """A function that takes one optimizer step."""
    optimizer = optim.adamw(module, weight_decay=0.05, betas=(0.9, 0.95))
    optim.set_rate(optimizer, 1e-4)

    def step() -> None:
        with distributed.autocast(images.device, precision):
            value = loss(images)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return step


def seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Wall time of one call, the device waited for."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceiling(device: torch.device, precision: distributed.Precision) -> float:
    """FLOP/s of a square matrix product, the best of five."""
    side = 4096 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * side**3 / min(seconds(lambda: a @ a, device, 10) for _ in range(5))


def flops(module: nn.Module, loss: Loss, images: Tensor) -> float:
    """FLOPs of forward and backward for one image."""
    with FlopCounterMode(display=False) as counter:
        loss(images).backward()
    module.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(images)


def measure(
    shape: dict[str, int], precision: distributed.Precision, device: torch.device, *, compiled: str | None, batch: int,
    rounds: int, steps: int,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Per row: images per second, ratio to the peer, share of the ceiling, peak memory in GB (CUDA)."""
    images = torch.randn(batch, 3, IMAGE, IMAGE, device=device)
    chosen = rows(shape, device, compiled=None)
    cost = {name: flops(*row, images[:2]) for name, row in chosen.items()}
    chosen = rows(shape, device, compiled=compiled) if compiled else chosen
    work = {name: stepping(module, loss, images, precision) for name, (module, loss) in chosen.items()}
    memory, rate = dict.fromkeys(work, 0.0), {name: [] for name in work}
    for number in range(rounds + 1):  # the first warms up
        for name, step in random.Random(number).sample(list(work.items()), len(work)):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            taken = seconds(step, device, steps)
            if device.type == "cuda":
                memory[name] = torch.cuda.max_memory_allocated(device) / 1e9
            if number:
                rate[name].append(batch / taken)
    roof = ceiling(device, precision)
    return {
        name: {
            "images_per_second": median(found),
            "ratio": median(a / b for a, b in zip(found, rate[PEER], strict=True)),
            "ceiling": median(found) * cost[name] / roof,
            "peak_gb": memory[name],
        }
        for name, found in rate.items()
    }


def described(device: torch.device) -> str:
    """The device by the name that its maker gave it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = re.findall(r"model name\s*: (.*)", told) or [platform.processor() or platform.machine()]
    return f"{models[0]}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--compile", nargs="?", const="default", choices=["default", "reduce-overhead"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="in a row, at each time of a round")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    process.keep_freed_memory()  # as every stage does; all rows gain by it
    device, table = distributed.choose_device(args.device), {}
    mode = f"compiled ({args.compile})" if args.compile else "eager"
    for name in args.models:
        for precision in args.precision:
            found = measure(
                SHAPES[name], precision, device, compiled=args.compile, batch=args.batch, rounds=args.rounds,
                steps=args.steps,
            )  # fmt: skip
            table[f"{name} {precision}"] = found
            print(f"ViT-{name} {precision} {mode} {device} batch {args.batch}: images/s, ratio, of the ceiling, GB")
            for row, said in found.items():
                print(f"  {row:20s} {said['images_per_second']:9.2f} {said['ratio']:6.2f} {said['ceiling']:6.1%}"
                      f" {said['peak_gb']:6.1f}", flush=True)  # fmt: skip
    if args.json:
        told = {"device": described(device), "mode": mode, "steps": table}
        args.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
