"""Compare the memory of each evaluation with 1,000 and with 10,000 images.

    python -m benchmarks.memory [--images 1000 10000] [--only knn linear] [--json out.json]

Every evaluation, and `semmae encode`, runs in its own process, on tiny creatures and untrained networks. The table
gives the peak of anonymous memory, including worker processes: RssAnon in /proc/<pid>/status, read every few
milliseconds. Features are in memory-mapped files, which do not count, because the system can drop their pages. Linux
only.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ruamel.yaml import YAML

from semmae.core.config import read_yaml
from semmae.models import teacher, vit
from semmae.parts import kmeans_parts, part_methods
from semmae.sharding import shard_writer
from semmae.sharding.sources.sources import Creatures

DATASET = "creatures"
SIZE = 32  # pixels
TRAIN_SHARE = 0.8
CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2}
INTERVAL = 0.005  # seconds between two readings of a process
ROOT = Path(__file__).resolve().parents[1]
EVALUATIONS = ("part_scores", "knn", "linear", "attentive", "finetune", "segment")
CHANGES: dict[str, dict[str, Any]] = {  # to the protocols in params.yaml: fewer epochs, smaller images, all heads
    "linear": {"epochs": 4, "warmup_epochs": 1},
    "attentive": {"epochs": 2, "baselines": True},
    "finetune": {"recipe": {"epochs": 1, "warmup_epochs": 0}, "low_shot": [{"share": 0.1}]},
    "segment": {
        "heads": ["linear", "knn", "upernet"], "short_side": SIZE, "stride": SIZE, "num_images": None,
        "upernet": {"epochs": 1, "warmup_epochs": 0.0, "width": 16, "auxiliary_width": 16},
    },
}  # fmt: skip
COMMANDS = {name: ("-m", f"stages.{name}", DATASET) for name in EVALUATIONS} | {
    "encode": ("-m", "semmae", "encode", DATASET, "--out", "features.parquet", "--device", "cpu")
}


def prepare(root: Path, images: int) -> None:
    """Write a project with a dataset, an untrained encoder, an untrained teacher and parts from random tokens."""
    train = round(TRAIN_SHARE * images)
    source = Creatures(kind="creatures", train=train, val=images - train, size=SIZE, seed=0)
    shard_writer.write(
        root / "data/shards" / DATASET, {DATASET: source}, seed=0, short_side=None, samples_per_shard=1000,
        max_rejects=0.0, workers=0,
    )  # fmt: skip
    encoder_config = CONFIG | {"mean": vit.MEAN, "std": vit.STD}
    vit.save(root / "data/pretrain", vit.build(CONFIG), encoder_config)
    teacher.save_teacher(root / "data/teacher", vit.build(CONFIG), encoder_config | {"class_token": False})
    frozen_teacher = teacher.load_teacher(root / "data/teacher")
    shape = {
        "grid": frozen_teacher.grid(SIZE), "embed_dim": frozen_teacher.embed_dim, "img_size": SIZE,
        "teacher": frozen_teacher.digest,
    }  # fmt: skip
    clusters = kmeans_parts.KMeansParts(
        {"method": "kmeans", "num_parts": 4, "background": False, "temperature": 0.1, **shape}
    )
    clusters.fit(torch.randn(8, 16, frozen_teacher.embed_dim), seed=0)
    part_methods.save_parts(root / "data/parts", clusters)
    YAML().dump(
        {"evaluations": {name: {DATASET: {}} for name in EVALUATIONS}}
        | {name: {"protocol": protocol(name)} for name in EVALUATIONS},
        root / "params.yaml",
    )


def protocol(name: str) -> dict[str, Any]:
    """Return the protocol of an evaluation in params.yaml with the values of CHANGES, on the CPU."""
    values = read_yaml(ROOT / "params.yaml")[name]["protocol"]
    for key, value in CHANGES.get(name, {}).items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    values["compute"].update(device="cpu", precision="fp32")
    return values


def peak(root: Path, command: tuple[str, ...]) -> float:
    """Return the peak of anonymous memory, in MB, of a command and its child processes."""
    environment = os.environ | {"SEMMAE_STATE": str(root / "state"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    output = root / "output"
    with open(output, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=root, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        highest = 0
        while process.poll() is None:
            highest = max(highest, sum(anonymous_kb(pid) for pid in process_ids(process.pid)))
            time.sleep(INTERVAL)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}:\n{output.read_text()}")
    return highest / 1e3


def anonymous_kb(pid: int) -> int:
    """Return RssAnon of a process in kB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def process_ids(pid: int) -> list[int]:
    """Return the ids of a process and its children."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *map(int, children)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs=2, default=[1000, 10_000])
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    peaks: dict[str, dict[str, float]] = {name: {} for name in args.only}
    root = Path(tempfile.mkdtemp(prefix="semmae-memory-"))
    try:
        for images in args.images:
            prepare(root / str(images), images)
            for name in args.only:
                peaks[name][str(images)] = peak(root / str(images), COMMANDS[name])
    finally:
        shutil.rmtree(root)
    few, many = map(str, args.images)
    print(f"{'peak of anonymous memory, MB':30s} {few:>10s} {many:>10s} {'ratio':>7s}")
    for name, row in peaks.items():
        row["ratio"] = row[many] / row[few]
        print(f"{name:30s} {row[few]:10.1f} {row[many]:10.1f} {row['ratio']:7.3f}")
    if args.json:
        args.json.write_text(json.dumps(peaks, indent=2) + "\n")


if __name__ == "__main__":
    main()
