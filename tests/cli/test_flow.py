"""The Prefect flow: DVC's graph and nothing else, siblings in parallel, failures by name, nothing left behind."""

import re
import signal
import sys
import time
from pathlib import Path

import pytest

from semmae.core.config import read_yaml
from tests.imports import ROOT
from tests.project import PATIENCE, Project, bare

# The work of a stage is a line of shell. MEET is done when a sibling does the same at the same time.
MEET = "touch {me} && for i in $(seq 600); do test -e {other} && break; sleep 0.1; done && test -e {other}"
GRAPH = """
stages:
  first: {cmd: "echo 1 > first.txt", deps: [source.txt], outs: [first.txt]}
  left: {cmd: "cp first.txt left.txt", deps: [first.txt], outs: [left.txt]}
  right: {cmd: "cp first.txt right.txt", deps: [first.txt], outs: [right.txt]}
  after_right: {cmd: "cp right.txt after_right.txt", deps: [right.txt], outs: [after_right.txt]}
  last: {cmd: "cat left.txt after_right.txt > last.txt", deps: [left.txt, after_right.txt], outs: [last.txt]}
"""
ONE = "stages:\n  only: {cmd: touch only.txt, outs: [only.txt]}\n"


@pytest.fixture
def small(tmp_path: Path) -> Project:
    """A project with a graph of shell commands."""
    project = bare(tmp_path)
    (project.folder / "source.txt").write_text("a\n")
    (project.folder / "dvc.yaml").write_text(GRAPH)
    return project


@pytest.fixture(scope="module", autouse=True)
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One database for the flows of this file: to make one takes longer than a flow."""
    HOME["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))


HOME = {"PYTHONPATH": str(ROOT)}
FLOW = (sys.executable, "-m", "semmae", "flow")


def flow(project: Project, *, expect: int = 0) -> str:
    return project.run(*FLOW, expect=expect, **HOME)


def results(said: str) -> dict[str, str]:
    """What the table at the end says of each stage."""
    return dict(re.findall(r"^  (\S+) +(ran|cached|failed|timed out|skipped) +[\d.]+ *$", said, re.MULTILINE))


def test_the_installation_can_run_a_flow_of_one_task(small: Project):
    (small.folder / "dvc.yaml").write_text(ONE)
    assert results(flow(small)) == {"only": "ran"}


@pytest.mark.heavy
def test_stages_run_after_those_they_depend_on_and_beside_their_siblings_and_a_second_time_not_at_all(small: Project):
    text = GRAPH.replace("cp first.txt left.txt", MEET.format(me="l", other="r") + " && cp first.txt left.txt")
    text = text.replace("cp first.txt right.txt", MEET.format(me="r", other="l") + " && cp first.txt right.txt")
    (small.folder / "dvc.yaml").write_text(text)
    said = flow(small)
    assert results(said) == dict.fromkeys(("first", "left", "right", "after_right", "last"), "ran")
    assert (small.folder / "last.txt").read_text() == "1\n1\n"
    at = {stage: said.index(f"Running stage '{stage}'") for stage in results(said)}
    assert at["first"] < min(at["left"], at["right"])
    assert max(at["left"], at["after_right"]) < at["last"]
    (small.folder / "source.txt").write_text("b\n")  # first runs again, but makes what it made before
    assert results(flow(small)) == {**dict.fromkeys(("left", "right", "after_right", "last"), "cached"), "first": "ran"}


@pytest.mark.heavy
def test_a_failing_stage_fails_the_flow_and_names_itself(small: Project):
    (small.folder / "dvc.yaml").write_text(GRAPH.replace("cp first.txt right.txt", "echo no right here; exit 3"))
    said = flow(small, expect=1)
    skipped = dict.fromkeys(("after_right", "last"), "skipped")
    assert results(said) == {"first": "ran", "left": "ran", "right": "failed", **skipped}
    assert "no right here" in said
    assert re.search(r"^error: failed: right; what is wrong stands above", said, re.MULTILINE)
    assert "Traceback" not in said
    assert not (small.folder / "after_right.txt").exists()


def await_end(pids: list[str]) -> None:
    """What is killed is gone only when its parent, or init for an orphan, has been told; what is not never is."""
    end = time.monotonic() + 60
    while alive := [pid for pid in pids if Path("/proc", pid).exists()]:
        assert time.monotonic() < end, f"{alive} live on"
        time.sleep(0.1)


DEAF = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
with open("pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(7200)
"""
HASTY = "from semmae.cli import flow, main; flow.GRACE = 1; main.main()"


@pytest.mark.heavy
def test_a_stage_that_takes_too_long_is_stopped_with_all_that_it_started(small: Project):
    """Row 22 of the faults: even one that heeds no signal and has forked."""
    (small.folder / "dvc.yaml").write_text(ONE.replace("touch only.txt", "python deaf.py"))
    (small.folder / "deaf.py").write_text(DEAF)
    said = small.run("python", "-c", HASTY, "flow", "--timeout", "0.5", expect=1, **HOME)
    assert results(said) == {"only": "timed out"}
    assert "error: stopped after 0.5 minutes: only; the same command goes on where training was" in said
    pids = (small.folder / "pids").read_text().split()
    assert len(pids) == 2
    await_end(pids)


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_stopped_flow_interrupts_its_stages_and_leaves_no_process(small: Project, number: signal.Signals):
    sleeper = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(7200)"
    (small.folder / "dvc.yaml").write_text(GRAPH.replace("cp first.txt right.txt", "python sleeper.py"))
    (small.folder / "sleeper.py").write_text(sleeper)
    process = small.start(*FLOW, **HOME)
    while not (small.folder / "pid").exists() or not (small.folder / "pid").read_text():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    said, _ = process.communicate(timeout=PATIENCE)  # ends only when nobody holds the pipe: neither stage nor server
    assert process.returncode == 128 + number, said
    await_end([(small.folder / "pid").read_text()])
    assert "Running stage 'after_right'" not in said


@pytest.mark.heavy
def test_the_toy_pipeline_runs_as_a_flow(toy: Project):
    toy.set("knn.protocol.k", 4)
    found = results(flow(toy))
    assert {stage for stage, result in found.items() if result == "ran"} == {"knn@toy", "report"}
    assert {stage.partition("@")[0] for stage, result in found.items() if result == "cached"} >= {"teacher", "pretrain"}


def test_what_is_wrong_with_the_graph_is_told_at_once(small: Project):
    (small.folder / "dvc.yaml").write_text(GRAPH.replace("outs: [last.txt]", "outs: [first.txt]"))
    said = flow(small, expect=1)
    assert said.startswith("error: output 'first.txt' is specified in:")
    assert said.endswith("; dvc dag says more\n")


def test_a_folder_without_dvc_is_answered_in_one_sentence(small: Project):
    (small.folder / ".dvc").rename(small.root / "gone")
    said = flow(small, expect=1)
    assert "not inside of a DVC repository" in said
    assert said.endswith("; dvc dag says more\n")


def test_a_file_that_dvc_was_killed_over_is_told_with_its_remedy(small: Project):
    (small.folder / "dvc.lock").write_text("")
    assert flow(small, expect=1).endswith("; semmae doctor says why: rm dvc.lock\n")


def test_no_stage_is_named_in_the_flow():
    text = (ROOT / "semmae/cli/flow.py").read_text()
    for stage in read_yaml(ROOT / "dvc.yaml")["stages"]:
        assert not re.search(rf"[\"']{stage}(@|[\"'])", text), stage
