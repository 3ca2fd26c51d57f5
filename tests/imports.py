"""What a file of the project imports from the project, read from its source without running it.

python -m tests.imports        # rewrite the code dependencies of every stage in dvc.yaml
"""

import ast
from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
WITHOUT_EFFECT = (ROOT / "semmae/console", ROOT / "semmae/__init__.py")  # progress bars, the version: change no output


def imported(path: Path) -> set[Path]:
    """The project's files that `path` imports directly, `__init__.py` of their packages included."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            packages = [ROOT.joinpath(*parts[:depth], "__init__.py") for depth in range(1, len(parts) + 1)]
            found |= {file for file in (*packages, ROOT.joinpath(*parts).with_suffix(".py")) if file.exists()}
    return found


def closure(path: Path) -> set[Path]:
    """`path` and every file of the project that it imports, directly or not, without those that change no output."""
    seen, todo = set(), {path}
    while todo:
        file = todo.pop()
        seen.add(file)
        todo |= {other for other in imported(file) - seen if not any(map(other.is_relative_to, WITHOUT_EFFECT))}
    return seen


def code_dependencies(stage: str) -> list[str]:
    """What a stage lists in dvc.yaml: a folder if it imports all of it, single files otherwise."""
    files = closure(ROOT / f"stages/{stage}.py")
    folders = [
        folder
        for folder in (ROOT / "semmae").rglob("*/")
        if set(folder.rglob("*.py")) and set(folder.rglob("*.py")) <= files
    ]
    whole = {folder for folder in folders if folder.parent not in folders}
    single = {
        file for file in files if file.stat().st_size and not any(file.is_relative_to(folder) for folder in whole)
    }
    return sorted(str(path.relative_to(ROOT)) for path in whole | single)


def rewrite(graph: Path) -> None:
    """Let each stage in `graph` depend on the code that it imports; its other dependencies stay, before them."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 1000, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(graph)
    for name, entry in content["stages"].items():
        stage = entry.get("do", entry)
        others = [dep for dep in stage["deps"] if not dep.startswith(("semmae/", "stages/"))]
        stage["deps"].clear()
        stage["deps"].extend([*others, *code_dependencies(name)])
    yaml.dump(content, graph)


if __name__ == "__main__":
    rewrite(ROOT / "dvc.yaml")
