"""`semmae index`: print the contents of a dataset, and check whether its sources have changed."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semmae.cli.output import console, new_table

if TYPE_CHECKING:
    import pandas as pd

SHARDS = Path("data/shards")


def index(
    dataset: Annotated[str, typer.Argument(help="A dataset under data/shards.")],
    check: Annotated[bool, typer.Option("--check", help="Exit with status 1 if the sources have changed.")] = False,
) -> None:
    """Print the shards, splits, labels and rejected inputs of a dataset."""
    import pyarrow.parquet as pq

    from semmae.core.atomic_files import read_json
    from semmae.data.dataset import require_dataset

    folder = SHARDS / dataset
    require_dataset(folder)
    meta = read_json(folder / "shards.json")
    columns = ["split", "shard", "class_name", "mask_offset"]
    samples = pq.read_table(folder / "index.parquet", columns=columns).to_pandas()
    _print_splits(folder, meta, samples)
    if meta["class_names"]:
        _print_labels(meta["class_names"], samples)
    _print_rejected(pq.read_table(folder / "rejected.parquet").to_pylist(), len(samples))
    if check:
        _check_sources(dataset)


def _print_splits(folder: Path, meta: dict[str, Any], samples: "pd.DataFrame") -> None:
    """Print a row per split: its shards, samples, labels, masks and size."""
    columns = ("split", "shards", "samples", "labeled", "with mask", "MB")
    table = new_table(f"{folder}  masks: {meta['mask_kind'] or 'none'}", *columns)
    for split, rows in samples.groupby("split", sort=False):
        names = set(rows["shard"])
        shards = [shard for shard in meta["shards"] if shard["file"] in names]
        size = sum(shard["bytes"] for shard in shards)
        counts = (len(shards), len(rows), rows["class_name"].notna().sum(), rows["mask_offset"].notna().sum())
        table.add_row(str(split), *map(str, counts), f"{size / 1e6:.1f}")
    console.print(table)


def _print_labels(class_names: list[str], samples: "pd.DataFrame") -> None:
    """Print a row per class: the number of its samples in each split."""
    splits = samples["split"].unique()
    table = new_table("labels", "class", *splits)
    for name in class_names:
        members = samples[samples["class_name"] == name]
        table.add_row(name, *(str((members["split"] == split).sum()) for split in splits))
    console.print(table)


def _print_rejected(rejected: list[dict[str, str]], num_samples: int) -> None:
    """Print why inputs were rejected, the most frequent reason first, each with an example."""
    typer.echo(f"{len(rejected)} of {len(rejected) + num_samples} inputs were rejected")
    if not rejected:
        return
    reasons = {row["source"]: row["reason"].partition(": ")[0] for row in rejected}
    examples = {reasons[row["source"]]: row["source"] for row in reversed(rejected)}
    table = new_table("rejected", "inputs", "reason", "example")
    for reason, count in Counter(reasons.values()).most_common():
        table.add_row(str(count), reason, examples[reason])
    console.print(table)


def _check_sources(dataset: str) -> None:
    """Compare the sources with their digests in the dataset; exit with status 1 if they differ."""
    from semmae.core.config import load_config
    from semmae.sharding import shard_writer
    from stages.shards import ShardsConfig, resolve_paths

    section = load_config(ShardsConfig, "shards")
    if dataset not in section.datasets:
        known = ", ".join(section.datasets) or "none"
        raise ValueError(f"unknown dataset: {dataset!r}; expected one of shards.datasets in params.yaml: {known}")
    changed = shard_writer.changed_sources(SHARDS / dataset, resolve_paths(section.datasets[dataset].sources))
    if changed:
        typer.echo(f"sources changed: {', '.join(changed)}; run: dvc repro -f shards@{dataset}")
        raise typer.Exit(1)
    typer.echo("no source has changed")
