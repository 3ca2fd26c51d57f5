"""`semmae promote` and `semmae import`: encoders as teachers of other runs, and encoders of other projects."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from semmae.models import pretrained_weights, teacher, vit
from tests.project import AUTHOR, Project, call


def semmae(project: Project, *arguments: str, expect: int = 0) -> str:
    return project.run("python", "-m", "semmae", *arguments, expect=expect, **AUTHOR)


def test_a_promoted_encoder_becomes_a_teacher_with_the_same_features(inside: Project):
    output = semmae(inside, "promote")
    changes = dict(re.findall(r"-S (teacher\.\S+?)=(\S+)", output))
    assert set(changes) == {"teacher.source", "teacher.checkpoint.path", "teacher.checkpoint.sha256"}
    inside.set("teacher.source", changes["teacher.source"])
    checkpoint = {key: changes[f"teacher.checkpoint.{key}"] for key in ("path", "sha256")}
    inside.set("teacher.checkpoint", checkpoint)
    Path("data/raw").rename("raw")  # a promoted encoder needs no raw data
    call("teacher")
    encoder, config = vit.load(Path("data/pretrain"))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    found = teacher.load_teacher(Path("data/teacher")).encode(images)
    expected = vit.encode_tokens(encoder, vit.normalize(images))[:, 1:]
    torch.testing.assert_close(found.patch, expected)
    torch.testing.assert_close(found.cls, expected.mean(1))  # MAE trains no class token
    assert checkpoint["sha256"] == config["sha256"]


@pytest.mark.heavy
def test_an_experiment_is_promoted_from_the_cache(toy: Project):
    for stage in ("part_scores", "knn", "linear", "attentive", "finetune", "segment"):  # no evaluation is needed here
        toy.set(f"evaluations.{stage}", {})
    toy.dvc("exp", "run", "-n", "other", "-S", "pretrain.seed=5", **AUTHOR)
    digest = json.loads((toy.folder / "data/pretrain/encoder.json").read_text())["sha256"]
    toy.dvc("exp", "run", "-n", "another", "-S", "pretrain.seed=6", **AUTHOR)
    semmae(toy, "promote", "other")
    assert [path.name for path in (toy.folder / "data/encoders").iterdir()] == [digest]
    assert "cannot fetch data/pretrain at nobody" in semmae(toy, "promote", "nobody", expect=1)


def test_an_imported_encoder_is_scored(inside: Project, tmp_path: Path):
    encoder, config = vit.load(Path("data/pretrain"))
    save_file(encoder.state_dict(), tmp_path / "mae.safetensors")
    before = json.loads(Path("results/knn/toy.json").read_text())["knn"]["toy"]["top1"]
    heads = str(config["num_heads"])
    semmae(inside, "import", str(tmp_path / "mae.safetensors"), "--out", "data/pretrain", "--num-heads", heads)
    call("knn", "toy")
    assert json.loads(Path("results/knn/toy.json").read_text())["knn"]["toy"]["top1"] == before
    with pytest.raises(SystemExit):
        call("report")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    output = semmae(inside, "import", str(tmp_path / "mae.safetensors"), "--out", str(tmp_path / "mine"), expect=1)
    assert "mine holds more than an encoder (notes.txt)" in output
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_config_of_an_imported_encoder_is_complete(tmp_path: Path):
    config = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    save_file(vit.build(config).state_dict(), tmp_path / "mae.safetensors")
    _, found = pretrained_weights.load_mae_encoder(tmp_path / "mae.safetensors", img_size=None, num_heads=2)
    assert {key: found[key] for key in config} == config


def test_ibot_training_starts_from_a_promoted_teacher(inside: Project):
    output = semmae(inside, "promote", "--teacher")
    inside.set("teacher.source", "ibot")
    inside.set("teacher.checkpoint", dict(re.findall(r"-S teacher\.checkpoint\.(\w+)=(\S+)", output)))
    for key, value in {"base_lr": 0.0, "min_lr": 0.0}.items():
        inside.set(f"teacher.ibot.{key}", value)
    before, _ = vit.load(Path("data/teacher"), name="teacher")
    call("teacher")
    after, config = vit.load(Path("data/teacher"), name="teacher")
    assert config["class_token"]
    for name, value in before.state_dict().items():  # with a learning rate of zero, training changes nothing
        torch.testing.assert_close(after.state_dict()[name], value)
    inside.set("teacher.network.depth", len(before.blocks) + 1)
    with pytest.raises(SystemExit):
        call("teacher")


def test_a_promoted_ibot_teacher_has_the_same_features_and_scores(inside: Project):
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    inside.set("teacher.source", "ibot")
    call("teacher")
    before, scores = teacher.load_teacher(Path("data/teacher")).encode(images), teacher_scores()
    output = semmae(inside, "promote", "--teacher")
    inside.set("teacher.source", "semmae")
    inside.set("teacher.checkpoint", dict(re.findall(r"-S teacher\.checkpoint\.(\w+)=(\S+)", output)))
    call("teacher")
    torch.testing.assert_close(teacher.load_teacher(Path("data/teacher")).encode(images), before)
    assert teacher_scores() == {
        key: scores[key] for key in ("rankme", "knn_top1", "readout_iou")
    }  # both use the class token


def teacher_scores() -> dict[str, float]:
    return json.loads(Path("results/teacher/metrics.json").read_text())["teacher"]
