"""Comparisons of runs: means, standard deviations and differences equal their closed forms."""

import math
from pathlib import Path

import pytest

from semmae.comparison import score_columns, tables
from semmae.comparison.score_columns import ScoreColumn
from tests.comparison import doc_tables
from tests.imports import ROOT

CSV = """\
Experiment,rev,typ,State,linear.a.top1,linear.a.baselines.untrained.top1,knn.a.top1,pretrain.seed,pretrain.masking.strategy
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
    table = tables.summary(tables.read(csv), ["pretrain.masking.strategy"])
    assert list(table.columns) == ["score", "random", "semantic", "difference"]
    linear, knn = table.set_index("score").loc[["linear.a.top1", "knn.a.top1"]].to_numpy().tolist()
    spread = [math.sqrt(2) * half for half in (0.02, 0.01)]  # standard deviation of two values 2 * half apart
    error = math.sqrt(sum(s**2 / 2 for s in spread))
    assert linear == [f"0.520 ± {spread[0]:.3f} (2)", f"0.610 ± {spread[1]:.3f} (2)", f"+0.090 ± {error:.3f}"]
    assert knn == ["0.200 (1)", "0.400 (1)", "+0.200"]


def test_several_parameters_are_named_in_the_label_of_a_setting(csv: Path):
    groups = tables.group_settings(tables.read(csv), ["pretrain.masking.strategy", "pretrain.seed"])
    assert list(groups)[:2] == ["strategy=random, seed=0", "strategy=random, seed=1"]


def test_a_setting_with_one_run_has_its_sampling_error(tmp_path: Path):
    (tmp_path / "runs.csv").write_text("p.x,knn.a.top1,knn.a.top1_se\n1,0.5,0.02\n2,0.6,0.03\n2,0.7,0.03\n")
    table = tables.summary(tables.read(tmp_path / "runs.csv"), ["p.x"])
    assert table.to_numpy().tolist() == [["knn.a.top1", "0.500 ± 0.020 (1, sampling)", "0.650 ± 0.071 (2)", "+0.150"]]


def test_only_finished_experiments_count(csv: Path):
    assert list(tables.read(csv)["Experiment"]) == ["r0", "r1", "s0", "s1"]


def test_a_table_in_markdown(csv: Path):
    lines = tables.markdown(tables.summary(tables.read(csv), ["pretrain.masking.strategy"])).splitlines()
    assert lines[:2] == ["| score | random | semantic | difference |", "| --- | --- | --- | --- |"]
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("by", "scores", "message"),
    [
        (["pretrain.sead"], ["knn.*.top1"], "unknown parameter: 'pretrain.sead'; did you mean pretrain.seed"),
        (["Colors"], ["*.a.top1"], "unknown parameter: 'Colors'; expected for --by: pretrain.seed, pretrain.masking"),
        (["pretrain.seed"], ["knn.*.top5", "*.top1"], "no column matches 'knn.*.top5,*.top1'"),
    ],
)
def test_unknown_parameters_and_scores_are_refused(csv: Path, by: list[str], scores: list[str], message: str):
    with pytest.raises(ValueError, match=message.replace("*.t", r"\*.t")):
        tables.summary(tables.read(csv), by, scores=scores)


def test_null_is_a_setting(tmp_path: Path):
    rows = "x,,0.5\ny,,0.7\nz,1.0,0.9\n"
    (tmp_path / "runs.csv").write_text(f"Experiment,pretrain.recipe.clip_grad,linear.a.top1\n{rows}")
    found = tables.summary(tables.read(tmp_path / "runs.csv"), ["pretrain.recipe.clip_grad"])
    assert found.to_dict("records")[0]["null"] == "0.600 ± 0.141 (2)"
    assert found.to_dict("records")[0]["1"] == "0.900 (1)"


def test_a_table_without_finished_runs_is_refused(tmp_path: Path):
    (tmp_path / "runs.csv").write_text("Experiment,State,typ,linear.a.top1\nx,Queued,branch_commit,\n")
    with pytest.raises(ValueError, match="no finished experiment"):
        tables.read(tmp_path / "runs.csv")


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot read .* as a table of runs"):
        tables.read(tmp_path / "gone.csv")


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("knn.a.top1", ScoreColumn("knn", "a", "", "encoder", "", "top1")),
        ("knn.a.baselines.teacher.top1", ScoreColumn("knn", "a", "", "baselines", "teacher", "top1")),
        ("linear.a.low_shot.5_per_class.top1", ScoreColumn("linear", "a", "", "low_shot", "5_per_class", "top1")),
        ("segment.a.knn.miou", ScoreColumn("segment", "a", "knn", "encoder", "", "miou")),
        ("segment.a.knn.class_iou.sky.blue", None),
        (
            "part_scores.a.patch.references.readout.miou",
            ScoreColumn("part_scores", "a", "patch", "references", "readout", "miou"),
        ),
        ("Experiment", None),
    ],
)
def test_a_column_names_its_score(name: str, column: ScoreColumn | None):
    assert score_columns.parse_column(name) == column


def test_a_star_matches_one_name(csv: Path):
    table = tables.summary(tables.read(csv), ["pretrain.seed"], scores=["*.a.top1"])
    assert table["score"].tolist() == ["linear.a.top1", "knn.a.top1"]


def test_part_scores_have_a_row_per_method(tmp_path: Path):
    columns = ["patch.baselines.grid.fg_iou", "patch.fg_iou", "patch.used", "patch.fg_iou", "pixel.fg_iou"]
    columns += ["patch.labels", "patch.deviations.grid.fg_iou"]  # the latter is no score of a run
    names = [f"part_scores.{name}.{column}" for name, column in zip("aaabaaa", columns, strict=True)]
    rows = [f",0.5,{iou},1,0.1,0.2,9,0.01" for iou in (0.6, 0.8)]
    (tmp_path / "runs.csv").write_text("\n".join([f"Experiment,{','.join(names)}", *rows, ""]))
    runs = tables.read(tmp_path / "runs.csv")
    table = tables.parts(runs, "a", level="patch")
    assert list(table.columns) == ["method", "fg_iou", "used", "labels"]
    assert table.to_numpy().tolist() == [
        ["parts", "0.700 ± 0.141 (2)", "1.000", "9"], ["grid", "0.500", "-", "-"],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="no part scores of 'c' per patch; expected one of: a, b"):
        tables.parts(runs, "c", level="patch")


def test_an_ablation_names_the_parameters_that_differ_from_most_runs(tmp_path: Path):
    parameters = {
        "parts": {
            "seed": 0,
            "learned": {"position_weight": 1.0, "foreground": {"center_prior": 0.2, "diffusion_steps": 10}},
        }
    }
    parameters["part_scores"] = {"protocol": {"on": True}}  # not part of a setting
    (tmp_path / "runs.csv").write_text(
        "parts.seed,parts.learned.position_weight,parts.learned.foreground.center_prior,parts.learned.foreground.diffusion_steps,"
        "part_scores.a.patch.fg_iou,part_scores.a.patch.baselines.grid.fg_iou,part_scores.a.patch.used,part_scores.protocol.on\n"
        "0,0.0,0.2,10,0.25,0.1,1,True\n0,1.0,0.2,10,0.5,0.1,1,False\n1,1.0,0.2,10,0.75,0.1,1,True\n"
        "2,1.0,0.2,10,1.0,0.1,1,True\n0,1.0,,,0.125,0.1,1,True\n0,1.0,0.2,,0.375,0.1,1,True\n"
    )
    table = tables.ablation(tables.read(tmp_path / "runs.csv"), "a", level="patch", parameters=parameters)
    assert list(table.columns) == ["setting", "fg_iou", "used"]
    assert table.to_numpy().tolist() == [
        ["unchanged", "0.750 ± 0.250 (3)", "1.000"],
        ["parts.learned.position_weight=0", "0.250", "1.000"],
        ["parts.learned.foreground=null", "0.125", "1.000"],
        ["parts.learned.foreground.diffusion_steps=null", "0.375", "1.000"],
    ]


def test_a_section_that_is_null_in_params_distinguishes_settings(tmp_path: Path):
    (tmp_path / "runs.csv").write_text(
        "parts.seed,parts.foreground.diffusion_steps,part_scores.a.patch.fg_iou\n0,10,0.75\n1,10,0.5\n0,,0.25\n"
    )
    parameters = {"parts": {"seed": 0, "foreground": None}}
    table = tables.ablation(tables.read(tmp_path / "runs.csv"), "a", level="patch", parameters=parameters)
    assert table.to_numpy().tolist() == [["unchanged", "0.625 ± 0.177 (2)"], ["parts.foreground=null", "0.250"]]


def test_baselines_have_a_column_each(tmp_path: Path):
    columns = [
        "linear.a.top1",
        "linear.a.baselines.untrained.top1",
        "linear.a.baselines.teacher.top1",
        "linear.a.baselines.teacher.top5",
        "segment.a.linear.baselines.teacher.miou",
    ]
    (tmp_path / "runs.csv").write_text(f"Experiment,{','.join(columns)}\nx,0.5,0.25,0.75,1,\ny,0.5,0.25,0.5,1,0.125\n")
    table = tables.baselines(tables.read(tmp_path / "runs.csv"))
    assert list(table.columns) == ["score", "teacher", "untrained"]
    assert table.to_numpy().tolist() == [
        ["linear.a.top1", "0.625 ± 0.177 (2)", "0.250"], ["segment.a.linear.miou", "0.125", "-"],
    ]  # fmt: skip
    (tmp_path / "runs.csv").write_text("Experiment,linear.a.top1\nx,0.5\n")
    with pytest.raises(ValueError, match="the runs have no baselines; set <stage>"):
        tables.baselines(tables.read(tmp_path / "runs.csv"))


@pytest.mark.parametrize("page", doc_tables.pages(), ids=lambda page: page.stem)
def test_tables_of_runs_are_the_output_of_their_commands(page: Path):
    text = page.read_text()
    assert doc_tables.rewrite(text) == text
    assert text.count("| --- |\n") == len(doc_tables.TABLE.findall(text)) == text.count("\nsemmae compare docs/runs/")


def test_tables_of_runs_are_in_the_documentation():
    assert list(doc_tables.pages())


def test_the_photographs_were_run_with_both_strategies_and_two_seeds():
    runs = tables.read(ROOT / "docs/runs/photos.csv")
    assert runs["pretrain.masking.strategy"].value_counts().to_dict() == {"random": 2, "semantic": 2}
    assert runs.groupby("pretrain.masking.strategy")["pretrain.seed"].nunique().to_dict() == {
        "random": 2,
        "semantic": 2,
    }
