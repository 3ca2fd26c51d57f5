"""The sections of the report about evaluations: tables, curves, mistakes, segmented images, with missing inputs."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from semmae.data import decoding
from semmae.data.dataset import Reader
from semmae.evaluation import curve_files
from semmae.evaluation.predictions import COLUMNS
from semmae.evaluation.scores import Scores
from semmae.report import confusions, evaluation_sections, overlays, score_tables

HEADS = ("linear", "knn")


@pytest.fixture
def reader(toy_dataset):
    return Reader(toy_dataset, "val")


def write_predictions(path: Path, rows: list[tuple[str, str, str, float]]) -> Path:
    """Write a table of predictions."""
    pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(path, sep="\t", index=False)
    return path


def write_masks(folder: Path, reader: Reader, indices: list[int]) -> Path:
    """Write predicted masks: the true masks for the linear head, only the first class for kNN."""
    for head in HEADS:
        (folder / head).mkdir(parents=True)
        for index in indices:
            mask = reader.mask(index) * (head == "linear")
            (folder / head / f"{reader.keys[index]}.png").write_bytes(decoding.encode_png(mask))
    return folder


def test_there_is_a_chart_per_column_that_changes_and_head(tmp_path):
    rows = [
        {"epoch": 1, "lr": 0.1, "loss": 3.0, "steps": 5},
        {"epoch": 2, "lr": 0.2, "loss": 2.0, "val_miou": 0.125, "steps": 5},
        {"epoch": 3, "lr": 0.0, "loss": 1.0, "val_miou": 0.25, "steps": 5},
    ]
    curve_files.write(tmp_path / "toy", {"linear": rows, "linear_untrained": rows, "upernet": rows[:1]})
    loss, miou = evaluation_sections.draw_curves(tmp_path / "toy", ["linear", "upernet", "most_frequent"])
    assert "linear loss over 3 epochs, last value 1" in loss
    assert "linear val mIoU over 3 epochs, last value 25 %" in miou
    assert loss.split('points="')[1].split('"')[0].count(",") == 3
    assert miou.split('points="')[1].split('"')[0].count(",") == 2
    curve_files.write(tmp_path / "toy", {"encoder": rows})
    assert "val mIoU over 3 epochs" in evaluation_sections.draw_curves(tmp_path / "toy", ["encoder"])[1]
    assert evaluation_sections.draw_curves(tmp_path / "gone", ["encoder"]) == []


def test_mistakes_have_pictures_and_are_ordered_by_confidence(tmp_path, toy_dataset, reader):
    rows = [("gone", "cat", "dog", 0.75), (reader.keys[3], "cat", "dog", 0.5), (reader.keys[4], "dog", "dog", 1.0)]
    found = evaluation_sections.summarize_mistakes(write_predictions(tmp_path / "toy.tsv", rows), toy_dataset)
    assert (found["num_wrong"], found["num_images"], found["pairs"]) == (2, 3, [])
    assert 'class="confusion"' in found["matrix"]
    unknown, known = found["mistakes"]
    assert (unknown["key"], unknown["picture"]) == ("gone", None)
    assert np.array_equal(known["picture"], overlays.crop_square(reader.image(3), evaluation_sections.TILE))
    without = evaluation_sections.summarize_mistakes(tmp_path / "toy.tsv", tmp_path)
    assert [row["picture"] for row in without["mistakes"]] == [None, None]


def test_many_classes_have_pairs_instead_of_a_matrix(tmp_path):
    rows = [(f"{i}", f"class {i}", f"class {i // 2}", 0.5) for i in range(confusions.MAX_CLASSES + 1)]
    found = evaluation_sections.summarize_mistakes(write_predictions(tmp_path / "toy.tsv", rows), tmp_path)
    assert found["matrix"] is None
    assert len(found["pairs"]) == evaluation_sections.NUM_PAIRS
    assert found["num_wrong"] == confusions.MAX_CLASSES  # class 0 is right


def test_a_segmented_image_has_its_true_and_predicted_masks(tmp_path, toy_dataset, reader):
    indices, options = [2, 5], {"colors": "okabe_ito"}
    folder = write_masks(tmp_path / "examples", reader, indices)
    rows, _ = evaluation_sections.segmentation_examples(folder, toy_dataset, HEADS, **options)
    assert [len(row) for row in rows] == [4, 4]
    for index, (image, truth, linear, knn) in zip(indices, rows, strict=True):
        assert np.array_equal(image, overlays.crop_square(reader.image(index), evaluation_sections.TILE))
        assert np.array_equal(truth, linear)
        assert not np.array_equal(truth, knn)
    assert len(evaluation_sections.segmentation_examples(folder, toy_dataset, ["linear"], **options)[0][0]) == 3
    assert evaluation_sections.segmentation_examples(folder, tmp_path, HEADS, **options) == ([], [])  # no shards
    shutil.rmtree(folder / "knn")
    assert evaluation_sections.segmentation_examples(folder, toy_dataset, HEADS, **options) == ([], [])


@pytest.mark.parametrize("kind", ["parts", "classes"])
def test_the_legend_lists_the_shown_classes_and_a_background_has_no_color(
    tmp_path, toy_dataset, reader, monkeypatch, kind
):
    monkeypatch.setitem(reader.meta, "mask_kind", kind)
    monkeypatch.setattr(evaluation_sections, "Reader", lambda *_: reader)
    folder = write_masks(tmp_path / "examples", reader, [2])
    ((image, truth, _, all_first),), legend = evaluation_sections.segmentation_examples(
        folder, toy_dataset, HEADS, colors="okabe_ito"
    )
    labels = [label for label in np.unique(reader.mask(2)) if label != decoding.IGNORE]
    assert [name for name, _ in legend] == [reader.mask_names[label] for label in labels]
    assert len({tuple(color) for _, color in legend}) == len(labels)
    assert (dict(legend)["background"] == list(evaluation_sections.GRAY)) == (kind == "parts")
    paler = 0.5 * image + 0.2 * (image @ overlays.LUMA)[..., None] + 0.3 * 255
    assert np.allclose(all_first, paler, atol=0.51) == (kind == "parts")
    assert not np.array_equal(truth, all_first)


def test_a_picture_is_the_center_square_and_ignored_pixels_are_paler():
    image, mask = np.zeros((20, 60, 3), np.uint8), np.full((20, 60), decoding.IGNORE, np.uint8)
    image[:, 19:41], mask[:, :30] = (0, 200, 0), 0
    assert (overlays.crop_square(image, 168)[:, 10:-10] == (0, 200, 0)).all()  # its border is interpolated
    shown = overlays.color_square(image, mask, 168, colors=np.array([[0, 0, 255]], np.uint8))
    colored, ignored = shown[80, 40], shown[80, -40]
    assert colored.argmax() == 2
    assert ignored.argmax() == 1
    assert ignored.min() > 0


def test_segmentation_has_a_row_per_head_and_baseline_and_an_iou_per_class():
    metrics, class_iou = {"miou": 0.5, "miou_se": 0.01, "pixel_accuracy": 0.75}, {"sky": 0.5, "sea": None}
    baseline = {"miou": 0.25, "pixel_accuracy": 0.5}
    knn = Scores(metrics, {"most_frequent": baseline}, class_iou=class_iou)
    linear = Scores(metrics, {"untrained": baseline, "most_frequent": baseline}, class_iou=class_iou)
    scores = {"knn": knn, "linear": linear}
    assert score_tables.segmentation_rows(scores) == [
        ("linear head, frozen", 0.5, 0.01, 0.75, True),
        ("untrained encoder, linear head, frozen", 0.25, None, 0.5, False),
        ("nearest patches, frozen", 0.5, 0.01, 0.75, True),
        ("most frequent class everywhere", 0.25, None, 0.5, False),
    ]
    assert list(score_tables.segmentation_heads(scores)) == ["linear", "knn"]
    assert score_tables.class_iou_rows(scores) == [("sky", [0.5, 0.5]), ("sea", [None, None])]


def test_low_shot_scores_end_with_all_labels():
    few = {
        "5_per_class": {"top1": 0.25, "top1_se": 0.02},
        "10_percent": {"top1": 0.3},
        "0_5_percent": {"top1": 0.1},
    }
    found = score_tables.low_shot_scores(Scores({"top1": 0.5, "top1_se": 0.01}, low_shot=few))
    assert found == [("5 per class", 0.25, 0.02), ("10 %", 0.3, None), ("0.5 %", 0.1, None), ("all", 0.5, 0.01)]
    assert score_tables.low_shot_scores(Scores({"top1": 0.5})) == []


@pytest.mark.parametrize(("top1", "error"), [(0.156, 0.064), (0.0, 0.0), (1.0, None), (0.5, 0.01)])
def test_bars_leave_room_for_their_whiskers(top1, error):
    known = {} if error is None else {"top1_se": error}
    (bar,) = score_tables.accuracy_bars(Scores({"top1": top1} | known))
    assert bar.width + bar.whisker <= 1
    assert bar.width == pytest.approx(top1 / max(0.1, np.ceil(10 * (top1 + (error or 0)) - 1e-9) / 10))
