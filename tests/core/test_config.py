"""params.yaml is read strictly: an unknown, missing, ill-typed or out-of-range key is refused by its full name."""

import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML

from semmae.core.config import STRICT, load_config, read_yaml
from semmae.training.mae_loop import MAERecipe

TOY = Path(__file__).parents[1] / "toy/params.yaml"


@dataclass(frozen=True, config=STRICT)
class Recipe:
    lr: float
    epochs: int
    betas: tuple[float, float]


@dataclass(frozen=True, config=STRICT)
class Section:
    strategy: Literal["random", "semantic"]
    compile: bool
    recipe: Recipe


GOOD = "section:\n  strategy: random\n  compile: false\n  recipe: {lr: 1.0e-3, epochs: 2, betas: [0.9, 0.95]}\n"


def load(tmp_path: Path, text: str) -> Section:
    file = tmp_path / "params.yaml"
    file.write_text(text)
    return load_config(Section, "section", file=file)


def test_a_section_becomes_its_dataclass(tmp_path: Path):
    assert load(tmp_path, GOOD) == Section("random", False, Recipe(1e-3, 2, (0.9, 0.95)))


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "0.001"])
def test_yaml_1_2_numbers(tmp_path: Path, number: str):
    assert load(tmp_path, GOOD.replace("1.0e-3", number)).recipe.lr == 0.001


def test_an_integer_is_accepted_as_a_float_but_not_the_reverse(tmp_path: Path):
    assert load(tmp_path, GOOD.replace("1.0e-3", "1")).recipe.lr == 1.0
    with pytest.raises(ValueError, match=r"section\.recipe\.epochs is 2\.5"):
        load(tmp_path, GOOD.replace("epochs: 2", "epochs: 2.5"))


@pytest.mark.parametrize(
    ("given", "instead", "sentence"),
    [
        (
            "strategy: random",
            "strategy: semantc",
            r"section\.strategy is 'semantc'; expected one of 'random' or 'semantic'",
        ),
        ("epochs: 2", "epochs: two", r"section\.recipe\.epochs is 'two'; .*integer"),
        ("epochs: 2", "epochs: '2'", r"section\.recipe\.epochs is '2'; .*integer"),
        ("compile: false", "compile: no", r"section\.compile is 'no'; .*boolean"),  # YAML 1.2: a string
        ("epochs: 2, ", "", r"missing key section\.recipe\.epochs"),
        ("epochs: 2", "epochs: 2, epoch: 3", r"unknown key section\.recipe\.epoch; did you mean epochs\?"),
        ("epochs: 2", "epochs: 2, x: 3", r"unknown key section\.recipe\.x; expected one of lr, epochs, betas"),
        ("betas: [0.9, 0.95]", "betas: [0.9]", r"section\.recipe\.betas"),
        ("  compile: false\n", "  compile: false\n  compile: true\n", r'duplicate key "compile"'),
        ("section:", "sektion:", r"missing key section; the file has sektion"),
        ("recipe: {", "recipe: [", r"is not YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, given: str, instead: str, sentence: str):
    assert given in GOOD
    with pytest.raises(ValueError, match=sentence) as caught:
        load(tmp_path, GOOD.replace(given, instead))
    assert "params.yaml" in str(caught.value)


def test_all_mistakes_are_reported_at_once(tmp_path: Path):
    with pytest.raises(ValueError, match=r"section\.strategy is 'x'") as caught:
        load(tmp_path, GOOD.replace("random", "x").replace("epochs: 2", "epochs: two"))
    assert len(str(caught.value).splitlines()) == 2


def test_the_error_for_a_missing_file_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"params\.yaml does not exist in .*run the command in the root folder of the project"
    ):
        load_config(Section, "section")


# Values of the right type, but out of range


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("teacher.img_size", 0, ""),
        ("teacher.network.patch_size", 0, ""),
        ("teacher.mae.mask_ratio", 1.0, ""),
        ("teacher.mae.recipe.epochs", 0, ""),
        ("mae_recipe.crop.scale", [0.0, 1.0], ".0"),
        ("mae_recipe.crop.scale", [1.0, 0.4], ""),
        ("mae_recipe.crop.flip", 1.5, ""),
        ("teacher.ibot.epochs", 0, ""),
        ("teacher.ibot.mask_ratio", [0.0, 0.5], ".0"),
        ("teacher.ibot.mask_ratio", [0.5, 0.1], ""),
        ("teacher.ibot.masked_share", -0.1, ""),
        ("teacher.ibot.momentum", [0.99, 1.01], ".1"),
        ("teacher.ibot.teacher_temp", [0.0, 0.07], ".0"),
        ("teacher.ibot.student_temp", 0, ""),
        ("teacher.ibot.prototypes", 1, ""),
        ("teacher.ibot.local_crops", -1, ""),
        ("teacher.ibot.clip_grad", 0.0, ""),
        ("teacher.ibot.color.gray", 2, ""),
        ("teacher.ibot.color.contrast", -0.4, ""),
        ("teacher.online_eval.num_images", 0, ""),
        ("teacher.compute.workers", -1, ""),
        ("teacher.checkpoint_minutes", -5, ""),
        ("parts.num_parts", 0, ""),
        ("parts.num_parts", 255, ""),
        ("parts.num_images", 0, ""),
        ("parts.kmeans.temperature", 0, ""),
        ("parts.learned.initial_entropy", 1.0, ""),
        ("parts.learned.smoothing_steps", -1, ""),
        ("parts.learned.position_weight", -0.1, ""),
        ("parts.learned.foreground.threshold_classes", 1, ""),
        ("parts.learned.steps", -1, ""),
        ("parts.learned.batch_size", 0, ""),
        ("parts.paper.diversity", -0.1, ""),
        ("part_maps.batch_size", 0, ""),
        ("part_maps.compute.workers", -1, ""),
        ("pretrain.encoder.depth", 0, ""),
        ("pretrain.masking.mask_ratio", 0.0, ""),
        ("pretrain.masking.curriculum.end", 1.1, ""),
        ("pretrain.masking.curriculum.power", 0.0, ""),
        ("mae_recipe.batch_size", 0, ""),
        ("mae_recipe.base_lr", -1.0e-3, ""),
        ("mae_recipe.weight_decay", -0.05, ""),
        ("mae_recipe.betas", [0.9, 1.0], ".1"),
        ("mae_recipe.decoder", {"embed_dim": 20, "depth": 1, "num_heads": 2}, ""),
        ("pretrain.online_eval.every_epochs", -1, ""),
        ("attentive.protocol.betas", [0.9, 1.0], ".1"),
    ],
)
def test_a_value_out_of_range_is_named(tmp_path: Path, key: str, value: Any, named: str):
    content, (stage, *between, last) = read_yaml(TOY), key.split(".")
    section = content[stage]
    stage = "pretrain" if stage == "mae_recipe" else stage
    for name in between:
        section = section[name]
    assert section[last] != value
    section[last] = value
    YAML().dump(content, file := tmp_path / "params.yaml")
    schema = getattr(importlib.import_module(f"stages.{stage}"), f"{stage.title().replace('_', '')}Config")
    with pytest.raises(ValueError, match=r"params\.yaml: ") as caught:
        load_config(schema, stage, file=file)
    sentence = str(caught.value)
    assert sentence.startswith(f"{file}: {key}{named} is ")
    assert len(sentence.splitlines()) == 1


