"""A model is restored as it was saved; damaged files are refused."""

from pathlib import Path

import pytest
import torch

from semmae.core.atomic_files import read_json, write_json
from semmae.core.model_files import CONFIG_DIGEST, load_model, save_model
from tests.damage import flip_a_bit


def test_a_model_is_restored_and_damaged_weights_are_refused(tmp_path: Path):
    save_model(tmp_path, "encoder", {"w": torch.arange(4.0)}, {"depth": 1})
    weights, config = load_model(tmp_path, "encoder")
    assert torch.equal(weights["w"], torch.arange(4.0))
    assert config["depth"] == 1
    flip_a_bit(tmp_path / "encoder.safetensors")
    with pytest.raises(ValueError, match=r"encoder\.safetensors does not match the sha256"):
        load_model(tmp_path, "encoder")


def test_a_model_with_an_edited_config_is_refused(tmp_path: Path):
    save_model(tmp_path, "encoder", {"w": torch.arange(4.0)}, {"depth": 1})
    file = tmp_path / "encoder.json"
    file.write_text(file.read_text().replace('"depth": 1', '"depth": 3'))
    with pytest.raises(ValueError, match=r"encoder\.json is damaged"):
        load_model(tmp_path, "encoder")


def test_a_model_of_an_older_version_is_restored(tmp_path: Path):
    save_model(tmp_path, "encoder", {"w": torch.arange(4.0)}, {"depth": 1})
    old = read_json(tmp_path / "encoder.json")
    del old[CONFIG_DIGEST]
    write_json(tmp_path / "encoder.json", old)
    assert load_model(tmp_path, "encoder")[1] == old
