"""What a file of the project imports from the project, read from its source without running it."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def imported(path: Path) -> set[Path]:
    """The project's files that `path` imports directly, packages' __init__ included."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            place = ROOT / name.replace(".", "/")
            found |= {file for file in (place.with_suffix(".py"), place / "__init__.py") if file.exists()}
    return found


def closure(path: Path) -> set[Path]:
    """`path` and everything of the project that it imports, directly or not."""
    seen, todo = set(), {path}
    while todo:
        file = todo.pop()
        seen.add(file)
        todo |= imported(file) - seen
    return seen
