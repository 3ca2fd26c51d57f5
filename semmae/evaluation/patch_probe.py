"""A supervised linear read-out of patch tokens: the ceiling for any part method that builds on them."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Integer

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

STEPS = 100  # of L-BFGS: enough to be within a few tenths of a point of convergence


def fit(tokens: Float[np.ndarray, "n d"], labels: Integer[np.ndarray, " n"], *, num_classes: int) -> "Pipeline":
    """Standardise the channels, then regress; labels from num_classes up (255 = ignore) are left out.

    Logistic rather than ridge on one-hot labels: where most patches are background, ridge favors it (0.85 against 0.91
    on synthetic tokens with known classes), and 100,000 tokens of 128 channels take under a second of L-BFGS.
    ValueError where the labels show fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning  # here, for scikit-learn loads a tenth of a stage's start
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = labels < num_classes
    if len(np.unique(labels[known])) < 2:
        raise ValueError("the masks of train show fewer than two labels; there is nothing to read out")
    readout = make_pipeline(StandardScaler(), LogisticRegression(max_iter=STEPS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return readout.fit(tokens[known], labels[known])
