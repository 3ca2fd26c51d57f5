"""The pipeline as a Prefect flow: eyes on every stage, siblings in parallel, and still one graph, DVC's.

- `graph()`: every stage and the stages it depends on, as DVC reads them from dvc.yaml; no stage is named in this file.
- `Stages`: runs stages as `dvc repro --single-item`, each in a process group of its own that does not outlive the flow.
- `pipeline(jobs, timeout)`: the flow; one task per stage that waits for those it depends on, at most `jobs` at work at
  a time.
- `run(jobs, timeout)`: the flow from a terminal.

DVC decides what there is to do, so Prefect keeps no results. Without configuration Prefect starts a server for the time
of the flow; with PREFECT_API_URL or a profile (`prefect cloud login`) the flow shows there.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Literal

# Prefect reads these when it is imported. On a busy machine its server takes longer than the 20 s that are the default.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")

from dvc.exceptions import DvcException
from dvc.repo import Repo
from prefect import Task, flow, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.states import Completed, Failed, State

from semmae.cli import doctor

Result = Literal["ran", "cached", "failed", "timed out", "skipped"]
GRACE = 120.0  # seconds that an interrupted stage has for its checkpoint


@dataclass(frozen=True)
class Outcome:
    """What became of a stage; `timed out`: it was stopped, `skipped`: one that it depends on has not succeeded."""

    stage: str
    result: Result
    seconds: float


def graph() -> dict[str, set[str]]:
    """Every stage with the stages it depends on, dependencies first."""
    try:
        with Repo(".") as repo:
            edges = repo.index.graph
            depends = {node.addressing: {other.addressing for other in edges.successors(node)} for node in edges}
    except DvcException as error:
        cut = " ".join(map(str, doctor.cut_short(Path())))
        remedy = f"semmae doctor says why: rm {cut}" if cut else "dvc dag says more"
        raise ValueError(f"{error}; {remedy}") from error
    return {stage: depends[stage] for stage in TopologicalSorter(depends).static_order()}


class Stages:
    """Stages at work, at most `jobs` at a time and each for `timeout` seconds at most, and the outcomes of those that
    have finished.
    """

    def __init__(self, jobs: int, timeout: float | None) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._timeout = timeout
        self._slots = threading.Semaphore(jobs)
        self._at_work: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def reproduce(self, stage: str) -> State:
        """Bring one stage up to date; what it says goes to the log of its task."""
        with self._slots:
            began = time.monotonic()
            ran, status = self._repro(stage)
            seconds = time.monotonic() - began
            late = self._timeout is not None and seconds >= self._timeout
            result: Result = ("timed out" if late else "failed") if status else "ran" if ran else "cached"
            self.outcomes[stage] = Outcome(stage, result, seconds)
        return Failed(message=f"stage {stage} {result}") if status else Completed(message=result)

    def _repro(self, stage: str) -> tuple[bool, int]:
        """Whether the stage's command was run, and the exit status of DVC."""
        if self._stopped:
            return False, 1
        log, ran = get_run_logger(), False
        # A stage's command says `python`: the one that runs this must come first.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with subprocess.Popen(
            [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"},
        ) as process:  # fmt: skip
            self._at_work.add(process)
            assert process.stdout is not None
            try:
                with _ending(process, self._timeout):
                    for line in process.stdout:  # ends when the stage has ended, even if DVC was killed before it
                        ran |= line.startswith(f"Running stage '{stage}'")
                        if line.strip():
                            log.info(line.rstrip())
            finally:
                _signal_group(process, signal.SIGKILL)  # nothing is left of it unless it was interrupted
                self._at_work.discard(process)
        return ran, process.returncode

    def stop(self) -> None:
        """Interrupt every stage as Ctrl-C would (it saves and ends, while DVC waits for it) and begin no other."""
        self._stopped = True
        for process in list(self._at_work):
            _signal_group(process, signal.SIGINT)


@flow(name="semmae")
def pipeline(jobs: int, timeout: float | None) -> State:
    """Bring every stage up to date."""
    stages = Stages(jobs, timeout)
    futures: dict[str, PrefectFuture[Any]] = {}
    try:
        for stage, depends in graph().items():
            task = Task(stages.reproduce, name=stage, task_run_name=stage, cache_policy=NO_CACHE)
            futures[stage] = task.submit(stage, return_state=False, wait_for=[futures[other] for other in depends])
        wait(list(futures.values()))
    except BaseException:  # Ctrl-C, SIGTERM, a flow canceled in Prefect
        stages.stop()
        raise
    outcomes = [stages.outcomes.get(stage, Outcome(stage, "skipped", 0.0)) for stage in futures]
    failed = [outcome.stage for outcome in outcomes if outcome.result in ("failed", "timed out")]
    if failed:
        return Failed(message=f"failed: {', '.join(failed)}", data=outcomes)
    return Completed(message="every stage is up to date", data=outcomes)


def run(jobs: int, timeout: float | None) -> list[Outcome]:
    """Run the flow; what became of every stage, in order of dependence. `timeout`: seconds for one stage."""
    graph()  # what is wrong with dvc.yaml is told at once, before Prefect starts a server
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that Prefect takes its server down
    # A shell starts what it puts in the background with SIGINT ignored, which stages would inherit; they must hear it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ended: Any = pipeline(jobs, timeout, return_state=True)
    outcomes = ended.result(raise_on_failure=False)
    if isinstance(outcomes, BaseException):
        raise outcomes
    return outcomes


@contextlib.contextmanager
def _ending(process: subprocess.Popen[str], timeout: float | None) -> Iterator[None]:
    """After `timeout` seconds in this block interrupt the process and all that it started, as Ctrl-C would; what has
    not ended `GRACE` seconds later is killed.
    """
    if timeout is None:
        yield
        return
    timers = [
        threading.Timer(timeout, _signal_group, (process, signal.SIGINT)),
        threading.Timer(timeout + GRACE, _signal_group, (process, signal.SIGKILL)),
    ]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to a process and all that it started, if anything is left of them."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
