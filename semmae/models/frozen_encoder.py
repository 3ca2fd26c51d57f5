"""A frozen network by its folder, whichever stage wrote it: what leaves the project is one of these."""

from pathlib import Path
from typing import Any, NamedTuple

from semmae.core.model_files import model_digest
from semmae.models import teacher, vit


class FrozenEncoder(NamedTuple):
    """A frozen ViT; `config` holds at least img_size, mean, std, and `timm` where the architecture is one of timm's."""

    network: vit.Network
    config: dict[str, Any]
    digest: str


def load_encoder(folder: Path) -> FrozenEncoder:
    """The encoder or the teacher in `folder`; strict about its weights. ValueError: there is neither."""
    if (folder / "teacher.json").is_file():
        elder = teacher.load_teacher(folder)
        return FrozenEncoder(elder.network, elder.config, elder.digest)
    if not (folder / "encoder.json").is_file():
        raise ValueError(f"{folder} holds neither encoder.json nor teacher.json; run dvc repro, or name another folder")
    network, config = vit.load(folder)
    return FrozenEncoder(network, config, model_digest(folder, "encoder"))
