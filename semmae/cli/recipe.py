"""`semmae recipe`: list the recipes, or install one as params.yaml.

A recipe is a complete params.yaml. Its first comment block holds a title, then `command:`, `cost:` and `score:`.
`install` overwrites params.yaml only if Git or another recipe holds its current content.
"""

import difflib
import re
import subprocess
from pathlib import Path
from typing import Annotated

import typer
from rich.padding import Padding

from semmae.cli.output import console
from semmae.core.atomic_files import atomic_write

RECIPES, PARAMS = Path("recipes"), Path("params.yaml")
PACKAGED = Path(__file__).parents[1] / "project/recipes"  # for projects outside of the repository
FIELDS = ("command", "cost", "score")


def recipe(
    name: Annotated[str | None, typer.Argument(help="The name of a recipe; default: list all recipes.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Overwrite params.yaml even if it has uncommitted changes.")
    ] = False,
) -> None:
    """Install a recipe as params.yaml and print the changes, or list the recipes with their costs."""
    from rich.syntax import Syntax

    recipes = find_recipes(RECIPES if RECIPES.is_dir() else PACKAGED)
    if name is None:
        for known, path in recipes.items():
            header = read_header(path)
            console.print(known, style="bold")
            for field in ("title", "cost", "score"):
                label = "" if field == "title" else f"{field}: "
                console.print(Padding(f"{label}{header[field]}", (0, 0, 0, 4)))
        return
    chosen = choose(recipes, name)
    changes = difference(chosen, PARAMS)
    if not changes:
        typer.echo(f"{PARAMS} already equals {chosen}")
        return
    install(chosen, PARAMS, force=force)
    console.print(Syntax(changes, "diff", background_color="default", word_wrap=True))
    typer.echo(f"{PARAMS} is now a copy of {chosen}; run: dvc repro")


def find_recipes(folder: Path) -> dict[str, Path]:
    """Return the recipes in `folder` by name.

    Raises:
        ValueError: `folder` has no recipes.
    """
    recipes = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not recipes:
        raise ValueError(f"no recipes in {folder.absolute()}; remove the folder to use those of semmae")
    return recipes


def choose(recipes: dict[str, Path], name: str) -> Path:
    """Return the path of a recipe.

    Raises:
        ValueError: No recipe has this name. The message lists similar names, or all names.
    """
    if name not in recipes:
        similar = difflib.get_close_matches(name, recipes, n=3, cutoff=0.4) or list(recipes)
        raise ValueError(f"unknown recipe: {name!r}; did you mean {' or '.join(similar)}?")
    return recipes[name]


def read_header(file: Path) -> dict[str, str]:
    """Return `title` and FIELDS from the first comment block. A field may span several lines."""
    fields = {"title": ""}
    name = "title"
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        if start := re.match(rf"({'|'.join(FIELDS)}): *", text):
            name, text = start[1], text[start.end() :]
        fields[name] = f"{fields.get(name, '')} {text}".strip()
    if missing := [field for field in FIELDS if field not in fields]:
        raise ValueError(f"{file} lacks {' and '.join(missing)} in the comments at its top; add: # {missing[0]}: ...")
    return fields


def difference(file: Path, params: Path) -> str:
    """Return a unified diff from `params` to the recipe `file`; "" if they are equal."""
    old = params.read_text().splitlines(keepends=True) if params.exists() else []
    new = file.read_text().splitlines(keepends=True)
    return "".join(difflib.unified_diff(old, new, str(params), str(file)))


def install(file: Path, params: Path, *, force: bool) -> None:
    """Copy the recipe `file` to `params`.

    Raises:
        ValueError: `params` has uncommitted changes, and `force` is false.
    """
    contents = (known.read_bytes() for known in file.parent.glob("*.yaml"))
    if not force and params.exists() and params.read_bytes() not in contents:
        _require_committed(params)
    with atomic_write(params) as temporary:
        temporary.write_bytes(file.read_bytes())


def _require_committed(params: Path) -> None:
    """Raise a ValueError unless the last Git commit holds the current content of `params`."""
    command = ["git", "status", "--porcelain", "--ignored", "--", str(params)]
    try:
        status = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        message = f"{params} is not in a Git repository, so its content would be lost; copy it, then use --force"
        raise ValueError(message) from None
    if status:
        raise ValueError(f"{params} has uncommitted changes; commit or copy them, or use --force")
