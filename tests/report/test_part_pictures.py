"""Pictures of parts: equal labels have equal colors, captions hold the right shares, grids have room for their text."""

import re

import numpy as np
import pytest
import torch

from semmae.data.dataset import Reader
from semmae.data.patch_masks import cell_counts, majority_labels
from semmae.models.teacher import Teacher, Tokens
from semmae.parts.part_method import PartMethod
from semmae.report import overlays, part_labels, part_pictures, picture_grid
from semmae.report.palettes import make_palette
from semmae.report.part_labels import UNCOLORED, LabeledImages

GRID, COLORS = (4, 4), "okabe_ito"


def make_method(num_parts: int = 3, *, background: bool = True) -> PartMethod:
    size = {"grid": GRID, "img_size": 32, "embed_dim": 2}
    return PartMethod(size | {"num_parts": num_parts, "background": background})


def label(reader: Reader, labels: np.ndarray, method: PartMethod, *, clusters: np.ndarray | None = None):
    """Label all images of a reader; without `clusters`, clusters and labels are equal."""
    probabilities = np.equal.outer(np.arange(method.num_labels), labels).transpose(1, 0, 2) * 0.9
    counts = None
    if reader.has_mask.all():
        masks = [reader.mask(index) for index in range(len(reader))]
        counts = np.stack([cell_counts(mask, grid=GRID, num_classes=len(reader.mask_names)) for mask in masks])
    return LabeledImages(reader, method, probabilities, labels if clusters is None else clusters, counts)


@pytest.fixture
def reader(toy_dataset):
    return Reader(toy_dataset, "val").select(np.arange(4))


@pytest.fixture
def labels():
    """Four images with random labels; label 3 is the background."""
    return np.random.default_rng(0).integers(0, 4, (4, 16))