def test_a_section_inherits_what_it_lacks_and_its_own_values_win(tmp_path: Path):
    content = read_yaml(TOY)
    content["pretrain"]["recipe"] |= {"base_lr": 0.5, "crop": {"flip": 0.0}}
    YAML().dump(content, file := tmp_path / "params.yaml")
    teacher, pretrain = (
        load_config(MAERecipe, *path, file=file) for path in (("teacher", "mae", "recipe"), ("pretrain", "recipe"))
    )
    shared = content["mae_recipe"]
    assert (teacher.base_lr, teacher.crop.flip) == (shared["base_lr"], shared["crop"]["flip"])
    assert pretrain == replace(
        teacher, epochs=content["pretrain"]["recipe"]["epochs"], base_lr=0.5, crop=replace(teacher.crop, flip=0.0)
    )


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("mae_recipe.base_lr", -1.0, "mae_recipe.base_lr is -1.0"),
        ("pretrain.recipe.base_lr", -1.0, "pretrain.recipe.base_lr is -1.0"),
        ("mae_recipe.speed", 1, "unknown key mae_recipe.speed"),
        ("pretrain.recipe.speed", 1, "unknown key pretrain.recipe.speed"),
        ("mae_recipe.decoder.depth", 0, "mae_recipe.decoder.depth is 0"),
        ("pretrain.recipe.decoder", {"width": 1}, "unknown key pretrain.recipe.decoder.width"),
        ("pretrain.recipe", 5, "pretrain.recipe is 5"),
        ("evaluations.linear.toy", {"epoch": 1}, "unknown key evaluations.linear.toy.epoch"),
    ],
)
def test_a_mistake_in_an_inherited_value_is_named_where_it_is_written(tmp_path: Path, key: str, value: Any, named: str):
    content, (*path, last) = read_yaml(TOY), key.split(".")
    section = content
    for name in path:
        section = section[name]
    section[last] = value
    YAML().dump(content, file := tmp_path / "params.yaml")
    stage = "linear" if path[0] == "evaluations" else "pretrain"
    schema = getattr(importlib.import_module(f"stages.{stage}"), f"{stage.title()}Config")
    with pytest.raises(ValueError, match=re.escape(named)):
        load_config(schema, stage, file=file)


def test_a_missing_key_of_the_recipe_is_named_in_the_shared_section(tmp_path: Path):
    content = read_yaml(TOY)
    del content["mae_recipe"]["betas"]
    YAML().dump(content, file := tmp_path / "params.yaml")
    with pytest.raises(ValueError, match=r"missing key mae_recipe\.betas; add it"):
        load_config(MAERecipe, "pretrain", "recipe", file=file)


@pytest.mark.parametrize("removed", ["mae_recipe", "evaluations.knn"])
def test_a_missing_section_that_supplies_values_is_named(tmp_path: Path, removed: str):
    content, (*path, last) = read_yaml(TOY), removed.split(".")
    section = content
    for name in path:
        section = section[name]
    del section[last]
    YAML().dump(content, file := tmp_path / "params.yaml")
    stage = "pretrain" if removed == "mae_recipe" else "knn"
    schema = getattr(importlib.import_module(f"stages.{stage}"), f"{stage.title()}Config")
    with pytest.raises(ValueError, match=rf"missing key {re.escape(removed)}\b.*; add it"):
        load_config(schema, stage, file=file)


def test_an_empty_section_inherits_all_values(tmp_path: Path):
    content = read_yaml(TOY)
    content["mae_recipe"] |= {"epochs": 3, "steps": None}
    content["pretrain"]["recipe"] = None
    YAML().dump(content, file := tmp_path / "params.yaml")
    assert load_config(MAERecipe, "pretrain", "recipe", file=file).epochs == 3
