"""semmae: part maps for every image, a Vision Transformer pretrained by masking those parts, and honest scores of
it.

The functions for notebooks are in `semmae.inference.api`. The first access to one of them imports torch and the models.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semmae.inference.api import (
        draw_parts,
        encode,
        load_encoder,
        load_part_learner,
        load_teacher,
        map_parts,
        open_dataset,
    )

__version__ = "0.1.0"
__all__ = [
    "draw_parts",
    "encode",
    "load_encoder",
    "load_part_learner",
    "load_teacher",
    "map_parts",
    "open_dataset",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("semmae.inference.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
