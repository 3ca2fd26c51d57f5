"""Run all speed benchmarks on a GPU within a time limit, or a small version of them on a CPU.

    python -m benchmarks.machine --out speeds [--minutes 10] [--device auto]

Each benchmark runs in its own process, the most important ones first. With several GPUs, `ddp` runs last. The output is
printed and written to `<out>/<name>.txt`, and the numbers are written to `<out>/<name>.json`. If a benchmark fails or
exceeds the limit, this program reports it and runs the others. `benchmarks.recipe_hours` computes from the results how
long the recipes take.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch

from semmae.core import distributed

GPU = {
    "step_compiled": "step --models S/16 B/16 L/16 --precision bf16 --batch 256 --steps 10 --rounds 3 --compile",
    "step": "step --models B/16 --precision bf16 --batch 256 --steps 10 --rounds 3",
    "end_to_end": "end_to_end --model B/16 --batch 256 --images 8192 --workers 14 --compile --rounds 2",
    "step_b8": "step --models B/8 --precision bf16 --batch 64 --steps 5 --rounds 3 --compile",
    "step_graphs": "step --models S/16 B/16 --precision bf16 --batch 256 --steps 10 --compile reduce-overhead",
    "part_maps": "part_maps --images 4096 --workers 8 --rounds 3",
    "masking": "masking --models B/16 B/8 --batch 256",
    "loader": "loader --sizes 256 --workers 14 --images 2048 --rounds 3",
    "step_fp32": "step --models B/16 --precision fp32 --batch 128 --steps 5 --rounds 2",
}
CPU = {
    "step": "step --models S/16 --precision bf16 --batch 4 --rounds 2",
    "step_graphs": "step --models S/16 --precision bf16 --batch 4 --rounds 1 --compile reduce-overhead",
    "end_to_end": "end_to_end --model S/16 --batch 4 --images 24 --rounds 1",
    "part_maps": "part_maps --images 32 --rounds 2",
    "masking": "masking --models S/16 --batch 4 --rounds 2",
    "loader": "loader --sizes 256 --images 32 --rounds 2",
}
DDP = "ddp --processes 1 {} --model B/16 --batch 256 --images 8192 --workers 8 --compile --rounds 1"


def main() -> None:
    """Run the benchmarks until the time limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    args = parser.parse_args()
    device, end = distributed.choose_device(args.device), time.monotonic() + 60 * args.minutes
    commands = dict(GPU if device.type == "cuda" else CPU)
    if device.type == "cuda" and (count := torch.cuda.device_count()) > 1:
        commands["ddp"] = DDP.format(count)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, command in commands.items():
        if (left := end - time.monotonic()) <= 0:
            print(f"{name}: skipped, no time left")
            continue
        module, *options = command.split()
        out = args.out / name
        process = [sys.executable, "-m", f"benchmarks.{module}", *options, "--json", f"{out}.json"]
        print(f"== python -m benchmarks.{command}", flush=True)
        try:
            completed = subprocess.run(process, stdout=subprocess.PIPE, text=True, timeout=left)
        except subprocess.TimeoutExpired:
            print(f"{name}: stopped at the time limit")
            continue
        Path(f"{out}.txt").write_text(completed.stdout)
        print(
            completed.stdout
            if completed.returncode == 0
            else f"{name}: failed with exit status {completed.returncode}",
            flush=True,
        )


if __name__ == "__main__":
    main()
