"""What a second process gives: pretraining steps with 1, 2, ... processes that average their gradients.

    python -m benchmarks.ddp [--processes 1 2] [--batch 16] [anything of benchmarks.end_to_end] [--json out.json]

Every count starts `benchmarks.end_to_end` under torchrun (NCCL between GPUs, gloo between CPUs), a batch of `--batch`
for each process. The table gives images per second of all processes together, from shards and from ready batches, and
the efficiency: the rate of ready batches over the count times that of one process. On a CPU give every process one
thread (OMP_NUM_THREADS=1), and no more processes than cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def measure(processes: int, batch: int, rest: list[str]) -> dict[str, float]:
    """What end_to_end finds with so many processes."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [sys.executable, *TORCHRUN, str(processes), "-m", "benchmarks.end_to_end", "--json", out.name]
        subprocess.run([*command, "--batch", str(batch * processes), *rest], check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(out.name).read_text())


def main() -> None:
    """Measure every count, then tell."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=16, help="of each process")
    parser.add_argument("--json", type=Path)
    args, rest = parser.parse_known_args()
    found = {count: measure(count, args.batch, rest) for count in args.processes}
    alone = found[min(found)]["ready"] / min(found)
    print("processes  from shards  ready batches  efficiency")
    for count, said in found.items():
        said["efficiency"] = said["ready"] / count / alone
        print(f"{count:9d} {said['shards']:12.1f} {said['ready']:14.1f} {said['efficiency']:11.1%}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
