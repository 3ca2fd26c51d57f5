"""The section of the report that shows parts: those of the pretraining images, and of all datasets with part scores."""

from pathlib import Path
from typing import Any

from semmae.core.atomic_files import read_json
from semmae.data.dataset import Reader
from semmae.models.teacher import Teacher
from semmae.parts.part_method import PartMethod
from semmae.report import part_pictures, part_views
from semmae.report.evaluation_sections import evaluated_datasets
from semmae.report.part_labels import label_images

SHARDS = Path("data/shards")
SPLITS = ("val", "test", "train")  # pictures are from the first of these splits in the dataset


def shown_datasets(pretraining: str) -> list[str]:
    """List the pretraining dataset, then all other datasets that have part scores and shards."""
    scored = [name for name, _ in evaluated_datasets("part_scores") if (SHARDS / name / "index.parquet").exists()]
    return list(dict.fromkeys([pretraining, *scored]))


def shown_split(dataset: str) -> str:
    """Return the split of which the report shows pictures."""
    samples = read_json(SHARDS / dataset / "shards.json")["samples"]
    return next(name for name in SPLITS if name in samples)


def parts_section(
    dataset: str,
    teacher: Teacher,
    method: PartMethod,
    *,
    colors: str,
    overlays: int,
    views: int,
    num_images: int,
    seed: int,
) -> dict[str, Any]:
    """Return the pictures of the parts of one dataset.

    Args:
        dataset: Its name.
        teacher: The teacher of the part method.
        method: Assigns parts to patches.
        colors: The name of a palette.
        overlays: The number of images that are shown with their parts.
        views: The number of images that are also shown shifted, flipped and zoomed.
        num_images: The number of images in which typical regions are searched, and of which shares are computed.
        seed: Selects the images, and starts k-means.

    Returns:
        dataset, split, num_images: The names and the number of the images that were labeled.
        place: See `LabeledImages.describe_place`.
        columns, rows: Titles and pictures; see `part_pictures.comparison_rows`.
        true_legend: See `part_pictures.true_legend`.
        meanings: See `part_pictures.part_meanings`.
        regions_note, view_note: What the pictures show.
        view_titles, view_rows: Titles and pictures; see `part_views.view_rows`.
    """
    split = shown_split(dataset)
    reader = Reader(SHARDS / dataset, split)
    labeled = label_images(reader, teacher, method, count=max(overlays, views, num_images), seed=seed)
    return {
        "dataset": dataset,
        "split": split,
        "num_images": len(labeled.reader),
        "place": labeled.describe_place(),
        "columns": part_pictures.comparison_columns(labeled),
        "rows": part_pictures.comparison_rows(labeled, count=overlays, colors=colors),
        "true_legend": part_pictures.true_legend(labeled, colors),
        "meanings": part_pictures.part_meanings(labeled, colors=colors),
        "regions_note": part_pictures.REGIONS_NOTE,
        "view_titles": part_views.TITLES,
        "view_note": part_views.NOTE,
        "view_rows": part_views.view_rows(labeled, teacher, count=views, colors=colors),
    }
