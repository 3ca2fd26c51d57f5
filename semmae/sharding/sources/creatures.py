"""The source of the built-in dataset. It draws animals and reads no files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT
from semmae.core.digests import json_digest
from semmae.data import decoding
from semmae.sharding.creatures import draw
from semmae.sharding.sources.source import Contents
from semmae.sharding.sources.source_item import SourceItem, Weight


@dataclass(frozen=True, config=STRICT)
class Creatures:
    """A `Source` that draws `train` + `val` animals."""

    kind: Literal["creatures"]
    train: PositiveInt
    val: NonNegativeInt
    size: Annotated[int, Field(ge=16)]  # side of the square images, in pixels
    seed: int
    difficulty: draw.Difficulty = "hard"  # easy: plain backdrop, and a pattern of its own on each body part
    weight: Weight = None

    location = "creatures"
    indexed_in_place = False
    thread_safe = True

    def list_items(self, *, seed: int) -> list[SourceItem]:
        items = []
        for split, count in (("train", self.train), ("val", self.val)):
            for key in (f"{split}-{number:06d}" for number in range(count)):
                items.append(SourceItem(key, split, draw.SPECIES[draw.label_of(key)], None, None, ""))
        return items

    def fetch(self, item: SourceItem) -> tuple[bytes, bytes]:
        image, mask, _ = draw.draw(self.seed, item.path, self.size, difficulty=self.difficulty)
        return decoding.encode_png(image), decoding.encode_png(mask)

    def class_names(self, items: Iterable[SourceItem]) -> list[str]:
        return list(draw.SPECIES)

    def mask_names(self) -> tuple[str, list[str]]:
        return "parts", list(draw.PARTS)

    def digest(self, contents: Contents) -> str:
        return json_digest([self.train, self.val, self.size, self.seed, self.difficulty])

    def resolve_paths(self, root: Path) -> Self:
        return self
