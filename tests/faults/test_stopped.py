"""A stopped stage saves a checkpoint, prints a message and exits as stopped, under DVC too. Real signals."""

import importlib
import json
import os
import signal
import sys
from typing import Any
from unittest import mock

import pytest
from ruamel.yaml import YAML

from tests.killed import PER_EPOCH, SIGNALED, STEPS, epochs, random_step, weights
from tests.project import Project, call


def test_dvc_does_not_take_a_stopped_stage_for_a_finished_one(toy: Project):
    (toy.folder / "dvc.yaml").write_text(
        (toy.folder / "dvc.yaml").read_text().replace("cmd: python -m stages.pretrain", "cmd: python stopped.py 6 15")
    )
    (toy.folder / "stopped.py").write_text(SIGNALED)
    output = toy.dvc("repro", "--single-item", "pretrain", expect=255)
    assert "exited with 143" in output
    assert "pretrain" in json.loads(toy.dvc("status", "--json"))


# Like SIGNALED, but the signal goes to the process group, with DVC. The program writes its exit status to a file.
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
    entries = YAML(typ="safe").load(lock)
    del entries["stages"]["pretrain"]
    YAML().dump(entries, lock)
    step = random_step("group", PER_EPOCH + 1, STEPS - 1)
    changed_graph = graph.replace("cmd: python -m stages.pretrain", f"cmd: {sys.executable} stopped.py {step} 15")
    (toy.folder / "dvc.yaml").write_text(changed_graph)
    (toy.folder / "stopped.py").write_text(GROUP)
    output = toy.dvc("repro", "--single-item", "pretrain", expect=-signal.SIGTERM)
    assert f"pretrain: stopped by SIGTERM after step {step} of {STEPS}" in output
    assert (toy.folder / "status").read_text() == "143"
    assert "pretrain" not in YAML(typ="safe").load(lock)["stages"]
    (toy.folder / "dvc.yaml").write_text(graph)
    output = toy.dvc("repro", "--single-item", "--no-run-cache", "pretrain")
    assert epochs(output)[0] == step // PER_EPOCH + 1
    assert weights(toy) == weights(finished)


@pytest.mark.parametrize(
    ("command", "work", "when"),
    [
        ("parts", "semmae.models.teacher.Teacher.encode", "before its first step"),
        ("parts", "semmae.parts.part_learner.PartLearner.divide", "during training"),
        ("attentive toy", "semmae.training.attentive_loop.AttentiveProbe.predict_all", "after its last step"),
        # k-means has no steps and cannot be stopped; the run exits after it.
        ("parts", "semmae.parts.kmeans_parts.KMeansParts.fit", "when its work was done"),
    ],
)
def test_long_work_between_steps_is_stopped_too(inside: Project, capsys, command: str, work: str, when: str):
    inside.set("parts.seed", 5)
    inside.set("parts.method", "kmeans" if "KMeans" in work else "learned")
    inside.set("parts.learned.keys", "content")  # keys by position are not trained
    inside.set("attentive.protocol.seed", 5)
    before = stage_files(inside, command.split()[0])
    module, name, method = work.rsplit(".", 2)
    owner = getattr(importlib.import_module(module), name)
    original = getattr(owner, method)

    def signaled(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **keywords)

    with mock.patch.object(owner, method, signaled), pytest.raises(SystemExit) as caught:
        call(*command.split())
    assert caught.value.code == 143
    assert f"{command.split()[0]}: stopped by SIGTERM {when}" in capsys.readouterr().err
    assert (stage_files(inside, command.split()[0]) == before) == (when != "when its work was done")


def stage_files(project: Project, stage: str) -> dict[str, bytes]:
    """Return the content of every file that a stage has written, by path."""
    folders = [project.folder / kept / stage for kept in ("data", "results")]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(project.folder)): path.read_bytes() for path in files if path.name[0] != "."}


@pytest.mark.parametrize(
    ("command", "step"),
    [("teacher", 8), ("pretrain", STEPS), ("attentive toy", 6), ("finetune toy", 8), ("segment toy", 2)],
)
def test_a_training_stopped_at_its_last_step_has_not_finished_and_is_resumed(
    finished: Project, toy: Project, command: str, step: int
):
    stage = command.split()[0]
    for path in stage_files(toy, stage):
        (toy.folder / path).unlink()
    output = toy.run("python", "-c", SIGNALED, str(step), str(int(signal.SIGTERM)), *command.split(), expect=143)
    assert f"stopped by SIGTERM after step {step} of {step}" in output
    assert stage_files(toy, stage) == {}
    toy.stage(*command.split())
    assert stage_files(toy, stage) == stage_files(finished, stage)
