"""`semmae promote`: copy an encoder, so that later runs can use it as their teacher."""

from pathlib import Path
from typing import Annotated

import typer

TEACHER, PRETRAIN, ENCODERS = Path("data/teacher"), Path("data/pretrain"), Path("data/encoders")


def promote(
    experiment: Annotated[
        str | None, typer.Argument(help="A DVC experiment or Git commit; default: the workspace.")
    ] = None,
    teacher: Annotated[
        bool, typer.Option("--teacher", help="Copy the teacher of the run instead of its pretrained encoder.")
    ] = False,
) -> None:
    """Copy an encoder to data/encoders and print the command that uses it as a teacher."""
    from semmae.exchange import promotion

    folder, name = (TEACHER, "teacher") if teacher else (PRETRAIN, "encoder")
    weights = promotion.promote(folder, name, ENCODERS, rev=experiment)
    typer.echo(
        f"copied to {weights}; use it as the teacher with the command below. "
        "To start iBOT training from it, set teacher.source=ibot instead.",
        err=True,
    )
    typer.echo(
        "dvc exp run -S teacher.source=semmae "
        f"-S teacher.checkpoint.path=../encoders/{weights.parent.name}/{weights.name} "
        f"-S teacher.checkpoint.sha256={weights.parent.name}"
    )
