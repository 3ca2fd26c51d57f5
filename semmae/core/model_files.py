"""Files of a model: `<name>.safetensors` with the weights, `<name>.json` with the config that rebuilds the model.

The JSON holds the digest of the weights and a digest of its other entries, so damage to either file is detected.
Nothing is unpickled.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from semmae.core.atomic_files import atomic_write, fsync, read_json, write_json
from semmae.core.digests import file_digest, json_digest

CONFIG_DIGEST = "config_sha256"  # key in the JSON: digest of all other entries


def save_model(folder: Path, name: str, state: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """Write `<name>.safetensors` and `<name>.json` into `folder`.

    Both files are written completely before either is renamed. If the disk is full, the previous model stays whole.
    """
    with atomic_write(folder / f"{name}.safetensors") as temporary:
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, temporary)
        fsync(temporary)
        config = {**config, "sha256": file_digest(temporary)}
        write_json(folder / f"{name}.json", {**config, CONFIG_DIGEST: json_digest(config)})


def load_model(folder: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read the weights and the config that `save_model` has written.

    Raises:
        ValueError: A file is missing or damaged, or the weights do not belong to the config.
    """
    config = read_json(folder / f"{name}.json")
    config_digest = config.pop(CONFIG_DIGEST, None)  # models of older versions have none
    if config_digest not in (None, json_digest(config)):
        raise ValueError(f"{folder / name}.json is damaged: restore it (dvc checkout) or rerun its stage")
    weights = folder / f"{name}.safetensors"
    if not weights.exists():
        raise ValueError(f"{weights} does not exist, but {name}.json does; run the stage that writes it (dvc repro)")
    if file_digest(weights) != config["sha256"]:
        raise ValueError(
            f"{weights} does not match the sha256 in {name}.json; restore it (dvc checkout) or rerun its stage"
        )
    return load_file(weights), config


def model_digest(folder: Path, name: str) -> str:
    """Return the digest of a model's JSON, which holds the digest of its weights and so identifies the model."""
    return json_digest(read_json(folder / f"{name}.json"))
