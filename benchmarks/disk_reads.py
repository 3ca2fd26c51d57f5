"""Measure how fast samples are read from disk, in a permutation of all shards or of a few shards at a time.

    python -m benchmarks.disk_reads [--shards 48] [--windows 8 2] [--memory 12000] [--rounds 3] [--folder DIR]
        [--json out.json]

The shards are synthetic, with a thousand samples of 20,000 bytes each. In each round, one process reads all samples
once in each order. The system drops the files from memory before each order and after every `--memory` samples. It does
the same if a dataset is larger than the memory. `--folder` is the folder of the shards, on the disk to measure. The
table gives medians over rounds: samples per second, their ratio to the permutation of all shards, and the bytes read
from disk per requested byte. The ratios are within a round. The bytes from disk include read-ahead. Linux only.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.growth import PER_SHARD, SHARDS, prepare
from semmae.data.dataset import Reader

SAMPLE_SIZE, ALL_SHARDS = 20_000, "all shards"


def write_shards(root: Path, shards: int) -> Reader:
    """Write the dataset of benchmarks/growth.py, with noise as the content of its shards."""
    prepare(root, shards * PER_SHARD)
    content = np.random.default_rng(0).bytes(SAMPLE_SIZE * PER_SHARD)
    for path in (root / SHARDS).glob("*.tar"):
        with open(path, "wb") as file:
            file.write(content)
            os.fsync(file.fileno())
    return Reader(root / SHARDS)


def drop_from_memory(folder: Path) -> None:
    """Ask the system to drop the files from memory."""
    for path in folder.glob("*.tar"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def bytes_read() -> int:
    """Return the number of bytes that this process has caused to be read from disk."""
    counters = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in counters if line.startswith("read_bytes"))


def read_epoch(reader: Reader, number: int, *, memory: int) -> dict[str, float]:
    """Read every sample once; return samples per second, and bytes read from disk per requested byte."""
    order, read_before, requested, seconds = reader.epoch_order(seed=0, epoch=number), bytes_read(), 0, 0.0
    for first in range(0, len(order), memory):
        drop_from_memory(reader.dataset)
        start = time.perf_counter()
        requested += sum(len(reader.encoded(index)) for index in order[first : first + memory])
        seconds += time.perf_counter() - start
    return {"rate": len(order) / seconds, "read": (bytes_read() - read_before) / requested}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shards", type=int, default=48)
    parser.add_argument("--windows", type=int, nargs="+", default=[8, 2])
    parser.add_argument("--memory", type=int, default=12_000, help="samples between two drops of the files from memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="semmae-disk-reads-", dir=args.folder))
    try:
        reader = write_shards(root, args.shards)
        orders = {ALL_SHARDS: None} | {f"windows of {window} shards": window for window in args.windows}
        rounds = [
            {
                name: read_epoch(reader.with_shuffle_shards(window), number, memory=args.memory)
                for name, window in orders.items()
            }
            for number in range(args.rounds)
        ]
    finally:
        shutil.rmtree(root)
    table = {
        name: {
            "rate": median(row[name]["rate"] for row in rounds),
            "ratio": median(row[name]["rate"] / row[ALL_SHARDS]["rate"] for row in rounds),
            "read": median(row[name]["read"] for row in rounds),
        }
        for name in orders
    }
    print(f"{args.shards} shards of {PER_SHARD} samples {'samples/s':>12s} {'ratio':>7s} {'bytes read per byte':>20s}")
    for name, row in table.items():
        print(f"  {name:30s} {row['rate']:12.0f} {row['ratio']:7.2f} {row['read']:20.2f}")
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
