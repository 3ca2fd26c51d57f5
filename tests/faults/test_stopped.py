"""A stage that is stopped saves, says so and ends as stopped, whatever DVC or a shell above it does: real signals."""

import importlib
import json
import os
import signal
import sys
from typing import Any
from unittest import mock

import pytest
from ruamel.yaml import YAML

from tests.killed import PER_EPOCH, SIGNALED, STEPS, drawn, epochs, weights
from tests.project import Project, call


def test_dvc_does_not_take_a_stopped_stage_for_a_finished_one(toy: Project):
    (toy.folder / "dvc.yaml").write_text(
        (toy.folder / "dvc.yaml").read_text().replace("cmd: python -m stages.pretrain", "cmd: python stopped.py 6 15")
    )
    (toy.folder / "stopped.py").write_text(SIGNALED)
    said = toy.dvc("repro", "--single-item", "pretrain", expect=255)
    assert "exited with 143" in said
    assert "pretrain" in json.loads(toy.dvc("status", "--json"))


# As SIGNALED, but the signal goes to the whole process group, DVC included; the exit status is left in a file.
GROUP = f"""
from pathlib import Path
try:
    exec({SIGNALED.replace("os.getpid()", "0")!r})
except SystemExit as end:
    Path("status").write_text(str(end.code))
    raise
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_process_group_saves_and_is_not_in_the_lock_file(finished: Project, toy: Project, workers: int):
    toy.set("pretrain.compute.workers", workers)
    lock, graph = toy.folder / "dvc.lock", (toy.folder / "dvc.yaml").read_text()
    told = YAML(typ="safe").load(lock)
    del told["stages"]["pretrain"]
    YAML().dump(told, lock)
    step = drawn("group", PER_EPOCH + 1, STEPS - 1)
    shown = graph.replace("cmd: python -m stages.pretrain", f"cmd: {sys.executable} stopped.py {step} 15")
    (toy.folder / "dvc.yaml").write_text(shown)
    (toy.folder / "stopped.py").write_text(GROUP)
    said = toy.dvc("repro", "--single-item", "pretrain", expect=-signal.SIGTERM)
    assert f"pretrain: stopped by SIGTERM after step {step} of {STEPS}" in said
    assert (toy.folder / "status").read_text() == "143"
    assert "pretrain" not in YAML(typ="safe").load(lock)["stages"]
    (toy.folder / "dvc.yaml").write_text(graph)
    said = toy.dvc("repro", "--single-item", "--no-run-cache", "pretrain")
    assert epochs(said)[0] == step // PER_EPOCH + 1
    assert weights(toy) == weights(finished)


@pytest.mark.parametrize(
    ("command", "work", "where"),
    [
        ("parts", "semmae.models.teacher.Teacher.encode", "before its first step"),
        ("attentive toy", "stages.attentive.AttentiveProbe.scores", "after its last step"),
        (
            "parts",
            "semmae.parts.part_learner.KMeansParts.fit",
            "when its work was done",
        ),  # without a step, and not to be stopped in
    ],
)
def test_long_work_beside_the_steps_is_stopped_too(inside: Project, capsys, command: str, work: str, where: str):
    inside.set("parts.seed", 5)
    inside.set("parts.method", "kmeans" if "KMeans" in work else "learned")
    inside.set("attentive.protocol.seed", 5)
    before = made(inside, command.split()[0])
    module, name, method = work.rsplit(".", 2)
    owner = getattr(importlib.import_module(module), name)
    done = getattr(owner, method)

    def signaled(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return done(*arguments, **keywords)

    with mock.patch.object(owner, method, signaled), pytest.raises(SystemExit) as ended:
        call(*command.split())
    assert ended.value.code == 143
    assert f"{command.split()[0]}: stopped by SIGTERM {where}" in capsys.readouterr().err
    assert (made(inside, command.split()[0]) == before) == (where != "when its work was done")


def made(project: Project, stage: str) -> dict[str, bytes]:
    """Every file that a stage has written, by its path."""
    folders = [project.folder / kept / stage for kept in ("data", "results")]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(project.folder)): path.read_bytes() for path in files if path.name[0] != "."}


@pytest.mark.parametrize(
    ("command", "step"),
    [("teacher", 8), ("parts", 8), ("pretrain", STEPS), ("attentive toy", 6), ("finetune toy", 8), ("segment toy", 2)],
)
def test_even_at_its_last_step_a_training_that_is_stopped_has_not_finished_and_goes_on(
    finished: Project, toy: Project, command: str, step: int
):
    stage = command.split()[0]
    for path in made(toy, stage):
        (toy.folder / path).unlink()
    said = toy.run("python", "-c", SIGNALED, str(step), str(int(signal.SIGTERM)), *command.split(), expect=143)
    assert f"stopped by SIGTERM after step {step} of {step}" in said
    assert made(toy, stage) == {}
    toy.stage(*command.split())
    assert made(toy, stage) == made(finished, stage)
