"""`semmae run`: bring all stages up to date with DVC, and show what came out."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from semmae.cli.output import console
from semmae.cli.scores import print_scores
from semmae.core.config import read_yaml
from semmae.project import stage_code

REPORT = Path("results/report/index.html")


def run(
    targets: Annotated[list[str] | None, typer.Argument(help="Stages such as parts or knn@main; default: all.")] = None,
    use_flow: Annotated[bool, typer.Option("--flow", help="Run all stages as a Prefect flow.")] = False,
) -> None:
    """Run the stages that are out of date, in the project of the working directory."""
    if not Path("dvc.yaml").exists():
        raise ValueError(f"{Path.cwd()} has no dvc.yaml; run the command in a project, which `semmae init` makes")
    if use_flow and targets:
        raise ValueError("--flow runs all stages; remove the names of stages, or --flow")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if stage_code.OUT.name in read_yaml(Path("dvc.yaml"))["stages"]:
        stage_code.write_digests(stage_code.OUT)  # so that DVC sees at once what a new version has changed
    stale = out_of_date(targets or [])
    if stale:
        estimate = read_estimate(stale)
        console.print(f"out of date: {', '.join(stale)}{estimate}", soft_wrap=True)
    else:
        console.print("all stages are up to date")
    start = time.monotonic()
    if use_flow:
        from semmae.cli.flow import flow

        flow(jobs=2, timeout=None)
    elif stale:
        status = call_dvc("repro", *(targets or []))
        if status:
            console.print("stopped; `semmae run` continues from here", soft_wrap=True)
            raise typer.Exit(status)
    if stale:
        console.print(f"\nfinished in {(time.monotonic() - start) / 60:.1f} minutes")
    print_scores(Path("results"))
    if REPORT.exists():
        console.print(f"report: {REPORT.absolute()}", soft_wrap=True)


def out_of_date(targets: list[str]) -> list[str]:
    """Return the stages that DVC finds changed; the stages that depend on them may run as well.

    Raises:
        ValueError: DVC cannot read the project, or a target does not exist.
    """
    options = ["--with-deps", *targets] if targets else []
    command = [sys.executable, "-m", "dvc", "status", "--json", *options]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode:
        raise ValueError(answer.stderr.strip().removeprefix("ERROR: ") or "dvc status failed")
    return [name for name in json.loads(answer.stdout) if name != stage_code.OUT.name]  # which always runs


def read_estimate(stages: list[str]) -> str:
    """Return the time that `semmae init` has predicted for stages, as a phrase; "" if it is unknown."""
    from semmae.project.project_files import ESTIMATE
    from semmae.project.summary import format_time

    if not ESTIMATE.exists():
        return ""
    costs = json.loads(ESTIMATE.read_text())
    seconds = sum(costs.get(name.partition("@")[0], 0) for name in stages)
    return f"; predicted: {format_time(seconds)}"


def call_dvc(*arguments: str) -> int:
    """Run DVC as a child, which also gets signals from the terminal; return its exit status."""
    child = subprocess.Popen([sys.executable, "-m", "dvc", *arguments])
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child handles it, and this process waits for it
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGINT, previous)
