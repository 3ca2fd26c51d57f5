"""`semmae flow`: run the pipeline as a Prefect flow."""

import os
from typing import Annotated

import typer

from semmae.cli.output import console, new_table


def flow(
    jobs: Annotated[int, typer.Option(min=1, help="The number of stages that run at the same time.")] = 2,
    timeout: Annotated[
        float | None,
        typer.Option(min=0.01, help="Stop a stage after this many minutes; training saves a checkpoint first."),
    ] = None,
) -> None:
    """Bring every stage up to date as a Prefect flow; independent stages run in parallel."""
    configure_prefect()
    from semmae.cli import prefect_flow

    outcomes = prefect_flow.run(jobs, None if timeout is None else timeout * 60)
    table = new_table("stages", "stage", "result", "seconds")
    for outcome in outcomes:
        table.add_row(outcome.stage, outcome.result, f"{outcome.seconds:.1f}")
    console.print(table)
    if timed_out := [outcome.stage for outcome in outcomes if outcome.result == "timed out"]:
        raise ValueError(
            f"stopped after {timeout:g} minutes: {', '.join(timed_out)}; "
            "run the same command to resume training, or raise --timeout"
        )
    if failed := [outcome.stage for outcome in outcomes if outcome.result == "failed"]:
        raise ValueError(f"failed: {', '.join(failed)}; the log of each stage above shows the cause")


def configure_prefect() -> None:
    """Set the defaults of Prefect's environment variables; call it before Prefect is imported, which reads them."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    # On a busy machine, Prefect's server needs more than its default of 20 s to start.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")
