"""shards: turn the sources of one dataset into WebDataset tars, an index and a list of rejects.

    python -m stages.shards <dataset>

Reads  the sources in shards.datasets.<dataset>; relative paths are resolved against data/raw
Calls  semmae.sharding.shard_writer.write
Writes data/shards/<dataset>/: <split>-000000.tar, ... (not for sources that are indexed in place), index.parquet,
       rejected.parquet, shards.json
"""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core import stage
from semmae.core.config import STRICT, Below1, load_config
from semmae.core.locks import exclusive_lock
from semmae.sharding import shard_writer
from semmae.sharding.sources.source import Source
from semmae.sharding.sources.sources import AnySource


def _check_name(name: str) -> str:
    if not re.fullmatch("[A-Za-z0-9_-]+", name):
        raise ValueError(f"invalid dataset name: {name!r}; expected letters, digits, - and _ only")
    return name


Name = Annotated[str, AfterValidator(_check_name)]


@dataclass(frozen=True, config=STRICT)
class WritingConfig:
    """Parameters of writing that all datasets share; see `shard_writer.write`."""

    seed: int
    short_side: Annotated[int, Field(ge=16)] | None
    samples_per_shard: PositiveInt
    max_rejects: Below1
    workers: NonNegativeInt


@dataclass(frozen=True, config=STRICT)
class DatasetConfig:
    """The parameters of one dataset, which is the union of its sources."""

    sources: Annotated[dict[str, AnySource], Field(min_length=1)]


@dataclass(frozen=True, config=STRICT)
class ShardsConfig:
    """The section `shards` of params.yaml."""

    writing: WritingConfig
    datasets: dict[Name, DatasetConfig]


def main() -> None:
    """Write the dataset that the command line names."""
    section = load_config(ShardsConfig, "shards")
    name, dataset = stage.dataset_from_command_line(section.datasets, "shards")
    out, writing = Path("data/shards") / name, section.writing
    with exclusive_lock("output", str(out.absolute())):
        meta = shard_writer.write(
            out,
            resolve_paths(dataset.sources),
            seed=writing.seed,
            short_side=writing.short_side,
            samples_per_shard=writing.samples_per_shard,
            max_rejects=writing.max_rejects,
            workers=writing.workers,
        )
    print(summary(out, meta))


def summary(out: Path, meta: dict[str, Any]) -> str:
    """Describe a dataset in one line.

    Args:
        meta: Content of its shards.json.
    """
    samples = meta["samples"]
    inputs = sum(source["inputs"] for source in meta["sources"].values())
    return (
        f"{out}: {', '.join(f'{count} {split}' for split, count in samples.items())} in {len(meta['shards'])} shards, "
        f"{len(meta['class_names'])} classes, masks: {meta['mask_kind'] or 'none'}; "
        f"{inputs - sum(samples.values())} of {inputs} inputs rejected"
    )


def resolve_paths(sources: dict[str, AnySource]) -> dict[str, Source]:
    """Resolve the relative paths of sources against data/raw.

    An experiment of a DVC queue runs in a copy of the repository and uses data/raw of the main repository.
    """
    raw = Path(os.environ.get("DVC_ROOT", "")) / "data/raw"
    return {name: source.resolve_paths(raw) for name, source in sources.items()}


if __name__ == "__main__":
    stage.main(main)
