"""Pictures of moved images: the share of patches that keep their part, in closed form and for known methods."""

import numpy as np
import pytest
import torch
from einops import reduce

from semmae.data.dataset import Reader
from semmae.evaluation.part_stability import ViewTransform
from semmae.models.teacher import Teacher, Tokens
from semmae.parts.grid_parts import GridParts
from semmae.parts.part_method import PartMethod
from semmae.parts.truth_parts import TruthParts
from semmae.report import part_views
from semmae.report.part_labels import LabeledImages

GRID = (4, 4)
CONFIG = {"grid": GRID, "img_size": 32, "num_parts": 4, "background": False}


class MeanColors(Teacher):
    """A teacher whose tokens are the mean colors of the patches."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def encode(self, images: torch.Tensor) -> Tokens:
        patch = reduce(images.float(), "b c (h p) (w q) -> b (h w) c", "mean", h=GRID[0], w=GRID[1])
        attention, mean = torch.full(patch.shape[:2], 1 / 16), patch.mean(1)
        return Tokens(patch, mean, attention, attention[:, None], mean, patch)


class BrightnessParts(PartMethod):
    """Four parts by brightness."""

    def assign(self, tokens: Tokens, counts: torch.Tensor | None = None) -> torch.Tensor:
        levels = (tokens.patch.mean(2) / 64).long().clamp(0, 3)
        return torch.nn.functional.one_hot(levels, 4).float().transpose(1, 2)


@pytest.fixture
def reader(toy_dataset):
    return Reader(toy_dataset, "val").select(np.arange(3))


def draw(reader: Reader, method: PartMethod, *, count: int = 2) -> list[part_views.ViewRow]:
    labeled = LabeledImages(reader, method, np.zeros((3, 4, 16)), np.zeros((3, 16), int), None)
    return part_views.view_rows(labeled, MeanColors(), count=count, colors="okabe_ito")


def kept(image: np.ndarray, view: np.ndarray, *, background: int | None = None, **transform) -> float | None:
    options = {"grid": GRID, "img_size": 32, "background": background}
    return part_views.kept_share(image.ravel(), view.ravel(), ViewTransform(**transform), **options)


def test_only_foreground_patches_inside_both_pictures_count():
    image = np.arange(16).reshape(4, 4)
    assert kept(image, image) == 1
    assert kept(image, image[:, ::-1], flip=True) == 1
    assert kept(image, image, flip=True) == 0
    shifted = np.pad(image, ((0, 0), (1, 0)), mode="edge")[:, :4]  # by one patch; its first column is not measured
    assert kept(image, shifted, right=8.0) == 1
    shifted[:2, 1] = 99
    assert kept(image, shifted, right=8.0) == 10 / 12
    halves = np.where(image < 8, 0, 3)
    assert kept(halves, np.zeros_like(image)) == 0.5
    assert kept(halves, np.zeros_like(image), background=3) == 1
    assert kept(halves, np.zeros_like(image), background=0) == 0
    assert kept(np.full((4, 4), 3), image, background=3) is None


def test_parts_that_follow_colors_survive_a_flip(reader):
    for row in draw(reader, BrightnessParts(CONFIG)):
        assert len(row.pictures) == len(part_views.TITLES) == len(row.kept) + 1
        assert row.kept[1] == 1
        image, _, flipped, _ = row.pictures
        assert image.shape == (288, 288, 4)
        assert (np.abs(image - flipped[:, ::-1].astype(int)).max(2) <= 1).mean() > 0.95  # borders may move by a pixel


def test_parts_that_follow_positions_do_not(reader):
    rows = draw(reader, GridParts(CONFIG), count=9)
    assert len(rows) == 3
    assert [row.kept[1] for row in rows] == [0, 0, 0]


def test_the_views_are_the_moved_image(reader):
    """One part everywhere leaves the image gray, so the pictures can be compared."""
    one = GridParts(CONFIG | {"num_parts": 1})
    image, shifted, _, zoomed = (picture[..., :3].astype(float) for picture in draw(reader, one, count=1)[0].pictures)
    shift = round(part_views.SHIFT * 288 / GRID[1])
    assert np.abs(shifted[:, shift:] - image[:, :-shift]).mean() < 4
    middle = image[144 - 29 : 144 + 29, 144 - 29 : 144 + 29].mean((0, 1))  # a square whose side grows by 5 / 4
    assert np.abs(zoomed[144 - 36 : 144 + 36, 144 - 36 : 144 + 36].mean((0, 1)) - middle).max() < 4


def test_the_truth_has_no_views(reader):
    method = TruthParts(CONFIG | {"num_parts": 8, "background": True, "mask_names": reader.mask_names})
    assert draw(reader, method) == []
    labeled = LabeledImages(reader, method, np.zeros((3, 9, 16)), np.zeros((3, 16), int), None)
    with pytest.raises(ValueError, match="the part method is truth"):
        part_views.views_grid(labeled, MeanColors(), count=1, colors="okabe_ito")
