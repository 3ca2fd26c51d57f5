"""The `semmae` command: look at a pipeline's data, keep house under its state root, run it as a Prefect flow.

    semmae show parts|heat|masks|reconstructions --dataset NAME --out grid.png
    semmae index DATASET [--check]
    semmae export [ENCODER] --to timm|transformers --out DIR
    semmae encode DATASET|FOLDER --out features.parquet
    semmae recipe [NAME]
    semmae compare RUNS.CSV [--by PARAMETER | --lines | --parts DATASET | --ablation DATASET]
    semmae promote [EXPERIMENT] [--teacher]
    semmae import FILE --out data/pretrain
    semmae state ls|adopt|gc
    semmae doctor
    semmae flow

Training and scoring are stages (`dvc repro`); this command only looks. Commands import what they need when they run, so
that `--help` is quick. What a user can mend ends in one sentence on standard error and exit status 1.
"""

import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from semmae.core.process import restrict_permissions

SHARDS, PART_MAPS, PRETRAIN = Path("data/shards"), Path("data/part_maps"), Path("data/pretrain")
TEACHER, PARTS, ENCODERS = Path("data/teacher"), Path("data/parts"), Path("data/encoders")
RECIPES, PARAMS = Path("recipes"), Path("params.yaml")
IMPORTED = {"encoder.json", "encoder.safetensors", "decoder.json", "decoder.safetensors", "history.json"}
NUMBERS = {"shards", "samples", "labeled", "with mask", "MB", "train", "val", "test", "inputs", "step", "seconds"}

