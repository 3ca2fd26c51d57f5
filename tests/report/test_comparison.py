"""Scores of runs side by side: means, spreads and differences, against closed forms."""

import math
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from semmae.cli.main import app
from semmae.report import comparison
from tests.imports import ROOT

SHOWN = re.compile(r"```sh\n(semmae compare .*)\n```\n\n((?:\|.*\n)+)")

CSV = """\
Experiment,rev,typ,State,linear.a.top1,linear.a.untrained.top1,knn.a.top1,pretrain.seed,pretrain.masking.strategy
,workspace,baseline,,0.9,0.1,0.9,0,semantic
r0,1,branch_commit,Success,0.50,0.1,0.2,0,random
r1,2,branch_commit,Success,0.54,0.1,,1,random
s0,3,branch_commit,Success,0.60,0.1,0.4,0,semantic
s1,4,branch_base,,0.62,0.1,!,1,semantic
q,5,branch_commit,Queued,,,,2,semantic
"""


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    (tmp_path / "runs.csv").write_text(CSV)
    return tmp_path / "runs.csv"


def test_means_spreads_and_differences(csv: Path):
    table = comparison.summary(comparison.read(csv), ["pretrain.masking.strategy"])
    assert list(table.columns) == ["score", "random", "semantic", "difference"]
    linear, knn = table.set_index("score").loc[["linear.a.top1", "knn.a.top1"]].to_numpy().tolist()
    spread = [math.sqrt(2) * half for half in (0.02, 0.01)]  # standard deviation of two values 2 * half apart
    error = math.sqrt(sum(s**2 / 2 for s in spread))
    assert linear == [f"0.520 ± {spread[0]:.3f} (2)", f"0.610 ± {spread[1]:.3f} (2)", f"+0.090 ± {error:.3f}"]
    assert knn == ["0.200 (1)", "0.400 (1)", "+0.200"]


def test_what_is_neither_finished_nor_an_experiment_does_not_count(csv: Path):
    assert list(comparison.read(csv)["Experiment"]) == ["r0", "r1", "s0", "s1"]


