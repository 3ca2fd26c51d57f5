"""`semmae part-benchmark` fits parts on images without shards, and writes the scores of the test images."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from typer.testing import CliRunner

from semmae.cli.main import app
from semmae.core.atomic_files import read_json
from semmae.core.config import with_overrides
from semmae.models import vit
from semmae.models.teacher import save_teacher
from tests import benchmark_trees as trees
from tests.project import ROOT


def set_parts(**changes: Any) -> None:
    """Change the section parts of params.yaml."""
    yaml, file = YAML(typ="safe"), Path("params.yaml")
    params = yaml.load(file)
    params["parts"] = with_overrides(params["parts"], changes)
    yaml.dump(params, file)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the parameters of the toy project and an untrained teacher."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "tests/toy/params.yaml", tmp_path)
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    config = sizes | {"mean": list(vit.MEAN), "std": list(vit.STD), "class_token": False}
    set_parts(method="kmeans")
    save_teacher(tmp_path / "data/teacher", vit.build(config), config)
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["part-benchmark", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("name", "write", "stem", "scores"),
    [
        ("cub", trees.write_cub, "cub_2", ("nmi", "ari", "keypoint_error")),
        ("celeba", trees.write_celeba, "celeba_2", ("nmi", "ari", "keypoint_error")),
        ("part_imagenet", trees.write_part_imagenet_ood, "part_imagenet_ood_2", ("nmi", "ari", "nmi_object")),
    ],
)
def test_scores_are_written_and_printed(project, name, write, stem, scores):
    write(project / "raw")
    output = run(name, "raw", "--num-parts", "2")
    result = read_json(Path(f"results/part_benchmarks/{stem}.json"))["part_benchmarks"][stem]
    assert all(f"{score} {result[score]:.3f}" in output for score in scores)
    assert "A run that is stopped resumes from the last checkpoint" in output
    assert result["num_parts"] == 2
    assert (result["train_images"], result["test_images"]) == {"cub": (3, 3)}.get(name, (2, 2))
    assert run(name, "raw", "--num-parts", "2") == output  # the same scores


def test_the_seg_release_of_part_imagenet_has_its_own_file(project):
    trees.write_part_imagenet_seg(project / "raw")
    run("part_imagenet", "raw", "--num-parts", "2", "--split", "seg")
    assert Path("results/part_benchmarks/part_imagenet_seg_2.json").exists()


def test_a_part_learner_is_trained_on_the_images(project):
    trees.write_cub(project / "raw")
    set_parts(method="learned", learned={"batch_size": 2})
    run("cub", "raw", "--num-parts", "4")
    result = read_json(Path("results/part_benchmarks/cub_4.json"))["part_benchmarks"]["cub_4"]
    assert (result["method"], result["num_parts"]) == ("learned", 4)


def test_the_method_truth_is_refused(project):
    set_parts(method="truth")
    with pytest.raises(ValueError, match="truth, which a benchmark cannot use"):
        run("cub", "raw", "--num-parts", "4")
