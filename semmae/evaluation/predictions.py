"""The predicted class of every sample as a TSV file, which `dvc plots` shows as a confusion matrix."""

import csv
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float, Integer
from torch import Tensor

from semmae.core.atomic_files import atomic_write
from semmae.evaluation import classification_metrics

COLUMNS = ("key", "actual", "predicted", "confidence")


def write(
    path: Path,
    keys: Sequence[str],
    scores: Float[Tensor, "n c"],
    labels: Integer[Tensor, " n"],
    class_names: Sequence[str],
    *,
    logits: bool = True,
) -> None:
    """Write a row per sample: key, name of the true class, name of the predicted class, and its probability.

    Args:
        scores: Logits, or probabilities if `logits` is False.
    """
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(COLUMNS)
        for start in range(0, len(keys), classification_metrics.CHUNK):
            chunk = slice(start, start + classification_metrics.CHUNK)
            probabilities = scores[chunk].softmax(1) if logits else scores[chunk]
            predicted = classification_metrics.top_classes(scores[chunk], k=1)
            confidence = probabilities.gather(1, predicted)[:, 0].tolist()
            columns = (keys[chunk], labels[chunk].tolist(), predicted[:, 0].tolist(), confidence)
            for key, actual, prediction, probability in zip(*columns, strict=True):
                table.writerow((key, class_names[actual], class_names[prediction], f"{probability:.4f}"))
