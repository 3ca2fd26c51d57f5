"""Options of the commands that run a network over images."""

from typing import Annotated, Literal

import typer

BatchSize = Annotated[int, typer.Option(min=1, help="Images per batch.")]
DeviceName = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="The device; auto selects a GPU if there is one.")
]
PrecisionName = Annotated[Literal["fp32", "bf16"], typer.Option(help="The precision of the forward pass.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that load images; 0: no extra process.")]
