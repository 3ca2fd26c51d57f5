"""An evaluation killed at a random step is resumed and gives the same results. Real processes and signals."""

import signal

import pytest

from tests.killed import SIGNALED, SIGNALED_AFTER, delete_results, epochs, random_step, results
from tests.project import Project

KILL, KILLED = str(int(signal.SIGKILL)), -signal.SIGKILL


def run_killed(project: Project, step: int, stage: str) -> None:
    """Run a stage that kills itself at a step of its trainings."""
    project.run("python", "-c", SIGNALED, str(step), KILL, stage, "toy", expect=KILLED)


def test_a_killed_attentive_probe_is_resumed_with_the_same_results(finished: Project, toy: Project):
    delete_results(toy, "attentive")
    run_killed(
        toy, random_step("attentive", 4, 6), "attentive"
    )  # of 6 steps: 48 of 64 images, batches of 16, two epochs
    assert results(toy, "attentive") == {}
    assert epochs(toy.stage("attentive", "toy"))[0] == 2
    assert results(toy, "attentive") == results(finished, "attentive")


@pytest.mark.parametrize(
    ("what", "last", "features"),
    [
        ("semmae.evaluation.mapped_rows:MappedRows.append", 1, {"train": 32}),  # the first of two batches
        (
            "semmae.evaluation.linear_heads:LinearHeads.step",
            random_step("linear heads", 1, 8),
            {"train": 64, "holdout": 16, "val": 32},
        ),
    ],
    ids=["features", "heads"],
)
def test_a_killed_linear_probe_keeps_its_features_and_gives_the_same_results(
    finished: Project, toy: Project, what: str, last: int, features: dict[str, int]
):
    delete_results(toy, "linear")
    toy.run("python", "-c", SIGNALED_AFTER, what, str(last), KILL, "linear", "toy", expect=KILLED)
    assert results(toy, "linear") == {}
    kept = {path.name: path.stat().st_size // (4 * 32) for path in toy.root.glob("state/runs/*/encoder/*")}
    assert kept == features
    toy.stage("linear", "toy")
    assert results(toy, "linear") == results(finished, "linear")
    assert not list(toy.root.glob("state/runs/*"))


def test_a_segmentation_killed_in_each_of_its_heads_gives_the_same_results(toy: Project):
    for key, value in {"linear.epochs": 3, "upernet.epochs": 3, "baselines": False}.items():
        toy.set(f"segment.protocol.{key}", value)
    toy.stage("segment", "toy")
    undisturbed = results(toy, "segment")
    assert {path.split("/")[-1] for path in undisturbed} >= {"toy.json", "loss.tsv"}
    delete_results(toy, "segment")
    first = random_step("segment linear", 3, 6)  # of 6 steps: 38 images, batches of 16, three epochs
    run_killed(toy, first, "segment")
    epochs_done = (first - 1) // 2  # epochs in the last checkpoint
    second = random_step("segment upernet", 4, 9)  # of 9 steps: 48 images, batches of 16, three epochs
    run_killed(toy, 6 - 2 * epochs_done + second, "segment")
    assert results(toy, "segment") == {}
    assert epochs(toy.stage("segment", "toy")) == [
        3,
        *range((second - 1) // 3 + 1, 4),
    ]  # the last epoch of linear is not saved
    assert results(toy, "segment") == undisturbed
    assert not list(toy.root.glob("state/runs/*"))
