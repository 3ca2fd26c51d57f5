"""Result tables of docs/results: each one is the output of the command above it.

python -m tests.report.result_tables    rewrite all tables
"""

import contextlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from semmae.cli.main import app
from tests.imports import ROOT

PAGES = sorted((ROOT / "docs/results").glob("*.md"))
COMMAND = "```sh\nsemmae compare docs/runs/"
BLOCK = re.compile(r"```sh\n(?P<command>semmae compare .*)\n```\n\n(?P<table>(?:\|.*\n)+|TABLE\n)")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run(command: str) -> str:
    """Run a `semmae` command in the project and return its output."""
    with _inside(ROOT):
        return CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False).output


def rewritten(text: str) -> str:
    """Return the text of a page with every table replaced by the output of its command."""
    return BLOCK.sub(lambda block: f"```sh\n{block['command']}\n```\n\n{run(block['command'])}", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(rewritten(page.read_text()))
