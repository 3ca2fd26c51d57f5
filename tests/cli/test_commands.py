"""The commands show, index and state, `--help`, and the messages for a user's mistakes."""

import os
import re
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


def test_help_lists_every_command():
    text = semmae("--help")
    commands = (
        "show",
        "index",
        "scores",
        "export",
        "import",
        "encode",
        "recipe",
        "compare",
        "state",
        "flow",
        "doctor",
        "promote",
        "part-benchmark",
    )
    for command in commands:
        assert re.search(rf"^. {command} ", text, re.MULTILINE), command


def test_help_loads_no_heavy_package(toy: Project):
    program = "import sys; from semmae.cli import main; print({'torch', 'dvc', 'prefect', 'pandas'} & set(sys.modules))"
    assert toy.run(sys.executable, "-c", program) == "set()\n"


@pytest.mark.parametrize("what", ["parts", "regions", "views", "heat", "masks", "reconstructions"])
def test_show_draws_a_grid(inside: Project, what: str):
    output = semmae("show", what, "--dataset", "toy", "--out", "grid.png", "--count", "3")
    image = Image.open("grid.png")
    assert f"grid.png: {what} of toy, {image.width} x {image.height} pixels" in output
    assert ("Position on the object explains" in output) == (what == "parts")
    assert len(set(image.convert("L").get_flattened_data())) > 16  # the picture is not empty


def test_index_counts_shards_labels_and_rejects(inside: Project):
    (inside.folder / "data/raw/pictures/images/train/cat/broken.png").write_bytes(b"no image")
    inside.stage("shards", "toy")
    output = semmae("index", "toy")
    assert "masks: parts" in output
    assert "1 of 97 inputs were rejected" in output
    assert "cat/broken.png" in output


def test_index_check_prints_the_command_to_run_if_a_source_has_changed(inside: Project):
    assert "no source has changed" in semmae("index", "toy", "--check")
    inside.picture("train", 64)
    output = semmae("index", "toy", "--check", expect=1)
    assert "sources changed: pictures; run: dvc repro -f shards@toy" in output


def test_state_lists_runs_and_part_maps_and_deletes_unused_ones(inside: Project):
    run = state_root() / "runs/0123456789abcdef"
    write_json(run / "identity.json", {"stage": "pretrain"})
    write_json(run / "step-000000007/state.pt", {})
    output = semmae("state", "ls")
    assert str(state_root()) in output
    assert ["pretrain", "0123456789ab", "7"] in [line.split()[:3] for line in output.splitlines()]
    (maps,) = part_store.list_entries()
    assert f"{maps.digest[:12]}" in output

    semmae("state", "gc", "--unused-days", "1")
    assert run.exists()
    assert part_store.list_entries() == [maps]
    for path in [run, *run.rglob("*")]:
        os.utime(path, (time.time() - 2 * 86_400,) * 2)
    with exclusive_lock("run", run.name):
        output = semmae("state", "gc", "--unused-days", "1")
        assert "0 unfinished runs deleted" in output
        assert f"part maps kept, because running processes may need them: {os.getpid()}" in output
    assert "1 unfinished runs deleted" in semmae("state", "gc", "--unused-days", "1")
    assert not run.exists()
    semmae("state", "gc", "--unused-days", "0")
    assert part_store.list_entries() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("index", "nothing"), "error: data/shards/nothing is not a dataset; expected one of: toy"),
        (("show", "parts", "--dataset", "nothing", "--out", "x.png"), "is not a dataset; expected one of: toy"),
        (("show", "parts", "--dataset", "toy", "--split", "test", "--out", "x.png"), "has no split 'test'"),
        (("show", "parts", "--dataset", "toy", "--colors", "gray", "--out", "x.png"), "'gray'"),
    ],
)
def test_a_mistake_prints_one_sentence(finished: Project, arguments: tuple[str, ...], message: str):
    output = finished.run("python", "-m", "semmae", *arguments, expect=1)
    assert message in output
    assert output.startswith("error: ")
    assert len(output.splitlines()) == 1
    assert not Path(finished.folder / "x.png").exists()
