"""Measure the gain by more processes: pretraining steps with 1, 2, ... processes that average their gradients.

    python -m benchmarks.ddp [--processes 1 2] [--batch 16] [options of benchmarks.end_to_end] [--json out.json]

For each count, torchrun starts `benchmarks.end_to_end` (NCCL between GPUs, gloo between CPUs) with a batch of `--batch`
for each process. The table gives images per second of all processes, from shards and from ready batches. The efficiency
is the rate of ready batches per process, over the rate of one process. On a CPU use one thread per process
(OMP_NUM_THREADS=1), and no more processes than cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def measure(processes: int, batch: int, rest: list[str]) -> dict[str, float]:
    """Run end_to_end with a number of processes and return its results."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, *TORCHRUN, str(processes), "-m", "benchmarks.end_to_end", "--json", out.name]
        subprocess.run([*command, "--batch", str(batch * processes), *rest], check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(out.name).read_text())


def main() -> None:
    """Measure every count, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=16, help="of each process")
    parser.add_argument("--json", type=Path)
    args, rest = parser.parse_known_args()
    found = {count: measure(count, args.batch, rest) for count in args.processes}
    alone = found[min(found)]["ready"] / min(found)
    print("processes  from shards  ready batches  efficiency")
    for count, rates in found.items():
        rates["efficiency"] = rates["ready"] / count / alone
        print(f"{count:9d} {rates['shards']:12.1f} {rates['ready']:14.1f} {rates['efficiency']:11.1%}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
