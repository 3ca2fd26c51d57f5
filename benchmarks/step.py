"""Compare the pretraining step of this MAE with those of transformers and lightly, in images per second.

    python -m benchmarks.step [--models S/16 B/16 L/16 B/8] [--precision fp32 bf16] [--batch 8]
                              [--compile [reduce-overhead]] [--rounds 5] [--steps 1] [--json out.json]

The images are tensors of 224 pixels on the device. Three quarters of the patches are masked. As in MAE, the decoder is
512 wide and 8 deep, and the loss uses normalized pixels. The optimizer is fused AdamW. A step draws masks, runs the
forward and backward pass, and updates the weights. Before the timing, the program checks that `semmae` and
`transformers` give the same loss for the same weights. The rows of the table:

- `semmae`: the step of the pretrain stage, with random masks.
- `semmae semantic`: the same with semantic masks from part maps, and a changing curriculum weight.
- `semmae half`: as `semmae`, but decodes half of the masked patches (`decode_fraction: 0.5`).
- `transformers`: `ViTMAEForPreTraining` with the same weights, its own masking and its own attention (sdpa).
- `lightly`: its timm encoder and decoder, combined as in its documentation, if lightly is installed.

Each round times every row once, in a new order, because a row changes the caches for the next row. The table gives the
median images per second, the median ratio to `transformers` within a round, and the share of the ceiling. The ceiling
is the FLOP/s of a square matrix product (4096; 1024 on CPUs) in the same precision. Its share is the FLOPs of the
forward and backward pass times steps per second, divided by the ceiling. `torch.utils.flop_counter` counts the FLOPs; a
multiplication and an addition are two. Peak memory is measured on CUDA devices only.
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
REFERENCE = "transformers"

Loss = Callable[[Tensor], Tensor]  # images to loss


def mask_drawer(name: str, grid: tuple[int, int], device: torch.device) -> Callable[[int], Tensor]:
    """Return a function that draws the next step's masks for a number of images."""
    strategy, generator, steps = masking.STRATEGIES[name], torch.Generator().manual_seed(0), count()

    def draw_masks(b: int) -> Tensor:
        noise = async_copy.to_device(device, strategy.draw(b, grid, generator=generator))
        progress = torch.tensor(next(steps) % 100 / 100)
        return strategy(noise, RATIO, curriculum_weight=progress, **strategy_inputs(b, grid, device))

    return draw_masks


