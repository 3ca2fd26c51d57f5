"""The table of predictions: class names, and the probability of the prediction, for any chunk size."""

import csv
from pathlib import Path

import pytest
import torch

from semmae.evaluation import classification_metrics, predictions

NAMES = ["ant", "bee\tof two words", "cat"]


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize("chunk", [2, 1024])
def test_a_row_has_the_actual_class_the_predicted_class_and_its_probability(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(classification_metrics, "CHUNK", chunk)
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 5.0, 1.0], [1.0, 1.0, 0.0]])
    predictions.write(tmp_path / "new/toy.tsv", ["a", "b", "c"], logits, torch.tensor([0, 2, 1]), NAMES)
    shares = logits.softmax(1).max(1).values
    assert rows(tmp_path / "new/toy.tsv") == [
        {"key": "a", "actual": "ant", "predicted": "ant", "confidence": f"{shares[0]:.4f}"},
        {"key": "b", "actual": "cat", "predicted": NAMES[1], "confidence": f"{shares[1]:.4f}"},
        {"key": "c", "actual": NAMES[1], "predicted": "ant", "confidence": f"{shares[2]:.4f}"},  # as top1 has it
    ]


def test_votes_are_used_as_probabilities(tmp_path):
    predictions.write(
        tmp_path / "toy.tsv", ["a"], torch.tensor([[0.25, 0.0, 0.75]]), torch.tensor([2]), NAMES, logits=False
    )
    assert rows(tmp_path / "toy.tsv")[0]["confidence"] == "0.7500"
