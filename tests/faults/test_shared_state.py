"""Processes that share a state root write the same files as one process, also if one of them is killed. Real processes
and signals.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.killed import SIGNALED_AFTER, delete_results, results
from tests.project import TIMEOUT, Project

# Run part_maps. Before it writes the part maps of a shard, the process waits until the other one is there too.
TOGETHER = """
import os, runpy, sys, time
from pathlib import Path
from semmae.parts import part_maps
me, write, seen = sys.argv.pop(1), part_maps.write, 0
def write_together(path, **content):
    global seen
    seen += 1
    meeting = Path(os.environ["MEETING"])
    (meeting / f"{seen}-{me}").touch()
    for _ in range(60_000):
        if len(list(meeting.glob(f"{seen}-*"))) == 2:
            return write(path, **content)
        time.sleep(0.01)
    sys.exit("the other process has not come")
part_maps.write = write_together
runpy.run_module("stages.part_maps", run_name="__main__", alter_sys=True)
"""


def part_maps(root: Path) -> dict[str, bytes]:
    """Return the content of every file of a store or an output, by path; hidden files too."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def output_of(process: subprocess.Popen[str]) -> str:
    """Wait for a process, check its exit status and return its output."""
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, output
    return output


def test_two_writers_of_the_same_part_maps_leave_what_one_leaves(finished: Project, toy: Project, tmp_path: Path):
    other = finished.copy(tmp_path / "other")
    shutil.rmtree(toy.root / "state/part_maps")
    (tmp_path / "meeting").mkdir()
    shared = {"SEMMAE_STATE": str(toy.root / "state"), "MEETING": str(tmp_path / "meeting")}
    for project in (toy, other):
        shutil.rmtree(project.folder / "data/part_maps")
    at_work = [project.start("python", "-c", TOGETHER, project.root.name, **shared) for project in (toy, other)]
    assert ["6 of 6 shards to compute" in output_of(process) for process in at_work] == [True, True]
    assert (
        len(list((tmp_path / "meeting").iterdir())) == 12
    )  # both processes have written the part maps of all 6 shards
    assert part_maps(toy.root / "state/part_maps") == part_maps(finished.root / "state/part_maps")
    for project in (toy, other):
        assert part_maps(project.folder / "data/part_maps") == part_maps(finished.folder / "data/part_maps")


def test_partly_written_part_maps_of_a_killed_process_are_computed_again(finished: Project, toy: Project):
    store = toy.root / "state/part_maps"
    shutil.rmtree(store)
    killed = ("pyarrow.parquet:write_table", "2", str(int(signal.SIGKILL)), "part_maps")
    toy.run("python", "-c", SIGNALED_AFTER, *killed, expect=-signal.SIGKILL)
    assert [path.split("/")[-1].startswith(".") for path in sorted(part_maps(store))].count(True) == 1
    assert "5 of 6 shards to compute" in toy.stage("part_maps")
    assert part_maps(store) == part_maps(finished.root / "state/part_maps")
    assert part_maps(toy.folder / "data/part_maps") == part_maps(finished.folder / "data/part_maps")


def test_the_same_probe_in_another_workspace_waits_its_turn(finished: Project, toy: Project, tmp_path: Path):
    """Experiments of a queue that share a baseline do this."""
    other = finished.copy(tmp_path / "other")
    for project in (toy, other):
        delete_results(project, "linear")
    stopped = ("semmae.evaluation.mapped_rows:MappedRows.append", "1", str(int(signal.SIGSTOP)), "linear", "toy")
    first = toy.start(sys.executable, "-c", SIGNALED_AFTER, *stopped)
    try:
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
        second = other.start("python", "-m", "stages.linear", "toy", SEMMAE_STATE=str(toy.root / "state"))
        assert second.stdout is not None
        output = second.stdout.readline()
        assert output.startswith(f"process {first.pid} is already writing run "), output + output_of(second)
        assert output.endswith("waiting for it\n")
        first.send_signal(signal.SIGCONT)
        output_of(first)
        output_of(second)
    finally:
        first.kill()
        first.wait()
    for project in (toy, other):
        assert results(project, "linear") == results(finished, "linear")


@pytest.mark.parametrize("stage", ["linear", "part_maps"])
def test_a_second_writer_of_an_output_is_refused(toy: Project, stage: str):
    arguments = ["toy"] * (stage == "linear")
    if stage == "part_maps":
        shutil.rmtree(toy.root / "state/part_maps")
    what = {"linear": "semmae.evaluation.mapped_rows:MappedRows.append", "part_maps": "semmae.parts.part_maps:write"}[
        stage
    ]
    first = toy.start(sys.executable, "-c", SIGNALED_AFTER, what, "1", str(int(signal.SIGSTOP)), stage, *arguments)
    try:
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
        output = toy.stage(stage, *arguments, expect=1)
        assert output.startswith(f"error: process {first.pid} is already writing output {toy.folder}/")
    finally:
        first.kill()
        first.communicate()
