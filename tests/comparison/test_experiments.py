"""Experiments are read from DVC and Git; commits with scores of other parameters do not count."""

import json
import subprocess
from pathlib import Path

import pytest

from semmae.comparison import experiments
from tests.project import AUTHOR

PARAMS = "pretrain: {{seed: {seed}, masking: {{strategy: {strategy}}}}}\nknn: {{k: 20}}\nreport: {{seed: 0}}\n"
COLUMNS = "Experiment,rev,typ,State,knn.a.top1,pretrain.seed,pretrain.masking.strategy,knn.k,report.seed,data/pretrain"


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def commit(strategy: str, seed: int, *, locked_seed: int | None = None) -> str:
    """Commit a run as DVC leaves it: params.yaml, dvc.lock and curves."""
    Path("params.yaml").write_text(PARAMS.format(strategy=strategy, seed=seed))
    section = {"seed": seed if locked_seed is None else locked_seed, "masking": {"strategy": strategy}}
    Path("dvc.lock").write_text(
        json.dumps({"stages": {"pretrain": {"params": {"params.yaml": {"pretrain": section}}}}})
    )
    folder = Path("results/pretrain/live/plots/metrics/pretrain")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "loss.tsv").write_text(f"step\tloss\n1\t{seed + 0.5}\n2\t0.25\n")
    git("add", ".")
    git("commit", "--quiet", "--allow-empty", "--message", "run")
    return git("rev-parse", "--short", "HEAD")


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in AUTHOR.items():
        monkeypatch.setenv(name, value)
    git("init", "--quiet")


def show(monkeypatch: pytest.MonkeyPatch, *rows: str) -> None:
    """Let `dvc exp show` print these rows."""
    run = experiments._output
    table = "\n".join([COLUMNS, *rows, ""])
    monkeypatch.setattr(experiments, "_output", lambda *command: table if "dvc" in command else run(*command))


def test_a_commit_counts_once_and_only_with_scores_of_its_parameters(monkeypatch: pytest.MonkeyPatch):
    stale, same, own = commit("random", 1, locked_seed=0), commit("random", 1), commit("semantic", 2)
    rows = {"stale": (stale, "random", 1), "same": (same, "random", 1), "own": (own, "semantic", 2)}
    show(
        monkeypatch,
        ",workspace,baseline,,0.9,9,random,20,0,x",
        *(f"{name},{rev},baseline,,0.{seed}5,{seed},{strategy},20,0,x" for name, (rev, strategy, seed) in rows.items()),
        f"e1,{same},branch_commit,,0.15,1,random,20,0,y",
        f"e2,{own},branch_base,Queued,!,3,random,20,0,y",
    )
    runs, messages = experiments.read_experiments(commits=1)
    assert list(runs["Experiment"]) == ["e1", "own"]
    assert messages == [
        f"commit {stale} does not count: its scores were computed with another value of pretrain; run dvc repro and "
        "commit the result"
    ]
    assert "data/pretrain" not in runs


def test_settings_differ_in_all_parameters_but_seeds(monkeypatch: pytest.MonkeyPatch):
    rev = commit("random", 0)
    show(monkeypatch, *(f"e{i},{rev},branch_commit,,0.{i}1,{i},random,{k},{i},x" for i, k in enumerate((20, 10))))
    runs, _ = experiments.read_experiments(commits=1)
    parameters = {"pretrain": {"seed": 0, "masking": {"strategy": "random"}}, "knn": {"k": 20}, "report": {"seed": 0}}
    assert experiments.changed_parameters(runs, parameters) == ["pretrain.seed", "knn.k"]
    assert experiments.distinguishing_parameters(runs, parameters) == ["knn.k"]
    assert experiments.distinguishing_parameters(runs[:1], parameters) == ["pretrain.masking.strategy"]


def test_curves_are_read_from_the_commit_of_a_run():
    first, second = commit("random", 0), commit("random", 1)
    assert experiments.read_curves(first) == {("pretrain", "loss"): [(1, 0.5), (2, 0.25)]}
    assert experiments.read_curves(second) == {("pretrain", "loss"): [(1, 1.5), (2, 0.25)]}


def test_a_folder_without_dvc_gets_the_remedy():
    with pytest.raises(ValueError, match=r"cannot read the experiments: dvc exp show: .*semmae compare RUNS\.CSV"):
        experiments.read_experiments(commits=1)
