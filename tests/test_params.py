"""params.yaml is read strictly: what is unknown, missing or of another type is refused by its full name."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic.dataclasses import dataclass

from semmae import params
from semmae.params import STRICT


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
    return params.load(Section, "section", file=file)


def test_a_section_becomes_its_dataclass(tmp_path: Path):
    assert load(tmp_path, GOOD) == Section("random", False, Recipe(1e-3, 2, (0.9, 0.95)))


@pytest.mark.parametrize("number", ["1e-3", "1.0e-3", "0.001"])
def test_yaml_1_2_numbers(tmp_path: Path, number: str):
    assert load(tmp_path, GOOD.replace("1.0e-3", number)).recipe.lr == 0.001


def test_an_integer_is_a_float_where_one_is_asked_for_but_not_the_reverse(tmp_path: Path):
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
        ("epochs: 2", "epochs: 2, epoch: 3", r"unknown key section\.recipe\.epoch;"),
        ("betas: [0.9, 0.95]", "betas: [0.9]", r"section\.recipe\.betas"),
        ("  compile: false\n", "  compile: false\n  compile: true\n", r'duplicate key "compile"'),
        ("section:", "sektion:", r"no 'section' in the file; it has sektion"),
        ("recipe: {", "recipe: [", r"is not YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, given: str, instead: str, sentence: str):
    assert given in GOOD
    with pytest.raises(ValueError, match=sentence) as caught:
        load(tmp_path, GOOD.replace(given, instead))
    assert "params.yaml" in str(caught.value)


def test_every_mistake_is_told_at_once(tmp_path: Path):
    with pytest.raises(ValueError, match=r"section\.strategy is 'x'") as caught:
        load(tmp_path, GOOD.replace("random", "x").replace("epochs: 2", "epochs: two"))
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"params\.yaml does not exist in .*run from the project's root"):
        params.load(Section, "section")
