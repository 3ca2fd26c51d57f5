"""The pipeline as a Prefect flow, built from DVC's graph of stages.

Each stage is a Prefect task that waits for the stages it depends on and then runs `dvc repro --single-item`. DVC
decides which stages have to run, so Prefect caches no results. Without configuration Prefect starts a server for the
duration of the flow. With PREFECT_API_URL or a profile (`prefect cloud login`) the flow appears on that server.
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

from dvc.exceptions import DvcException
from dvc.repo import Repo
from prefect import Task, flow, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.states import Completed, Failed, State

from semmae.cli import doctor

Result = Literal["ran", "cached", "failed", "timed out", "skipped"]
GRACE_PERIOD = 120.0  # seconds in which an interrupted stage can save its checkpoint


@dataclass(frozen=True)
class Outcome:
    """The result of one stage: `timed out` if it was stopped, `skipped` if one of its dependencies failed."""

    stage: str
    result: Result
    seconds: float


def read_graph() -> dict[str, set[str]]:
    """Return every stage of dvc.yaml with the stages that it depends on, dependencies first.

    Raises:
        ValueError: DVC cannot read dvc.yaml or dvc.lock.
    """
    try:
        with Repo(".") as repo:
            edges = repo.index.graph
            dependencies = {node.addressing: {source.addressing for source in edges.successors(node)} for node in edges}
    except DvcException as error:
        truncated = " ".join(map(str, doctor.truncated_files(Path())))
        remedy = f"see semmae doctor, then run: rm {truncated}" if truncated else "run dvc dag for details"
        raise ValueError(f"{error}; {remedy}") from error
    return {stage: dependencies[stage] for stage in TopologicalSorter(dependencies).static_order()}


class StageRunner:
    """Run stages with `dvc repro`, each in a process group of its own.

    Args:
        jobs: The maximum number of stages that run at the same time.
        timeout: Seconds after which a stage is stopped; None: no limit.

    Attributes:
        outcomes: The results of the stages that have ended.
    """

    def __init__(self, jobs: int, timeout: float | None) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._timeout = timeout
        self._slots = threading.Semaphore(jobs)
        self._processes: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def reproduce(self, stage: str) -> State:
        """Bring one stage up to date; its output goes to the log of the Prefect task."""
        with self._slots:
            start = time.monotonic()
            ran, status = self._run_dvc(stage)
            seconds = time.monotonic() - start
            timed_out = self._timeout is not None and seconds >= self._timeout
            result: Result = ("timed out" if timed_out else "failed") if status else "ran" if ran else "cached"
            self.outcomes[stage] = Outcome(stage, result, seconds)
        return Failed(message=f"stage {stage} {result}") if status else Completed(message=result)

    def _run_dvc(self, stage: str) -> tuple[bool, int]:
        """Return whether DVC ran the stage's command, and the exit status of DVC."""
        if self._stopped:
            return False, 1
        log, ran = get_run_logger(), False
        # The command of a stage is `python ...`, which must find the interpreter of this process first in PATH.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with subprocess.Popen(
            [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"},
        ) as process:
            self._processes.add(process)
            assert process.stdout is not None
            try:
                with _time_limit(process, self._timeout):
                    for line in process.stdout:  # ends when the stage ends, even if DVC was killed
                        ran |= line.startswith(f"Running stage '{stage}'")
                        if line.strip():
                            log.info(line.rstrip())
            finally:
                _signal_group(process, signal.SIGKILL)  # has no effect unless the flow was interrupted
                self._processes.discard(process)
        return ran, process.returncode

    def stop(self) -> None:
        """Interrupt every running stage, as Ctrl-C does, and start no more stages.

        An interrupted training stage saves a checkpoint and exits.
        """
        self._stopped = True
        for process in list(self._processes):
            _signal_group(process, signal.SIGINT)


@flow(name="semmae")
def pipeline(jobs: int, timeout: float | None) -> State:
    """Bring every stage up to date."""
    runner = StageRunner(jobs, timeout)
    futures: dict[str, PrefectFuture[Any]] = {}
    try:
        for stage, dependencies in read_graph().items():
            task = Task(runner.reproduce, name=stage, task_run_name=stage, cache_policy=NO_CACHE)
            wait_for = [futures[dependency] for dependency in dependencies]
            futures[stage] = task.submit(stage, return_state=False, wait_for=wait_for)
        wait(list(futures.values()))
    except BaseException:  # Ctrl-C, SIGTERM, or the flow was canceled in Prefect
        runner.stop()
        raise
    outcomes = [runner.outcomes.get(stage, Outcome(stage, "skipped", 0.0)) for stage in futures]
    failed = [outcome.stage for outcome in outcomes if outcome.result in ("failed", "timed out")]
    if failed:
        return Failed(message=f"failed: {', '.join(failed)}", data=outcomes)
    return Completed(message="every stage is up to date", data=outcomes)


def run(jobs: int, timeout: float | None) -> list[Outcome]:
    """Run the flow in this process.

    Args:
        jobs: The maximum number of stages that run at the same time.
        timeout: Seconds after which a stage is stopped; None: no limit.

    Returns:
        The outcome of every stage, dependencies first.
    """
    read_graph()  # report errors in dvc.yaml before Prefect starts a server
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # lets Prefect stop its server
    # A shell starts background processes with SIGINT ignored. Stages would inherit that and miss the interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    final_state: Any = pipeline(jobs, timeout, return_state=True)
    outcomes = final_state.result(raise_on_failure=False)
    if isinstance(outcomes, BaseException):
        raise outcomes
    return outcomes


@contextlib.contextmanager
def _time_limit(process: subprocess.Popen[str], timeout: float | None) -> Iterator[None]:
    """Interrupt the process group if this block takes longer than `timeout` seconds; kill it `GRACE_PERIOD` later."""
    if timeout is None:
        yield
        return
    timers = [
        threading.Timer(timeout, _signal_group, (process, signal.SIGINT)),
        threading.Timer(timeout + GRACE_PERIOD, _signal_group, (process, signal.SIGKILL)),
    ]
    for timer in timers:
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Send a signal to the process and all processes that it started, if any are left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
