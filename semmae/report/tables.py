"""Score tables for people: metrics files as rows in a fixed order, every line under the name that says what it is.

- `classification`: a kNN or linear score beside its lines, as bars.
- `low_shot`: what few labels give. `segmentation`: protocols and lines, and the classes one by one.
- `part_tables`: part scores at the patches and at the pixels, in groups: the parts, trivial lines, ceilings.
- `settings`: params under the dotted names that `dvc exp run -S` takes.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from semmae.evaluation.scores import Scores

LINES = {
    "teacher": "teacher",
    "untrained": "untrained encoder",
    "thumbnail": "16 × 16 thumbnails",
    "center_mask": "one mask for all images",
    "position": "commonest label at each place",
    "grid": "equal rectangles",
    "color_kmeans": "k-means of patch colors",
    "untrained_kmeans": "k-means, untrained ViT",
    "teacher_kmeans": "k-means, the teacher’s tokens",
    "attention_heads": "the teacher’s attention heads",
    "readout": "supervised read-out of the teacher",
    "silhouette": "true foreground as one part",
    "perfect": "true parts, by patches",
    "most_frequent": "the commonest class everywhere",
}
PROTOCOLS = {"linear": "linear head, frozen", "knn": "nearest patches, frozen", "upernet": "UPerNet, fine-tuned"}
GROUPS = {
    "trivial lines": ("center_mask", "position", "grid", "color_kmeans", "untrained_kmeans"),
    "the same teacher": ("teacher_kmeans", "attention_heads"),
    "ceilings": ("readout", "silhouette", "perfect"),
}
COLUMNS = {
    "fg_iou": "foreground IoU",
    "miou": "part mIoU",
    "nmi_fg": "NMI, foreground",
    "ari_fg": "ARI, foreground",
    "nmi_all": "NMI, all",
    "ari_all": "ARI, all",
    "consistency": "consistency",
    "used": "labels in use",
    "background_share": "background in one label",
}
LEVELS = {"patch": "by patches", "pixel": "by pixels"}


class Bar(NamedTuple):
    """An accuracy and its standard error (None: unknown), and both as shares of the longest bar's room."""

    name: str
    value: float
    error: float | None
    width: float
    whisker: float


def named(line: str) -> str:
    """What a line of a metrics file is called in tables."""
    return LINES.get(line, line.replace("_", " "))


def classification(scores: Scores) -> dict[str, Any]:
    """`bars` (the encoder first, then its lines, the best first) and `notes`, the encoder's other numbers by name."""
    lines = {named(name): line for name, line in scores.baselines.items()}
    rows = {"encoder": scores.encoder} | dict(sorted(lines.items(), key=lambda item: -item[1]["top1"]))
    longest = max(row["top1"] + row.get("top1_se", 0.0) for row in rows.values())
    full = max(math.ceil(10 * longest) / 10, 0.1)
    bars = [
        Bar(name, row["top1"], error, row["top1"] / full, (error or 0.0) / full)
        for name, row in rows.items()
        for error in (row.get("top1_se"),)
    ]
    notes = {"top-5": scores.encoder.get("top5"), "mean over classes": scores.encoder.get("per_class")}
    return {"bars": bars, "notes": {name: value for name, value in notes.items() if value is not None}}


def low_shot(scores: Scores) -> list[tuple[str, float, float | None]]:
    """(how many labels, top-1, its standard error) for every low-shot score, and for all labels."""
    if not scores.low_shot:
        return []
    rows = [*((_shots(name), row) for name, row in scores.low_shot.items()), ("all", scores.encoder)]
    return [(name, row["top1"], row.get("top1_se")) for name, row in rows]


def _shots(name: str) -> str:
    """`5_per_class` as "5 per class", `0_5_percent` as "0.5 %"."""
    share = name.removesuffix("_percent")
    return name.replace("_", " ") if share == name else f"{share.replace('_', '.')} %"


def segmentation(scores: dict[str, Scores]) -> dict[str, Any]:
    """`rows` of (name, mIoU, its error, pixel accuracy, ours or not), `protocols` and their names in tables, and
    `classes`, the IoU of each by each protocol.
    """
    rows, ours = [], [name for name in PROTOCOLS if name in scores]
    for name in ours:
        found = scores[name].encoder
        rows.append((PROTOCOLS[name], found["miou"], found.get("miou_se"), found["pixel_accuracy"], True))
        for line in ("teacher", "untrained"):
            if beside := scores[name].baselines.get(line):
                rows.append((f"{named(line)}, the same", beside["miou"], None, beside["pixel_accuracy"], False))
    for line in ("most_frequent", "position"):
        if beside := scores[ours[0]].baselines.get(line):
            rows.append((named(line), beside["miou"], None, beside["pixel_accuracy"], False))
    classes = [(label, [scores[name].class_iou[label] for name in ours]) for label in scores[ours[0]].class_iou]
    return {"rows": rows, "protocols": {name: PROTOCOLS[name] for name in ours}, "classes": classes}


def part_tables(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """A table per level: `columns`, and `groups` of (title, rows of (name, values)), None for none."""
    lines = {name: line for name, line in scores.items() if name not in LEVELS}
    grouped = {name for names in GROUPS.values() for name in names}
    groups = {"": {"parts": scores}}
    groups |= {title: {named(n): lines[n] for n in names if n in lines} for title, names in GROUPS.items()}
    groups["also"] = {named(name): line for name, line in lines.items() if name not in grouped}
    tables = []
    for level, title in LEVELS.items():
        keys = [key for key in COLUMNS if key in scores.get(level, {})]
        rows = {
            group: [(name, [line[level].get(key) for key in keys]) for name, line in members.items() if level in line]
            for group, members in groups.items()
        }
        filled = [(group, members) for group, members in rows.items() if members]
        tables.append({"title": title, "columns": [COLUMNS[key] for key in keys], "groups": filled})
    return tables


def settings(section: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) for every value of a section; lists are values."""
    for name, value in section.items():
        if isinstance(value, dict) and value:
            yield from settings(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value
