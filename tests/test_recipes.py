"""Recipes: their prices stand at their top, the ImageNet ones are the published setting, installing loses nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from imports import ROOT
from typer.testing import CliRunner

from semmae import mae, masking, optim, params, recipes, teacher, vit
from semmae.__main__ import app, main
from stages.linear import Linear
from stages.parts import Parts
from stages.pretrain import Pretrain
from stages.teacher import Teacher

FILES = sorted((ROOT / "recipes").glob("*.yaml"))
IMAGENET = 1_281_167  # training images
VITS = {
    "imagenet_vitb16_800ep": (768, 12, 16),
    "imagenet_vitb8_800ep": (768, 12, 8),
    "imagenet_vitl16_800ep": (1024, 24, 16),
}


def semmae(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def git(*arguments: str) -> None:
    who = ("-c", "user.name=x", "-c", "user.email=x")
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


# What they say


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_begins_with_its_command_cost_and_score(file: Path):
    head = recipes.head(file)
    assert head["title"].endswith(".")
    assert head["command"].startswith(f"semmae recipe {file.stem} && dvc repro")
    assert head["cost"]
    assert head["score"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_networks_of_a_recipe_can_be_built_and_its_masks_leave_something(file: Path):
    elder, section = params.load(Teacher, "teacher", file=file), params.load(Pretrain, "pretrain", file=file)
    with torch.device("meta"):
        model = mae.MAE(
            vit.build({"img_size": section.img_size, **vars(section.encoder)}), **vars(section.recipe.decoder)
        )
        if elder.source == "timm":
            seen = teacher.create(elder.model, elder.img_size).patch_embed.grid_size
        else:
            seen = vit.build({"img_size": elder.img_size, **vars(elder.network)}).patch_embed.grid_size
    patches = model.positions.shape[1] - 1
    assert seen[0] * seen[1] > params.load(Parts, "parts", file=file).num_parts
    assert 0 < masking.num_masked(patches, section.masking.mask_ratio) < patches


@pytest.mark.parametrize("name", VITS)
def test_the_imagenet_recipes_are_the_published_networks(name: str):
    """Parameters by the formula of a transformer: ViT-B/16 with MAE's decoder has 111.9 million, positions included."""
    section = params.load(Pretrain, "pretrain", file=ROOT / f"recipes/{name}.yaml")
    width, depth, patch = VITS[name]
    with torch.device("meta"):
        encoder = vit.build({"img_size": section.img_size, **vars(section.encoder)})
        model = mae.MAE(encoder, **vars(section.recipe.decoder))
    found = sum(p.numel() for p in model.parameters()) + model.positions.numel()
    n, pixels = (224 // patch) ** 2, patch**2 * 3

    def blocks(d: int, count: int) -> int:
        return count * (12 * d * d + 13 * d) + 2 * d  # qkv, proj, mlp of width 4 d, two norms; one norm at the end

    encoder_size = blocks(width, depth) + pixels * width + width + width + (n + 1) * width
    decoder_size = blocks(512, 8) + width * 512 + 512 + 512 * pixels + pixels + 512 + (n + 1) * 512
    assert found == encoder_size + decoder_size
    if name == "imagenet_vitb16_800ep":
        assert found == 111_907_840


@pytest.mark.parametrize("name", VITS)
def test_the_imagenet_recipes_train_as_published(name: str):
    section = params.load(Pretrain, "pretrain", file=ROOT / f"recipes/{name}.yaml")
    recipe, per_epoch = section.recipe, IMAGENET // section.recipe.batch_size
    assert (recipe.epochs, recipe.batch_size, recipe.warmup_epochs, recipe.weight_decay) == (800, 4096, 40, 0.05)
    assert (recipe.betas, recipe.norm_pix_loss, section.masking.mask_ratio) == ((0.9, 0.95), True, 0.75)
    assert per_epoch == 312
    rate = recipe.base_lr * recipe.batch_size / 256
    assert rate == pytest.approx(2.4e-3)
    steps, warmup = recipe.epochs * per_epoch, recipe.warmup_epochs * per_epoch
    schedule = {"steps": steps, "warmup": warmup, "peak": rate, "end": recipe.min_lr}
    assert optim.warmup_cosine(warmup - 1, **schedule) == pytest.approx(2.4e-3)
    assert optim.warmup_cosine(steps - 1, **schedule) == pytest.approx(0)
    curriculum = vars(section.masking.inter_part)
    assert [masking.inter_part(progress, **curriculum) for progress in (0, 0.5, 1)] == pytest.approx([0, 0.25, 1])


@pytest.mark.parametrize("name", VITS)
def test_the_imagenet_recipes_have_the_papers_teacher_parts_and_probe(name: str):
    file = ROOT / f"recipes/{name}.yaml"
    elder, parts = params.load(Teacher, "teacher", file=file), params.load(Parts, "parts", file=file)
    pretrain = params.load(Pretrain, "pretrain", file=file)
    assert (elder.source, elder.model.partition(".")[0]) == ("timm", "vit_small_patch16_224")
    assert parts.num_parts == 6
    assert parts.learned.foreground is not None
    assert parts.img_size // 16 == pretrain.img_size // pretrain.encoder.patch_size  # a label of its own for each patch
    probe = params.load(Linear, "linear", file=file).protocol
    assert (probe.epochs, probe.warmup_epochs, probe.batch_size, probe.pool) == (90, 10, 16384, "class")
    assert 0.1 in probe.base_lrs


def test_the_ibot_section_is_ibots_command():
    ibot = params.load(Teacher, "teacher", file=ROOT / "recipes/imagenet_vitb16_800ep.yaml").ibot
    assert ibot.base_lr * ibot.batch_size / 256 == pytest.approx(2e-3)
    assert (ibot.teacher_temp, ibot.teacher_temp_warmup_epochs, ibot.prototypes) == ((0.04, 0.07), 30, 8192)
    assert (ibot.global_crop.scale, ibot.local_crop.scale, ibot.local_crops) == ((0.25, 1.0), (0.05, 0.25), 10)


# Installing them


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two recipes and a committed params.yaml; this process in their folder."""
    for variable in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(variable)
    folder = tmp_path / "project"
    (folder / "recipes").mkdir(parents=True)
    for name, epochs in (("short", 1), ("long", 9)):
        lines = [
            f"A {name} run.",
            f"command: semmae recipe {name}",
            f"cost:    {epochs} h,",
            "         or so",
            "score: ?",
        ]
        head = "".join(f"# {line}\n" for line in lines)
        (folder / f"recipes/{name}.yaml").write_text(f"{head}\nepochs: {epochs}\nseed: 0\n")
    (folder / "params.yaml").write_text("epochs: 5\nseed: 0\n")
    monkeypatch.chdir(folder)
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "start")
    return folder


def test_without_a_name_recipes_are_listed_with_their_prices(project: Path):
    said = semmae("recipe")
    assert "A short run." in said
    assert "cost: 9 h, or so" in said


def test_a_recipe_becomes_params_yaml_and_says_what_changes(project: Path):
    said = semmae("recipe", "long").splitlines()
    assert {"-epochs: 5", "+epochs: 9"} <= {line.rstrip() for line in said}
    assert (project / "params.yaml").read_bytes() == (project / "recipes/long.yaml").read_bytes()
    assert "params.yaml is recipes/long.yaml already" in semmae("recipe", "long")
    semmae("recipe", "short")  # nothing is lost: long.yaml is still there
    assert (project / "params.yaml").read_bytes() == (project / "recipes/short.yaml").read_bytes()


@pytest.mark.parametrize("why", ["changed", "not added", "no git"])
def test_params_that_git_does_not_have_stay_unless_forced(project: Path, why: str):
    mine = project / "params.yaml"
    if why == "changed":
        mine.write_text("epochs: 7\n")
    elif why == "not added":
        git("rm", "-q", "--cached", "params.yaml")
    else:
        (project / ".git").rename(project / "elsewhere")
    before = mine.read_text()
    with pytest.raises(ValueError, match=r"--force$"):
        semmae("recipe", "long")
    assert mine.read_text() == before
    semmae("recipe", "long", "--force")
    assert "epochs: 9" in mine.read_text()


def test_mistakes_are_sentences(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["semmae", "recipe", "shirt"])
    with pytest.raises(SystemExit, match=r"^error: there is no recipe 'shirt'; perhaps short$"):
        main()
    monkeypatch.chdir(project / "recipes")
    with pytest.raises(ValueError, match="run from the project's root"):
        semmae("recipe")
    (project / "recipes/bare.yaml").write_text("# Bare.\n# cost: nothing\nseed: 0\n")
    with pytest.raises(ValueError, match=r"bare\.yaml does not say its command and score"):
        recipes.head(project / "recipes/bare.yaml")
