"""Which files of the code a stage consists of, and a digest of them per stage.

    python -m semmae.project.stage_code

writes data/code/<stage>.txt for every stage. In a project that uses an installed package, the stages in dvc.yaml depend
on these files. A new version of the package therefore reruns exactly the stages whose code it changes. The imports are
found in the source text; no file is executed.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the packages semmae and stages
WITHOUT_EFFECT = (ROOT / "semmae/console", ROOT / "semmae/__init__.py")  # progress bars and the version
OUT = Path("data/code")


@cache
def imported(path: Path) -> frozenset[Path]:
    """Return the project's files that `path` imports directly, with the `__init__.py` of their packages."""
    files: set[Path] = set()
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
            files |= {file for file in (*packages, ROOT.joinpath(*parts).with_suffix(".py")) if file.exists()}
    return frozenset(files)


def closure(path: Path) -> set[Path]:
    """Return `path` and all files that it imports, directly or indirectly, except those in WITHOUT_EFFECT."""
    visited, to_visit = set(), {path}
    while to_visit:
        file = to_visit.pop()
        visited.add(file)
        to_visit |= {path for path in imported(file) - visited if not any(map(path.is_relative_to, WITHOUT_EFFECT))}
    return visited


def stage_files(stage: str) -> set[Path]:
    """Return the files of a stage: the closure of its module, and its page template if it has one."""
    return closure(ROOT / f"stages/{stage}.py") | set((ROOT / "stages").glob(f"{stage}.*"))


def stage_digest(stage: str) -> str:
    """Return the SHA-256 of the names and contents of a stage's files."""
    digest = hashlib.sha256()
    for path in sorted(stage_files(stage)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(ROOT)} {content}\n".encode())
    return digest.hexdigest()


def write_digests(folder: Path) -> None:
    """Write `<stage>.txt` with the `stage_digest` of every stage."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "stages").glob("[a-z]*.py"):
        (folder / f"{path.stem}.txt").write_text(stage_digest(path.stem) + "\n")


if __name__ == "__main__":
    write_digests(OUT)
