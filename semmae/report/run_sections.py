"""The sections of the report that show a run: its training curves, masks and parameters."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from semmae.core.atomic_files import read_json
from semmae.core.config import load_config
from semmae.data.dataset import Reader
from semmae.models.mae import MAE
from semmae.parts.part_maps import PartMaps
from semmae.report import charts, figures, score_tables
from semmae.report.evaluation_sections import EVALUATIONS, evaluated_datasets

RESULTS = Path("results")
TRAINED = {"teacher": Path("data/teacher"), "parts": Path("data/parts"), "pretrain": Path("data/pretrain")}
COLUMN_TITLES = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "rankme": "RankMe, effective rank of the features",
    "curriculum_weight": "curriculum weight",
    "knn_top1": "kNN top-1",
    "readout_iou": "supervised read-out, foreground IoU",
}
FRACTIONS = ("knn_top1", "readout_iou")  # columns that are printed in percent


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
        note: What the pictures show.
        has_curriculum: Whether masks depend on the progress of training.
    """
    size = {"img_size": model.encoder.patch_embed.img_size[0], "patch_size": model.patch_size}
    samples = figures.load_samples(reader, maps, figures.choose_images(len(reader), count=count, seed=seed), **size)
    return {
        "rows": figures.mask_rows(samples, masking=masking, seed=seed, colors=colors),
        "captions": figures.frame_captions(masking),
        "note": figures.masks_note(masking),
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
