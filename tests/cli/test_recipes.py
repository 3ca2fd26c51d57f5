"""Recipes state their cost, the ImageNet recipes are the published settings, and installing one loses no changes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import recipe_hours
from semmae.cli import recipe as recipe_command
from semmae.cli.main import app, main
from semmae.core import optim
from semmae.core.config import load_config
from semmae.models import mae, masking, teacher, vit
from semmae.training.progressive_resolution import epoch_sizes
from stages.finetune import FinetuneConfig
from stages.linear import LinearConfig
from stages.parts import PartsConfig
from stages.pretrain import PretrainConfig
from stages.teacher import TeacherConfig
from tests.imports import ROOT

IMAGENET = 1_281_167  # training images
SIZES = {  # parameters: of the MAE, then of its teacher
    "creatures": (916_928, 3_199_616),
    "photos": (916_928, 3_199_616),
    "imagenet_vitb16_800ep": (111_907_840, 21_665_664),
    "imagenet_vitb8_800ep": (111_922_624, 21_665_664),
    "imagenet_vitl16_800ep": (329_541_888, 21_665_664),
    "h200_one_day": (111_907_840, 21_665_664),
}
STEPS = {  # images of train; then steps and rate of pretraining, rate of fine-tuning, and of a linear probe at 0.1
    "creatures": (4000, 16 * 62, 2e-3, 5e-4, 0.1),
    "photos": (5704, 16 * 89, 2e-3, 5e-4, 0.1),
    "imagenet_vitb16_800ep": (IMAGENET, 800 * 312, 2.4e-3, 2e-3, 6.4),
    "imagenet_vitb8_800ep": (IMAGENET, 800 * 312, 2.4e-3, 2e-3, 6.4),
    "imagenet_vitl16_800ep": (IMAGENET, 800 * 312, 2.4e-3, 4e-3, 6.4),
    "h200_one_day": (IMAGENET, 300 * 625, 1.2e-3, 2e-3, 6.4),
}
FILES = sorted((ROOT / "recipes").glob("*.yaml"))
VITS = {
    "imagenet_vitb16_800ep": (768, 12, 16),
    "imagenet_vitb8_800ep": (768, 12, 8),
    "imagenet_vitl16_800ep": (1024, 24, 16),
}
PRICED = VITS | {"h200_one_day": VITS["imagenet_vitb16_800ep"]}


def semmae(*arguments: str) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def git(*arguments: str) -> None:
    who = ("-c", "user.name=x", "-c", "user.email=x")
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


# The content of recipes


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_begins_with_its_command_cost_and_score(file: Path):
    head = recipe_command.read_header(file)
    assert head["title"].endswith(".")
    assert head["command"].startswith(f"semmae recipe {file.stem} && dvc repro")
    assert head["cost"]
    assert head["score"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_networks_of_a_recipe_can_be_built_and_its_masks_leave_visible_patches(file: Path):
    teacher_section, section = (
        load_config(TeacherConfig, "teacher", file=file),
        load_config(PretrainConfig, "pretrain", file=file),
    )
    with torch.device("meta"):
        model = mae.MAE(
            vit.build({"img_size": section.img_size, **vars(section.encoder)}), **vars(section.recipe.decoder)
        )
        if teacher_section.source == "timm":
            visible = teacher.create_network(teacher_section.model, teacher_section.img_size).patch_embed.grid_size
        else:
            visible = vit.build(
                {"img_size": teacher_section.img_size, **vars(teacher_section.network)}
            ).patch_embed.grid_size
    patches = model.positions.shape[1] - 1
    assert visible[0] * visible[1] > load_config(PartsConfig, "parts", file=file).num_parts
    assert 0 < masking.num_masked(patches, section.masking.mask_ratio) < patches


def vit_size(width: int, depth: int, patch: int, img_size: int) -> int:
    """Count the parameters of a ViT without a classifier, with its positions."""
    pixels, tokens = 3 * patch**2, (img_size // patch) ** 2 + 1
    blocks = depth * (12 * width**2 + 13 * width)  # qkv, projection, MLP of width 4 d, two norms, all with biases
    return blocks + 2 * width + pixels * width + width + width + tokens * width  # norm, patches, class token, positions


def mae_size(encoder: dict, decoder: dict, img_size: int) -> int:
    """Count the parameters of an MAE, with the positions of encoder and decoder."""
    width, patch = encoder["embed_dim"], encoder["patch_size"]
    d, pixels, tokens = decoder["embed_dim"], 3 * patch**2, (img_size // patch) ** 2 + 1
    blocks = decoder["depth"] * (12 * d**2 + 13 * d) + 2 * d
    ends = width * d + d + d * pixels + pixels + d + tokens * d  # into the decoder, to pixels, mask token, positions
    return vit_size(width, encoder["depth"], patch, img_size) + blocks + ends


@pytest.mark.parametrize("name", SIZES)
def test_the_networks_have_the_number_of_parameters_of_their_formula(name: str):
    """ViT-B/16 with MAE's decoder has 111.9 million parameters. Networks are built on the meta device."""
    file = ROOT / f"recipes/{name}.yaml"
    section, teacher_section = (
        load_config(PretrainConfig, "pretrain", file=file),
        load_config(TeacherConfig, "teacher", file=file),
    )
    models = [(section.encoder, section.recipe.decoder, section.img_size)]
    if teacher_section.source == "mae":
        models.append((teacher_section.network, teacher_section.mae.recipe.decoder, teacher_section.img_size))
    found = []
    with torch.device("meta"):
        for encoder, decoder, img_size in models:
            model = mae.MAE(vit.build({"img_size": img_size, **vars(encoder)}), **vars(decoder))
            found.append(sum(p.numel() for p in model.parameters()) + model.positions.numel())
            assert found[-1] == mae_size(vars(encoder), vars(decoder), img_size)
        if teacher_section.source == "timm":
            network = teacher.create_network(teacher_section.model, teacher_section.img_size)
            found.append(sum(p.numel() for p in network.parameters()))
            assert found[-1] == vit_size(384, 12, 16, teacher_section.img_size)
    assert found == list(SIZES[name])


