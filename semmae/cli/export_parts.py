"""`semmae export-parts`: map the parts of any images, and write the part maps for other programs."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import typer

from semmae.cli.compute_options import BatchSize, DeviceName, PrecisionName, Workers

SHARDS = Path("data/shards")


def export_parts(
    images: Annotated[str, typer.Argument(help="A dataset under data/shards, or a folder of images.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist, or be empty.")],
    file_format: Annotated[
        Literal["png", "npz", "parquet", "coco"], typer.Option("--as", help="The format of the part maps.")
    ] = "png",
    parts: Annotated[Path, typer.Option(help="A folder with a part learner.")] = Path("data/parts"),
    teacher: Annotated[Path, typer.Option(help="The folder with its teacher.")] = Path("data/teacher"),
    overlays: Annotated[
        int | None, typer.Option(min=0, help="The number of overlays to draw; default: one for each image.")
    ] = None,
    colors: Annotated[str, typer.Option(help="The palette of the parts: okabe_ito or tol_bright.")] = "okabe_ito",
    batch_size: BatchSize = 64,
    device: DeviceName = "auto",
    precision: PrecisionName = "fp32",
    workers: Workers = 2,
) -> None:
    """Write the part maps of any images as label images, arrays or annotations, with overlays, a legend and sizes."""
    from semmae.exchange.encode import EncodeOptions, open_images
    from semmae.inference import part_export
    from semmae.inference.part_mapper import load_part_mapper

    opened = open_images(images, SHARDS)
    mapper = load_part_mapper(parts, teacher, device)
    compute = EncodeOptions(batch_size, workers, mapper.device, precision)
    options = part_export.ExportOptions(file_format, colors, overlays, compute)
    skipped = part_export.export_parts(opened, mapper, out, options)
    reasons = {entry.key: entry.reason.partition(": ")[0] for entry in skipped}
    for reason, count in Counter(reasons.values()).most_common():
        example = next(key for key in reasons if reasons[key] == reason)
        typer.echo(f"skipped {count}, because {reason}: e.g. {example}", err=True)
    if skipped:
        typer.echo(f"all {len(skipped)} skipped files with their reasons: {out / 'skipped.csv'}", err=True)
    unreadable = sum(entry.key in set(opened.keys) for entry in skipped)
    typer.echo(f"{out}: {len(opened) - unreadable} images, {len(mapper.names)} labels, see legend.png")
