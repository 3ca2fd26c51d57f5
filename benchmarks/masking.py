"""Measure the time of every mask strategy, as a share of the pretraining step.

    python -m benchmarks.masking [--models B/16 B/8] [--precision bf16] [--batch 8] [--rounds 5] [--json out.json]

The step is the one of `benchmarks/step.py`, with random masks. Each round times every strategy and one step. The share
is the median of the ratios within a round. A strategy draws noise on the CPU and sorts it on the device. It gets part
maps of seven parts, and its curriculum weight changes in each step. The last column is the number of graphs that
`torch.compile` makes of a strategy while this weight changes. It must be 1: more graphs are graph breaks or
recompilations.
"""

import argparse
import json
from pathlib import Path
from statistics import median

import torch
from torch._dynamo.testing import CompileCounter

from benchmarks.step import DECODER, IMAGE, RATIO, SHAPES, mae_loss, make_step, mask_drawer, seconds, strategy_inputs
from semmae.core import distributed
from semmae.models import mae, masking, vit


def count_graphs(name: str, grid: tuple[int, int], device: torch.device) -> int:
    """Count the graphs that torch compiles from the core of a strategy, over five weights of the curriculum."""
    torch.compiler.reset()
    counter, strategy, inputs = CompileCounter(), masking.STRATEGIES[name], strategy_inputs(2, grid, device)
    compiled = strategy._replace(core=torch.compile(strategy.core, backend=counter, dynamic=False))
    for number in range(5):
        noise = strategy.draw(2, grid, generator=torch.Generator().manual_seed(number)).to(device)
        compiled(noise, RATIO, curriculum_weight=torch.tensor(number / 5), **inputs)
    return counter.frame_count


def measure(
    shape: dict[str, int], precision: distributed.Precision, device: torch.device, batch: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Return for each strategy the milliseconds per batch, the share of the step and the number of graphs."""
    torch.manual_seed(0)
    model = mae.MAE(vit.build({"img_size": IMAGE, **shape}), **DECODER).to(device).train()
    vit.use_fastest_attention(model, device)
    grid = model.encoder.patch_embed.grid_size
    images = torch.randn(batch, 3, IMAGE, IMAGE, device=device)
    step = make_step(model, mae_loss(model, "random", device), images, precision)
    drawers = {name: mask_drawer(name, grid, device) for name in masking.STRATEGIES}
    milliseconds: dict[str, list[float]] = {name: [] for name in drawers}
    shares: dict[str, list[float]] = {name: [] for name in drawers}
    for number in range(rounds + 1):  # the first round is a warm-up
        step_seconds = seconds(step, device, 1)
        for name, draw_masks in drawers.items():
            mask_seconds = seconds(lambda draw_masks=draw_masks: draw_masks(batch), device, 10)
            if number:
                milliseconds[name].append(mask_seconds * 1000)
                shares[name].append(mask_seconds / step_seconds)
    return {
        name: {
            "ms": median(milliseconds[name]),
            "share": median(shares[name]),
            "graphs": count_graphs(name, grid, device),
        }
        for name in drawers
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["B/16", "B/8"], choices=SHAPES)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16"])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device, table = distributed.choose_device(args.device), {}
    for name in args.models:
        table[name] = measure(SHAPES[name], args.precision, device, args.batch, args.rounds)
        print(f"ViT-{name} {args.precision} {device} batch {args.batch}: ms, share of the step, graphs")
        for row, values in table[name].items():
            print(f"  {row:14s} {values['ms']:9.2f} {values['share']:8.2%} {values['graphs']:4.0f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
