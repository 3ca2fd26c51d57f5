"""Writes the learning curves of a run as DVCLive files."""

from pathlib import Path


def write_history(folder: Path, stage: str, history: list[dict[str, float]]) -> None:
    """Replace the curves of a run for `dvc plots` and `dvc exp show`, with one TSV file per value.

    Does nothing if DVCLive is not installed, for example on a training machine without DVC. The artifact also holds the
    history.

    Args:
        history: One row per epoch, with the key `epoch` (from 1) and the values of that epoch.
    """
    try:
        from dvclive import Live
    except ImportError:
        return
    with Live(str(folder), resume=False, dvcyaml=None, save_dvc_exp=False, report=None, monitor_system=False) as live:
        for row in history:
            live.step = int(row["epoch"])
            for name, value in row.items():
                if name != "epoch":
                    live.log_metric(f"{stage}/{name}", value, plot=True)
            live.make_summary()
