"""Subsets of a training set: how large, of which classes, and always the same."""

import numpy as np
import pytest

from semmae.core.config import load_config
from semmae.evaluation import subsets
from semmae.evaluation.subsets import Shots

LABELS = np.array([0] * 40 + [1] * 20 + [2] * 2 + [3])


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_the_holdout_is_a_share_of_every_class(share):
    held = subsets.stratified_split(LABELS, share=share, seed=1)
    assert np.bincount(LABELS[held], minlength=4).tolist() == [round(share * 40), round(share * 20), 1, 0]
    assert np.array_equal(held, subsets.stratified_split(LABELS, share=share, seed=1))
    assert not np.array_equal(held, subsets.stratified_split(LABELS, share=share, seed=2))


def test_a_train_set_of_single_samples_is_refused():
    with pytest.raises(ValueError, match="single sample"):
        subsets.stratified_split(np.arange(5), share=0.2, seed=0)


@pytest.mark.parametrize(
    ("shots", "sizes"), [(Shots(share=0.1), [4, 2, 1, 1]), (Shots(per_class=5), [5, 5, 2, 1])], ids=lambda x: str(x)
)
def test_low_shot_takes_from_every_class(shots, sizes):
    chosen = subsets.low_shot(LABELS, shots, seed=0)
    assert np.bincount(LABELS[chosen]).tolist() == sizes
    assert np.array_equal(chosen, subsets.low_shot(LABELS, shots, seed=0))
    assert not np.array_equal(chosen, subsets.low_shot(LABELS, shots, seed=1))


def test_larger_subsets_contain_the_smaller_ones():
    few, more = (set(subsets.low_shot(LABELS, Shots(per_class=k), seed=0)) for k in (2, 7))
    assert few < more


def test_names_are_keys_without_dots():
    names = [Shots(share=0.01).name, Shots(share=0.005).name, Shots(per_class=5).name]
    assert names == ["1_percent", "0_5_percent", "5_per_class"]


@pytest.mark.parametrize("given", ["{}", "{share: 0.1, per_class: 2}", "{share: 1.5}", "{per_class: 0}"])
def test_invalid_shots_are_refused(tmp_path, given):
    (tmp_path / "params.yaml").write_text(f"shots: {given}")
    with pytest.raises(ValueError, match=r"shots"):
        load_config(Shots, "shots", file=tmp_path / "params.yaml")
