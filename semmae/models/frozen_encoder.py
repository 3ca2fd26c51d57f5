"""Load the encoder or the teacher of any stage, for evaluation, export and promotion."""

from pathlib import Path
from typing import Any, NamedTuple

from semmae.core.model_files import model_digest
from semmae.models import vit
from semmae.models.teacher import load_teacher


class FrozenEncoder(NamedTuple):
    """A frozen ViT.

    Attributes:
        network: the ViT, in evaluation mode.
        config: holds at least `img_size`, `mean` and `std`; for a timm model, also its name as `timm`.
        digest: digest of the config, which holds the digest of the weights.
    """

    network: vit.Network
    config: dict[str, Any]
    digest: str


def load_encoder(folder: Path) -> FrozenEncoder:
    """Load teacher.json or encoder.json with its weights, which must fit exactly.

    Raises:
        ValueError: `folder` holds neither file.
    """
    if (folder / "teacher.json").is_file():
        teacher = load_teacher(folder)
        return FrozenEncoder(teacher.network, teacher.config, teacher.digest)
    if not (folder / "encoder.json").is_file():
        raise ValueError(f"{folder} holds neither encoder.json nor teacher.json; run dvc repro, or name another folder")
    network, config = vit.load(folder)
    return FrozenEncoder(network, config, model_digest(folder, "encoder"))