@pytest.mark.parametrize("name", STEPS)
def test_batches_rates_and_steps_of_every_recipe(name: str):
    """The peak rate is base_lr * batch_size / 256, reached after the warm-up. An epoch has only full batches."""
    file = ROOT / f"recipes/{name}.yaml"
    images, steps, *rates, probe_rate = STEPS[name]
    recipe = load_config(PretrainConfig, "pretrain", file=file).recipe
    tuned = load_config(FinetuneConfig, "finetune", file=file).protocol.recipe
    probe = load_config(LinearConfig, "linear", file=file).protocol
    assert recipe.epochs * (images // recipe.batch_size) == steps
    for one, rate in zip((recipe, tuned), rates, strict=True):
        per_epoch = images // one.batch_size
        plan = {"steps": one.epochs * per_epoch, "warmup": one.warmup_epochs * per_epoch, "end": one.min_lr}
        plan["peak"] = one.base_lr * one.batch_size / 256
        assert optim.warmup_cosine(plan["warmup"] - 1, **plan) == pytest.approx(rate)
        assert optim.warmup_cosine(plan["steps"] - 1, **plan) == pytest.approx(one.min_lr, abs=1e-8)
    assert 0.1 in probe.base_lrs  # MAE's
    assert 0.1 * probe.batch_size / 256 == pytest.approx(probe_rate)
    teacher_section = load_config(TeacherConfig, "teacher", file=file)
    if teacher_section.source == "mae":  # at the encoder's own rate, on the same batches
        assert (teacher_section.mae.recipe.base_lr, teacher_section.mae.recipe.batch_size) == (
            recipe.base_lr,
            recipe.batch_size,
        )


def products(width: int, depth: int, tokens: int) -> int:
    """Count the FLOP of transformer blocks in the forward pass: 12 d^2 weights per token, two attention products."""
    return depth * (2 * 12 * width**2 * tokens + 2 * 2 * tokens**2 * width)


def forward(width: int, depth: int, patch: int, img_size: int, *, mask_ratio: float = 0.0) -> int:
    """Count the FLOP per image: the encoder on visible patches; with a mask, also MAE's decoder on all patches."""
    n, pixels = (img_size // patch) ** 2, 3 * patch**2
    visible, embed = n + 1 - (masking.num_masked(n, mask_ratio) if mask_ratio else 0), 2 * pixels * width * n
    decoder = products(512, 8, n + 1) + 2 * (width * visible + pixels * n) * 512 if mask_ratio else 0
    return products(width, depth, visible) + embed + decoder


@pytest.mark.parametrize("name", PRICED)
@pytest.mark.parametrize("side", [128, 224])
def test_the_flop_count_of_a_step_equals_its_formula(name: str, side: int):
    """The count of `benchmarks.recipe_hours` equals the formula, without the gradient with respect to pixels."""
    section, shape = load_config(PretrainConfig, "pretrain", file=ROOT / f"recipes/{name}.yaml"), PRICED[name]
    counted = recipe_hours.step_flops(section, side, mask_ratio=0.75, decode_fraction=1.0)
    assert counted == pytest.approx(3 * forward(*shape, side, mask_ratio=0.75), rel=0.02)


@pytest.mark.parametrize("name", PRICED)
def test_the_cost_of_an_imagenet_recipe_follows_from_its_flop(name: str):
    """A backward pass costs two forward passes. Each epoch of pretraining has its own image size."""
    file, shape = ROOT / f"recipes/{name}.yaml", PRICED[name]
    cost, patch = recipe_command.read_header(file)["cost"], shape[2]
    section, tuned = (
        load_config(PretrainConfig, "pretrain", file=file),
        load_config(FinetuneConfig, "finetune", file=file),
    )
    recipe, masks, tuning = section.recipe, section.masking, tuned.protocol.recipe
    sizes = epoch_sizes(recipe.resolution, img_size=224, epochs=recipe.epochs, patch_size=patch)
    each = [forward(*shape, size, mask_ratio=masks.mask_ratio) for size in sizes]
    work = [3 * sum(each) * (IMAGENET // recipe.batch_size * recipe.batch_size)]
    if tuned.datasets:
        epochs = tuning.epochs * (1 + sum(shots.share for shots in tuned.protocol.low_shot))
        work.append(3 * forward(*shape, 224) * epochs * (IMAGENET // tuning.batch_size * tuning.batch_size))
    *output, rate = map(float, re.findall(r"([\d.]+e\d+) FLOP", cost))
    assert [f"{value:.1e}" for value in work] == [f"{value:.1e}" for value in output]
    hours = float(re.search(r"([\d,]+) GPU hours if", cost)[1].replace(",", ""))
    assert hours == round(sum(work) / rate / 3600)
    assert float(re.search(r"part maps: ([\d.]+) GB", cost)[1]) == pytest.approx(
        IMAGENET * (224 // patch) ** 2 / 1e9, rel=0.02
    )


def test_the_recipe_of_one_day_takes_less_than_a_day():
    """Pretraining takes the time that the cost states; all other stages take half of that."""
    section = load_config(PretrainConfig, "pretrain", file=ROOT / "recipes/h200_one_day.yaml")
    cost = recipe_command.read_header(ROOT / "recipes/h200_one_day.yaml")["cost"]
    assert 1.5 * float(re.search(r"([\d,]+) GPU hours if", cost)[1]) <= 24
    sizes = epoch_sizes(section.recipe.resolution, img_size=224, epochs=300, patch_size=16)
    shape = PRICED["h200_one_day"]
    share = sum(forward(*shape, size, mask_ratio=0.75) for size in sizes) / (
        300 * forward(*shape, 224, mask_ratio=0.75)
    )
    assert float(re.search(r"(\d+) % of the FLOP", cost)[1]) == round(100 * share)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_score_names_its_source(file: Path):
    """A published score has an address. A measured score names the page of results that has its numbers."""
    score = recipe_command.read_header(file)["score"]
    if file.stem in PRICED:
        assert "https://arxiv.org/abs/" in score
        assert re.search(r"table \d", score)
        return
    text = (ROOT / re.search(r"measured here: (docs/results/\w+\.md)", score)[1]).read_text()
    stated, known = re.findall(r"0\.\d+", score), re.findall(r"0\.\d+", text)
    assert len(stated) >= 6
    for number in stated:
        assert any(f"{float(value):.{len(number) - 2}f}" == number for value in known), number


@pytest.mark.parametrize("name", VITS)
def test_the_imagenet_recipes_train_as_published(name: str):
    section = load_config(PretrainConfig, "pretrain", file=ROOT / f"recipes/{name}.yaml")
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
    curriculum = vars(section.masking.curriculum)
    assert [masking.curriculum_weight(progress, **curriculum) for progress in (0, 0.5, 1)] == pytest.approx(
        [0, 0.25, 1]
    )


@pytest.mark.parametrize("name", VITS)
def test_the_imagenet_recipes_have_the_papers_teacher_parts_and_probe(name: str):
    file = ROOT / f"recipes/{name}.yaml"
    teacher_section, parts = (
        load_config(TeacherConfig, "teacher", file=file),
        load_config(PartsConfig, "parts", file=file),
    )
    pretrain = load_config(PretrainConfig, "pretrain", file=file)
    assert (teacher_section.source, teacher_section.model.partition(".")[0]) == ("timm", "vit_small_patch16_224")
    assert parts.num_parts == 6
    assert parts.learned.foreground is not None
    assert parts.img_size // 16 == pretrain.img_size // pretrain.encoder.patch_size  # a label of its own for each patch
    probe = load_config(LinearConfig, "linear", file=file).protocol
    assert (probe.epochs, probe.warmup_epochs, probe.batch_size, probe.pool) == (90, 10, 16384, "class")
    assert 0.1 in probe.base_lrs


@pytest.mark.parametrize("name", VITS)
def test_the_imagenet_recipes_fine_tune_as_mae(name: str):
    protocol = load_config(FinetuneConfig, "finetune", file=ROOT / f"recipes/{name}.yaml").protocol
    recipe = protocol.recipe
    own = (50, 1e-3, 0.75, 0.2) if VITS[name][1] == 24 else (100, 5e-4, 0.65, 0.1)
    assert (recipe.epochs, recipe.base_lr, recipe.layer_decay, recipe.drop_path) == own
    assert (recipe.batch_size, recipe.warmup_epochs, recipe.min_lr, recipe.weight_decay) == (1024, 5, 1e-6, 0.05)
    assert (recipe.mixup, recipe.cutmix, recipe.label_smoothing, recipe.erasing) == (0.8, 1.0, 0.1, 0.25)
    assert vars(recipe.rand_augment) == {"operations": 2, "magnitude": 9, "magnitude_std": 0.5}
    assert (recipe.betas, protocol.pool) == ((0.9, 0.999), "patch_mean")


@pytest.mark.parametrize("name", VITS)
def test_the_ibot_section_is_ibots_command(name: str):
    ibot = load_config(TeacherConfig, "teacher", file=ROOT / f"recipes/{name}.yaml").ibot
    assert ibot.base_lr * ibot.batch_size / 256 == pytest.approx(2e-3)
    assert (ibot.teacher_temp, ibot.teacher_temp_warmup_epochs, ibot.prototypes) == ((0.04, 0.07), 30, 8192)
    assert (ibot.global_crop.scale, ibot.local_crop.scale, ibot.local_crops) == ((0.25, 1.0), (0.05, 0.25), 10)


# Installing recipes


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a folder with two recipes and a committed params.yaml."""
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


def test_without_a_name_recipes_are_listed_with_their_costs(project: Path):
    output = semmae("recipe")
    assert "A short run." in output
    assert "cost: 9 h, or so" in output


def test_a_recipe_becomes_params_yaml_and_the_changes_are_printed(project: Path):
    output = semmae("recipe", "long").splitlines()
    assert {"-epochs: 5", "+epochs: 9"} <= {line.rstrip() for line in output}
    assert (project / "params.yaml").read_bytes() == (project / "recipes/long.yaml").read_bytes()
    assert "params.yaml already equals recipes/long.yaml" in semmae("recipe", "long")
    semmae("recipe", "short")  # overwrites params.yaml, because long.yaml has the same content
    assert (project / "params.yaml").read_bytes() == (project / "recipes/short.yaml").read_bytes()


@pytest.mark.parametrize("why", ["changed", "not added", "no git"])
def test_uncommitted_changes_of_params_yaml_are_only_overwritten_with_force(project: Path, why: str):
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


def test_mistakes_are_reported_in_a_sentence(project: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["semmae", "recipe", "shirt"])
    with pytest.raises(SystemExit, match=r"^error: unknown recipe: 'shirt'; did you mean short\?$"):
        main()
    (project / "other/recipes").mkdir(parents=True)
    monkeypatch.chdir(project / "other")
    with pytest.raises(ValueError, match="no recipes in"):
        semmae("recipe")
    monkeypatch.chdir(project / "recipes")
    assert set(recipe_command.find_recipes(recipe_command.PACKAGED)) == {file.stem for file in FILES}
    (project / "recipes/bare.yaml").write_text("# Bare.\n# cost: nothing\nseed: 0\n")
    with pytest.raises(ValueError, match=r"bare\.yaml lacks command and score"):
        recipe_command.read_header(project / "recipes/bare.yaml")
