"""Measure time and memory for growing datasets: index, order of an epoch, join of part maps, `dvc status`.

    python -m benchmarks.growth [--samples 10000 100000 1000000] [--only index order join status] [--json out.json]

The dataset is synthetic. It has an index, shards of a thousand samples, and part maps of 14 x 14 labels. The tar files
have no content, because no step reads an image. Each step runs in its own process, after all imports:

- `index`: `Reader(dataset)`. `order`: the permutation of one epoch. `join`: the part maps in the order of the reader.
- `status`: `dvc status` of a stage that depends on the dataset's folder, after a commit.

Memory is the growth of the process since the start of the step (VmRSS at its end; `peak` is the maximum). Linux only.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from semmae.core.atomic_files import write_json
from semmae.core.digests import json_digest
from semmae.data.dataset import Reader
from semmae.data.epoch_order import epoch_order
from semmae.parts import part_maps
from semmae.sharding import shard_index

PER_SHARD, GRID, STEPS = 1000, (14, 14), ("index", "order", "join", "status")
SHARDS, MAPS = Path("data/shards/grown"), Path("data/part_maps/grown")
PIPELINE = "stages: {read: {cmd: 'true', deps: [data/shards/grown]}}\n"


def prepare(root: Path, samples: int) -> None:
    """Write a dataset of `samples` samples: an index, shards without content, and part maps."""
    names = [f"train-{number:06d}.tar" for number in range(samples // PER_SHARD)]
    (root / SHARDS).mkdir(parents=True)
    for name in names:
        (root / SHARDS / name).write_text(name)
    keys = [hashlib.sha256(str(number).encode()).hexdigest()[:16] for number in range(samples)]
    row = np.tile(np.arange(PER_SHARD), len(names))
    columns = {field.name: pa.nulls(samples, field.type) for field in shard_index.INDEX} | {
        "key": pa.array(keys), "split": pa.array(["train"] * samples), "shard": pa.array(np.repeat(names, PER_SHARD)),
        "offset": pa.array(row * 20_000), "size": pa.array(np.full(samples, 19_000)),
        "width": pa.array(np.full(samples, 256, np.int32)), "height": pa.array(np.full(samples, 256, np.int32)),
        "sha256": pa.array(keys), "source": pa.array([f"grown/{key}.jpg" for key in keys]),
    }  # fmt: skip
    pq.write_table(pa.table(columns, schema=shard_index.INDEX), root / SHARDS / "index.parquet")
    entries = [
        {"file": name, "split": "train", "count": PER_SHARD, "bytes": len(name), "sha256": json_digest(name)}
        for name in names
    ]
    meta = {"class_names": [], "mask_kind": None, "mask_names": [], "sources": {"grown": {"weight": 1.0}}}
    write_json(root / SHARDS / "shards.json", meta | {"shards": entries, "samples": {"train": samples}})
    labels = np.random.default_rng(0).integers(0, 7, (PER_SHARD, GRID[0] * GRID[1]), dtype=np.uint8)
    metadata = {"grid": list(GRID), "num_parts": 7, "background": None, "teacher": "a", "parts": "b"}
    for number, entry in enumerate(entries):
        part_maps.write(
            root / MAPS / entry["file"].replace(".tar", ".parquet"), channels={"part_map": labels},
            keys=keys[number * PER_SHARD : (number + 1) * PER_SHARD], metadata=metadata | {"shard": entry["sha256"]},
        )  # fmt: skip


def measure_step(name: str) -> dict[str, float]:
    """Return the time in seconds and the memory in MB of one step, in this process and folder."""
    if name == "status":
        command = [sys.executable, "-m", "dvc"]
        for arguments in (["init", "--no-scm", "--quiet"], ["commit", "--force", "--quiet"], ["status"]):
            start = time.perf_counter()
            subprocess.run([*command, *arguments], check=True, stdout=subprocess.DEVNULL)
        return {"seconds": time.perf_counter() - start}
    pq.read_table(
        SHARDS / "index.parquet", columns=["split"]
    )  # the first use of Arrow loads modules, which must not count
    reader = Reader(SHARDS) if name != "index" else None
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = memory_mb("VmRSS"), time.perf_counter()
    output = {
        "index": lambda: Reader(SHARDS),
        "order": lambda: epoch_order(len(reader), seed=0, epoch=0),
        "join": lambda: part_maps.join(MAPS, reader, teacher="a", parts="b"),
    }[name]()  # fmt: skip
    seconds = time.perf_counter() - start
    costs = {"seconds": seconds, "MB": memory_mb("VmRSS") - before, "peak MB": memory_mb("VmHWM") - before}
    del output
    return costs


def memory_mb(field: str) -> float:
    """Return a field of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(measure_step(args.step)))
        return
    results: dict[str, dict[int, dict[str, float]]] = {name: {} for name in args.only}
    root = Path(tempfile.mkdtemp(prefix="semmae-growth-"))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "DVC_NO_ANALYTICS": "1"}
    try:
        for samples in args.samples:
            prepare(root / str(samples), samples)
            (root / str(samples) / "dvc.yaml").write_text(PIPELINE)
            for name in args.only:
                command = [sys.executable, "-m", "benchmarks.growth", "--step", name]
                output = subprocess.check_output(command, cwd=root / str(samples), env=environment, text=True)
                results[name][samples] = json.loads(output.splitlines()[-1])
            shutil.rmtree(root / str(samples))
    finally:
        shutil.rmtree(root)
    for name, row in results.items():
        for samples, measured in row.items():
            measurements = "  ".join(f"{value:9.3f} {unit}" for unit, value in measured.items())
            print(f"{name:8s} {samples:9d} samples  {measurements}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
