"""Measure how pretraining scales with the number of processes, which average their gradients.

    python -m benchmarks.ddp [--processes 1 2] [--batch 16] [options of benchmarks.end_to_end] [--json out.json]

For each number of processes, torchrun starts `benchmarks.end_to_end` (NCCL between GPUs, gloo between CPUs). Each
process has a batch of `--batch` images. The table gives images per second of all processes, from shards and from a
ready batch. The efficiency is the rate per process with a ready batch, divided by the rate of a single process. On a
CPU, use one thread per process (OMP_NUM_THREADS=1), and no more processes than cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def measure(processes: int, batch: int, options: list[str]) -> dict[str, float]:
    """Run end_to_end with a number of processes and return its results."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, *TORCHRUN, str(processes), "-m", "benchmarks.end_to_end", "--json", out.name]
        subprocess.run([*command, "--batch", str(batch * processes), *options], check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(out.name).read_text())


def main() -> None:
    """Measure every number of processes, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=16, help="images per process and step")
    parser.add_argument("--json", type=Path)
    args, options = parser.parse_known_args()
    results = {count: measure(count, args.batch, options) for count in args.processes}
    single_rate = results[min(results)]["ready"] / min(results)
    print("processes  from shards  ready batches  efficiency")
    for count, rates in results.items():
        rates["efficiency"] = rates["ready"] / count / single_rate
        print(f"{count:9d} {rates['shards']:12.1f} {rates['ready']:14.1f} {rates['efficiency']:11.1%}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
