"""The table of part methods, and the files of a part method."""

from pathlib import Path

from semmae.core.model_files import load_model, model_digest, save_model
from semmae.parts.attention_parts import AttentionParts
from semmae.parts.grid_parts import GridParts
from semmae.parts.kmeans_parts import KMeansParts
from semmae.parts.paper_learner import PaperPartLearner
from semmae.parts.part_learner import PartLearner
from semmae.parts.part_method import PartMethod
from semmae.parts.truth_parts import TruthParts

PART_METHODS: dict[str, type[PartMethod]] = {
    "learned": PartLearner,
    "paper": PaperPartLearner,
    "kmeans": KMeansParts,
    "attention": AttentionParts,
    "grid": GridParts,
    "truth": TruthParts,
}


def save_parts(folder: Path, method: PartMethod) -> None:
    """Write parts.safetensors and parts.json."""
    save_model(folder, "parts", method.state_dict(), method.config)


def load_parts(folder: Path, *, teacher: str | None = None) -> PartMethod:
    """Load a part method with frozen weights.

    Args:
        folder: The folder of `save_parts`.
        teacher: The expected digest of the teacher; None accepts any.

    Raises:
        ValueError: The method was learned from another teacher.
    """
    state, config = load_model(folder, "parts")
    if teacher is not None and teacher != config["teacher"]:
        raise ValueError(f"{folder} was learned from another teacher than the current one; run dvc repro parts")
    method = PART_METHODS[config["method"]](config)
    method.load_state_dict(state, strict=True)
    method.digest = model_digest(folder, "parts")
    return method.eval().requires_grad_(False)