app = typer.Typer(
    help="Semantic-guided masked autoencoders: look at part maps, masks and data; run the pipeline.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
state = typer.Typer(help="Unfinished runs and cached part maps under the state root.", no_args_is_help=True)
app.add_typer(state, name="state")
console = Console(markup=False, highlight=False)  # names of files may hold brackets


@app.command()
def show(
    what: Annotated[Literal["parts", "heat", "masks", "reconstructions"], typer.Argument(help="What to draw.")],
    dataset: Annotated[str, typer.Option(help="A dataset under data/shards.")],
    out: Annotated[Path, typer.Option(help="Where to write the picture, e.g. grid.png.")],
    split: Annotated[str, typer.Option(help="The split to take images from.")] = "val",
    count: Annotated[int, typer.Option(min=1, help="Images.")] = 8,
    seed: Annotated[int, typer.Option(help="Which images, and the noise of masks.")] = 0,
    colors: Annotated[str, typer.Option(help="Palette of the parts.")] = "okabe_ito",
) -> None:
    """Draw a grid of images with their parts, the heat map of each part, masks or reconstructions."""
    from semmae.core.atomic_files import read_json
    from semmae.core.config import load_config, read_yaml
    from semmae.data.dataset import Reader
    from semmae.models import mae, teacher
    from semmae.parts import part_learner, part_maps
    from semmae.report import figures, heat_maps
    from stages.pretrain import PretrainConfig

    reader = Reader(SHARDS / dataset, split)
    folder = PART_MAPS / dataset
    needed = what == "parts" or (what != "heat" and folder.exists())
    maps = part_maps.join(folder, reader, teacher=None, parts=None) if needed else None
    chosen = {"count": count, "seed": seed}
    if what == "parts":
        assert maps is not None
        image = figures.parts_grid(reader, maps, colors=colors, **chosen)
    elif what == "heat":
        elder = teacher.load_teacher(TEACHER)
        learner = part_learner.load(PARTS, teacher=elder.digest)
        image = heat_maps.heat_grid(reader, elder, learner, colors=colors, **chosen)
    elif what == "masks":
        section = load_config(PretrainConfig, "pretrain")
        size = {"img_size": section.img_size, "patch_size": section.encoder.patch_size}
        masking = read_yaml()["pretrain"]["masking"]
        image = figures.masks_grid(reader, maps, masking=masking, **size, colors=colors, **chosen)
    else:
        model, decoder = mae.load(PRETRAIN)
        masking = read_json(PRETRAIN / "encoder.json")["params"]["masking"]
        image = figures.reconstructions_grid(
            reader, maps, model=model, masking=masking, norm_pix_loss=decoder["norm_pix_loss"], **chosen
        )
    image.save(out)
    typer.echo(f"{out}: {what} of {dataset}, {image.width} x {image.height} pixels")


@app.command()
def index(
    dataset: Annotated[str, typer.Argument(help="A dataset under data/shards.")],
    check: Annotated[bool, typer.Option("--check", help="Compare the sources with their recorded digests.")] = False,
) -> None:
    """Tell what a dataset holds: shards, splits, labels, rejected inputs."""
    import pyarrow.parquet as pq

    from semmae.core.atomic_files import read_json

    folder = SHARDS / dataset
    meta = read_json(folder / "shards.json")
    samples = pq.read_table(
        folder / "index.parquet", columns=["split", "shard", "class_name", "mask_offset"]
    ).to_pandas()
    columns = ("split", "shards", "samples", "labeled", "with mask", "MB")
    table = _table(f"{folder}  masks: {meta['mask_kind'] or 'none'}", *columns)
    for split, rows in samples.groupby("split", sort=False):
        names = set(rows["shard"])
        shards = [shard for shard in meta["shards"] if shard["file"] in names]
        size = sum(shard["bytes"] for shard in shards)
        counts = (len(shards), len(rows), rows["class_name"].notna().sum(), rows["mask_offset"].notna().sum())
        table.add_row(str(split), *map(str, counts), f"{size / 1e6:.1f}")
    console.print(table)
    if meta["class_names"]:
        table = _table("labels", "class", *samples["split"].unique())
        for name in meta["class_names"]:
            of_class = samples[samples["class_name"] == name]
            table.add_row(name, *(str((of_class["split"] == split).sum()) for split in samples["split"].unique()))
        console.print(table)
    _rejects(pq.read_table(folder / "rejected.parquet").to_pylist(), len(samples))
    if check:
        _check(dataset)


def _rejects(rejected: list[dict[str, str]], samples: int) -> None:
    """The reasons why inputs were refused, the commonest first, each with an example."""
    typer.echo(f"{len(rejected)} of {len(rejected) + samples} inputs were rejected")
    if not rejected:
        return
    kind = {row["source"]: row["reason"].partition(": ")[0] for row in rejected}
    example = {kind[row["source"]]: row["source"] for row in reversed(rejected)}
    table = _table("rejected", "inputs", "reason", "for example")
    for reason, count in Counter(kind.values()).most_common():
        table.add_row(str(count), reason, example[reason])
    console.print(table)


def _check(dataset: str) -> None:
    """Say whether the sources are as they were when the dataset was written; exit status 1 if not."""
    from semmae.core.config import load_config
    from semmae.sharding import shard_writer
    from stages.shards import ShardsConfig, resolve_paths

    section = load_config(ShardsConfig, "shards")
    if dataset not in section.datasets:
        raise ValueError(f"shards has no dataset {dataset!r}; params.yaml has {', '.join(section.datasets) or 'none'}")
    changed = shard_writer.check(SHARDS / dataset, resolve_paths(section.datasets[dataset].sources))
    if changed:
        typer.echo(f"changed since then: {', '.join(changed)}; run: dvc repro -f shards@{dataset}")
        raise typer.Exit(1)
    typer.echo("the sources are as they were")


@app.command()
def export(
    to: Annotated[Literal["timm", "transformers"], typer.Option(help="Whose format.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    encoder: Annotated[
        Path, typer.Argument(help="A folder with an encoder or a teacher, for timm also data/finetune/<dataset>.")
    ] = PRETRAIN,
    with_decoder: Annotated[bool, typer.Option("--with-decoder", help="transformers: as ViTMAE.")] = False,
) -> None:
    """Write an encoder as timm or transformers loads it, strictly and with equal outputs."""
    from semmae.exchange import export as exporting

    typer.echo(exporting.export(encoder, out, to=to, with_decoder=with_decoder))


@app.command()
def encode(
    images: Annotated[str, typer.Argument(help="A dataset under data/shards, or a folder of images.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    encoder: Annotated[Path, typer.Option(help="A folder with an encoder or a teacher.")] = PRETRAIN,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
    precision: Annotated[Literal["fp32", "bf16"], typer.Option()] = "fp32",
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 2,
) -> None:
    """Write class token and mean patch token of every image to a Parquet file."""
    from semmae.core import distributed
    from semmae.exchange import encode as encoding
    from semmae.models import frozen_encoder

    reader, network = encoding.open_images(images, SHARDS), frozen_encoder.load_encoder(encoder)
    how = encoding.EncodeOptions(batch_size, workers, distributed.choose_device(device), precision)
    skipped = encoding.encode(reader, network, out, how)
    for entry in skipped:
        typer.echo(f"skipped: {entry.key}: {entry.reason}", err=True)
    typer.echo(f"{len(skipped)} of {len(reader)} images skipped", err=True)
    typer.echo(f"{out}: {len(reader) - len(skipped)} images, width {network.network.embed_dim}")


@app.command()
def recipe(
    name: Annotated[str | None, typer.Argument(help="A file in recipes/, without .yaml; none: list them.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Even over changes that git does not have.")] = False,
) -> None:
    """Install a recipe as params.yaml and show what changes; without a name, list the recipes and their prices."""
    from rich.syntax import Syntax

    from semmae.cli import recipes

    found = recipes.found(RECIPES)
    if name is None:
        for known, path in found.items():
            head = recipes.head(path)
            console.print(known, style="bold")
            for field in ("title", "cost", "score"):
                console.print(Padding(f"{'' if field == 'title' else field + ': '}{head[field]}", (0, 0, 0, 4)))
        return
    chosen = recipes.choose(found, name)
    changes = recipes.difference(chosen, PARAMS)
    if not changes:
        typer.echo(f"{PARAMS} is {chosen} already")
        return
    recipes.install(chosen, PARAMS, force=force)
    console.print(Syntax(changes, "diff", background_color="default", word_wrap=True))
    typer.echo(f"{PARAMS} is now {chosen}; run: dvc repro")


@state.command("ls")
def list_state() -> None:
    """List unfinished runs and cached part maps, with their sizes and when they were last used."""
    from semmae.cli import state_dir as kept
    from semmae.core.paths import state_root
    from semmae.parts import part_store

    typer.echo(f"state root: {state_root()}")
    table = _table("unfinished runs", "stage", "fingerprint", "step", "MB", "last used", "")
    for run in kept.runs():
        step = "-" if run.step is None else str(run.step)
        at_work = "at work" if run.locked else ""
        table.add_row(run.stage, run.fingerprint[:12], step, f"{run.num_bytes / 1e6:.1f}", _ago(run.used), at_work)
    console.print(table)
    table = _table("part maps", "digest", "shards", "MB", "last used")
    for entry in part_store.list_entries():
        size = f"{entry.num_bytes / 1e6:.1f}"
        table.add_row(entry.digest[:12], str(entry.num_shards), size, _ago(entry.used))
    console.print(table)


@state.command("adopt")
def adopt_state(
    fingerprint: Annotated[str, typer.Argument(help="Of an unfinished run, or how it begins; see `semmae state ls`.")],
) -> None:
    """Let a run go on after a harmless edit of the source, which would otherwise make it begin anew."""
    from semmae.cli import state_dir as kept

    run = kept.adopt(fingerprint)
    typer.echo(f"{run.stage} {run.fingerprint[:12]}: the next {run.stage} with the same params and inputs goes on")
    typer.echo(f"after step {run.step}, whatever its source is now; its artifact will say so. Run: dvc repro")


@state.command("gc")
def collect_state(
    unused_days: Annotated[float, typer.Option(min=0, help="Keep what was used in the last so many days.")],
) -> None:
    """Delete unfinished runs and cached part maps that nobody has used for long, and digests of files that are gone."""
    from semmae.cli import state_dir as kept
    from semmae.core import hash_cache
    from semmae.parts import part_store

    old = kept.prune_runs(unused_days=unused_days)
    typer.echo(f"{len(old)} unfinished runs deleted, {sum(run.num_bytes for run in old) / 1e6:.1f} MB")
    if at_work := kept.at_work():
        typer.echo(f"part maps left alone: process {', '.join(at_work)} is at work and may need them")
    else:
        typer.echo(f"{part_store.prune(unused_days=unused_days) / 1e6:.1f} MB of part maps deleted")
    typer.echo(f"{hash_cache.prune()} digests forgotten, of files that are gone")


@app.command()
def compare(
    runs: Annotated[Path, typer.Argument(help="What `dvc exp show --csv` printed.")],
    by: Annotated[str, typer.Option(help="The parameters that tell settings apart: a,b")] = "pretrain.masking.strategy",
    scores: Annotated[str | None, typer.Option(help="A regular expression: which columns to compare.")] = None,
    parts: Annotated[str | None, typer.Option(help="A dataset: its part scores, line by line, over all runs.")] = None,
    ablation: Annotated[str | None, typer.Option(help="A dataset: its part scores, setting by setting.")] = None,
    level: Annotated[Literal["patch", "pixel"], typer.Option(help="Of --parts and --ablation.")] = "patch",
    lines: Annotated[bool, typer.Option("--lines", help="What is scored beside the encoder, over all runs.")] = False,
    md: Annotated[bool, typer.Option("--md", help="Print Markdown.")] = False,
) -> None:
    """Compare runs: the mean and spread of every score over the runs of a setting, e.g. over seeds."""
    from semmae.core.config import read_yaml
    from semmae.report import comparison

    if parts:
        found, what = comparison.parts(comparison.read(runs), parts, level=level), f"{parts}, by {level}"
    elif ablation:
        found = comparison.ablation(comparison.read(runs), ablation, level=level, parameters=read_yaml())
        what = f"{ablation}, by {level}"
    elif lines:
        found, what = comparison.lines(comparison.read(runs)), "beside the encoder"
    else:
        found = comparison.summary(comparison.read(runs), by.split(","), scores=scores or comparison.SCORES)
        what = f"by {by}"
    if md:
        return print(comparison.markdown(found))
    table = _table(f"{runs}, {what}: mean ± standard deviation (runs)", *found.columns)
    for row in found.to_numpy().tolist():
        table.add_row(*row)
    console.print(table)


@app.command()
def flow(
    jobs: Annotated[int, typer.Option(min=1, help="Stages at work at a time.")] = 2,
    timeout: Annotated[
        float | None, typer.Option(min=0.01, help="Minutes after which a stage is stopped; training saves first.")
    ] = None,
) -> None:
    """Bring every stage up to date as a Prefect flow, siblings in parallel."""
    from semmae.cli.flow import run

    outcomes = run(jobs, None if timeout is None else timeout * 60)
    table = _table("stages", "stage", "result", "seconds")
    for outcome in outcomes:
        table.add_row(outcome.stage, outcome.result, f"{outcome.seconds:.1f}")
    console.print(table)
    if late := [outcome.stage for outcome in outcomes if outcome.result == "timed out"]:
        raise ValueError(
            f"stopped after {timeout:g} minutes: {', '.join(late)}; the same command goes on where training was, "
            "--timeout gives it longer"
        )
    if failed := [outcome.stage for outcome in outcomes if outcome.result == "failed"]:
        raise ValueError(f"failed: {', '.join(failed)}; what is wrong stands above, in the log of its task")


@app.command()
def doctor() -> None:
    """Look whether this machine is fit to run the pipeline, and say what to mend."""
    from semmae.cli.doctor import examine

    table, failed = _table("doctor", "", "what", "found", "what to do"), 0
    for check in examine(Path(".")):
        failed += check.verdict == "fail"
        table.add_row(check.verdict, check.what, check.found, check.remedy)
    console.print(table)
    if failed:
        raise ValueError(f"{failed} of these will stop a run")


@app.command()
def promote(
    experiment: Annotated[
        str | None, typer.Argument(help="An experiment or commit; by default what is in the workspace.")
    ] = None,
    teacher: Annotated[
        bool, typer.Option("--teacher", help="The run's teacher, not the encoder it pretrained.")
    ] = False,
) -> None:
    """Keep an encoder in data/encoders and tell how to make it the teacher of another run."""
    from semmae.exchange import promotion

    folder, name = (TEACHER, "teacher") if teacher else (PRETRAIN, "encoder")
    weights = promotion.promote(folder, name, ENCODERS, rev=experiment)
    typer.echo(f"{weights} is kept; make it the teacher with (source=ibot: where iBOT begins):", err=True)
    typer.echo(
        "dvc exp run -S teacher.source=semmae "
        f"-S teacher.checkpoint.path=../encoders/{weights.parent.name}/{weights.name} "
        f"-S teacher.checkpoint.sha256={weights.parent.name}"
    )


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A checkpoint in MAE's format: pretraining or fine-tuned.")],
    out: Annotated[Path, typer.Option(help="Where the encoder goes; the evaluations read data/pretrain.")],
    img_size: Annotated[int | None, typer.Option(help="Pixels to resample its positions to.")] = None,
    num_heads: Annotated[int | None, typer.Option(help="Heads, where the width does not tell.")] = None,
) -> None:
    """Take an encoder of others, so that the evaluations can score it."""
    from semmae.core.atomic_files import atomic_write
    from semmae.models import pretrained_weights, vit

    others = {path.name for path in out.iterdir()} - IMPORTED if out.is_dir() else set()
    if others or out.is_file():
        raise ValueError(
            f"{out} holds more than an encoder ({', '.join(sorted(others)) or 'a file'}); name another folder"
        )
    network, config = pretrained_weights.load_mae_encoder(file, img_size=img_size, num_heads=num_heads)
    with atomic_write(out) as folder:
        vit.save(folder, network, config)
    shape = ", ".join(f"{key} {config[key]}" for key in vit.CONFIG_KEYS)
    typer.echo(f"{out}: the encoder of {file}: {shape}; positions: {config['imported']['positions']}")
    typer.echo("score it with dvc repro --single-item knn@<dataset>; dvc repro brings yours back")


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right" if column in NUMBERS else "left", overflow="fold")
    return table


def _ago(when: float) -> str:
    """How long ago a time in seconds since 1970 was, in its largest unit."""
    seconds = max(0.0, time.time() - when)
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"


def main() -> None:
    """Run the command; SEMMAE_DEBUG=1 shows where an error came from."""
    restrict_permissions()
    try:
        app()
    except (ValueError, OSError) as error:
        if os.environ.get("SEMMAE_DEBUG"):
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