class ShiftedTokens(Teacher):
    """A teacher whose tokens are 2-D: two points that are far from the origin and close to each other."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def encode(self, images: torch.Tensor) -> Tokens:
        signs = torch.where(images[:, 0, ::8, ::8].flatten(1) > 127, 1.0, -1.0)
        patch = torch.stack([100 + signs, torch.full_like(signs, 50.0)], dim=2)
        attention, mean = torch.full_like(signs, 1 / 16), patch.mean(1)
        return Tokens(patch, mean, attention, attention[:, None], mean, patch)


def test_clusters_are_relative_to_the_mean_token(reader, monkeypatch):
    """Two groups of tokens have nearly the same direction, but are opposite relative to their mean."""
    method = make_method(1)
    monkeypatch.setattr(method, "assign", lambda tokens, counts: torch.zeros(len(tokens.patch), 2, 16))
    labeled = part_labels.label_images(reader, ShiftedTokens(), method, count=4, seed=0)
    tokens = [tokens.patch for tokens, _ in part_labels.assign_images(labeled.reader, ShiftedTokens(), method)]
    signs = (torch.cat(tokens)[..., 0] > 100).numpy()
    assert 0 < signs.mean() < 1
    assert np.array_equal(labeled.clusters, signs) or np.array_equal(labeled.clusters, ~signs)


def test_images_are_chosen_among_those_with_masks(reader, monkeypatch):
    mask_range = reader.samples.mask_range.copy()
    mask_range[[0, 2]] = -1
    monkeypatch.setattr(reader, "samples", type(reader.samples)(**{**vars(reader.samples), "mask_range": mask_range}))
    method = make_method(1)
    monkeypatch.setattr(method, "assign", lambda tokens, counts: torch.zeros(len(tokens.patch), 2, 16))
    labeled = part_labels.label_images(reader, ShiftedTokens(), method, count=9, seed=0)
    assert sorted(labeled.reader.keys) == [reader.keys[1], reader.keys[3]]
    assert labeled.counts.shape[:2] == (2, 16)


def test_matched_clusters_have_the_colors_of_their_parts(reader, labels):
    """If clusters are the labels with other numbers, both pictures are equal."""
    numbers = np.array([2, 0, 3, 1])
    labeled = label(reader, labels, make_method(), clusters=numbers[labels])
    assert labeled.color_of_cluster[numbers].tolist() == [0, 1, 2, 3]
    for image, parts, clusters, _ in part_pictures.comparison_rows(labeled, count=9, colors=COLORS):
        assert np.array_equal(parts, clusters)
        assert not np.array_equal(image, parts)


def test_true_labels_have_the_colors_of_their_parts_and_the_background_has_none(reader):
    """The part maps are the majority of each patch, so true label k + 1 overlaps part k most."""
    counts = label(reader, np.zeros((4, 16), int), make_method()).counts
    num_parts = counts.shape[2] - 1
    labels = (counts.argmax(2) - 1) % (num_parts + 1)  # the background is last
    labeled = label(reader, labels, make_method(num_parts))
    colors = labeled.color_of_true_label
    shown = np.unique(labels[labels < num_parts])
    assert colors[1 + shown].tolist() == shown.tolist()
    assert colors[0] == colors[255] == UNCOLORED
    few = label(reader, np.minimum(labels, 1), make_method(1))
    assert sorted(few.color_of_true_label[1 : num_parts + 1]) == list(range(num_parts))  # one part, others are new
    names, palette = zip(*part_pictures.true_legend(few, COLORS), strict=True)
    assert list(names) == [name.replace("_", " ") for name in reader.mask_names[1:]]
    assert len({tuple(color) for color in palette}) == num_parts


def test_a_truth_picture_is_colored_where_its_mask_is(reader, labels):
    labeled = label(reader, labels, make_method())
    (image, _, _, truth), *_ = part_pictures.comparison_rows(labeled, count=1, colors=COLORS)
    assert image.shape == truth.shape == (288, 288, 4)
    image, truth = image[..., :3], truth[..., :3]
    visible = np.where(reader.mask(0) > 0, 0, UNCOLORED).astype(np.uint8)
    everywhere = overlays.whole_square(reader.image(0), 288, labels=visible, colors=make_palette(COLORS, 1))[..., :3]
    pale = 0.5 * image + 0.2 * (image @ overlays.LUMA)[..., None] + 0.3 * 255
    is_background = np.abs(everywhere - pale).max(2) < 1
    assert np.abs(truth[is_background] - pale[is_background]).max() < 1
    assert 0 < is_background.mean() < 1


def test_part_maps_that_are_the_true_parts_depend_on_the_position_as_they_do(reader):
    counts = label(reader, np.zeros((4, 16), int), make_method()).counts
    labels = (majority_labels(counts) - 1) % counts.shape[2]  # the background is last
    labeled = label(reader, labels, make_method(counts.shape[2] - 1))
    sentence = r"Position on the object explains (\d+) % of the labels \(true parts: (\d+) %\)\."
    share = re.fullmatch(sentence, labeled.describe_place())
    assert share is not None
    assert share[1] == share[2]
    bare = LabeledImages(reader, labeled.method, labeled.probabilities, labeled.clusters, None)
    assert bare.describe_place() == f"Position on the object explains {share[1]} % of the labels."
    without = label(reader, np.zeros((4, 16), int), make_method(4, background=False))
    assert LabeledImages(reader, without.method, without.probabilities, without.clusters, None).describe_place() == ""


def test_images_without_masks_have_no_truth(reader, labels, monkeypatch):
    labeled = label(reader, labels, make_method())
    bare = LabeledImages(reader, labeled.method, labeled.probabilities, labeled.clusters, None)
    rows = part_pictures.comparison_rows(bare, count=2, colors=COLORS)
    assert [len(row) for row in rows] == [len(part_pictures.comparison_columns(bare))] * 2 == [3, 3]
    assert part_pictures.true_legend(bare, COLORS) == []
    assert all(part.true_labels == [] for part in part_pictures.part_meanings(bare, colors=COLORS))


def test_a_part_has_its_shares_and_the_true_labels_under_it(reader, labels):
    labels[labels == 1] = 0  # part 1 is not used
    labeled = label(reader, labels, make_method())
    meanings = part_pictures.part_meanings(labeled, colors=COLORS)
    assert [part.name for part in meanings] == ["part 0", "part 1", "part 2", "background"]
    assert sum(part.share for part in meanings) == pytest.approx(1)
    first, unused, *_ = meanings
    assert (first.share, first.images) == ((labels == 0).mean(), (labels == 0).any(1).mean())
    assert (unused.share, unused.regions, unused.caption) == (0, [], "part 1: no patches")
    pixels = labeled.counts[labels == 0].sum(0)
    assert first.true_labels[0] == (reader.mask_names[pixels.argmax()], pytest.approx(pixels.max() / pixels.sum()))
    assert f"true labels under it: {first.true_labels[0][0]} {first.true_labels[0][1]:.0%}" in first.caption
    assert len(first.regions) == (labels == 0).any(1).sum()
    assert part_pictures.regions_grid(labeled, colors=COLORS).mode == "RGB"


def test_a_method_without_background_colors_every_patch(reader, labels):
    labeled = label(reader, labels, make_method(4, background=False))
    assert [part.name for part in part_pictures.part_meanings(labeled, colors=COLORS)][-1] == "part 3"
    image, parts, *_ = (row[..., :3] for row in part_pictures.comparison_rows(labeled, count=1, colors=COLORS)[0])
    pale = 0.5 * image + 0.2 * (image @ overlays.LUMA)[..., None] + 0.3 * 255
    assert (np.abs(parts - pale).max(2) > 1).mean() > 0.9


def test_a_grid_has_room_for_titles_captions_and_wrapped_legends():
    rows = [[np.zeros((60, 60, 3), np.uint8)] * 3] * 2
    legend = [(f"a long name {number}", [255, 0, 0]) for number in range(5)]
    bare, full = (
        picture_grid.arrange_grid(rows),
        picture_grid.arrange_grid(
            rows, ["a", "b", "c"], captions=["first", "second"], legends={"truth": legend, "none": []}
        ),
    )
    assert bare.size == (3 * 72 + 12, 2 * 72 + 12)
    assert full.width == bare.width
    pixels = np.array(full)
    red = (pixels == (255, 0, 0)).all(2)
    swatches = np.flatnonzero(np.diff(red.any(1).astype(int)) == 1)
    assert len(swatches) == 5  # one line each
    assert (pixels[:, -12:] == 255).all()  # no text leaves the grid
    assert (np.array(bare) == 0).all(2).sum() == (pixels == 0).all(2).sum()  # no text covers a picture


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (30, 30)])
def test_a_whole_image_is_centered_in_its_square(size):
    image, labels = np.full((*size, 3), 90, np.uint8), np.array([[0, 1]], np.uint8)  # 1 is the background
    out = overlays.whole_square(image, 80, labels=labels, colors=np.array([[255, 0, 0]], np.uint8))
    height, width = (80 * side // max(size) for side in size)
    inside = np.zeros((80, 80), bool)
    inside[(80 - height) // 2 :, (80 - width) // 2 :][:height, :width] = True
    assert np.array_equal(out[..., 3] == 255, inside)
    red = (out[..., 0] > out[..., 1].astype(int) + 50) & inside
    assert red.sum() == pytest.approx(inside.sum() / 2, abs=2 * height)
    assert not red[:, 41:].any()
