"""The finished experiments of a project, with their parameters and scores, as DVC and Git keep them."""

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from semmae.comparison import score_columns, tables
from semmae.core.config import PARAMS

STAGES = ("teacher", "parts", "pretrain")  # stages with curves
NOT_SETTINGS = ("evaluations", "report", "part_scores", "tracking")  # sections that change no encoder and no parts
MISSING = object()
Curves = dict[tuple[str, str], list[tuple[float, float]]]  # (stage, column): points (epoch, value)


def read_experiments(*, commits: int) -> tuple[pd.DataFrame, list[str]]:
    """Read the finished experiments of the last commits, and these commits themselves if they hold a finished run.

    A commit counts if its dvc.lock was written with the parameters of its params.yaml. Otherwise its scores belong to
    other parameters. A commit with the parameters and scores of an experiment is left out.

    Args:
        commits: Number of commits; a negative number reads all.

    Returns:
        A row per run, as `tables.read`, and messages about commits that do not count.

    Raises:
        ValueError: The folder is no Git repository with DVC, or there is no finished run.
    """
    text = _output(sys.executable, "-m", "dvc", "exp", "show", "--csv", "--no-pager", "-n", str(commits))
    everything, messages = pd.read_csv(io.StringIO(text), na_values=tables.NO_VALUE), []
    everything = everything[[name for name in everything if "/" not in name]]  # without the digests of files
    scores = [name for name in everything if score_columns.matches(name, score_columns.DEFAULT_SCORES)]
    is_commit = (everything["typ"] == "baseline") & (everything["rev"] != "workspace")
    for index in everything.index[is_commit & everything[scores].notna().any(axis=1)]:
        rev = everything.loc[index, "rev"]
        if stale := _stale_parameters(rev):
            messages.append(
                f"commit {rev} does not count: its scores were computed with another value of {stale[0]}; run dvc "
                "repro and commit the result"
            )
        else:
            everything.loc[index, "typ"] = "branch_base"
    runs = tables.finished(everything, source="; ".join([*messages, "the project has"]))
    is_commit = is_commit[runs.index]
    ordered = pd.concat([runs[~is_commit], runs[is_commit]])
    return ordered.drop_duplicates([name for name in ordered if "." in name]), messages


def changed_parameters(runs: pd.DataFrame, parameters: dict[str, Any]) -> list[str]:
    """Return the parameters whose values differ between runs.

    Args:
        runs: The runs.
        parameters: The content of params.yaml. Its sections identify the columns that hold parameters.
    """
    sections = {name for name, section in parameters.items() if isinstance(section, dict)} - set(NOT_SETTINGS)
    known = pd.json_normalize(parameters).columns
    return [
        name
        for name in runs
        if name.partition(".")[0] in sections
        and any(name == key or name.startswith(f"{key}.") for key in known)
        and runs[name].map(tables.format_param).nunique() > 1
    ]


def distinguishing_parameters(runs: pd.DataFrame, parameters: dict[str, Any]) -> list[str]:
    """Return the parameters other than seeds that differ between runs; the mask strategy if there are none."""
    changed = [name for name in changed_parameters(runs, parameters) if not name.endswith("seed")]
    return changed or ["pretrain.masking.strategy"]


def read_curves(rev: str) -> Curves:
    """Read the curves of a run from its commit, in which `runs.history_files` has left one TSV file per value."""
    curves: Curves = {}
    for stage in STAGES:
        folder = f"results/{stage}/live/plots/metrics/{stage}"
        for name in _output("git", "ls-tree", "-r", "--name-only", rev, "--", f"{folder}/").splitlines():
            table = pd.read_csv(io.StringIO(_output("git", "show", f"{rev}:./{name}")), sep="\t")
            curves[stage, Path(name).stem] = list(table.itertuples(index=False, name=None))
    return curves


def _stale_parameters(rev: str) -> list[str]:
    """Return the parameters of a commit that have other values in its dvc.lock than in its params.yaml.

    A parameter that params.yaml lacks belongs to a stage that does not exist any more.
    """
    try:
        lock, params = (
            YAML(typ="safe", pure=True).load(_output("git", "show", f"{rev}:./{name}"))
            for name in ("dvc.lock", PARAMS.name)
        )
    except ValueError:
        return ["all parameters (it has no dvc.lock)"]
    used = [entry.get("params", {}).get(PARAMS.name, {}) for entry in lock["stages"].values()]
    return [key for values in used for key, value in values.items() if _lookup(params, key) not in (value, MISSING)]


def _lookup(section: Any, key: str) -> Any:
    for name in key.split("."):
        section = section.get(name, MISSING) if isinstance(section, dict) else MISSING
    return section


def _output(*command: str) -> str:
    """Run a command and return what it prints.

    Raises:
        ValueError: It failed; the message has its last line.
    """
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines: Sequence[str] = result.stderr.strip().splitlines() or ["it failed"]
        name = "dvc exp show" if "dvc" in command else command[0]
        raise ValueError(
            f"cannot read the experiments: {name}: {lines[-1]}; expected a folder with DVC in a Git repository with a "
            "commit. Run git init && git add . && git commit, or give a file: semmae compare RUNS.CSV"
        )
    return result.stdout
