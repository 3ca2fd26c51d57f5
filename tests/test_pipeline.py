"""The pipeline runs completely once, then only the changed stages; dvc.yaml, params.yaml and the code agree."""

import dataclasses
import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo

from semmae.core.config import INHERITED, load_config, read_yaml
from semmae.project.stage_code import ROOT
from tests.imports import code_dependencies
from tests.project import AUTHOR, Project, call
from tests.report.html_page import HtmlPage

GRAPH = read_yaml(ROOT / "dvc.yaml")["stages"]
STAGES = {name: entry.get("do", entry) for name, entry in GRAPH.items()}
RECIPES = [ROOT / "params.yaml", ROOT / "tests/toy/params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))]


def dataclass_of(stage: str) -> type:
    """Return the dataclass that describes the section of a stage, such as `PartMapsConfig` for `part_maps`."""
    return getattr(importlib.import_module(f"stages.{stage}"), f"{stage.title().replace('_', '')}Config")


def stages_run(output: str) -> set[str]:
    """Return the stages whose commands DVC has run, from its output."""
    return set(re.findall(r"^Running stage '(.+)':", output, re.MULTILINE))


def report_page(folder: Path) -> HtmlPage:
    """Parse the page of the report."""
    return HtmlPage((folder / "results/report/index.html").read_text())


# The pipeline runs


def test_dvc_finds_one_pipeline():
    with Repo(str(ROOT)) as repo:
        assert {stage.path_in_repo for stage in repo.index.stages} == {"dvc.yaml"}


def test_everything_runs_without_a_git_identity_and_a_second_time_nothing(finished: Project):
    output = (finished.root / "output").read_text()
    assert {name.partition("@")[0] for name in stages_run(output)} == set(STAGES)
    page = report_page(finished.folder)
    assert page.headings == ["Scores", "Mistakes", "Curves", "Parts", "Masks", "Reconstructions", "Parameters"]
    assert {"image", "plain k-means", "truth", "true mask", "typical region", "reconstruction"} <= set(page.images)
    trained = {"teacher", "parts", "pretrain", "linear", "attentive", "finetune", "segment"}
    assert page.count("polyline") >= len(trained)
    again = finished.dvc("repro")
    assert stages_run(again) == set()
    assert "Data and pipelines are up to date." in again
    assert finished.run("git", "status", "--porcelain", "--", "semmae", "stages", "params.yaml", "dvc.yaml") == ""


@pytest.mark.parametrize(
    ("key", "value", "stage"),
    [
        ("pretrain.masking.curriculum.power", 3.0, "pretrain"),
        ("report.colors", "tol_bright", "report"),
        ("knn.protocol.k", 4, "knn@toy"),
        ("parts.num_parts", 4, "parts"),
    ],
)
def test_a_parameter_changes_its_stage_and_none_before_it(toy: Project, key: str, value: object, stage: str):
    toy.set(key, value)
    readers = {"report"} if key.startswith("knn") else set()  # the report shows the protocol of each score
    assert set(json.loads(toy.dvc("status", "--json"))) == {stage} | readers


CHANGED = {  # a parameter of every stage, and another value
    "shards.writing.seed": 1,
    "teacher.mae.recipe.epochs": 3,
    "parts.learned.initial_entropy": 0.5,
    "part_scores.protocol.num_images": 16,
    "part_maps.attention": False,
    "pretrain.masking.mask_ratio": 0.5,
    "knn.protocol.k": 4,
    "linear.protocol.epochs": 3,
    "attentive.protocol.queries": 2,
    "finetune.protocol.recipe.mixup": 0.0,
    "segment.protocol.stride": 8,
    "report.masks": 3,
}


def listed(stage: str, *kinds: str) -> list[str]:
    """Return the entries of a stage in dvc.yaml under these keys, for the toy dataset."""
    items = [item for kind in kinds for item in STAGES[stage].get(kind, [])]
    return [re.sub(r"\$\{.*?\}", "toy", next(iter(item)) if isinstance(item, dict) else item) for item in items]


def downstream(stages: set[str]) -> set[str]:
    """Return the stages that read an output of one of `stages`, directly or not, and `stages` themselves."""
    while True:
        written = [Path(out) for stage in stages for out in listed(stage, "outs", "metrics", "plots")]
        readers = {
            stage for stage in STAGES for dep in map(Path, listed(stage, "deps"))
            if any(out.is_relative_to(dep) or dep.is_relative_to(out) for out in written)
        }  # fmt: skip
        if readers <= stages:
            return stages
        stages = stages | readers


def toy_names(stages: set[str]) -> set[str]:
    """Return the names of stages as DVC prints them in the toy project."""
    return {f"{stage}@toy" if "foreach" in GRAPH[stage] else stage for stage in stages}


def test_every_stage_has_a_parameter_to_change():
    assert {key.partition(".")[0] for key in CHANGED} == set(STAGES)


@pytest.mark.parametrize("key", CHANGED)
def test_a_changed_parameter_reruns_exactly_the_stages_that_depend_on_it(toy: Project, key: str):
    toy.set(key, CHANGED[key])
    stages = {stage for stage in STAGES if any(f"{key}.".startswith(f"{name}.") for name in listed(stage, "params"))}
    assert stages_run(toy.dvc("repro", "--dry", "--force-downstream")) == toy_names(downstream(stages))


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        ("mae_recipe.base_lr", 1.0e-3, {"teacher", "pretrain"}),
        ("evaluations.linear.toy", {"epochs": 3}, {"linear@toy", "report"}),
    ],
)
def test_a_shared_section_changes_the_stages_that_inherit_from_it(
    toy: Project, key: str, value: object, stages: set[str]
):
    toy.set(key, value)
    assert set(json.loads(toy.dvc("status", "--json"))) == stages


