"""params.yaml and the recipes have the form in which DVC writes YAML, so that `dvc exp run -S` changes one line."""

import difflib
import shutil
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import modify_yaml

from semmae.core.config import read_yaml
from tests.imports import ROOT

FILES = [ROOT / "params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))]


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request, tmp_path) -> Path:
    return shutil.copy(request.param, tmp_path / "params.yaml")


def number_keys(section: dict[str, Any], prefix: str = "") -> list[str]:
    """List the dotted keys of all numbers that are no booleans."""
    keys = []
    for name, value in section.items():
        if isinstance(value, dict):
            keys += number_keys(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            keys.append(f"{prefix}{name}")
    return keys


def changed_lines(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0)
    return [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


def test_the_writer_of_dvc_changes_no_byte(file):
    before = file.read_bytes()
    with modify_yaml(file) as params:
        assert params
    assert file.read_bytes() == before


@pytest.mark.parametrize("override", ["pretrain.recipe.epochs=3", "pretrain.masking.strategy=block"])
def test_a_set_parameter_changes_one_line(override, file):
    before = file.read_text()
    apply_overrides(file, [override])
    removed, added = changed_lines(before, file.read_text())
    key, value = override.rpartition(".")[2].split("=")
    assert removed.lstrip("- ").startswith(f"{key}: ")
    assert added.lstrip("+ ").startswith(f"{key}: {value}")
    assert removed.partition("#")[2] == added.partition("#")[2]


def test_setting_all_numbers_changes_no_other_line(file):
    before, keys = file.read_text(), number_keys(read_yaml(file))
    assert len(keys) > 150
    apply_overrides(file, [f"{key}=7" for key in keys])
    after = file.read_text()
    assert len(after.splitlines()) == len(before.splitlines())
    assert len(changed_lines(before, after)) <= 2 * len(keys)
    assert set(number_keys(read_yaml(file))) == set(keys)
