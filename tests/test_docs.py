"""The documentation is true: its commands run, its names exist, its links lead somewhere."""

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

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(sh|yaml|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

every_page = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def merged(section: Any, changes: Any) -> Any:
    """Return `section` with the values of `changes`, key by key. `sources` and an empty mapping replace a value."""
    if not isinstance(changes, dict) or not isinstance(section, dict) or not changes:
        return changes
    replaced = {key: value if key == "sources" else merged(section.get(key), value) for key, value in changes.items()}
    return section | replaced


def yaml_blocks(page: Path) -> list[dict[str, Any]]:
    """Return the changes of params.yaml that a page shows."""
    return [YAML(typ="safe").load(block) for language, block in BLOCK.findall(page.read_text()) if language == "yaml"]


def follow(page: Path, project: Project) -> str:
    """Run the commands and the Python of a page and make its changes of params.yaml, in order; return the output."""
    yaml, file, output = YAML(typ="safe"), project.folder / "params.yaml", []
    for language, block in BLOCK.findall(page.read_text()):
        if language == "yaml":
            yaml.dump(merged(yaml.load(file), yaml.load(block)), file)
        else:
            command = ["bash", "-ec", block] if language == "sh" else [sys.executable, "-c", block]
            output.append(project.run(*command, **AUTHOR))
    return "\n".join(output)


@pytest.fixture
def clone(tmp_path: Path) -> Project:
    """A clone at toy size: the demo draws 32-pixel creatures, only kNN scores them, and `data/raw/photos` has images.

    Its `.venv` is the Python of the tests.
    """
    project = create(tmp_path / "clone")
    text = (project.folder / "params.yaml").read_text()
    drawn = "toy:\n      sources:\n        drawn: {kind: creatures, train: 64, val: 32, size: 32, seed: 0}\n"
    text = re.sub(r"toy:\n      sources:\n(        .*\n)+", drawn, text, count=1)
    (project.folder / "params.yaml").write_text(re.sub(r"\btoy\b", "main", text))
    for stage in ("part_scores", "linear", "attentive", "finetune", "segment"):
        project.set(f"evaluations.{stage}", {})  # each would cost seconds per run of the pipeline
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
        os.utime(project.folder / name, (0, 0))  # older than .installed, so that make installs nothing
    project.run("git", "add", ".", **AUTHOR)
    project.run("git", "commit", "--quiet", "--message", "clone", **AUTHOR)
    return project


@pytest.mark.heavy
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_commands_of_a_page_run(page: str, clone: Project):
    output = follow(ROOT / page, clone)
    assert f"report: {clone.folder}/results/report/index.html" in output
    if page == "docs/tutorial.md":
        outdated = re.findall(r"^(\S+):\n\tchanged ", output, re.MULTILINE)
        assert outdated == ["pretrain"]  # after the change of the curriculum


@pytest.mark.heavy
def test_the_commands_for_several_gpus_run(clone: Project):
    """DVC accepts the output of torchrun as the stage's own and runs the stages after it."""
    output = follow(ROOT / "docs/howto/gpus.md", clone)
    assert "Running stage 'pretrain'" not in output
    assert "Running stage 'report'" in output
    assert "Data and pipelines are up to date." in clone.dvc("repro")


def test_every_fault_has_tests_that_exist():
    page = (ROOT / "docs/faults.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| .* \| (.*) \|$", page, re.MULTILINE))
    assert list(map(int, rows)) == [*range(1, len(rows) + 1)]
    assert all("::" in tests for tests in rows.values())
    for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", page):
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {name}"


@pytest.mark.parametrize("page", ["docs/faults.md", "docs/architecture.md"])
def test_files_named_on_a_page_exist(page: str):
    names = re.findall(r"`([\w/]+\.(?:py|yaml|md)|\w+/[\w/]+/)(?:::\w+)?`", (ROOT / page).read_text())
    assert len(names) > 20
    for name in names:
        assert (ROOT / name).exists() or (ROOT / "tests" / name).exists() or (ROOT / "semmae" / name).exists(), name