EVALUATE = {"knn", "linear", "attentive", "finetune", "segment"}
EDITED = {  # a kind of edit -> its file, and the stages whose code it changes
    "a progress bar": ("semmae/console/progress.py", set()),
    "the command line": ("semmae/cli/main.py", set()),
    "a benchmark": ("benchmarks/step.py", set()),
    "an export": ("semmae/exchange/export.py", set()),
    "the report": ("semmae/report/charts.py", {"report"}),
    "the page of the report": ("stages/report.html", {"report"}),
    "a reader of sources": ("semmae/sharding/sources/sources.py", {"shards"}),
    "masking": ("semmae/models/masking.py", {"teacher", "pretrain", "report"}),
    "the part learner": ("semmae/parts/part_learner.py", {"parts", "part_maps", "part_scores", "report"}),
    "an evaluation head": ("semmae/evaluation/attentive_heads.py", {"attentive", "report"}),
    "features of evaluations": (
        "semmae/evaluation/features.py",
        {"teacher", "pretrain", "part_scores", "report"} | EVALUATE,
    ),
    "an optimizer": ("semmae/core/optim.py", set(STAGES) - {"shards"}),
}


@pytest.mark.parametrize("edit", EDITED)
def test_an_edit_of_the_code_changes_exactly_the_stages_that_use_it(edit: str):
    file, stages = EDITED[edit]
    assert (ROOT / file).exists()
    assert {stage for stage in STAGES if any(Path(file).is_relative_to(dep) for dep in STAGES[stage]["deps"])} == stages


@pytest.mark.parametrize("edit", ["a progress bar", "the report", "masking"])
def test_dvc_reruns_the_stages_whose_code_an_edit_changes(toy: Project, edit: str):
    file, stages = EDITED[edit]
    with open(toy.folder / file, "a") as source:
        source.write("\n# an edit\n")
    assert set(json.loads(toy.dvc("status", "--json"))) == toy_names(stages)


@pytest.mark.heavy
def test_an_experiment_reruns_pretrain_and_what_follows_and_keeps_the_rest(toy: Project):
    output = toy.dvc("exp", "run", "-n", "random", "-S", "pretrain.masking.strategy=random", **AUTHOR)
    assert stages_run(output) == {
        "pretrain",
        "knn@toy",
        "linear@toy",
        "segment@toy",
        "finetune@toy",
        "attentive@toy",
        "report",
    }
    table = toy.dvc("exp", "show", "--csv")
    assert "random" in table
    assert "knn.toy.top1" in table


def test_one_more_image_is_one_more_shard_to_map(toy: Project):
    toy.picture("train", 64)
    toy.dvc("repro", "--force", "--single-item", "shards@toy")
    output = toy.dvc("repro", "--single-item", "part_maps")
    assert "part_maps: 1 of 6 shards to compute" in output


