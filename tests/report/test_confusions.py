"""Confusion matrices equal scikit-learn's, mistakes are ranked, and markup in names is escaped."""

from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import confusion_matrix

from semmae.evaluation import predictions
from semmae.report import confusions

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def predictions_table():
    """Two cats and a dog are classified wrongly, the dog with the highest confidence."""
    rows = [
        ("a", "cat", "cat", 0.99), ("b", "cat", "ant", 0.6), ("c", "dog", "ant", 0.9), ("d", "cat", "ant", 0.7),
        ("e", "ant", "ant", 0.3), ("f", "dog", "dog", 1.0),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(predictions.COLUMNS))


def draw(shares: np.ndarray, names: list[str]) -> ElementTree.Element:
    """Parse the drawn matrix as a browser does."""
    svg = str(confusions.draw_matrix(shares, names))
    return ElementTree.fromstring(svg.replace("<svg", f'<svg xmlns="{SVG[1:-1]}"', 1))


def texts(svg: ElementTree.Element, kind: str) -> list[str]:
    return [mark.text for mark in svg.iter(f"{SVG}text") if kind in mark.get("class").split()]


def test_the_matrix_equals_scikit_learns():
    random, names = np.random.default_rng(0), ["ant", "bee", "cat", "dog"]
    table = pd.DataFrame({"actual": random.choice(names[:3], 200), "predicted": random.choice(names, 200)})
    found = confusions.confusion_matrix(table, names)
    expected = confusion_matrix(table["actual"], table["predicted"], labels=names, normalize="true")
    np.testing.assert_allclose(found, expected)
    assert not found[3].any()  # no sample is a dog


def test_mistakes_are_counted_and_ranked(predictions_table):
    assert confusions.most_confused(predictions_table, 5) == [("cat", "ant", 2), ("dog", "ant", 1)]
    assert confusions.most_confused(predictions_table, 1) == [("cat", "ant", 2)]
    assert [row["key"] for row in confusions.most_confident_mistakes(predictions_table, 2)] == ["c", "d"]
    assert confusions.most_confident_mistakes(predictions_table, 9)[2] == {
        "key": "b",
        "actual": "cat",
        "predicted": "ant",
        "confidence": 0.6,
    }
    right = predictions_table[predictions_table["actual"] == predictions_table["predicted"]]
    assert confusions.most_confused(right, 5) == confusions.most_confident_mistakes(right, 5) == []


def test_the_table_is_read_as_it_was_written(tmp_path):
    """Names that look like numbers, missing values or two columns are kept."""
    names, keys = ["NA", "01", 'a\t"b"'], ["001", "null", "c"]
    predictions.write(tmp_path / "toy.tsv", keys, torch.eye(3), torch.tensor([1, 2, 0]), names, logits=False)
    found = confusions.read_predictions(tmp_path / "toy.tsv")
    assert found["key"].tolist() == keys
    assert found["predicted"].tolist() == names
    assert found["actual"].tolist() == ["01", 'a\t"b"', "NA"]
    assert found["confidence"].tolist() == [1.0] * 3


def test_a_drawn_matrix_has_a_cell_per_pair_and_prints_one_percent_and_more():
    svg = draw(np.array([[0.997, 0.003], [0.25, 0.75]]), ["ant", "bee"])
    assert [mark.get("class") for mark in svg.iter(f"{SVG}rect")] == ["right", "wrong", "wrong", "right"]
    assert texts(svg, "cell") == ["100", "25", "75"]
    assert texts(svg, "row") == texts(svg, "column") == ["ant", "bee"]


def test_markup_in_class_names_is_escaped():
    names = ["<b>&amp;</b>", "<script>alert(1)</script>"]
    svg = draw(np.eye(2), names)
    assert {mark.tag.removeprefix(SVG) for mark in svg.iter()} == {"svg", "text", "rect"}
    assert texts(svg, "row") == [names[0], "<script>alert(1…"]  # the long one is cut
