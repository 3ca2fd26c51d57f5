"""References of part scores: upper bounds that use the true masks."""

import numpy as np

from semmae.evaluation import patch_probe
from semmae.evaluation.part_evaluation import PartBatch, PatchLabeler


def fit_references(sample: list[PartBatch], num_classes: int) -> dict[str, PatchLabeler]:
    """Fit the references of part scores.

    Args:
        sample: Batches of train.
        num_classes: Number of true labels, background included.

    Returns:
        - `readout`: a supervised linear probe of the teacher's tokens, an upper bound for methods that use them.
        - `silhouette`: the true foreground as a single part.
        - `perfect`: the true label of each patch, an upper bound for part maps on this grid. Its agreement with the
          true labels per patch is 1 by definition, so it is only reported per pixel. Its `place` tells how far true
          parts follow the position on the object.
    """
    return {
        "readout": _fit_readout(sample, num_classes),
        "silhouette": PatchLabeler(2, lambda batch: (batch.true_labels() > 0).astype(int), background=0),
        "perfect": PatchLabeler(num_classes, PartBatch.true_labels, background=0, role="truth"),
    }


def _fit_readout(sample: list[PartBatch], num_classes: int) -> PatchLabeler:
    tokens = np.concatenate([batch.tokens.patch.flatten(0, 1).cpu().numpy() for batch in sample])
    true = np.concatenate([batch.true_labels().ravel() for batch in sample])
    probe = patch_probe.fit(tokens, true, num_classes=num_classes)

    def label(batch: PartBatch) -> np.ndarray:
        return patch_probe.label(probe, batch.tokens.patch.cpu().numpy(), num_classes=num_classes)

    return PatchLabeler(num_classes, label, background=0)
