"""An evaluation that is killed at a step drawn by chance goes on and says what an undisturbed one says: real processes
and signals.
"""

import signal

import pytest

from tests.killed import SIGNALED, SIGNALED_AFTER, answers, drawn, epochs, forget
from tests.project import Project

KILL, DEAD = str(int(signal.SIGKILL)), -signal.SIGKILL


def killed(project: Project, step: int, stage: str) -> None:
    """Run the stage, which kills itself at that step of its trainings."""
    project.run("python", "-c", SIGNALED, str(step), KILL, stage, "toy", expect=DEAD)


def test_a_killed_attentive_probe_goes_on_and_says_the_same(finished: Project, toy: Project):
    forget(toy, "attentive")
    killed(toy, drawn("attentive", 4, 6), "attentive")  # of 6: 48 of 64 pictures, 16 at a time, twice
    assert answers(toy, "attentive") == {}
    assert epochs(toy.stage("attentive", "toy"))[0] == 2
    assert answers(toy, "attentive") == answers(finished, "attentive")


@pytest.mark.parametrize(
    ("what", "last", "features"),
    [
        ("semmae.evaluation.mapped_rows:Rows.append", 1, {"train": 32}),  # the first of two batches
        (
            "semmae.evaluation.linear_heads:Heads.step",
            drawn("linear heads", 1, 8),
            {"train": 64, "holdout": 16, "val": 32},
        ),
    ],
    ids=["features", "heads"],
)
def test_a_killed_linear_probe_keeps_the_features_that_it_has_and_says_the_same(
    finished: Project, toy: Project, what: str, last: int, features: dict[str, int]
):
    forget(toy, "linear")
    toy.run("python", "-c", SIGNALED_AFTER, what, str(last), KILL, "linear", "toy", expect=DEAD)
    assert answers(toy, "linear") == {}
    kept = {path.name: path.stat().st_size // (4 * 32) for path in toy.root.glob("state/runs/*/encoder/*")}
    assert kept == features
    toy.stage("linear", "toy")
    assert answers(toy, "linear") == answers(finished, "linear")
    assert not list(toy.root.glob("state/runs/*"))


def test_a_segmentation_killed_in_its_linear_heads_and_then_in_its_upernet_says_the_same(toy: Project):
    for key, value in {"linear.epochs": 3, "upernet.epochs": 3, "baselines": False}.items():
        toy.set(f"segment.protocol.{key}", value)
    toy.stage("segment", "toy")
    undisturbed = answers(toy, "segment")
    assert {path.split("/")[-1] for path in undisturbed} >= {"toy.json", "loss.tsv"}
    forget(toy, "segment")
    first = drawn("segment linear", 3, 6)  # of 6: 38 pictures, 16 at a time, three times
    killed(toy, first, "segment")
    begun = (first - 1) // 2  # epochs in the last checkpoint
    second = drawn("segment upernet", 4, 9)  # of 9: 48 pictures, 16 at a time, three times
    killed(toy, 6 - 2 * begun + second, "segment")
    assert answers(toy, "segment") == {}
    assert epochs(toy.stage("segment", "toy")) == [3, *range((second - 1) // 3 + 1, 4)]  # linear saves its last not
    assert answers(toy, "segment") == undisturbed
    assert not list(toy.root.glob("state/runs/*"))
