"""The labels of part methods without training equal their closed forms, and every method survives saving."""

import numpy as np
import pytest
import torch

from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.data.loader import batches
from semmae.data.patch_masks import majority_labels
from semmae.models import masking
from semmae.models.teacher import Tokens
from semmae.parts.attention_parts import AttentionParts, head_labels
from semmae.parts.grid_parts import GridParts, grid_labels, grid_shape
from semmae.parts.part_methods import load_parts, save_parts
from semmae.parts.truth_parts import TruthParts, check_masks


def config(method: str, **changes) -> dict:
    return {"method": method, "grid": (4, 4), "img_size": 32, "num_parts": 4, "background": method != "grid"} | changes


def tokens_of(heads: torch.Tensor) -> Tokens:
    """Return tokens of images with this attention."""
    patch = torch.randn(len(heads), heads.shape[2], 8, generator=torch.Generator().manual_seed(0))
    return Tokens(patch, patch.mean(1), heads.mean(1), heads, patch.mean(1), patch)


def truth_config(reader: Reader) -> dict:
    return config("truth", num_parts=len(reader.mask_names) - 1, mask_names=reader.mask_names)


def test_a_head_keeps_what_holds_most_of_its_attention():
    attention = torch.tensor([[[0.5, 0.3, 0.1, 0.1], [0.1, 0.4, 0.35, 0.15]]])
    assert head_labels(attention).tolist() == [[0, 1, 1, 2]]  # kept: 0 and 1 by the first head, 1 and 2 by the second
    method = AttentionParts(config("attention", num_parts=2, grid=(2, 2)))
    expected = [[1, 0.3 / 0.7, 0, 0], [0, 0.4 / 0.7, 1, 0], [0, 0, 0, 1]]  # the last row is the background
    torch.testing.assert_close(method.assign(tokens_of(attention)), torch.tensor([expected]))


def test_the_largest_share_of_attention_parts_is_the_label_of_the_head():
    heads = torch.rand(6, 4, 16, generator=torch.Generator().manual_seed(0)).pow(4)
    shares = AttentionParts(config("attention")).assign(tokens_of(heads / heads.sum(2, keepdim=True)))
    assert torch.equal(shares.argmax(1), head_labels(heads / heads.sum(2, keepdim=True)))
    torch.testing.assert_close(shares.sum(1), torch.ones(6, 16))


def test_a_grid_cuts_the_image_into_equal_rectangles():
    assert grid_labels((4, 6), 6).reshape(4, 6).tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2
    assert set(grid_labels((12, 12), 20)) == set(range(20))


@pytest.mark.parametrize("side", [1, 2, 3, 12])
def test_a_grid_has_no_empty_rectangle_and_at_most_as_many_as_asked(side: int):
    for count in range(1, 60):
        rows, columns = grid_shape((side, side), count)
        assert rows * columns <= min(count, side**2)
        assert set(grid_labels((side, side), count)) == set(range(rows * columns))
        assert grid_shape((side, side), rows * columns) == (rows, columns)


def test_whole_parts_of_a_grid_are_masked_as_rectangles():
    part_map = GridParts(config("grid")).assign(tokens_of(torch.full((50, 2, 16), 1 / 16))).argmax(1)
    assert part_map[0].reshape(4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 3, 3]] * 2
    mask = masking.semantic(part_map, 0.5, 1.0, generator=torch.Generator().manual_seed(0))
    quarters = mask.reshape(50, 2, 2, 2, 2).transpose(2, 3).flatten(3)  # (b, row, column, patch)
    assert (quarters.all(3) | ~quarters.any(3)).all()
    assert (quarters.all(3).flatten(1).sum(1) == 2).all()
    assert len(mask.unique(dim=0)) == 6  # all pairs of four rectangles


def test_true_parts_are_the_majority_labels_of_the_masks(toy_dataset):
    reader = Reader(toy_dataset)
    method = TruthParts(truth_config(reader))
    (batch,) = batches(reader, np.arange(len(reader)), method.view(reader), batch_size=100, workers=0)
    batch["counts"][0, 3] = 0  # no labeled pixel
    labels = method.assign(tokens_of(torch.full((len(reader), 2, 16), 1 / 16)), batch["counts"]).argmax(1)
    true = majority_labels(batch["counts"].numpy())
    assert true[0, 3] == IGNORE
    assert labels[0, 3] == method.background == 8
    known = true != IGNORE
    assert np.array_equal(labels.numpy()[known], (true[known] - 1) % 9)  # label 0 is the background
    assert len(labels.unique()) > 4


def test_true_parts_need_a_mask_of_each_image(toy_dataset):
    reader = Reader(toy_dataset)
    check_masks(reader)
    reader.samples.mask_range[[1, 4, 5], 0] = -1
    with pytest.raises(ValueError, match=r"parts.method is truth: 3 of 56 images of .* have no mask"):
        check_masks(reader)


@pytest.mark.parametrize("kind", ["classes", None])
def test_true_parts_need_masks_of_foreground_or_parts(toy_dataset, kind):
    reader = Reader(toy_dataset)
    reader.meta["mask_kind"] = kind
    with pytest.raises(ValueError, match=rf"parts.method is truth: the kind of the masks of .* is {kind}; expected"):
        check_masks(reader)


def test_true_parts_of_one_dataset_are_not_those_of_another(toy_dataset):
    reader = Reader(toy_dataset)
    method = TruthParts(truth_config(reader))
    reader.meta["mask_names"] = ["background", "bird"]
    with pytest.raises(ValueError, match="has the mask names background, bird; expected background, body, "):
        method.view(reader)


@pytest.mark.parametrize("make", [AttentionParts, GridParts, TruthParts])
def test_a_method_without_weights_survives_saving(make, toy_dataset, tmp_path):
    name = {AttentionParts: "attention", GridParts: "grid", TruthParts: "truth"}[make]
    method = make(config(name, mask_names=Reader(toy_dataset).mask_names, teacher="t"))
    tokens = tokens_of(torch.rand(3, 4, 16, generator=torch.Generator().manual_seed(0)))
    counts = torch.randint(0, 9, (3, 16, 5), generator=torch.Generator().manual_seed(0))
    save_parts(tmp_path, method)
    again = load_parts(tmp_path, teacher="t")
    assert type(again) is make
    assert again.digest
    assert torch.equal(again.assign(tokens, counts), method.assign(tokens, counts))
