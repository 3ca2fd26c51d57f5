"""The pipeline as a user runs it: everything once, then only what has changed; dvc.yaml, params.yaml and code agree."""

import dataclasses
import importlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from semmae.core.config import INHERITED, load_config, read_yaml
from tests.imports import ROOT, code_dependencies
from tests.project import AUTHOR, Project, call

GRAPH = read_yaml(ROOT / "dvc.yaml")["stages"]
STAGES = {name: entry.get("do", entry) for name, entry in GRAPH.items()}
RECIPES = [ROOT / "params.yaml", ROOT / "tests/toy/params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))]


def dataclass_of(stage: str) -> type:
    """The dataclass of a stage, in its file: its name in capitals, then Config."""
    return getattr(importlib.import_module(f"stages.{stage}"), f"{stage.title().replace('_', '')}Config")


def ran(said: str) -> set[str]:
    """The stages whose commands DVC has run."""
    return set(re.findall(r"^Running stage '(.+)':", said, re.MULTILINE))


# Running it


def test_everything_runs_without_a_git_identity_and_a_second_time_nothing(finished: Project):
    said = (finished.root / "output").read_text()
    assert {name.partition("@")[0] for name in ran(said)} == set(STAGES)
    assert (finished.folder / "results/report/index.html").stat().st_size > 10_000
    again = finished.dvc("repro")
    assert ran(again) == set()
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
def test_a_parameter_concerns_its_stage_and_nothing_before(toy: Project, key: str, value: object, stage: str):
    toy.set(key, value)
    shown = {"report"} if key.startswith("knn") else set()  # the report shows how an encoder was scored
    assert set(json.loads(toy.dvc("status", "--json"))) == {stage} | shown


CHANGED = {  # a parameter of every stage, and another value
    "shards.writing.seed": 1,
    "teacher.mae.recipe.epochs": 3,
    "parts.learned.temperature": 0.2,
    "part_scores.protocol.num_images": 16,
    "part_maps.attention": False,
    "pretrain.masking.mask_ratio": 0.5,
    "knn.protocol.k": 4,
    "linear.protocol.epochs": 3,
    "attentive.protocol.queries": 2,
    "finetune.protocol.recipe.mixup": 0.0,
    "segment.protocol.stride": 8,
    "report.film": 3,
}


def told(stage: str, *kinds: str) -> list[str]:
    """What dvc.yaml lists of a stage under these names, for the toy data set."""
    items = [item for kind in kinds for item in STAGES[stage].get(kind, [])]
    return [re.sub(r"\$\{.*?\}", "toy", next(iter(item)) if isinstance(item, dict) else item) for item in items]


def dependent(key: str) -> set[str]:
    """The stages that ask for a parameter, and all that read what these write, by their names in the toy project."""
    found = {stage for stage in STAGES if any(f"{key}.".startswith(f"{name}.") for name in told(stage, "params"))}
    while True:
        written = [Path(out) for stage in found for out in told(stage, "outs", "metrics", "plots")]
        read = {
            stage for stage in STAGES for dep in map(Path, told(stage, "deps"))
            if any(out.is_relative_to(dep) or dep.is_relative_to(out) for out in written)
        }  # fmt: skip
        if read <= found:
            return {f"{stage}@toy" if "foreach" in GRAPH[stage] else stage for stage in found}
        found |= read


def test_every_stage_has_a_parameter_to_change():
    assert {key.partition(".")[0] for key in CHANGED} == set(STAGES)
    assert dependent("shards.writing.seed") > dependent("pretrain.masking.mask_ratio") > dependent("report.film")
    assert dependent("part_scores.protocol.num_images") == {"part_scores@toy", "report"}


@pytest.mark.parametrize("key", CHANGED)
def test_a_changed_parameter_reruns_exactly_the_stages_that_depend_on_it(toy: Project, key: str):
    toy.set(key, CHANGED[key])
    assert ran(toy.dvc("repro", "--dry", "--force-downstream")) == dependent(key)


@pytest.mark.heavy
def test_an_experiment_reruns_pretrain_and_what_follows_and_keeps_the_rest(toy: Project):
    said = toy.dvc("exp", "run", "-n", "random", "-S", "pretrain.masking.strategy=random", **AUTHOR)
    assert ran(said) == {"pretrain", "knn@toy", "linear@toy", "segment@toy", "finetune@toy", "attentive@toy", "report"}
    shown = toy.dvc("exp", "show", "--csv")
    assert "random" in shown
    assert "knn.toy.top1" in shown


def test_one_more_image_is_one_more_shard_to_map(toy: Project):
    toy.picture("train", 64)
    toy.dvc("repro", "--force", "--single-item", "shards@toy")
    said = toy.dvc("repro", "--single-item", "part_maps")
    assert "part_maps: 1 of 6 shards to compute" in said


def test_another_dataset_is_scored_alone(toy: Project):
    drawn = {"kind": "creatures", "train": 16, "val": 8, "size": 32, "seed": 1}
    toy.set("shards.datasets.more", {"sources": {"drawn": drawn}})
    toy.set("evaluations.knn.more", {})
    said = toy.dvc("repro")
    assert ran(said) == {"shards@more", "knn@more", "report"}


def test_images_alone_are_enough(inside: Project):
    """A folder without labels and masks, nothing to score: all stages but the scores, and the report."""
    for stage in ("knn", "linear", "segment", "finetune", "attentive", "part_scores"):
        inside.set(f"evaluations.{stage}", {})
        for file in Path("results", stage).glob("*.*s*"):
            file.unlink()
    inside.set("shards.datasets.toy.sources.pictures.labels", False)
    inside.set("shards.datasets.toy.sources.pictures.masks", None)
    shutil.rmtree("results/report")
    for stage, *arguments in (["shards", "toy"], ["teacher"], ["parts"], ["part_maps"], ["pretrain"], ["report"]):
        call(stage, *arguments)
    assert Path("results/report/index.html").stat().st_size > 10_000
    missing = [
        out for entry in json.loads(inside.dvc("status", "--json")).values() for out in entry if "deleted" in str(out)
    ]
    assert not missing


# What the files say


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_imports(stage: str):
    stated = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("semmae/", "stages/"))]
    assert stated == code_dependencies(stage)


def test_every_training_of_an_evaluation_is_a_curve_of_dvc(finished: Project):
    """By epoch, each with its own value: what is scored beside the encoder as well, if it was trained."""
    shown = json.loads(finished.dvc("plots", "show", "--json"))["data"]
    plots = {name: found[0]["content"] for name, found in shown.items() if "/curves/" in name}
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
def test_who_knows_the_name_of_a_stage_knows_five_things(stage: str):
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
