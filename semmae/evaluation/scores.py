"""Scores of the evaluation stages: one schema, one writer, one reader.

A stage writes `results/<stage>/<dataset>.json`, a metrics file of DVC. The metrics of the encoder are at the top level
of a dataset, so that `dvc exp show` prints short names (`knn.<dataset>.top1`). The other attributes of `Scores` are
sections of the file, e.g. `knn.<dataset>.baselines.untrained.top1`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from semmae.core.atomic_files import read_json, write_json

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Scores:
    """Scores of an encoder and of the baselines under the same protocol.

    Attributes:
        encoder: Metrics of the encoder, and the settings that were chosen for it. The stage `part_scores` stores the
            metrics of the part maps here.
        baselines: Metrics of each baseline by its name, e.g. "teacher".
        deviations: Standard deviation of the metrics of those baselines that are means over several clusterings.
        references: Metrics of each upper bound by its name, e.g. a supervised read-out.
        low_shot: Metrics of the encoder with few labels, by `Shots.name`, e.g. "5_per_class".
        class_iou: IoU of each class by its name; None for a class that the masks of val lack.
    """

    encoder: Metrics
    baselines: Mapping[str, Metrics] = field(default_factory=dict)
    deviations: Mapping[str, Metrics] = field(default_factory=dict)
    references: Mapping[str, Metrics] = field(default_factory=dict)
    low_shot: Mapping[str, Metrics] = field(default_factory=dict)
    class_iou: Mapping[str, float | None] = field(default_factory=dict)


SECTIONS = tuple(section.name for section in fields(Scores) if section.name != "encoder")


def write(path: Path, scores: Scores | Mapping[str, Scores]) -> None:
    """Write the scores of one dataset.

    Args:
        path: The metrics file, `<folder>/<stage>/<dataset>.json`.
        scores: The scores, or a group of scores by name: heads in `segment`, levels in `part_scores`.
    """
    if isinstance(scores, Scores):
        content = _to_json(scores)
    else:
        content = {name: _to_json(group) for name, group in scores.items()}
    write_json(path, {path.parent.name: {path.stem: content}})


def read(path: Path) -> Scores:
    """Read a file that `write` has written for a single `Scores`.

    Raises:
        ValueError: The file has another schema.
    """
    return _from_json(path, _content(path))


def read_groups(path: Path) -> dict[str, Scores]:
    """Read a file that `write` has written for a group of `Scores`.

    Raises:
        ValueError: The file has another schema.
    """
    return {name: _from_json(path, group) for name, group in _content(path).items()}


def _content(path: Path) -> dict[str, Any]:
    return read_json(path)[path.parent.name][path.stem]


def _to_json(scores: Scores) -> dict[str, Any]:
    sections = {name: getattr(scores, name) for name in SECTIONS}
    return dict(scores.encoder) | {name: section for name, section in sections.items() if section}


def _from_json(path: Path, content: Any) -> Scores:
    if not isinstance(content, dict):
        raise _unknown_schema(path, repr(content))
    sections = {name: content[name] for name in SECTIONS if name in content}
    metrics = {name: value for name, value in content.items() if name not in SECTIONS}
    for name, value in metrics.items():
        if not isinstance(value, int | float):
            raise _unknown_schema(path, f"the value of {name!r}")
    return Scores(metrics, **sections)


def _unknown_schema(path: Path, culprit: str) -> ValueError:
    return ValueError(
        f"{path} has an unknown schema: {culprit}; expected numbers and the sections {', '.join(SECTIONS)}. "
        f"Run: dvc repro -f {path.parent.name}@{path.stem}"
    )
