"""`semmae promote`: keep an encoder, so that other runs can use it as their teacher."""

from pathlib import Path
from typing import Annotated

import typer

TEACHER, PRETRAIN, ENCODERS = Path("data/teacher"), Path("data/pretrain"), Path("data/encoders")


def promote(
    experiment: Annotated[
        str | None, typer.Argument(help="A DVC experiment or Git commit; default: the workspace.")
    ] = None,
    teacher: Annotated[
        bool, typer.Option("--teacher", help="Keep the teacher of the run instead of its pretrained encoder.")
    ] = False,
) -> None:
    """Copy an encoder to data/encoders and print the command that uses it as a teacher."""
    from semmae.exchange import promotion

    folder, name = (TEACHER, "teacher") if teacher else (PRETRAIN, "encoder")
    weights = promotion.promote(folder, name, ENCODERS, rev=experiment)
    typer.echo(
        f"copied to {weights}. The command below makes it the teacher. "
        "With teacher.source=ibot, it is the network from which iBOT training starts.",
        err=True,
    )
    typer.echo(
        "dvc exp run -S teacher.source=semmae "
        f"-S teacher.checkpoint.path=../encoders/{weights.parent.name}/{weights.name} "
        f"-S teacher.checkpoint.sha256={weights.parent.name}"
    )
