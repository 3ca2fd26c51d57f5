"""`semmae encode`: write the features of many images to a Parquet file."""

from pathlib import Path
from typing import Annotated

import typer

from semmae.cli.compute_options import BatchSize, DeviceName, PrecisionName, Workers

SHARDS = Path("data/shards")


def encode(
    images: Annotated[str, typer.Argument(help="A dataset under data/shards, or a folder of images.")],
    out: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    encoder: Annotated[Path, typer.Option(help="A folder with an encoder or a teacher.")] = Path("data/pretrain"),
    batch_size: BatchSize = 64,
    device: DeviceName = "auto",
    precision: PrecisionName = "fp32",
    workers: Workers = 2,
) -> None:
    """Write the class token and the mean patch token of every image to a Parquet file."""
    from semmae.core import distributed
    from semmae.exchange import encode as encoding
    from semmae.models import frozen_encoder

    reader, network = encoding.open_images(images, SHARDS), frozen_encoder.load_encoder(encoder)
    options = encoding.EncodeOptions(batch_size, workers, distributed.choose_device(device), precision)
    skipped = encoding.encode(reader, network, out, options)
    for image in skipped:
        typer.echo(f"skipped: {image.key}: {image.reason}", err=True)
    typer.echo(f"{len(skipped)} of {len(reader)} images skipped", err=True)
    typer.echo(f"{out}: {len(reader) - len(skipped)} images, width {network.network.embed_dim}")
