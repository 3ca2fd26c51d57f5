"""Tables of runs in the documentation: `python -m tests.comparison.doc_tables` rewrites them from docs/runs/*.csv.

A page shows the command `semmae compare ... --md` in a shell block and its output below.
"""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from semmae.cli.main import app
from tests.imports import ROOT

TABLE = re.compile(r"(?<=```sh\n)(?P<command>semmae compare docs/runs/.*)\n```\n\n(?P<table>(?:\|.*\n)*)")


def pages() -> Iterator[Path]:
    """Find the pages that show such a command."""
    for page in sorted(ROOT.glob("docs/**/*.md")):
        if "\nsemmae compare docs/runs/" in page.read_text():
            yield page


def output(command: str) -> str:
    """Run a `semmae` command in this process, in the root of the project."""
    folder = Path.cwd()
    os.chdir(ROOT)
    try:
        return CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False).output
    finally:
        os.chdir(folder)


def rewrite(text: str) -> str:
    """Replace the table below each command by the output of the command."""
    return TABLE.sub(lambda match: f"{match['command']}\n```\n\n{output(match['command'])}", text)


if __name__ == "__main__":
    for page in pages():
        page.write_text(rewrite(page.read_text()))
