"""Does an evaluation need more memory for more images? The peak of its anonymous memory at 1,000 and at 10,000.

    python -m benchmarks.memory [--images 1000 10000] [--only knn linear] [--json out.json]

Every command of COMMANDS runs in a process of its own, on tiny creatures and untrained networks. Anonymous memory is
what the system cannot drop (RssAnon in /proc/<pid>/status, read every few milliseconds, workers included); pages of
files, where features lie, it can. Linux only.
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

from ruamel.yaml import YAML

from semmae import shards, teacher, vit
from semmae.sources import Creatures

DATASET, SIZE, SHARE = "creatures", 32, 0.8  # pixels; of train
CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2}
SECONDS = 0.005  # between two looks at a process
COMPUTE = {"device": "cpu", "precision": "fp32"}
PROTOCOLS = {  # of the evaluations; each is `python -m stages.<name> creatures`
    "knn": {
        "k": 20, "temperature": 0.07, "pool": "patch_mean", "baselines": True, "seed": 0, "batch_size": 128,
        "workers": 0, **COMPUTE,
    },
    "linear": {
        "base_lrs": [0.1, 1.0], "holdout": 0.2, "epochs": 4, "warmup_epochs": 1, "views": 2, "batch_size": 256,
        "low_shot": [{"per_class": 5}, {"share": 0.5}], "pool": "patch_mean", "baselines": True, "seed": 0,
        "encode_batch_size": 128, "workers": 0, **COMPUTE,
    },
    "attentive": {
        "queries": 4, "base_lrs": [0.01, 0.1], "weight_decays": [0.0, 0.05], "holdout": 0.1, "epochs": 2,
        "warmup_epochs": 1, "batch_size": 128, "betas": [0.9, 0.95], "baselines": True, "seed": 0,
        "compute": {**COMPUTE, "compile": False, "workers": 0, "checkpoint_minutes": 5},
    },
}  # fmt: skip
COMMANDS = {name: ("-m", f"stages.{name}", DATASET) for name in PROTOCOLS}


def prepare(root: Path, images: int) -> None:
    """A project with a dataset of so many images, an untrained encoder and an untrained teacher."""
    train = round(SHARE * images)
    source = Creatures(kind="creatures", train=train, val=images - train, size=SIZE, seed=0)
    shards.write(
        root / "data/shards" / DATASET, {DATASET: source}, seed=0, short_side=None, samples_per_shard=1000,
        max_rejects=0.0, workers=0,
    )  # fmt: skip
    vit.save(root / "data/pretrain", vit.build(CONFIG), CONFIG)
    described = CONFIG | {"class_token": False, "mean": vit.MEAN, "std": vit.STD}
    teacher.save(root / "data/teacher", vit.build(CONFIG), described)
    sections = {name: {"protocol": protocol, "datasets": {DATASET: {}}} for name, protocol in PROTOCOLS.items()}
    YAML().dump(sections, root / "params.yaml")


def peak(root: Path, command: tuple[str, ...]) -> float:
    """The most anonymous memory, in MB, that a command and the processes it starts hold at a time."""
    code = Path(__file__).resolve().parents[1]
    environment = os.environ | {"SEMMAE_STATE": str(root / "state"), "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    said = root / "said"
    with open(said, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=root, env=environment, stdout=file, stderr=subprocess.STDOUT
        )
        most = 0
        while process.poll() is None:
            most = max(most, sum(anonymous(pid) for pid in family(process.pid)))
            time.sleep(SECONDS)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said.read_text()}")
    return most / 1e3


def anonymous(pid: int) -> int:
    """RssAnon of a process in kB, 0 once it has gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)


def family(pid: int) -> list[int]:
    """A process and its children."""
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
    found: dict[str, dict[str, float]] = {name: {} for name in args.only}
    root = Path(tempfile.mkdtemp(prefix="semmae-memory-"))
    try:
        for images in args.images:
            prepare(root / str(images), images)
            for name in args.only:
                found[name][str(images)] = peak(root / str(images), COMMANDS[name])
    finally:
        shutil.rmtree(root)
    few, many = map(str, args.images)
    print(f"{'peak of anonymous memory, MB':30s} {few:>10s} {many:>10s} {'ratio':>7s}")
    for name, row in found.items():
        row["ratio"] = row[many] / row[few]
        print(f"{name:30s} {row[few]:10.1f} {row[many]:10.1f} {row['ratio']:7.3f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
