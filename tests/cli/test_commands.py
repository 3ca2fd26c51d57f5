"""The `semmae` command: it shows, counts, keeps house; what is wrong is one sentence."""

import os
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from semmae.cli.main import app
from semmae.core.atomic_files import write_json
from semmae.core.locks import exclusive_lock
from semmae.core.paths import state_root
from semmae.parts import part_store
from tests.project import Project


def semmae(*arguments: str, expect: int = 0) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == expect, result.output
    return result.output


def test_help_lists_the_commands_in_a_line_each():
    said = semmae("--help")
    for command in ("show", "index", "export", "encode", "recipe", "state", "flow"):
        assert f" {command} " in said


def test_help_does_not_load_torch(toy: Project):
    program = "import sys; from semmae.cli import main; print({'torch', 'dvc', 'prefect', 'pandas'} & set(sys.modules))"
    assert toy.run(sys.executable, "-c", program) == "set()\n"


@pytest.mark.parametrize("what", ["parts", "heat", "masks", "reconstructions"])
def test_show_draws_a_grid(inside: Project, what: str):
    said = semmae("show", what, "--dataset", "toy", "--out", "grid.png", "--count", "3")
    image = Image.open("grid.png")
    assert f"grid.png: {what} of toy, {image.width} x {image.height} pixels" in said
    assert len(set(image.convert("L").get_flattened_data())) > 16  # something is drawn


def test_index_counts_shards_labels_and_rejects(inside: Project):
    (inside.folder / "data/raw/pictures/images/train/cat/broken.png").write_bytes(b"no image")
    inside.stage("shards", "toy")
    said = semmae("index", "toy")
    assert "masks: parts" in said
    assert "1 of 97 inputs were rejected" in said
    assert "cat/broken.png" in said


def test_index_check_tells_what_to_run_when_a_source_has_changed(inside: Project):
    assert "the sources are as they were" in semmae("index", "toy", "--check")
    inside.picture("train", 64)
    said = semmae("index", "toy", "--check", expect=1)
    assert "changed since then: pictures; run: dvc repro -f shards@toy" in said


def test_state_lists_and_prunes_what_nobody_uses(inside: Project):
    run = state_root() / "runs/0123456789abcdef"
    write_json(run / "identity.json", {"stage": "pretrain"})
    write_json(run / "step-000000007/state.pt", {})
    said = semmae("state", "ls")
    assert str(state_root()) in said
    assert ["pretrain", "0123456789ab", "7"] in [line.split()[:3] for line in said.splitlines()]
    (maps,) = part_store.list_entries()
    assert f"{maps.digest[:12]}" in said

    semmae("state", "gc", "--unused-days", "1")
    assert run.exists()
    assert part_store.list_entries() == [maps]
    for path in [run, *run.rglob("*")]:
        os.utime(path, (time.time() - 2 * 86_400,) * 2)
    with exclusive_lock("run", run.name):
        said = semmae("state", "gc", "--unused-days", "1")
        assert "0 unfinished runs deleted" in said
        assert f"part maps left alone: process {os.getpid()} is at work" in said
    assert "1 unfinished runs deleted" in semmae("state", "gc", "--unused-days", "1")
    assert not run.exists()
    semmae("state", "gc", "--unused-days", "0")
    assert part_store.list_entries() == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("index", "nothing"), "error: data/shards/nothing"),
        (("show", "parts", "--dataset", "nothing", "--out", "x.png"), "error: data/shards/nothing is no dataset"),
        (("show", "parts", "--dataset", "toy", "--split", "test", "--out", "x.png"), "has no split 'test'"),
        (("show", "parts", "--dataset", "toy", "--colors", "gray", "--out", "x.png"), "'gray'"),
    ],
)
def test_a_mistake_is_one_sentence(finished: Project, arguments: tuple[str, ...], sentence: str):
    said = finished.run("python", "-m", "semmae", *arguments, expect=1)
    assert sentence in said
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert not Path(finished.folder / "x.png").exists()
