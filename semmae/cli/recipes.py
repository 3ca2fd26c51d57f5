"""Recipes: complete params.yaml files for other settings, each with its price.

- `found`: the recipes in a folder by name; `choose` one, or learn what is like it.
- `head`: the comment block that a recipe begins with: title, then `command:`, `cost:`, `score:`.
- `difference`, `install`: what a recipe would change in params.yaml, and the change.

Installing never loses numbers that nothing else keeps: a params.yaml with changes that git does not have stays.
"""

import difflib
import re
import subprocess
from pathlib import Path

from semmae.core.atomic_files import atomic_write

FIELDS = ("command", "cost", "score")


def found(folder: Path) -> dict[str, Path]:
    """The recipes in `folder` by name. ValueError: there are none, most likely since this is not the project's root."""
    recipes = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not recipes:
        raise ValueError(f"there are no recipes in {folder.absolute()}; run from the project's root")
    return recipes


def choose(recipes: dict[str, Path], name: str) -> Path:
    """The recipe of that name; a ValueError names those that are like it, else all."""
    if name not in recipes:
        near = difflib.get_close_matches(name, recipes, n=3, cutoff=0.4) or list(recipes)
        raise ValueError(f"there is no recipe {name!r}; perhaps {' or '.join(near)}")
    return recipes[name]


def head(recipe: Path) -> dict[str, str]:
    """The `title` and the FIELDS of the comment block at the top; each field may go on over several lines."""
    lines = []
    for line in recipe.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    fields = {"title": ""}
    name = "title"
    for line in lines:
        if start := re.match(rf"({'|'.join(FIELDS)}): *", line):
            name, line = start[1], line[start.end() :]
        fields[name] = f"{fields.get(name, '')} {line}".strip()
    if missing := [field for field in FIELDS if field not in fields]:
        raise ValueError(f"{recipe} does not say its {' and '.join(missing)} in the comments at its top")
    return fields


def difference(recipe: Path, params: Path) -> str:
    """What installing `recipe` changes in `params`, as a unified diff; "" if nothing."""
    old = params.read_text().splitlines(keepends=True) if params.exists() else []
    new = recipe.read_text().splitlines(keepends=True)
    return "".join(difflib.unified_diff(old, new, str(params), str(recipe)))


def install(recipe: Path, params: Path, *, force: bool) -> None:
    """Make `params` a copy of `recipe`. ValueError: that would lose changes, unless `force`."""
    kept = recipe.parent.glob("*.yaml")
    if not force and params.exists() and not any(params.read_bytes() == other.read_bytes() for other in kept):
        _refuse_uncommitted(params)
    with atomic_write(params) as temporary:
        temporary.write_bytes(recipe.read_bytes())


def _refuse_uncommitted(params: Path) -> None:
    """ValueError unless git has `params` as it is."""
    command = ["git", "status", "--porcelain", "--ignored", "--", str(params)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise ValueError(f"git does not keep {params}, which would be lost; copy it, then use --force") from None
    if said:
        raise ValueError(f"{params} has changes that git does not have yet; commit or copy them, or use --force")
