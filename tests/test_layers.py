"""Imports point down, in exactly the order of the table in docs/architecture.md."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

from semmae.project.stage_code import ROOT, imported

PAGE = (ROOT / "docs/architecture.md").read_text()
ROWS = re.findall(r"^\| (`[\w/`, ]+`) +\|", PAGE.partition("## Layers")[2].partition("\n## ")[0], re.MULTILINE)
RANK = {name: rank for rank, row in enumerate(reversed(ROWS)) for name in re.findall(r"`(\w+)/?`", row)}
FILES = sorted([*(ROOT / "semmae").rglob("*.py"), *(ROOT / "stages").glob("*.py")])
MODULES = [file for file in FILES if file.name not in ("__init__.py", "__main__.py")]


def folder(file: Path) -> str:
    """The folder of `semmae/` that a file belongs to, or `stages`."""
    parts = file.relative_to(ROOT).parts
    return parts[1] if parts[0] == "semmae" else parts[0]


def test_the_page_lists_every_folder():
    folders = {path.name for path in (ROOT / "semmae").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert set(RANK) == folders | {"stages"}


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file: Path):
    for other in imported(file):
        if other.name != "__init__.py" and folder(other) != folder(file):
            assert RANK[folder(other)] < RANK[folder(file)], f"{file} imports {other}, which is not below it"


@pytest.mark.parametrize("file", sorted((ROOT / "stages").glob("*.py")), ids=lambda file: file.stem)
def test_stages_never_import_stages(file: Path):
    others = {other.stem for other in imported(file) if other.parent.name == "stages"}
    assert others <= {"__init__"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_training_needs_neither_dvc_nor_prefect(file: Path):
    names = set()
    for node in ast.parse(file.read_text()).body:  # of the module itself, not inside functions
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    assert file.name == "prefect_flow.py" or not names & {"dvc", "prefect"}


def test_modules_have_unique_names_for_their_public_classes():
    owners: dict[str, list[str]] = {}
    for file in MODULES:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                owners.setdefault(node.name, []).append(str(file.relative_to(ROOT)))
    twice = {name: files for name, files in owners.items() if len(files) > 1}
    assert not twice


def test_the_listed_libraries_are_those_that_modules_import():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {canonical(line) for line in project["dependencies"]} - {"fastapi"}  # only a bound for prefect
    extras = project["optional-dependencies"]
    extra = {canonical(line) for name in ("hf", "tensorboard", "mlflow", "wandb") for line in extras[name]}
    imported_names: set[str] = set()
    for file in [*FILES, *(ROOT / "tests/sharding").rglob("*.py")]:  # tests read with webdataset what `shards` writes
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported_names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported_names.add(node.module.partition(".")[0])
    distributions = importlib.metadata.packages_distributions()
    found = {name: set(map(canonical, distributions.get(name, []))) for name in imported_names}
    assert listed <= set().union(*found.values())
    own = imported_names - sys.stdlib_module_names - {"semmae", "stages", "tests", "pytest"}
    assert {name for name in own if not found[name] & (listed | extra)} == set()


def canonical(requirement: str) -> str:
    """Return the normalized name of the library in a requirement."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


LOOPS = {"pretrain", "distill"}  # one visible training loop each


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_modules_and_functions_fit_in_one_reading(file: Path):
    """At most 300 lines per module and 60 per function; a training loop may be longer."""
    text = file.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name not in LOOPS:
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