def commands(page: Path) -> list[list[str]]:
    """Return the words of every `semmae` command on a page, in blocks of any kind and in the text."""
    lines = re.findall(r"(?:^ *|`|&& )(semmae [^`\n]+)", page.read_text(), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@every_page
def test_commands_and_options_on_a_page_exist(page: Path):
    for _, *words in commands(page):
        command: Any = typer.main.get_command(app)
        while words and (subcommand := getattr(command, "commands", {}).get(words[0])):
            command, words = subcommand, words[1:]
        assert not hasattr(command, "commands") or not words, f"semmae has no command {words}"
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, words


def test_the_reference_lists_every_command_and_every_option_of_compare():
    page = ROOT / "docs/reference/commands.md"
    root: Any = typer.main.get_command(app)
    groups = {name: getattr(command, "commands", {}) for name, command in root.commands.items()}
    known = {(name,) for name, group in groups.items() if not group}
    known |= {(name, subcommand) for name, group in groups.items() for subcommand in group}
    listed = [words for _, *words in commands(page)]
    assert {words for words in known if not any(tuple(line[: len(words)]) == words for line in listed)} == set()
    options = {option for parameter in root.commands["compare"].params for option in parameter.opts}
    assert {option for option in options if option.startswith("--")} == set(
        re.findall(r"^\| `(--\w+)`", page.read_text(), re.MULTILINE)
    )


@every_page
def test_stages_and_parameters_on_a_page_exist(page: Path):
    text = page.read_text()
    files = [read_yaml(file) for file in (ROOT / "params.yaml", *sorted((ROOT / "recipes").glob("*.yaml")))]
    named = re.findall(r"python -m stages\.(\w+)|-m stages\.(\w+)|dvc repro (?:-f )?(\w+)@", text)
    assert {name for names in named for name in names if name} <= set(STAGES)
    for key in re.findall(r"-S '?([\w.]+)=", text):
        assert any(has_key(file, key.split(".")) for file in files), (
            f"-S {key}: params.yaml and recipes have no such key"
        )


def has_key(section: Any, names: list[str]) -> bool:
    """Whether the nested key exists; every key exists below a value that is null."""
    if not names or section is None:
        return True
    return names[0] in section and has_key(section[names[0]], names[1:])


@every_page
def test_blocks_of_parameters_fit_their_sections(page: Path, tmp_path: Path):
    known = read_yaml(ROOT / "params.yaml")
    for changes in yaml_blocks(page):
        YAML().dump(merged(known, changes), tmp_path / "params.yaml")
        shared = {"evaluations": changes.get("evaluations", {}), "mae_recipe": ["teacher", "pretrain"]}
        for section in changes:
            for stage in shared.get(section, [section]):
                load_config(dataclass_of(stage), stage, file=tmp_path / "params.yaml")


def test_the_sources_of_the_page_are_read(inside: Project, monkeypatch: pytest.MonkeyPatch):
    """Tars, a folder of Parquet files and torchvision, in the folders that the page names."""
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
    for changes in yaml_blocks(ROOT / "docs/howto/sources.md"):
        YAML().dump(merged(read_yaml(Path("params.yaml")), changes), Path("params.yaml"))
    sizes = {"web": {"train": 58, "val": 6}, "food": {"train": 8, "val": 8}, "noise": {"train": 40, "val": 10}}
    for name, size in sizes.items():
        call("shards", name)
        assert read_json(Path(f"data/shards/{name}/shards.json"))["samples"] == size


def test_the_site_is_complete(tmp_path: Path):
    """Every page is in the navigation, every link leads somewhere, and every module of the reference exists."""
    config = (ROOT / "mkdocs.yml").read_text()
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages == set(re.findall(r"[\w/]+\.md", config))
    (tmp_path / "mkdocs.yml").write_text(config)
    for name in ("docs", "semmae"):
        shutil.copytree(ROOT / name, tmp_path / name)  # zensical refuses links that leave the project
    subprocess.run([Path(sys.executable).parent / "zensical", "build", "--strict"], cwd=tmp_path, check=True)
    assert "curriculum_weight" in (tmp_path / "site/reference/masking/index.html").read_text()
