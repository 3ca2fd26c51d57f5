"""The sections of the report that show evaluations: scores, mistakes, segmented images and learning curves.

A section shows each dataset that is listed in params.yaml and has results. If the shards of a dataset are missing, the
section has no pictures of it.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from markupsafe import Markup

from semmae.core.config import load_config
from semmae.data import decoding
from semmae.data.dataset import Reader
from semmae.evaluation import curve_files, score_comparison, scores
from semmae.report import charts, confusions, overlays, score_tables, verdict
from semmae.report.palettes import GRAY, make_palette

RESULTS, SHARDS = Path("results"), Path("data/shards")
CLASSIFIERS = {"knn": "kNN", "linear": "linear probe", "attentive": "attentive probe", "finetune": "fine-tuning"}
EVALUATIONS = (*CLASSIFIERS, "segment", "part_scores")
MISTAKES_PRIORITY = ("attentive", "linear", "finetune", "knn")  # mistakes are from the first with results
TILE = 168  # side of a picture in pixels
NUM_MISTAKES = 8  # pictures of mistakes
NUM_PAIRS = 12  # pairs of confused classes, listed if there are too many classes for a matrix
FRACTIONS = ("top1", "miou")  # suffixes of the columns that are printed in percent
SPELLING = {"top1": "top-1", "miou": "mIoU", "upernet": "UPerNet"}


def evaluated_datasets(evaluation: str) -> Iterator[tuple[str, Path]]:
    """Yield name and metrics file of each dataset that is listed in params.yaml and has results."""
    for name in load_config(dict[str, Any], evaluation, "datasets"):
        path = RESULTS / evaluation / f"{name}.json"
        if path.exists():
            yield name, path


def classification_section() -> Iterator[dict[str, Any]]:
    """Yield the accuracies of each classifier on each dataset."""
    for evaluation, classifier in CLASSIFIERS.items():
        for dataset, path in evaluated_datasets(evaluation):
            result = scores.read(path)
            yield {
                "classifier": classifier,
                "dataset": dataset,
                "bars": score_tables.accuracy_bars(result),
                "comparison": score_comparison.describe(result),
                "low_shot": score_tables.low_shot_scores(result),
                "other": score_tables.other_accuracies(result),
            }


def verdict_section(num_steps: Mapping[str, int]) -> list[str]:
    """Return the sentences of `verdict.verdict_sentences` about all classification scores."""
    results = [
        verdict.ClassifierScores(f"{classifier} on {dataset}", scores.read(path))
        for evaluation, classifier in CLASSIFIERS.items()
        for dataset, path in evaluated_datasets(evaluation)
    ]
    return verdict.verdict_sentences(num_steps, results)


def segmentation_section(colors: str) -> Iterator[dict[str, Any]]:
    """Yield the segmentation scores of each dataset, with images, true masks and predicted masks."""
    for dataset, path in evaluated_datasets("segment"):
        result = scores.read_groups(path)
        heads = score_tables.segmentation_heads(result)
        examples, legend = segmentation_examples(
            RESULTS / "segment/examples" / dataset, SHARDS / dataset, heads, colors=colors
        )
        yield {
            "dataset": dataset,
            "heads": heads,
            "rows": score_tables.segmentation_rows(result),
            "classes": score_tables.class_iou_rows(result),
            "examples": examples,
            "legend": legend,
        }


def part_scores_section() -> Iterator[dict[str, Any]]:
    """Yield the part scores of each dataset as a table per level, and a sentence about `place`."""
    for dataset, path in evaluated_datasets("part_scores"):
        result = scores.read_groups(path)
        tables, sentence = score_tables.part_tables(result), score_tables.place_sentence(result)
        yield {"dataset": dataset, "tables": tables, "place": sentence}


def mistakes_section() -> Iterator[dict[str, Any]]:
    """Yield the mistakes of one classifier on each dataset: the first of MISTAKES_PRIORITY that has results."""
    evaluations = {name: stage for stage in reversed(MISTAKES_PRIORITY) for name, _ in evaluated_datasets(stage)}
    for dataset, evaluation in evaluations.items():
        predictions = RESULTS / evaluation / f"predictions/{dataset}.tsv"
        if predictions.exists():
            mistakes = summarize_mistakes(predictions, SHARDS / dataset)
            yield {"classifier": CLASSIFIERS[evaluation], "dataset": dataset, **mistakes}


def evaluation_curves() -> Iterator[dict[str, Any]]:
    """Yield the learning curves of each evaluation that trains."""
    for evaluation in (*CLASSIFIERS, "segment"):
        for dataset, path in evaluated_datasets(evaluation):
            trained = list(scores.read_groups(path)) if evaluation == "segment" else ["encoder"]
            if curves := draw_curves(RESULTS / evaluation / "curves" / dataset, trained):
                title = f"{CLASSIFIERS.get(evaluation, 'segmentation')} on {dataset}"
                yield {"title": title, "charts": curves, "final": {}}


def draw_curves(folder: Path, trained: Collection[str]) -> list[Markup]:
    """Draw the curves that `curve_files.write` wrote, except learning rates and constants.

    Args:
        folder: The curves of one dataset.
        trained: "encoder", or the heads of segmentation. The name of a head is part of the title.
    """
    drawn = []
    for model in trained:
        for column, points in curve_files.read(folder, model).items():
            if column != "lr" and len({value for _, value in points}) > 1:
                words = column.split("_") if model == "encoder" else [model, *column.split("_")]
                title = " ".join(SPELLING.get(word, word) for word in words)
                drawn.append(charts.draw_chart(points, title=title, percent=column.endswith(FRACTIONS)))
    return drawn


def summarize_mistakes(predictions: Path, dataset: Path) -> dict[str, Any]:
    """Return the confusions of a classifier and its most confident mistakes.

    Args:
        predictions: The table that `predictions.write` wrote.
        dataset: The shards of the dataset, which may be missing.

    Returns:
        num_images, num_wrong: Numbers of images.
        matrix: The confusion matrix as SVG; None if there are too many classes.
        pairs: The most confused classes; empty if there is a matrix.
        mistakes: Rows of the table with `picture`, an array or None.
    """
    table = confusions.read_predictions(predictions)
    names = sorted(set(table["actual"]) | set(table["predicted"]))
    drawable = len(names) <= confusions.MAX_CLASSES
    reader = Reader(dataset, "val") if (dataset / "index.parquet").exists() else None
    positions = {key: index for index, key in enumerate(reader.keys)} if reader else {}

    def load_picture(key: str) -> np.ndarray | None:
        return overlays.crop_square(reader.image(positions[key]), TILE) if reader and key in positions else None

    mistakes = [
        {**row, "picture": load_picture(str(row["key"]))}
        for row in confusions.most_confident_mistakes(table, NUM_MISTAKES)
    ]
    return {
        "num_images": len(table),
        "num_wrong": int((table["actual"] != table["predicted"]).sum()),
        "matrix": confusions.draw_matrix(confusions.confusion_matrix(table, names), names) if drawable else None,
        "pairs": [] if drawable else confusions.most_confused(table, NUM_PAIRS),
        "mistakes": mistakes,
    }


def segmentation_examples(
    examples: Path, dataset: Path, heads: Collection[str], *, colors: str
) -> tuple[list[list[UInt8[np.ndarray, "t t 3"]]], list[tuple[str, list[int]]]]:
    """Return pictures of the examples that `segment` saved, and the legend of their colors.

    Args:
        examples: Predicted masks as `<head>/<key>.png`.
        dataset: The shards of the dataset. If they are missing, both lists are empty.
        heads: The heads to show.
        colors: The name of a palette.

    Returns:
        A row per image: the image, its true mask, and the mask that each head predicts; and (name, RGB) for each class
        in these masks. The background of a dataset with parts is gray in the legend, and pale in the pictures.
    """
    if not examples.is_dir() or not (dataset / "index.parquet").exists():
        return [], []
    reader, rows = Reader(dataset, "val"), []
    shown_labels: set[int] = set()
    num_background = int(reader.mask_kind != "classes")  # 1 if label 0 is the background
    class_colors = make_palette(colors, len(reader.mask_names) - num_background)
    for index, key in enumerate(reader.keys):
        files = [examples / head / f"{key}.png" for head in heads]
        if all(file.exists() for file in files):
            image, true_mask = reader.image(index), reader.mask(index)
            assert true_mask is not None
            masks = (true_mask, *(decoding.decode_mask(file.read_bytes()) for file in files))
            colored = [  # the subtraction wraps the background (0) around to 255, which has no color
                overlays.color_square(image, mask - num_background, TILE, colors=class_colors) for mask in masks
            ]
            rows.append([overlays.crop_square(image, TILE), *colored])
            shown_labels.update(*(np.unique(mask).tolist() for mask in masks))
    legend = zip(reader.mask_names, [list(GRAY)] * num_background + class_colors.tolist(), strict=True)
    return rows, [entry for label, entry in enumerate(legend) if label in shown_labels]
