"""`semmae import`: convert a published MAE checkpoint, so that the evaluations can score its encoder."""

from pathlib import Path
from typing import Annotated

import typer

REPLACEABLE = {"encoder.json", "encoder.safetensors", "decoder.json", "decoder.safetensors", "history.json"}


def import_encoder(
    file: Annotated[Path, typer.Argument(help="A checkpoint in MAE's format, pretrained or fine-tuned.")],
    out: Annotated[Path, typer.Option(help="The folder to write; the evaluations read data/pretrain.")],
    img_size: Annotated[
        int | None,
        typer.Option(
            help="The image size in pixels; default: that of the checkpoint. Position embeddings are resampled."
        ),
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(help="The number of attention heads; default: that of the standard ViT of this width.")
    ] = None,
) -> None:
    """Import the encoder of an MAE checkpoint, so that the evaluations can score it."""
    from semmae.core.atomic_files import atomic_write
    from semmae.models import pretrained_weights, vit

    if out.is_file():
        raise ValueError(f"{out} is a file; choose a folder with --out")
    unknown = {path.name for path in out.iterdir()} - REPLACEABLE if out.is_dir() else set()
    if unknown:
        content = ", ".join(sorted(unknown))
        raise ValueError(f"{out} holds more than an encoder ({content}); choose another folder with --out")
    network, config = pretrained_weights.load_mae_encoder(file, img_size=img_size, num_heads=num_heads)
    with atomic_write(out) as folder:
        vit.save(folder, network, config)
    shape = ", ".join(f"{key} {config[key]}" for key in vit.CONFIG_KEYS)
    typer.echo(f"{out}: the encoder of {file}: {shape}; positions: {config['imported']['positions']}")
    typer.echo("Score it with: dvc repro --single-item knn@<dataset>. Restore your own encoder with: dvc repro")
