"""What a file of the project imports from the project, read from its source without running it.

python -m tests.imports        # write every stage's code deps in dvc.yaml anew
"""

import ast
from pathlib import Path

from ruamel.yaml import YAML

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


def rewrite(graph: Path) -> None:
    """Let each stage in `graph` depend on the code that it imports; its other deps stay, before them."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 1000, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(graph)
    for name, entry in content["stages"].items():
        stage = entry.get("do", entry)
        code = sorted(str(path.relative_to(ROOT)) for path in closure(ROOT / f"stages/{name}.py"))
        others = [dep for dep in stage["deps"] if not dep.endswith(".py")]
        stage["deps"].clear()
        stage["deps"].extend([*others, *code])
    yaml.dump(content, graph)


if __name__ == "__main__":
    rewrite(ROOT / "dvc.yaml")
