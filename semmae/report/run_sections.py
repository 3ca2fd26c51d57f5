"""The sections of the report that show a run: its training curves, parts, masks, reconstructions and parameters."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from semmae.core.atomic_files import read_json
from semmae.core.config import load_config
from semmae.core.rng import numpy_generator
from semmae.data.dataset import Reader
from semmae.models.mae import MAE
from semmae.models.teacher import Teacher
from semmae.parts.part_maps import PartMaps
from semmae.parts.part_method import PartMethod
from semmae.report import charts, figures, heat_maps, overlays, score_tables
from semmae.report.evaluation_sections import EVALUATIONS, evaluated_datasets
from semmae.report.palettes import GRAY

RESULTS = Path("results")
TRAINED = {"teacher": Path("data/teacher"), "parts": Path("data/parts"), "pretrain": Path("data/pretrain")}
COLUMN_TITLES = {
    "lr": "learning rate",
    "curriculum_weight": "curriculum weight",
    "knn_top1": "kNN top-1",
    "readout_iou": "supervised read-out, foreground IoU",
}
FRACTIONS = ("knn_top1", "readout_iou")  # columns that are printed in percent
REGION_SIZE, NUM_REGIONS = 168, 9  # side of a region in pixels; regions per part


def training_curves() -> Iterator[dict[str, Any]]:
    """Yield the curves of each training stage; a stage without curves has its `final` metrics instead."""
    for name, folder in TRAINED.items():
        curves = charts.curves_of_history(read_json(folder / "history.json"))
        drawn = [
            charts.draw_chart(points, title=column_title(column), percent=column in FRACTIONS)
            for column, points in curves.items()
            if len(points) == 1 or len({value for _, value in points}) > 1  # omits constants
        ]
        final = {} if drawn else read_json(RESULTS / name / "metrics.json")[name]
        yield {"title": name, "charts": drawn, "final": {column_title(key): value for key, value in final.items()}}


def column_title(column: str) -> str:
    """Return the title of a column of a history."""
    return COLUMN_TITLES.get(column, column.replace("_", " "))


def parts_section(
    reader: Reader,
    teacher: Teacher,
    method: PartMethod,
    colors: UInt8[np.ndarray, "p 3"],
    *,
    num_images: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Return the frequency and the most typical regions of each label; the background is last.

    Args:
        reader: The images.
        teacher: The teacher of the part method.
        method: Assigns parts to patches.
        colors: The RGB color of each part.
        num_images: The number of images in which typical regions are searched.
        seed: Selects these images.
    """
    indices = numpy_generator(seed, "gallery").permutation(len(reader))[:num_images]
    probabilities = heat_maps.label_probabilities(reader, indices, teacher, method)
    labels = probabilities.argmax(1).reshape(-1, *method.config["grid"])
    typical = overlays.most_typical(probabilities, count=NUM_REGIONS)
    frequencies = read_json(RESULTS / "part_maps/metrics.json")["part_maps"]["parts"]
    label_colors = np.vstack([colors, GRAY]).astype(np.uint8)  # the background is the label after the parts
    return [
        {
            "name": name if label == method.background else f"part {name}",
            "color": label_colors[label].tolist(),
            "frequency": frequency,
            "regions": [
                overlays.crop_region(
                    reader.image(indices[i]), labels[i] == label, size=REGION_SIZE, color=label_colors[label]
                )
                for i in typical[label]
            ],
        }
        for label, (name, frequency) in enumerate(frequencies.items())
    ]


def masks_section(
    reader: Reader,
    maps: PartMaps,
    model: MAE,
    masking: dict[str, Any],
    colors: UInt8[np.ndarray, "p 3"],
    *,
    count: int,
    seed: int,
) -> dict[str, Any]:
    """Return masks over the course of training.

    Args:
        reader: The images.
        maps: Their part maps.
        model: The MAE whose grid of patches is masked.
        masking: The section `pretrain.masking`.
        colors: The RGB color of each part.
        count: The number of images.
        seed: Selects the images and the noise of the masks.

    Returns:
        rows: A row per image: its picture, then its masks.
        captions: The captions of the masks; see `figures.frame_captions`.
        has_curriculum: Whether masks depend on the progress of training.
    """
    size = {"img_size": model.encoder.patch_embed.img_size[0], "patch_size": model.patch_size}
    samples = figures.load_samples(reader, maps, figures.choose_images(len(reader), count=count, seed=seed), **size)
    return {
        "rows": figures.mask_rows(samples, masking=masking, seed=seed, colors=colors),
        "captions": figures.frame_captions(masking),
        "has_curriculum": figures.has_curriculum(masking),
    }


def params_section(**params: dict[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """Return the parameters of each stage and of each evaluated dataset as pairs (dotted name, value).

    Args:
        params: The sections `teacher`, `parts` and `pretrain`, read from the artifacts of the run. The other sections
            are read from params.yaml.
    """
    sections = {
        "shards": {"writing": load_config(dict[str, Any], "shards", "writing")},
        "teacher": params["teacher"],
        "parts": params["parts"],
        "part_maps": load_config(dict[str, Any], "part_maps"),
        "pretrain": params["pretrain"],
    }
    datasets = {}
    for evaluation in EVALUATIONS:
        if evaluated := [dataset for dataset, _ in evaluated_datasets(evaluation)]:
            section = load_config(dict[str, Any], evaluation)
            datasets[evaluation] = {name: section["datasets"][name] for name in evaluated}
            sections[evaluation] = {"protocol": section["protocol"]}
    if datasets:
        sections["evaluations"] = datasets
    return {stage: list(score_tables.flatten_params(section, stage)) for stage, section in sections.items()}
