"""The `semmae` command: inspect a pipeline's data, exchange encoders, manage its state, run it as a Prefect flow.

Training and scoring are stages (`dvc repro`). Each command has a file of its own in this folder. Commands import heavy
packages when they run, so that `--help` is quick. After a user's mistake, the command prints one sentence on standard
error and exits with status 1.
"""

import os
import sys

import typer

from semmae.cli.compare import compare
from semmae.cli.doctor import doctor
from semmae.cli.encode import encode
from semmae.cli.export import export
from semmae.cli.export_parts import export_parts
from semmae.cli.flow import flow
from semmae.cli.import_encoder import import_encoder
from semmae.cli.index import index
from semmae.cli.init import init
from semmae.cli.part_benchmark import part_benchmark
from semmae.cli.promote import promote
from semmae.cli.recipe import recipe
from semmae.cli.run import run
from semmae.cli.scores import scores
from semmae.cli.show import show
from semmae.cli.state import state_app
from semmae.core.process import restrict_permissions

app = typer.Typer(
    help="Semantic-guided masked autoencoders: inspect part maps, masks and data; run the pipeline.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    init, run, show, index, scores, export, export_parts, encode, recipe, compare, flow, doctor, promote, part_benchmark
):  # fmt: skip
    app.command()(command)
app.command("import")(import_encoder)
app.add_typer(state_app, name="state")


def main() -> None:
    """Run the command; SEMMAE_DEBUG=1 prints the traceback of an error."""
    restrict_permissions()
    try:
        app()
    except (ValueError, OSError) as error:
        if os.environ.get("SEMMAE_DEBUG"):
            raise
        sys.exit(f"error: {error}")
