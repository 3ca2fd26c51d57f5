"""What the documentation tells people to type works: its commands run, in their order, on the toy project."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from ruamel.yaml import YAML

from semmae.cli.main import app
from semmae.core.atomic_files import read_json
from semmae.core.config import load_config, read_yaml
from tests import warm
from tests.project import AUTHOR, ROOT, Project, call, create
from tests.test_pipeline import STAGES, dataclass_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/howto").glob("*.md"))]

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
        project.set(f"evaluations.{stage}", {})
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


@pytest.mark.heavy
def test_the_commands_for_several_gpus_run(clone: Project):
    """DVC takes what torchrun has made for the stage's own, and goes on with what comes after."""
    said = follow(ROOT / "docs/howto/gpus.md", clone)
    assert "Running stage 'pretrain'" not in said
    assert "Running stage 'report'" in said
    assert "Data and pipelines are up to date." in clone.dvc("repro")


def said_to_type(page: Path) -> list[list[str]]:
    """Every command of semmae on a page, in blocks of any kind or in a line of text; without its comment."""
    lines = re.findall(r"(?:^ *|`|&& )(semmae [^`\n]+)", page.read_text(), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_commands_have_the_names_and_options_that_pages_give_them(page: Path):
    for _, *words in said_to_type(page):
        command: Any = typer.main.get_command(app)
        while words and (found := getattr(command, "commands", {}).get(words[0])):
            command, words = found, words[1:]
        assert not hasattr(command, "commands") or not words, f"semmae has no command {words}"
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, words


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_stages_and_parameters_on_a_page_exist(page: Path):
    text, known = page.read_text(), read_yaml(ROOT / "params.yaml")
    named = re.findall(r"python -m stages\.(\w+)|-m stages\.(\w+)|dvc repro (?:-f )?(\w+)@", text)
    assert {name for names in named for name in names if name} <= set(STAGES)
    for key in re.findall(r"-S '?([\w.]+)=", text):
        section = known
        for name in key.split("."):
            assert section is None or name in section or "datasets" in key, f"-S {key}: params.yaml has no {name}"
            section = (section or {}).get(name)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_blocks_of_parameters_fit_their_sections(page: Path, tmp_path: Path):
    known = read_yaml(ROOT / "params.yaml")
    for language, block in BLOCK.findall(page.read_text()):
        if language == "yaml":
            YAML().dump(merged(known, YAML(typ="safe").load(block)), tmp_path / "params.yaml")
            for section in YAML(typ="safe").load(block):
                load_config(dataclass_of(section), section, file=tmp_path / "params.yaml")


def test_the_sources_of_the_page_are_read(inside: Project, monkeypatch: pytest.MonkeyPatch):
    """From tars, a folder of Parquet, and torchvision, which lie where the page says."""
    datasets = pytest.importorskip("datasets", reason="sources of kind hf need the datasets library")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", inside.root / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    shutil.copytree("data/shards/toy", "data/raw/web", ignore=shutil.ignore_patterns("*.parquet", "*.json", "val-*"))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), np.uint8)
    rows = {"image": list(pixels), "label": [i % 2 for i in range(8)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["pie", "soup"])})
    for split in ("train", "validation"):
        file = Path(f"data/raw/food/{split}.parquet")
        file.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
    for language, block in BLOCK.findall((ROOT / "docs/howto/sources.md").read_text()):
        if language == "yaml":
            YAML().dump(merged(read_yaml(Path("params.yaml")), YAML(typ="safe").load(block)), Path("params.yaml"))
    sizes = {"web": {"train": 58, "val": 6}, "food": {"train": 8, "val": 8}, "noise": {"train": 40, "val": 10}}
    for name, size in sizes.items():
        call("shards", name)
        assert read_json(Path(f"data/shards/{name}/shards.json"))["samples"] == size


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
    assert "curriculum_weight" in (tmp_path / "site/reference/masking/index.html").read_text()