def test_another_dataset_is_scored_alone(toy: Project):
    drawn = {"kind": "creatures", "train": 16, "val": 8, "size": 32, "seed": 1}
    toy.set("shards.datasets.more", {"sources": {"drawn": drawn}})
    toy.set("evaluations.knn.more", {})
    output = toy.dvc("repro")
    assert stages_run(output) == {"shards@more", "knn@more", "report"}


def test_images_alone_are_enough(inside: Project):
    """Without labels and masks no stage scores; all others run."""
    for stage in ("knn", "linear", "segment", "finetune", "attentive", "part_scores"):
        inside.set(f"evaluations.{stage}", {})
        for file in Path("results", stage).glob("*.*s*"):
            file.unlink()
    inside.set("shards.datasets.toy.sources.pictures.labels", False)
    inside.set("shards.datasets.toy.sources.pictures.masks", None)
    shutil.rmtree("results/report")
    for stage, *arguments in (["shards", "toy"], ["teacher"], ["parts"], ["part_maps"], ["pretrain"], ["report"]):
        call(stage, *arguments)
    page = report_page(Path())
    assert page.headings == ["Scores", "Curves", "Parts", "Masks", "Reconstructions", "Parameters"]
    assert "No evaluation was run." in page.text
    missing = [
        out for entry in json.loads(inside.dvc("status", "--json")).values() for out in entry if "deleted" in str(out)
    ]
    assert not missing


# The files agree


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_imports(stage: str):
    stated = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("semmae/", "stages/"))]
    assert stated == code_dependencies(stage)


def test_every_training_of_an_evaluation_is_a_curve_of_dvc(finished: Project):
    """Trained baselines have curves too."""
    data = json.loads(finished.dvc("plots", "show", "--json"))["data"]
    plots = {name: entries[0]["content"] for name, entries in data.items() if "/curves/" in name}
    both = ["train_loss", "holdout_top1"]
    expected = {
        "linear": {"encoder": both, "2_per_class": both, "50_percent": both},
        "attentive": {"encoder": both, "untrained": both, "teacher": both},
        "finetune": {line: ["loss", "val_top1"] for line in ("encoder", "untrained", "2_per_class")},
        "segment": {line: ["loss"] for line in ("linear", "linear_untrained", "linear_teacher", "upernet")},
    }
    assert set(plots) == {
        f"results/{stage}/curves/toy/{line}/{column}.tsv"
        for stage, lines in expected.items()
        for line, columns in lines.items()
        for column in [*columns, "lr"]
    }
    for name, plot in plots.items():
        rows = plot["data"]["values"]
        assert [row["epoch"] for row in rows] == [str(epoch) for epoch in range(1, len(rows) + 1)]
        assert f'"field": "{Path(name).stem}"' in json.dumps(plot)
        assert '"field": "epoch"' in json.dumps(plot)


@pytest.mark.parametrize("stage", STAGES)
def test_the_name_of_a_stage_gives_its_section_command_and_outputs(stage: str):
    section: Any = dataclass_of(stage)
    assert dataclasses.is_dataclass(section)
    assert section.__dataclass_params__.frozen
    assert stage in read_yaml(ROOT / "params.yaml")
    assert STAGES[stage]["desc"].endswith(".")
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}" + ' "$DVC_STAGE"' * ("foreach" in GRAPH[stage])
    outs = [out for kind in ("outs", "metrics", "plots") for out in STAGES[stage].get(kind, [])]
    kept = [next(iter(out)) if isinstance(out, dict) else out for out in outs]
    assert kept
    assert all(out.split("/")[:2] in (["data", stage], ["results", stage]) for out in kept), kept


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reads_its_own_section(stage: str):
    sections = {key.partition(".")[0] for key in STAGES[stage]["params"]}
    assert stage in sections
    if stage != "report":  # it also shows the parameters of the other stages
        inherited = {source[0] for path, source in INHERITED.items() if path[0] == stage}
        assert sections == {stage} | inherited


@pytest.mark.parametrize("file", RECIPES, ids=[str(file.relative_to(ROOT)) for file in RECIPES])
def test_a_recipe_is_complete_and_fits_the_stages(file: Path):
    assert list(read_yaml(file)) == list(read_yaml(ROOT / "params.yaml"))
    for stage in STAGES:
        load_config(dataclass_of(stage), stage, file=file)
