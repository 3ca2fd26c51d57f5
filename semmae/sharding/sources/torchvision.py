"""The datasets of torchvision, by name. Nothing is downloaded unless `download: true` asks for it.

Pictures come decoded from there, so they are stored as PNG, pixel by pixel; datasets that are folders of files
(ImageNet, Imagenette, EuroSAT) keep the bytes of these files.
"""

import difflib
import inspect
import io
import json
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
from PIL import EpsImagePlugin, Image
from pydantic import Field
from pydantic.dataclasses import dataclass

from semmae.core.config import STRICT
from semmae.sharding.sources.source_item import Blob, Entry, Fraction, PlainPath, Split, Weight, in_order, label_name

UNPICKLES = {"LSUN", "LSUNClass"}  # a cache that lies beside their files; CIFAR's pickles have digests
OURS = {"self", "root", "download", "transform", "transforms", "target_transform", "loader"}  # not for params.yaml

EpsImagePlugin.gs_binary = False  # torchvision opens whatever Pillow opens, and for this kind it would run a program


@dataclass(frozen=True, config=STRICT)
class TorchVision:
    """A dataset of torchvision."""

    kind: Literal["torchvision"]
    name: str  # of its class, e.g. CIFAR10
    path: PlainPath | None  # the `root` of its files; null for one without files (FakeData)
    splits: Annotated[dict[Split, dict[str, Any]], Field(min_length=1)]  # what to construct, e.g. {split: trainval}
    download: bool
    val_fraction: Fraction
    labels: bool  # its targets are classes
    weight: Weight = None

    masks = None  # of no use here

    @property
    def where(self) -> str:
        return f"torchvision's {self.name}"

    def listed(self) -> Iterator[Entry]:
        """The entries, numbered in each split."""
        for split in self.splits:
            if self.download:
                _constructed(self.name, self.path, self.splits[split], download=True)
            dataset = self._opened(split)
            names, labels = _classes(dataset), self._labels(dataset)
            for number in range(len(dataset)):
                path, label, refused = f"{split}/{number:06d}", None, ""
                try:
                    label = label_name(labels[number], names) if self.labels else None
                except ValueError as error:
                    refused = str(error)
                yield Entry(path, split, label, None, None, refused)

    def fetch(self, entry: Entry) -> tuple[bytes, None]:
        split, number = entry.path.split("/")
        dataset = self._opened(split)
        if files := getattr(dataset, "samples", None):  # a folder of files
            return Blob.of(files[int(number)][0]).read(), None
        image, _ = _sample(dataset, int(number))
        if not isinstance(image, Image.Image):
            raise ValueError(f"torchvision gives no picture: {type(image).__name__}")
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue(), None

    def class_names(self, found: Iterable[Entry]) -> list[str]:
        names = _classes(self._opened(next(iter(self.splits)))) if self.labels else None
        return names or in_order({entry.label for entry in found if entry.label is not None})

    def _labels(self, dataset: Any) -> list[Any]:
        """The target of every sample; where the dataset has no list of them, each is opened."""
        if not self.labels:
            return []
        targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
        if targets is None or len(targets) != len(dataset):
            targets = [_sample(dataset, number)[1] for number in range(len(dataset))]
        if np.ndim(targets) != 1 or not np.issubdtype(np.asarray(targets).dtype, np.integer):
            raise ValueError(
                f"the targets of {self.where} are no class numbers, e.g. {targets[0]!r}; set labels: false"
            )
        return np.asarray(targets).tolist()

    def _opened(self, split: str) -> Any:
        return _opened(self.name, self.path, json.dumps(self.splits[split], sort_keys=True))  # type: ignore[index]


@cache
def _opened(name: str, path: str | None, arguments: str) -> Any:
    """A split as it lies there, once per process."""
    return _constructed(name, path, json.loads(arguments), download=False)


def _constructed(name: str, path: str | None, arguments: dict[str, Any], *, download: bool) -> Any:
    """The dataset. ValueError: there is none of that name, with these arguments, at that path."""
    from torchvision import datasets

    known = [other for other in datasets.__all__ if inspect.isclass(getattr(datasets, other))]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ValueError(f"torchvision has no dataset {name!r}; similar names: {', '.join(near) or 'none'}")
    if name in UNPICKLES:
        raise ValueError(f"torchvision's {name} unpickles what lies beside its files; export its images to a folder")
    kind, given = getattr(datasets, name), dict(arguments)
    takes = inspect.signature(kind).parameters
    allowed = sorted(takes.keys() - OURS)
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    unknown = sorted(given.keys() - allowed if not open_ended else given.keys() & OURS)
    if unknown:
        raise ValueError(f"torchvision's {name} takes no {unknown[0]!r} in splits; it takes {', '.join(allowed)}")
    if "root" in takes:
        if path is None:
            raise ValueError(f"torchvision's {name} is read from files; give their folder as path (null)")
        given["root"] = path
    if download:
        if "download" not in takes and not open_ended:
            raise ValueError(f"torchvision cannot download {name}; set download: false and put its files at {path}")
        given["download"] = True
    try:
        return kind(**given)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"torchvision's {name} cannot be read from {path} with {arguments}: {reason}") from None


def _sample(dataset: Any, number: int) -> tuple[Any, Any]:
    """A picture and its target. ValueError: torchvision cannot read it, or it is too large."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return dataset[number][:2]
    except Exception as error:  # its datasets raise whatever their parsing meets
        raise ValueError(f"torchvision cannot read the sample: number {number}, {error}") from error


def _classes(dataset: Any) -> list[str] | None:
    """The names of its classes, if it has any; synonyms (ImageNet) become one name."""
    names = getattr(dataset, "classes", None)
    return names and [name if isinstance(name, str) else ", ".join(name) for name in names]
