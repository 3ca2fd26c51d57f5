"""Every answer of a classification beside the truth: the table that `dvc plots` turns into a confusion matrix."""

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
    """A TSV with a row per sample: its key, the names of its class and of the predicted one, and the latter's share.

    The share is the softmax of `scores`, or, where they are no `logits`, the scores themselves, which then sum to 1.
    """
    with atomic_write(path) as temporary, open(temporary, "w", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(COLUMNS)
        for start in range(0, len(keys), classification_metrics.CHUNK):
            part = slice(start, start + classification_metrics.CHUNK)
            shares = scores[part].softmax(1) if logits else scores[part]
            found = classification_metrics.highest(scores[part], k=1)[:, 0]
            sure = shares.gather(1, found[:, None])[:, 0]
            for key, actual, predicted, share in zip(
                keys[part], labels[part].tolist(), found.tolist(), sure.tolist(), strict=True
            ):
                table.writerow((key, class_names[actual], class_names[predicted], f"{share:.4f}"))