def strategy_inputs(b: int, grid: tuple[int, int], device: torch.device) -> dict[str, Any]:
    """Return the inputs of the strategies: parts as horizontal bands, attention that grows with the patch index."""
    n = grid[0] * grid[1]
    patches = torch.arange(n, device=device).expand(b, -1)
    return {"grid": grid, "part_map": (patches * PARTS // n).to(torch.uint8), "attention": patches / n}


def mae_loss(model: mae.MAE, strategy: str, device: torch.device, decode_fraction: float = 1.0) -> Loss:
    """Return the loss of the pretrain stage, which draws noise on the CPU and sorts it on the device."""
    grid = model.encoder.patch_embed.grid_size
    draw_masks, num_masked = mask_drawer(strategy, grid, device), masking.num_masked(grid[0] * grid[1], RATIO)

    num_decoded = round(decode_fraction * num_masked)

    def loss(images: Tensor) -> Tensor:
        mask = draw_masks(len(images))
        if decode_fraction == 1:
            pred = model(images, mask, num_masked)
        else:
            decode_mask = masking.subsample_mask(
                mask, async_copy.to_device(device, torch.rand(mask.shape)), num_decoded
            )
            pred, mask = model(images, mask, num_masked, decode_mask, num_decoded), decode_mask
        return mae.loss(pred, images, mask, patch_size=model.patch_size, norm_pix_loss=True)

    return loss


def rows(shape: dict[str, int], device: torch.device, *, compiled: str | None) -> dict[str, tuple[nn.Module, Loss]]:
    """Return the module, in training mode, and the loss of each row, after a check of the losses."""
    torch.manual_seed(0)
    model = mae.MAE(vit.build({"img_size": IMAGE, **shape}), **DECODER)
    peer = peers.transformers(model)
    _same_loss(model, peer)
    table: dict[str, tuple[nn.Module, Loss]] = {}
    model, peer = model.to(device).train(), peer.to(device).train()
    vit.use_fastest_attention(model, device)
    for module in (model, peer) if compiled else ():
        module.compile(mode=compiled)
    for name, strategy, decode_fraction in (
        ("semmae", "random", 1),
        ("semmae semantic", "semantic", 1),
        ("semmae half", "random", 0.5),
    ):
        table[name] = (model, mae_loss(model, strategy, device, decode_fraction))
    table[REFERENCE] = (peer, lambda images: peer(images).loss)
    if peers.has_lightly():
        table["lightly"] = peers.lightly({"img_size": IMAGE, **shape}, DECODER, RATIO, device=device, compiled=compiled)
    return table


def _same_loss(model: mae.MAE, peer: nn.Module) -> None:
    """Raise AssertionError unless our loss equals the loss of transformers for equal weights, images and masks."""
    images, n = torch.randn(2, 3, IMAGE, IMAGE), model.positions.shape[1] - 1
    mask = masking.random(2, n, RATIO, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pred = model(images, mask, masking.num_masked(n, RATIO))
        loss = mae.loss(pred, images, mask, patch_size=model.patch_size, norm_pix_loss=True)
        torch.testing.assert_close(loss, peer(images, noise=mask.float()).loss, rtol=1e-5, atol=1e-5)


def make_step(module: nn.Module, loss: Loss, images: Tensor, precision: distributed.Precision) -> Callable[[], None]:
    """Return a function that takes one optimizer step."""
    optimizer = optim.adamw(module, weight_decay=0.05, betas=(0.9, 0.95))
    optim.set_rate(optimizer, 1e-4)

    def step() -> None:
        with distributed.autocast(images.device, precision):
            value = loss(images)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return step


def seconds(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the wall time per call in seconds, including the work of the device."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    _wait(device)
    return (time.perf_counter() - start) / repeats


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceiling(device: torch.device, precision: distributed.Precision) -> float:
    """Return the highest FLOP/s of a square matrix product in five measurements."""
    side = 4096 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * side**3 / min(seconds(lambda: a @ a, device, 10) for _ in range(5))


def flops(module: nn.Module, loss: Loss, images: Tensor) -> float:
    """Count the FLOPs of forward and backward pass for one image."""
    with FlopCounterMode(display=False) as counter:
        loss(images).backward()
    module.zero_grad(set_to_none=True)
    return counter.get_total_flops() / len(images)


def measure(
    shape: dict[str, int], precision: distributed.Precision, device: torch.device, *, compiled: str | None, batch: int,
    rounds: int, steps: int,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Return for each row: images per second, ratio to transformers, share of the ceiling, peak memory in GB (CUDA)."""
    images = torch.randn(batch, 3, IMAGE, IMAGE, device=device)
    modules = rows(shape, device, compiled=None)
    cost = {name: flops(*row, images[:2]) for name, row in modules.items()}
    modules = rows(shape, device, compiled=compiled) if compiled else modules
    step_functions = {name: make_step(module, loss, images, precision) for name, (module, loss) in modules.items()}
    memory, rate = dict.fromkeys(step_functions, 0.0), {name: [] for name in step_functions}
    for number in range(rounds + 1):  # the first round is a warm-up
        for name, step in random.Random(number).sample(list(step_functions.items()), len(step_functions)):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            elapsed = seconds(step, device, steps)
            if device.type == "cuda":
                memory[name] = torch.cuda.max_memory_allocated(device) / 1e9
            if number:
                rate[name].append(batch / elapsed)
    ceiling_flops = ceiling(device, precision)
    return {
        name: {
            "images_per_second": median(rates),
            "ratio": median(a / b for a, b in zip(rates, rate[REFERENCE], strict=True)),
            "ceiling": median(rates) * cost[name] / ceiling_flops,
            "peak_gb": memory[name],
        }
        for name, rates in rate.items()
    }


def device_name(device: torch.device) -> str:
    """Return the name of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = re.findall(r"model name\s*: (.*)", cpu_info) or [platform.processor() or platform.machine()]
    return f"{models[0]}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--compile", nargs="?", const="default", choices=["default", "reduce-overhead"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps per time measurement")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    process.keep_freed_memory()  # as in every stage; all rows are faster with it
    device, table = distributed.choose_device(args.device), {}
    mode = f"compiled ({args.compile})" if args.compile else "eager"
    for name in args.models:
        for precision in args.precision:
            results = measure(
                SHAPES[name], precision, device, compiled=args.compile, batch=args.batch, rounds=args.rounds,
                steps=args.steps,
            )  # fmt: skip
            table[f"{name} {precision}"] = results
            print(f"ViT-{name} {precision} {mode} {device} batch {args.batch}: images/s, ratio, of the ceiling, GB")
            for row, values in results.items():
                print(f"  {row:20s} {values['images_per_second']:9.2f} {values['ratio']:6.2f} {values['ceiling']:6.1%}"
                      f" {values['peak_gb']:6.1f}", flush=True)  # fmt: skip
    if args.json:
        result = {"device": device_name(device), "mode": mode, "steps": table}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
