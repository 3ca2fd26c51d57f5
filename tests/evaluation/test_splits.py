"""Which samples of a dataset an evaluation uses, and which datasets it refuses."""

import numpy as np
import pytest

from semmae.evaluation import splits


class Split:
    """A split with the attributes that the checks read."""

    def __init__(self, labels: list[int], masks: list[bool], kind: str | None = "parts") -> None:
        self.labels, self.masks, self.mask_kind = np.array(labels), np.array(masks), kind
        self.class_names = ["ant", "bee", "cat"]
        self.num_classes = 3

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_mask(self) -> np.ndarray:
        return self.masks

    def select(self, ids: np.ndarray) -> "Split":
        return Split(self.labels[ids].tolist(), self.masks[ids].tolist(), self.mask_kind)


@pytest.fixture
def dataset(monkeypatch):
    """Return a function that sets the splits of the dataset."""

    def use(**by_name: Split) -> None:
        monkeypatch.setattr(splits, "Reader", lambda dataset, split: by_name[split])
        monkeypatch.setattr(splits, "verify_shards", lambda dataset: None)

    return use


def test_labeled_splits_have_no_unlabeled_samples(dataset, tmp_path):
    dataset(train=Split([0, -1, 1], [False] * 3), val=Split([1, -1], [False] * 2))
    train, val = splits.open_labeled_splits(tmp_path)
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 1], [1])


@pytest.mark.parametrize(("train", "val", "split"), [([0, 1, 7], [1], "train"), ([0, 1], [1, 7], "val")])
def test_a_label_without_a_name_is_refused(dataset, tmp_path, train: list[int], val: list[int], split: str):
    dataset(train=Split(train, [False] * len(train)), val=Split(val, [False] * len(val)))
    with pytest.raises(ValueError, match=rf"{split} has the label 7, but shards\.json names 3 classes"):
        splits.open_labeled_splits(tmp_path)


def test_masked_splits_have_no_samples_without_masks(dataset, tmp_path):
    dataset(train=Split([-1] * 3, [True, False, True]), val=Split([-1] * 2, [False, True]))
    assert [len(reader) for reader in splits.open_masked_splits(tmp_path)] == [2, 1]


def test_a_class_of_val_that_train_lacks_is_refused_by_name(dataset, tmp_path):
    dataset(train=Split([0, 1], [False] * 2), val=Split([0, 2], [False] * 2))
    with pytest.raises(ValueError, match=r"train lacks \(cat\)"):
        splits.open_labeled_splits(tmp_path)


def test_an_unlabeled_split_is_refused(dataset, tmp_path):
    dataset(train=Split([0, 1], [False] * 2), val=Split([-1, -1], [False] * 2))
    with pytest.raises(ValueError, match="no sample of val has labels"):
        splits.open_labeled_splits(tmp_path)


@pytest.mark.parametrize(
    ("kind", "masks", "message"), [("classes", True, "masks is classes"), (None, False, "has masks")]
)
def test_masks_without_objects_are_refused(dataset, tmp_path, kind, masks, message):
    dataset(train=Split([0], [masks], kind), val=Split([0], [masks], kind))
    with pytest.raises(ValueError, match=message):
        splits.open_masked_splits(tmp_path)
