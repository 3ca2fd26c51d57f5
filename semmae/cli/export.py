"""`semmae export`: write an encoder in the format of timm or transformers."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    to: Annotated[Literal["timm", "transformers"], typer.Option(help="The library that will load the encoder.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    encoder: Annotated[
        Path,
        typer.Argument(help="A folder with an encoder or a teacher; for timm also data/finetune/<dataset>."),
    ] = Path("data/pretrain"),
    with_decoder: Annotated[
        bool, typer.Option("--with-decoder", help="Include the decoder (transformers: ViTMAEForPreTraining).")
    ] = False,
) -> None:
    """Write an encoder in the format of timm or transformers, and verify that the library computes equal outputs."""
    from semmae.exchange import export as exporter

    typer.echo(exporter.export(encoder, out, to=to, with_decoder=with_decoder))