def test_a_page_gets_a_table(csv: Path):
    lines = comparison.markdown(comparison.summary(comparison.read(csv), ["pretrain.masking.strategy"])).splitlines()
    assert lines[:2] == ["| score | random | semantic | difference |", "| --- | --- | --- | --- |"]
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("by", "scores", "sentence"),
    [
        (["pretrain.sead"], comparison.SCORES, "no parameter 'pretrain.sead'; they have .*pretrain.seed"),
        (["pretrain.seed"], "nothing$", "no column of the runs matches"),
        (["pretrain.seed"], "(", "no regular expression"),
    ],
)
def test_nothing_to_compare_is_said(csv: Path, by: list[str], scores: str, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        comparison.summary(comparison.read(csv), by, scores=scores)


def test_null_is_a_setting_too(tmp_path: Path):
    rows = "x,,0.5\ny,,0.7\nz,1.0,0.9\n"
    (tmp_path / "runs.csv").write_text(f"Experiment,pretrain.recipe.clip_grad,linear.a.top1\n{rows}")
    found = comparison.summary(comparison.read(tmp_path / "runs.csv"), ["pretrain.recipe.clip_grad"])
    assert found.to_dict("records")[0]["null"] == "0.600 ± 0.141 (2)"
    assert found.to_dict("records")[0]["1"] == "0.900 (1)"


def test_runs_of_which_none_has_ended_are_no_table(tmp_path: Path):
    (tmp_path / "runs.csv").write_text("Experiment,State,typ,linear.a.top1\nx,Queued,branch_commit,\n")
    with pytest.raises(ValueError, match="no finished experiment"):
        comparison.read(tmp_path / "runs.csv")


def test_no_table_is_said(tmp_path: Path):
    with pytest.raises(ValueError, match="cannot be read as the table"):
        comparison.read(tmp_path / "gone.csv")


def test_part_scores_are_lines_of_means(tmp_path: Path):
    columns = ["teacher_kmeans.patch.fg_iou", "patch.fg_iou", "patch.used", "patch.fg_iou", "pixel.fg_iou"]
    names = [f"part_scores.{name}.{column}" for name, column in zip("aaaba", columns, strict=True)]
    (tmp_path / "runs.csv").write_text(f"Experiment,{','.join(names)}\n,0.5,0.6,1,0.1,0.2\n,0.5,0.8,1,0.1,0.2\n")
    runs = comparison.read(tmp_path / "runs.csv")
    table = comparison.parts(runs, "a", level="patch")
    assert list(table.columns) == ["line", "fg_iou", "used"]
    assert table.to_numpy().tolist() == [
        ["parts", "0.700 ± 0.141 (2)", "1.000"], ["teacher_kmeans", "0.500", "-"],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no patch part scores of 'c'; they have a, b"):
        comparison.parts(runs, "c", level="patch")


def test_an_ablation_names_what_differs_from_most_runs(tmp_path: Path):
    parameters = {
        "parts": {
            "seed": 0,
            "learned": {"position_weight": 1.0, "foreground": {"center_prior": 0.2, "diffusion_steps": 10}},
        }
    }
    parameters["part_scores"] = {"protocol": {"on": True}}  # no part of a setting
    (tmp_path / "runs.csv").write_text(
        "parts.seed,parts.learned.position_weight,parts.learned.foreground.center_prior,parts.learned.foreground.diffusion_steps,"
        "part_scores.a.patch.fg_iou,part_scores.a.grid.patch.fg_iou,part_scores.a.patch.used,part_scores.protocol.on\n"
        "0,0.0,0.2,10,0.25,0.1,1,True\n0,1.0,0.2,10,0.5,0.1,1,False\n1,1.0,0.2,10,0.75,0.1,1,True\n"
        "2,1.0,0.2,10,1.0,0.1,1,True\n0,1.0,,,0.125,0.1,1,True\n0,1.0,0.2,,0.375,0.1,1,True\n"
    )
    table = comparison.ablation(comparison.read(tmp_path / "runs.csv"), "a", level="patch", parameters=parameters)
    assert list(table.columns) == ["setting", "fg_iou", "used"]
    assert table.to_numpy().tolist() == [
        ["as it is", "0.750 ± 0.250 (3)", "1.000"],
        ["parts.learned.position_weight=0", "0.250", "1.000"],
        ["parts.learned.foreground=null", "0.125", "1.000"],
        ["parts.learned.foreground.diffusion_steps=null", "0.375", "1.000"],
    ]


def test_a_section_that_is_null_in_params_still_tells_settings_apart(tmp_path: Path):
    (tmp_path / "runs.csv").write_text(
        "parts.seed,parts.foreground.diffusion_steps,part_scores.a.patch.fg_iou\n0,10,0.75\n1,10,0.5\n0,,0.25\n"
    )
    parameters = {"parts": {"seed": 0, "foreground": None}}
    table = comparison.ablation(comparison.read(tmp_path / "runs.csv"), "a", level="patch", parameters=parameters)
    assert table.to_numpy().tolist() == [["as it is", "0.625 ± 0.177 (2)"], ["parts.foreground=null", "0.250"]]


def test_lines_beside_the_encoder_have_columns_of_their_own(csv: Path, tmp_path: Path):
    columns = ["linear.a.top1", "linear.a.untrained.top1", "linear.a.teacher.top1", "segment.a.linear.teacher.miou"]
    (tmp_path / "runs.csv").write_text(f"Experiment,{','.join(columns)}\nx,0.5,0.25,0.75,\ny,0.5,0.25,0.5,0.125\n")
    table = comparison.lines(comparison.read(tmp_path / "runs.csv"))
    assert list(table.columns) == ["score", "teacher", "untrained"]
    assert table.to_numpy().tolist() == [
        ["linear.a.top1", "0.625 ± 0.177 (2)", "0.250"], ["segment.a.linear.miou", "0.125", "-"],
    ]  # fmt: skip
    (tmp_path / "runs.csv").write_text("Experiment,linear.a.top1\nx,0.5\n")
    with pytest.raises(ValueError, match="no lines beside the encoder"):
        comparison.lines(comparison.read(tmp_path / "runs.csv"))


@pytest.mark.parametrize("page", ["results", "method"])
def test_tables_of_runs_are_what_their_commands_print(page: str, monkeypatch: pytest.MonkeyPatch):
    """Below each command that a page shows stands its output, and nothing but commands makes a table of runs."""
    monkeypatch.chdir(ROOT)
    told = Path(f"docs/{page}.md").read_text()
    shown = [block.groups() for block in SHOWN.finditer(told)]
    assert len(shown) == told.count("| --- |\n") == told.count("\nsemmae compare docs/runs/") > 0
    for command, table in shown:
        assert CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False).output == table


def test_the_photographs_were_run_with_both_strategies_and_two_seeds():
    runs = comparison.read(ROOT / "docs/runs/photos.csv")
    assert runs["pretrain.masking.strategy"].value_counts().to_dict() == {"random": 2, "semantic": 2}
    assert runs.groupby("pretrain.masking.strategy")["pretrain.seed"].nunique().to_dict() == {
        "random": 2,
        "semantic": 2,
    }
