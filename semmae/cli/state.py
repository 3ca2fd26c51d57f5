"""`semmae state`: list, adopt and delete the unfinished runs and cached part maps under the state root."""

from typing import Annotated

import typer

from semmae.cli.output import console, new_table, time_ago

state_app = typer.Typer(help="Manage unfinished runs and cached part maps.", no_args_is_help=True)


@state_app.command("ls")
def list_state() -> None:
    """List unfinished runs and cached part maps with their sizes and times of last use."""
    from semmae.cli import state_dir
    from semmae.core.paths import state_root
    from semmae.parts import part_store

    typer.echo(f"state root: {state_root()}")
    table = new_table("unfinished runs", "stage", "fingerprint", "step", "MB", "last used", "")
    for run in state_dir.list_runs():
        step = "-" if run.step is None else str(run.step)
        status = "running" if run.locked else ""
        table.add_row(run.stage, run.fingerprint[:12], step, f"{run.num_bytes / 1e6:.1f}", time_ago(run.used), status)
    console.print(table)
    table = new_table("part maps", "digest", "shards", "MB", "last used")
    for entry in part_store.list_entries():
        size = f"{entry.num_bytes / 1e6:.1f}"
        table.add_row(entry.digest[:12], str(entry.num_shards), size, time_ago(entry.used))
    console.print(table)


@state_app.command("adopt")
def adopt_run(
    fingerprint: Annotated[str, typer.Argument(help="The fingerprint of an unfinished run, or its first characters.")],
) -> None:
    """Let the next run resume an unfinished run after a source edit that does not change results."""
    from semmae.cli import state_dir

    run = state_dir.adopt(fingerprint)
    typer.echo(f"The next {run.stage} run with the same params and inputs resumes {run.fingerprint[:12]} after step")
    typer.echo(f"{run.step}, even if its source code differs. Its artifact records the adoption. Run: dvc repro")


@state_app.command("gc")
def delete_unused(
    unused_days: Annotated[float, typer.Option(min=0, help="Delete only what was not used for this many days.")],
) -> None:
    """Delete old unfinished runs and part maps, and cached digests of files that no longer exist."""
    from semmae.cli import state_dir
    from semmae.core import hash_cache
    from semmae.parts import part_store

    deleted = state_dir.prune_runs(unused_days=unused_days)
    typer.echo(f"{len(deleted)} unfinished runs deleted, {sum(run.num_bytes for run in deleted) / 1e6:.1f} MB")
    if active := state_dir.lock_holders():
        typer.echo(f"part maps kept, because running processes may need them: {', '.join(active)}")
    else:
        typer.echo(f"{part_store.prune(unused_days=unused_days) / 1e6:.1f} MB of part maps deleted")
    typer.echo(f"{hash_cache.prune()} digests of missing files deleted")
