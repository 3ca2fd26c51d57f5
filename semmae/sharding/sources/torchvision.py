"""A source for the datasets of torchvision. It downloads files only with `download: true`.

torchvision returns decoded images, which this source encodes losslessly as PNG. Only datasets that are folders of files
(ImageNet, Imagenette, EuroSAT) keep the bytes of the files.
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
from semmae.sharding.sources.source import FileSource
from semmae.sharding.sources.source_item import (
    Blob,
    Fraction,
    LocalPath,
    SourceItem,
    Split,
    Weight,
    label_name,
    sort_labels,
)

# datasets that unpickle a cache file without checking its digest
UNPICKLES = {"LSUN", "LSUNClass"}
# constructor arguments that `splits` must not contain
NOT_CONFIGURABLE = {"self", "root", "download", "transform", "transforms", "target_transform", "loader"}

EpsImagePlugin.gs_binary = False  # Pillow would run Ghostscript on a PostScript file that torchvision opens


@dataclass(frozen=True, config=STRICT)
class TorchVision(FileSource):
    """A dataset of torchvision."""

    kind: Literal["torchvision"]
    name: str  # class name, such as CIFAR10
    path: LocalPath | None  # constructor argument `root`; null for a dataset without files (FakeData)
    # constructor arguments of each split, such as {split: trainval}
    splits: Annotated[dict[Split, dict[str, Any]], Field(min_length=1)]
    download: bool
    val_fraction: Fraction
    labels: bool  # whether the targets are class numbers
    weight: Weight = None

    masks = None
    thread_safe = False  # some datasets read from one open file, which threads cannot share

    @property
    def location(self) -> str:
        return f"torchvision's {self.name}"

    def scan(self) -> Iterator[SourceItem]:
        for split in self.splits:
            if self.download:
                _construct(self.name, self.path, self.splits[split], download=True)
            dataset = self._open(split)
            names, labels = _class_names(dataset), self._labels(dataset)
            for number in range(len(dataset)):
                path, label, refused = f"{split}/{number:06d}", None, ""
                try:
                    label = label_name(labels[number], names) if self.labels else None
                except ValueError as error:
                    refused = str(error)
                yield SourceItem(path, split, label, None, None, refused)

    def read(self, item: SourceItem) -> tuple[bytes, None]:
        split, number = item.path.split("/")
        dataset = self._open(split)
        if files := getattr(dataset, "samples", None):  # a dataset that is a folder of files
            return Blob.of(files[int(number)][0]).read(), None
        image, _ = _sample(dataset, int(number))
        if not isinstance(image, Image.Image):
            raise ValueError(f"torchvision gives no picture: {type(image).__name__}")
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue(), None

    def class_names(self, items: Iterable[SourceItem]) -> list[str]:
        names = _class_names(self._open(next(iter(self.splits)))) if self.labels else None
        return names or sort_labels({item.label for item in items if item.label is not None})

    def _labels(self, dataset: Any) -> list[Any]:
        """Collect the targets of all samples. If the dataset has no list of targets, load each sample."""
        if not self.labels:
            return []
        targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
        if targets is None or len(targets) != len(dataset):
            targets = [_sample(dataset, number)[1] for number in range(len(dataset))]
        if np.ndim(targets) != 1 or not np.issubdtype(np.asarray(targets).dtype, np.integer):
            raise ValueError(
                f"the targets of {self.location} are not class numbers: e.g. {targets[0]!r}. Set labels: false"
            )
        return np.asarray(targets).tolist()

    def _open(self, split: str) -> Any:
        return _open(self.name, self.path, json.dumps(self.splits[split], sort_keys=True))  # type: ignore[index]


@cache
def _open(name: str, path: str | None, arguments: str) -> Any:
    """Open a split once per process, without downloading it."""
    return _construct(name, path, json.loads(arguments), download=False)


def _construct(name: str, path: str | None, arguments: dict[str, Any], *, download: bool) -> Any:
    """Construct a dataset; raises ValueError if the name, the arguments or the path is invalid."""
    from torchvision import datasets

    dataset_names = [public for public in datasets.__all__ if inspect.isclass(getattr(datasets, public))]
    if name not in dataset_names:
        similar = difflib.get_close_matches(name, dataset_names, n=3, cutoff=0.4)
        raise ValueError(f"torchvision has no dataset {name!r}; similar names: {', '.join(similar) or 'none'}")
    if name in UNPICKLES:
        raise ValueError(
            f"torchvision's {name} unpickles a cache file, which can run code. Export its images to a folder instead"
        )
    dataset_class, keywords = getattr(datasets, name), dict(arguments)
    accepted = inspect.signature(dataset_class).parameters
    allowed = sorted(accepted.keys() - NOT_CONFIGURABLE)
    takes_any_keyword = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    unknown = sorted(keywords.keys() - allowed if not takes_any_keyword else keywords.keys() & NOT_CONFIGURABLE)
    if unknown:
        raise ValueError(f"torchvision's {name} takes no {unknown[0]!r} in splits; it takes {', '.join(allowed)}")
    if "root" in accepted:
        if path is None:
            raise ValueError(f"path is null, but torchvision's {name} reads files: set path to their folder")
        keywords["root"] = path
    if download:
        if "download" not in accepted and not takes_any_keyword:
            raise ValueError(f"torchvision cannot download {name}; set download: false and put its files into {path}")
        keywords["download"] = True
    try:
        return dataset_class(**keywords)
    except (RuntimeError, ValueError, TypeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"torchvision's {name} cannot be read from {path} with {arguments}: {reason}") from None


def _sample(dataset: Any, number: int) -> tuple[Any, Any]:
    """Load an image and its target; raises ValueError if the image is too large or cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return dataset[number][:2]
    except Exception as error:  # datasets raise many types of errors for damaged files
        raise ValueError(f"torchvision cannot read the sample: number {number}, {error}") from error


def _class_names(dataset: Any) -> list[str] | None:
    """Return the class names of a dataset, or None. A tuple of synonyms (ImageNet) becomes one name."""
    names = getattr(dataset, "classes", None)
    return names and [name if isinstance(name, str) else ", ".join(name) for name in names]
