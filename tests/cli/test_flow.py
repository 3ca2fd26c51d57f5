"""The Prefect flow: it follows DVC's graph, runs independent stages in parallel, names failures, leaves no process."""

import re
import signal
import sys
import time
from pathlib import Path

import pytest

from semmae.core.config import read_yaml
from tests.imports import ROOT
from tests.project import TIMEOUT, Project, create_empty

# The command of a stage. MEET only succeeds if another stage runs it at the same time.
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
    project = create_empty(tmp_path)
    (project.folder / "source.txt").write_text("a\n")
    (project.folder / "dvc.yaml").write_text(GRAPH)
    return project


@pytest.fixture(scope="module", autouse=True)
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One database for the flows of this file: creating one takes longer than a flow."""
    HOME["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))


HOME = {"PYTHONPATH": str(ROOT)}
FLOW = (sys.executable, "-m", "semmae", "flow")


def flow(project: Project, *, expect: int = 0) -> str:
    return project.run(*FLOW, expect=expect, **HOME)


def results(output: str) -> dict[str, str]:
    """The result of each stage in the table at the end."""
    return dict(re.findall(r"^  (\S+) +(ran|cached|failed|timed out|skipped) +[\d.]+ *$", output, re.MULTILINE))


def test_a_flow_of_one_stage_runs(small: Project):
    (small.folder / "dvc.yaml").write_text(ONE)
    assert results(flow(small)) == {"only": "ran"}


@pytest.mark.heavy
def test_stages_run_after_their_dependencies_in_parallel_and_only_once(small: Project):
    text = GRAPH.replace("cp first.txt left.txt", MEET.format(me="l", other="r") + " && cp first.txt left.txt")
    text = text.replace("cp first.txt right.txt", MEET.format(me="r", other="l") + " && cp first.txt right.txt")
    (small.folder / "dvc.yaml").write_text(text)
    output = flow(small)
    assert results(output) == dict.fromkeys(("first", "left", "right", "after_right", "last"), "ran")
    assert (small.folder / "last.txt").read_text() == "1\n1\n"
    at = {stage: output.index(f"Running stage '{stage}'") for stage in results(output)}
    assert at["first"] < min(at["left"], at["right"])
    assert max(at["left"], at["after_right"]) < at["last"]
    (small.folder / "source.txt").write_text("b\n")  # first runs again, but its output stays the same
    assert results(flow(small)) == {**dict.fromkeys(("left", "right", "after_right", "last"), "cached"), "first": "ran"}


@pytest.mark.heavy
def test_a_failed_stage_fails_the_flow_and_is_named(small: Project):
    (small.folder / "dvc.yaml").write_text(GRAPH.replace("cp first.txt right.txt", "echo no right here; exit 3"))
    output = flow(small, expect=1)
    skipped = dict.fromkeys(("after_right", "last"), "skipped")
    assert results(output) == {"first": "ran", "left": "ran", "right": "failed", **skipped}
    assert "no right here" in output
    assert re.search(r"^error: failed: right; the log of each stage above", output, re.MULTILINE)
    assert "Traceback" not in output
    assert not (small.folder / "after_right.txt").exists()


def await_end(pids: list[str]) -> None:
    """Wait until no process is left. A killed process disappears when its parent, or init, has waited for it."""
    end = time.monotonic() + 60
    while alive := [pid for pid in pids if Path("/proc", pid).exists()]:
        assert time.monotonic() < end, f"{alive} are still running"
        time.sleep(0.1)


STUBBORN = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
with open("pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(7200)
"""
SHORT_GRACE = """
from semmae.cli import flow, main

flow.configure_prefect()
from semmae.cli import prefect_flow

prefect_flow.GRACE_PERIOD = 1
main.main()
"""


@pytest.mark.heavy
def test_a_stage_over_the_time_limit_is_killed_with_its_child_processes(small: Project):
    """Row 22 of the fault table. The stage ignores signals and has forked."""
    (small.folder / "dvc.yaml").write_text(ONE.replace("touch only.txt", "python stubborn.py"))
    (small.folder / "stubborn.py").write_text(STUBBORN)
    output = small.run("python", "-c", SHORT_GRACE, "flow", "--timeout", "0.5", expect=1, **HOME)
    assert results(output) == {"only": "timed out"}
    assert "error: stopped after 0.5 minutes: only; run the same command to resume training" in output
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
    output, _ = process.communicate(timeout=TIMEOUT)  # returns when neither a stage nor the server holds the pipe
    assert process.returncode == 128 + number, output
    await_end([(small.folder / "pid").read_text()])
    assert "Running stage 'after_right'" not in output


@pytest.mark.heavy
def test_the_toy_pipeline_runs_as_a_flow(toy: Project):
    toy.set("knn.protocol.k", 4)
    outcomes = results(flow(toy))
    assert {stage for stage, result in outcomes.items() if result == "ran"} == {"knn@toy", "report"}
    assert {stage.partition("@")[0] for stage, result in outcomes.items() if result == "cached"} >= {
        "teacher",
        "pretrain",
    }


def test_an_error_in_the_graph_is_reported_at_once(small: Project):
    (small.folder / "dvc.yaml").write_text(GRAPH.replace("outs: [last.txt]", "outs: [first.txt]"))
    output = flow(small, expect=1)
    assert output.startswith("error: output 'first.txt' is specified in:")
    assert output.endswith("; run dvc dag for details\n")


def test_a_folder_without_dvc_is_reported_in_one_sentence(small: Project):
    (small.folder / ".dvc").rename(small.root / "gone")
    output = flow(small, expect=1)
    assert "not inside of a DVC repository" in output
    assert output.endswith("; run dvc dag for details\n")


def test_a_file_that_dvc_left_truncated_is_reported_with_its_remedy(small: Project):
    (small.folder / "dvc.lock").write_text("")
    assert flow(small, expect=1).endswith("; see semmae doctor, then run: rm dvc.lock\n")


def test_no_stage_is_named_in_the_flow():
    text = "".join((ROOT / f"semmae/cli/{name}.py").read_text() for name in ("flow", "prefect_flow"))
    for stage in read_yaml(ROOT / "dvc.yaml")["stages"]:
        assert not re.search(rf"[\"']{stage}(@|[\"'])", text), stage
