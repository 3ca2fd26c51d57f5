"""Names of parameters from older versions are refused with the new names."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from semmae.core.config import inherit, load_config, read_yaml
from semmae.core.renamed_keys import REMOVED_KEYS, RENAMED_KEYS

ROOT = Path(__file__).parents[2]


def lookup(params: dict[str, Any], key: str) -> Any:
    """Return the value under a dotted key; a KeyError if there is none."""
    section: Any = params
    for name in key.split("."):
        section = section[name]
    return section


@pytest.mark.parametrize("old", RENAMED_KEYS | REMOVED_KEYS)
def test_an_old_name_is_refused_with_what_to_write_instead(tmp_path: Path, old: str):
    content: dict[str, Any] = {}
    section, (*path, last) = content, old.split(".")
    for name in path:
        section = section.setdefault(name, {})
    section[last] = 1
    YAML().dump(content, file := tmp_path / "params.yaml")
    with pytest.raises(ValueError, match=r"params\.yaml: ") as refused:
        load_config(dict[str, Any], "report", file=file)
    what = f"is now {RENAMED_KEYS[old]}; " if old in RENAMED_KEYS else f"was removed: {REMOVED_KEYS[old]}; delete it"
    assert f"{old} {what}" in str(refused.value)


def test_the_sentence_says_whether_to_rename_or_to_move(tmp_path: Path):
    YAML().dump(
        {"pretrain": {"masking": {"inter_part": 1}, "compute": {"window": None}}}, file := tmp_path / "params.yaml"
    )
    with pytest.raises(ValueError, match=r"params\.yaml: ") as refused:
        load_config(dict[str, Any], "pretrain", file=file)
    assert str(refused.value).splitlines() == [
        f"{file}: pretrain.masking.inter_part is now pretrain.masking.curriculum; rename it",
        f"{file}: pretrain.compute.window is now mae_recipe.shuffle_shards; move it to mae_recipe as shuffle_shards",
    ]


def test_every_new_name_exists_and_no_old_one():
    params = read_yaml(ROOT / "params.yaml")
    for old, new in RENAMED_KEYS.items():
        lookup(params, new)
        with pytest.raises(KeyError):
            lookup(params, old)
    for old in REMOVED_KEYS:
        with pytest.raises(KeyError):
            lookup(params, old)
    assert inherit(params)["pretrain"]["recipe"]["batch_size"] == params["mae_recipe"]["batch_size"]
