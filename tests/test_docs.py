"""What the documentation tells people to type works: its commands run, in their order, on the toy project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import warm
from project import AUTHOR, ROOT, Project, create
from ruamel.yaml import YAML

BLOCK = re.compile(r"^```(sh|yaml|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The tests cannot run themselves; and what a user's shell would find in .venv, the toy project finds here.
PRELUDE = 'set -e\nmake() { if [ "$1" = test ]; then command make --dry-run test; else command make "$@"; fi; }\n'


def merged(section: Any, changes: Any) -> Any:
    """`section` with the values of `changes` in the place of its own, key by key; {} empties a mapping."""
    if not isinstance(changes, dict) or not isinstance(section, dict) or not changes:
        return changes
    return section | {key: merged(section.get(key), value) for key, value in changes.items()}


def follow(page: Path, project: Project) -> str:
    """Do what a page says, block by block: run commands and Python, change params.yaml; what the commands said."""
    yaml, file, said = YAML(typ="safe"), project.folder / "params.yaml", []
    for language, block in BLOCK.findall(page.read_text()):
        if language == "yaml":
            yaml.dump(merged(yaml.load(file), yaml.load(block)), file)
        else:
            command = ["bash", "-c", PRELUDE + block] if language == "sh" else [sys.executable, "-c", block]
            said.append(project.run(*command, **AUTHOR))
    return "\n".join(said)


@pytest.fixture
def clone(tmp_path: Path) -> Project:
    """A clone whose demo is the toy pipeline on creatures, scored by kNN alone, with photos of a user's and with this
    Python as its .venv.
    """
    project = create(tmp_path / "clone")
    text = (project.folder / "params.yaml").read_text()
    drawn = "toy:\n      sources:\n        drawn: {kind: creatures, train: 64, val: 32, size: 32, seed: 0}\n"
    text = re.sub(r"toy:\n      sources:\n(        .*\n)+", drawn, text, count=1)
    (project.folder / "params.yaml").write_text(re.sub(r"\btoy\b", "creatures", text))
    for stage in (
        "part_scores",
        "linear",
        "attentive",
        "finetune",
        "segment",
    ):  # each costs every run of a page seconds
        project.set(f"{stage}.datasets", {})
    (project.folder / "data/raw/pictures/images/train").rename(project.folder / "data/raw/photos")
    (project.folder / "Makefile").write_text((ROOT / "Makefile").read_text())
    commands = project.folder / ".venv/bin"
    commands.mkdir(parents=True)
    for command in (*Path(sys.prefix, "bin").iterdir(), *warm.commands().iterdir()):
        (commands / command.name).unlink(missing_ok=True)
        (commands / command.name).symlink_to(command)
    (project.folder / ".venv/.installed").touch()
    for name in ("pyproject.toml", "constraints.txt"):
        (project.folder / name).touch()
        os.utime(project.folder / name, (0, 0))  # older than what is installed, so that make installs nothing
    project.run("git", "add", ".", **AUTHOR)
    project.run("git", "commit", "--quiet", "--message", "creatures", **AUTHOR)
    return project


@pytest.mark.heavy
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_commands_of_a_page_run(page: str, clone: Project):
    said = follow(ROOT / page, clone)
    assert f"report: {clone.folder}/results/report/index.html" in said
    if page == "docs/tutorial.md":
        outdated = re.findall(r"^(\S+):\n\tchanged ", said, re.MULTILINE)
        assert outdated == ["pretrain"]  # by the curriculum's power


def test_every_fault_is_held_by_tests_that_exist():
    """The table of operations.md: no row without a test, no name that no test has."""
    page = (ROOT / "docs/operations.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| .* \| (.*) \|$", page, re.MULTILINE))
    assert list(map(int, rows)) == [*range(1, 20), 22, 23, 24]
    assert all("::" in tests for tests in rows.values())
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", page):
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {name}"


def test_the_site_is_whole(tmp_path: Path):
    """Every page is in the navigation, every link leads somewhere, every module of the reference is there."""
    config = (ROOT / "mkdocs.yml").read_text()
    assert {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} == set(
        re.findall(r"[\w/]+\.md", config)
    )
    (tmp_path / "mkdocs.yml").write_text(config)
    for name in ("docs", "semmae"):
        shutil.copytree(ROOT / name, tmp_path / name)  # a link leads out of the project's root, which is refused
    subprocess.run([Path(sys.executable).parent / "zensical", "build", "--strict"], cwd=tmp_path, check=True)
    assert "inter_part" in (tmp_path / "site/reference/masking/index.html").read_text()
