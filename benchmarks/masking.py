"""Measure the cost of every mask strategy, as a share of the pretraining step.

    python -m benchmarks.masking [--models B/16 B/8] [--precision bf16] [--batch 8] [--rounds 5] [--json out.json]

The step is the one of `benchmarks/step.py`, with random masks. Each round times every strategy and one step; the share
is the median of the ratios within a round. A strategy draws noise on the CPU and sorts it on the device, with
part maps of seven parts and a curriculum that changes. The last column is the number of graphs that
`torch.compile` makes of a strategy while the curriculum changes. It must be 1: more are graph breaks or recompilations.
"""

import argparse
import json
from pathlib import Path
from statistics import median

import torch
from torch._dynamo.testing import CompileCounter

from benchmarks.step import DECODER, IMAGE, RATIO, SHAPES, choosing, evidence, ours, seconds, stepping
from semmae.core import distributed
from semmae.models import mae, masking, vit


def graphs(name: str, grid: tuple[int, int], device: torch.device) -> int:
    """Count the graphs that the strategy's core is compiled to, over five steps of the curriculum."""
    torch.compiler.reset()
    counter, strategy, seen = CompileCounter(), masking.STRATEGIES[name], evidence(2, grid, device)
    compiled = strategy._replace(core=torch.compile(strategy.core, backend=counter, dynamic=False))
    for number in range(5):
        noise = strategy.draw(2, grid, generator=torch.Generator().manual_seed(number)).to(device)
        compiled(noise, RATIO, curriculum_weight=torch.tensor(number / 5), **seen)
    return counter.frame_count


def measure(
    shape: dict[str, int], precision: distributed.Precision, device: torch.device, batch: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Return for each strategy: milliseconds for a batch, its share of the step, graphs."""
    torch.manual_seed(0)
    model = mae.MAE(vit.build({"img_size": IMAGE, **shape}), **DECODER).to(device).train()
    vit.use_fastest_attention(model, device)
    grid = model.encoder.patch_embed.grid_size
    images = torch.randn(batch, 3, IMAGE, IMAGE, device=device)
    step = stepping(model, ours(model, "random", device), images, precision)
    work = {name: choosing(name, grid, device) for name in masking.STRATEGIES}
    taken: dict[str, list[float]] = {name: [] for name in work}
    shares: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):  # the first round is a warm-up
        whole = seconds(step, device, 1)
        for name, choose in work.items():
            part = seconds(lambda choose=choose: choose(batch), device, 10)
            if number:
                taken[name].append(part * 1000)
                shares[name].append(part / whole)
    return {
        name: {"ms": median(taken[name]), "share": median(shares[name]), "graphs": graphs(name, grid, device)}
        for name in work
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
