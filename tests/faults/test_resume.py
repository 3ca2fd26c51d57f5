"""A killed or stopped training is resumed and ends with the same results. Real processes and signals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from semmae.core.digests import file_digest
from tests.killed import PER_EPOCH, SIGNALED, SIGNALED_AFTER, STEPS, epochs, history, random_step, weights
from tests.project import Project


def test_a_killed_run_is_adopted_after_a_harmless_edit_of_the_source(finished: Project, toy: Project):
    toy.run("python", "-c", SIGNALED, "11", str(int(signal.SIGKILL)), expect=-signal.SIGKILL)
    with open(toy.folder / "semmae/models/mae.py", "a") as source:
        source.write("# a harmless edit\n")
    (left,) = (toy.root / "state/runs").iterdir()
    before = json.loads((left / "identity.json").read_text())["source"]
    output = toy.run("python", "-m", "semmae", "state", "adopt", left.name[:12])
    assert "after step\n8, even if its source code differs" in output
    assert epochs(toy.stage("pretrain"))[0] == 3
    encoder = json.loads((toy.folder / "data/pretrain/encoder.json").read_text())
    assert encoder["adopted"] == [before]
    assert weights(toy) == weights(finished)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_killed_or_stopped_run_is_resumed_and_ends_with_the_same_bits(
    finished: Project, toy: Project, number: signal.Signals
):
    step = random_step(number.name, PER_EPOCH + 1, STEPS - 1)
    (toy.folder / "data/pretrain/encoder.safetensors").unlink()
    status = -number if number == signal.SIGKILL else 128 + number
    output = toy.run("python", "-c", SIGNALED, str(step), str(int(number)), expect=status)
    if number != signal.SIGKILL:
        assert f"pretrain: stopped by {number.name} after step {step} of {STEPS}" in output
        assert "run the same command again to resume from there" in output
    assert not (toy.folder / "data/pretrain/encoder.safetensors").exists()  # no partial output under its final name
    resumed_at = step if number != signal.SIGKILL else (step - 1) // PER_EPOCH * PER_EPOCH  # of the last checkpoint
    assert epochs(toy.stage("pretrain"))[0] == resumed_at // PER_EPOCH + 1
    assert weights(toy) == weights(finished)
    assert history(toy) == history(finished)


def test_a_run_killed_while_it_saves_is_resumed_from_the_previous_checkpoint(finished: Project, toy: Project):
    toy.run(
        "python", "-c", SIGNALED_AFTER, "torch:save", "2", str(int(signal.SIGKILL)), "pretrain", expect=-signal.SIGKILL
    )
    (left,) = (toy.root / "state/runs").iterdir()
    (whole,), (half,) = left.glob("step-*"), left.glob(".step-*.tmp")
    assert (whole.name, half.name.split(".")[1]) == ("step-000000004", "step-000000008")
    assert epochs(toy.stage("pretrain"))[0] == 2
    assert weights(toy) == weights(finished)


# `python -m stages.pretrain`, in which the loss of the given step is not finite.
DIVERGED = """
import runpy, sys
from semmae.runs import run
step, record, seen = int(sys.argv.pop(1)), run.Run.record, 0
def counted(self, **values):
    global seen
    seen += 1
    record(self, **values | {"loss": values["loss"] * (float("nan") if seen == step else 1)})
run.Run.record = counted
runpy.run_module("stages.pretrain", run_name="__main__", alter_sys=True)
"""


def test_a_loss_that_is_not_finite_ends_the_stage_and_keeps_the_last_checkpoint(finished: Project, toy: Project):
    output = toy.run("python", "-c", DIVERGED, "6", expect=1)
    assert re.search(r"error: pretrain: the loss is nan at step 5 on rank 0; its samples: \w+.*lower base_lr", output)
    assert weights(toy) == weights(finished)  # the previous output stays
    (toy.folder / "data/pretrain/encoder.safetensors").unlink()
    assert [path.name for path in toy.root.glob("state/runs/*/step-*")] == ["step-000000004"]
    assert epochs(toy.stage("pretrain"))[0] == 2
    assert weights(toy) == weights(finished)


@pytest.mark.parametrize("stage", ["teacher", "parts"])
def test_a_killed_teacher_or_part_learner_is_resumed_and_ends_with_the_same_bits(toy: Project, stage: str):
    model = f"data/{stage}/{stage}.safetensors"
    if stage == "parts":  # the paper's learner; the other one trains in seconds, without checkpoints
        toy.set("parts.method", "paper")
        toy.stage("parts")
    undisturbed = (file_digest(toy.folder / model), history(toy, stage))
    (toy.folder / model).unlink()
    step = random_step(stage, PER_EPOCH + 1, 2 * PER_EPOCH)
    toy.run("python", "-c", SIGNALED, str(step), str(int(signal.SIGKILL)), stage, expect=-signal.SIGKILL)
    assert epochs(toy.stage(stage))[0] == 2
    assert (file_digest(toy.folder / model), history(toy, stage)) == undisturbed


def test_a_killed_self_distillation_is_resumed_and_ends_with_the_same_bits(toy: Project):
    toy.set("teacher.source", "ibot")
    toy.set("teacher.ibot.epochs", 2)
    toy.stage("teacher")
    undisturbed = (file_digest(toy.folder / "data/teacher/teacher.safetensors"), history(toy, "teacher"))
    (toy.folder / "data/teacher/teacher.safetensors").unlink()
    step = random_step("ibot", PER_EPOCH + 1, 2 * PER_EPOCH)
    toy.run("python", "-c", SIGNALED, str(step), str(int(signal.SIGKILL)), "teacher", expect=-signal.SIGKILL)
    assert epochs(toy.stage("teacher"))[0] == 2
    assert (file_digest(toy.folder / "data/teacher/teacher.safetensors"), history(toy, "teacher")) == undisturbed


def test_a_second_writer_is_refused_and_the_first_is_named(toy: Project):
    first = toy.start(sys.executable, "-c", SIGNALED, "3", str(int(signal.SIGSTOP)))
    try:
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
        output = toy.stage("pretrain", expect=1)
        assert output.startswith(f"error: process {first.pid} is already writing")
        toy.set("pretrain.seed", 1)  # another run, the same output
        output = toy.stage("pretrain", expect=1)
        assert output.startswith(f"error: process {first.pid} is already writing output {toy.folder}/data/pretrain")
    finally:
        first.kill()
        first.communicate()


def test_after_a_kill_of_dvc_its_stage_runs_on_and_a_second_one_is_refused(toy: Project):
    toy.set("pretrain.recipe.epochs", 10_000)
    dvc = toy.start(sys.executable, "-m", "dvc", "repro", "--single-item", "pretrain", out=subprocess.DEVNULL)
    while not list(toy.root.glob("state/runs/*/step-*")):
        assert dvc.poll() is None
        time.sleep(0.1)
    dvc.kill()
    dvc.wait()
    output = toy.dvc("repro", "--single-item", "pretrain", expect=255)
    at_work = re.search(r"process (\d+) is already writing .*; wait for it or stop it", output)
    assert at_work, output
    os.kill(int(at_work[1]), signal.SIGTERM)
    while Path("/proc", at_work[1]).exists():
        time.sleep(0.1)
    assert not (toy.folder / "data/pretrain/encoder.safetensors").exists()  # the stage was stopped before its end


def test_a_run_leaves_no_checkpoints_when_it_has_finished(finished: Project):
    assert list(Path(finished.root / "state/runs").glob("*")) == []
