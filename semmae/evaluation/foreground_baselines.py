"""Baselines that find the foreground and no parts: attention, a principal component, and the normalized cut.

What they have to choose, such as a head or a threshold, they choose by the true foreground of a sample of train, as the
center mask does. Label 1 is the foreground.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from semmae.data.decoding import IGNORE
from semmae.evaluation.part_evaluation import PartBatch, PatchLabeler
from semmae.parts.foreground_cues import first_component, normalized_cut

ATTENTION_THRESHOLDS = (0.5, 1.0, 1.5, 2.0, 3.0)  # times the mean attention of a patch
TOKEN_SOURCES = ("keys", "patch")  # fields of `Tokens`; TokenCut and Amir et al.: the keys
CUT_THRESHOLDS = (0.0, 0.1, 0.2, 0.4)  # of the cosine between two patches; TokenCut: 0.2 for the keys of DINO
NUM_CUT_IMAGES = 24  # images on which these are chosen, because a cut takes many milliseconds


def fit_foreground_baselines(sample: list[PartBatch], grid: tuple[int, int]) -> dict[str, PatchLabeler]:
    """Fit the baselines of the foreground.

    Args:
        sample: Batches of train.
        grid: Rows and columns of patches.

    Returns:
        - `attention_best_head`: the patches to which one head of the class token attends more than a threshold; the
          head and the threshold that have the highest mean IoU with the true foreground.
        - `pca_foreground`: the sign of the first principal component of the tokens (`first_component`).
        - `normalized_cut`: TokenCut (`normalized_cut`) of the teacher's keys or tokens, as they are or minus their
          mean, with a threshold; the choice that has the highest mean IoU with the true foreground.
    """
    component = first_component(torch.cat([batch.tokens.patch for batch in sample]), grid=grid)
    return {
        "attention_best_head": _fit_best_head(sample),
        "pca_foreground": _labeler(lambda batch: component.score(batch.tokens.patch)),
        "normalized_cut": _fit_normalized_cut(sample),
    }


def _fit_best_head(sample: list[PartBatch]) -> PatchLabeler:
    heads = torch.cat([batch.tokens.heads for batch in sample])
    true, num_heads, num_patches = true_labels(sample), heads.shape[1], heads.shape[2]
    options = list(product(range(num_heads), ATTENTION_THRESHOLDS))
    ious = [mean_iou(heads[:, head] * num_patches > threshold, true) for head, threshold in options]
    head, threshold = options[int(np.argmax(ious))]
    return _labeler(lambda batch: batch.tokens.heads[:, head] * num_patches - threshold)


def _fit_normalized_cut(sample: list[PartBatch]) -> PatchLabeler:
    means: dict[str, Tensor] = {}
    chosen: dict[str, Tensor] = {}
    true = true_labels(sample)
    few = np.linspace(0, len(true), min(NUM_CUT_IMAGES, len(true)), endpoint=False).astype(int)
    for source in TOKEN_SOURCES:
        tokens = torch.cat([getattr(batch.tokens, source) for batch in sample])
        means[source], chosen[source] = tokens.mean((0, 1)), tokens[few]

    def cut(tokens: Float[Tensor, "b n d"], source: str, centered: bool, threshold: float) -> Float[Tensor, "b n"]:
        return normalized_cut(tokens - means[source] if centered else tokens, threshold=threshold)

    options = list(product(TOKEN_SOURCES, (False, True), CUT_THRESHOLDS))
    ious = [mean_iou(cut(chosen[option[0]], *option) > 0, true[few]) for option in options]
    best = options[int(np.argmax(ious))]
    return _labeler(lambda batch: cut(getattr(batch.tokens, best[0]), *best))


def true_labels(sample: list[PartBatch]) -> Integer[Tensor, "s n"]:
    """Return the true label of each patch of a sample, on the device of its tokens."""
    return torch.from_numpy(np.concatenate([batch.true_labels() for batch in sample])).to(sample[0].tokens.patch.device)


def mean_iou(found: Bool[Tensor, "b n"], true: Integer[Tensor, "b n"]) -> float:
    """Compute the mean IoU of the found foreground and the true foreground, over the images that show foreground.

    Args:
        found: Whether each patch was found.
        true: The true label of each patch; patches with `IGNORE` do not count.
    """
    foreground = (true > 0) & (true != IGNORE)
    found, shown = found & (true != IGNORE), foreground.any(1)
    iou = (found & foreground).sum(1) / (found | foreground).sum(1).clamp(min=1)
    return float(iou[shown].mean()) if shown.any() else 0.0


def _labeler(score: Callable[[PartBatch], Float[Tensor, "b n"]]) -> PatchLabeler:
    """Make a labeler of patches with a positive score."""
    return PatchLabeler(2, lambda batch: (score(batch) > 0).long().cpu().numpy(), background=0, role="foreground")
