"""Measure part learning on a ladder of teachers, from taught ones to published ones: one CSV file per rung.

    python -m benchmarks.part_learning taught --dataset data/shards/main --out data/taught --seeds 0 1 2 [--epochs 25]
    python -m benchmarks.part_learning score --teachers data/taught/taught_0 ... --dataset data/shards/main
        [--noise 0 0.5 1 1.5 2] [--parts 10] [--seeds 0 1 2 3 4] [--images 800] [--methods learned ...]
        --csv docs/runs/part_learning_creatures.csv
    python -m benchmarks.part_learning score --timm vit_small_patch8_224.dino [--checkpoint FILE] [--img-size 224] ...
    python -m benchmarks.part_learning table docs/runs/part_learning_creatures.csv [--teachers taught_0 ...]

1. `taught` teaches ViTs the true label of every patch (`taught.py`). They are an instrument for measuring part
   learning, never part of a result.
2. `score` labels the patches of each teacher by each method (`methods.py`), with and without noise on the tokens, and
   adds the scores to a CSV file. The part learner is that of the section parts of params.yaml.
3. `table` prints the tables of docs/results/part_learning.md: mean and standard error over teachers and seeds.
"""

import argparse
from pathlib import Path

from benchmarks.part_learning import scoring, tables, taught
from benchmarks.part_learning.methods import METHODS
from semmae.core import process, stage
from semmae.models.teacher import Teacher, from_timm, load_teacher


def main() -> None:
    """Run the command on the command line."""
    args = parse_arguments()
    process.keep_freed_memory()
    if args.command == "taught":
        taught.teach_all(args.dataset, args.out, seeds=args.seeds, epochs=args.epochs)
    elif args.command == "score":
        options = scoring.ScoreOptions(args.noise, args.parts, args.seeds, args.methods, args.images)
        scoring.score_teachers(load_teachers(args), args.dataset, options, args.csv)
    else:
        for table in tables.format_tables(args.csv, args.teachers):
            print(table)


def load_teachers(args: argparse.Namespace) -> dict[str, Teacher]:
    """Load the teachers in the folders of `--teachers`, or the published one of `--timm`, by name."""
    if args.timm is None:
        return {folder.name: load_teacher(folder) for folder in args.teachers}
    network, config = from_timm(args.timm, img_size=args.img_size, checkpoint=args.checkpoint)
    return {args.timm: Teacher(network, config, digest=args.timm)}


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.part_learning", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    teach = commands.add_parser("taught", help="teach ViTs the true label of every patch")
    teach.add_argument("--dataset", type=Path, required=True, help="shards with masks of parts")
    teach.add_argument("--out", type=Path, required=True, help="folder of the teachers")
    teach.add_argument("--seeds", type=int, nargs="+", default=[0])
    teach.add_argument("--epochs", type=int, default=25)
    score = commands.add_parser("score", help="score methods on teachers")
    source = score.add_mutually_exclusive_group(required=True)
    source.add_argument("--teachers", type=Path, nargs="+", help="folders of teachers")
    source.add_argument("--timm", help="name of a timm model, a published teacher")
    score.add_argument("--checkpoint", type=Path, help="weights of the timm model; timm downloads them otherwise")
    score.add_argument("--img-size", type=int, default=224, help="side of the images of the timm model")
    score.add_argument("--dataset", type=Path, required=True, help="shards with masks of parts")
    score.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.5, 1.0, 1.5, 2.0])
    score.add_argument("--parts", type=int, nargs="+", default=[10])
    score.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    score.add_argument("--images", type=int, default=800, help="images of train that each seed draws")
    score.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    score.add_argument("--csv", type=Path, required=True)
    table = commands.add_parser("table", help="print the scores as Markdown tables")
    table.add_argument("csv", type=Path, nargs="+")
    table.add_argument("--teachers", nargs="+", help="names of the teachers to include; all by default")
    return parser.parse_args()


if __name__ == "__main__":
    stage.main(main)
