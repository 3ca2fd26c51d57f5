"""Scores against torchmetrics, sliding windows, crops that move image and mask together, baselines."""

from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from semmae.core.distributed import World
from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.evaluation.segmentation import metrics, sliding_window
from semmae.evaluation.segmentation.image_free_baselines import score_image_free_baselines
from semmae.evaluation.segmentation.sliding_window import SlidingWindowOptions, WindowGrid
from semmae.evaluation.segmentation.splits import open_masked_split
from semmae.evaluation.segmentation.transforms import PADDING, SegmentationCropConfig, TrainCrop, WholeImage
from semmae.sharding import shard_writer
from semmae.sharding.sources.sources import Creatures
from tests.data.readers import sample_table

MARGIN = [0, 1, 2, 3, -4, -3, -2, -1]
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


class Painted(Reader):
    """Images whose pixels are their mask's labels, 20 gray values apart; every fifth row of pixels is ignored."""

    def __init__(self, *sizes: tuple[int, int], cell: int = 12) -> None:
        self.samples = sample_table([f"{height}x{width}" for height, width in sizes])
        rng, self.masks = np.random.default_rng(0), []
        for height, width in sizes:
            labels = rng.integers(0, 12, (-(-height // cell), -(-width // cell)), dtype=np.uint8)
            self.masks.append(np.kron(labels, np.ones((cell, cell), np.uint8))[:height, :width])

    def size(self, index):
        return self.masks[index].shape

    def image(self, index, *, at_least=(0, 0)):
        return np.repeat(self.masks[index][..., None] * np.uint8(20), 3, axis=2)

    def mask(self, index):
        return self.masks[index]


def options_for(grid: WindowGrid, batch_size: int = 3) -> SlidingWindowOptions:
    return SlidingWindowOptions(grid, batch_size, 0, ALONE)


# Scores


def labeled(n: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks with ignored pixels, and predictions that are often right; the classes differ in size."""
    generator = torch.Generator().manual_seed(seed)
    masks = (classes * torch.rand(n, 9, 7, generator=generator) ** 2).to(torch.uint8)
    noise = torch.randint(classes, masks.shape, generator=generator)
    predictions = torch.where(torch.rand(masks.shape, generator=generator) < 0.6, masks.long(), noise)
    masks[torch.rand(masks.shape, generator=generator) < 0.1] = IGNORE
    return predictions, masks


def counted(predictions: torch.Tensor, masks: torch.Tensor, classes: int) -> np.ndarray:
    each = [metrics.count(p, m, num_classes=classes) for p, m in zip(predictions, masks, strict=True)]
    return torch.stack(each).numpy()


def test_scores_equal_torchmetrics():
    predictions, masks = labeled(8, 6)
    found = metrics.scores(counted(predictions, masks, 6), list("abcdef"), seed=0)
    options = {"num_classes": 6, "ignore_index": IGNORE}
    macro = MulticlassJaccardIndex(**options)(predictions, masks.long())
    each = MulticlassJaccardIndex(**options, average="none")(predictions, masks.long())
    assert found.encoder["miou"] == pytest.approx(float(macro), abs=1e-6)
    assert list(found.class_iou.values()) == pytest.approx(each.tolist(), abs=1e-6)
    accuracy = MulticlassAccuracy(**options, average="micro")(predictions, masks.long())
    assert found.encoder["pixel_accuracy"] == pytest.approx(float(accuracy), abs=1e-6)


def test_a_class_that_the_masks_lack_has_no_iou():
    predictions, masks = labeled(4, 3)
    more = metrics.scores(counted(predictions, masks, 4), list("abcd"), seed=0)
    assert more.class_iou["d"] is None
    assert more.encoder["miou"] == metrics.scores(counted(predictions, masks, 3), list("abc"), seed=0).encoder["miou"]
    predictions[masks == 0] = 3  # lowers the IoU of the true class
    assert metrics.scores(counted(predictions, masks, 4), list("abcd"), seed=0).class_iou["a"] == 0


def test_ignored_pixels_are_not_counted_and_at_least_one_pixel_must_be_labeled():
    predictions, masks = labeled(4, 3)
    changed = torch.where(masks == IGNORE, 2 - predictions, predictions)
    np.testing.assert_array_equal(counted(predictions, masks, 3), counted(changed, masks, 3))
    with pytest.raises(ValueError, match="every pixel of val's masks is 255"):
        metrics.scores(np.zeros((2, 3, 3), np.int64), list("abc"), seed=0)


def test_the_standard_error_is_the_spread_over_sets_of_images():
    counts = counted(*labeled(2000, 4), 4)
    counts[:, 0] = (counts[:, 0] * np.random.default_rng(0).uniform(0.3, 1, (2000, 1))).astype(int)  # images differ
    sets = np.split(counts, 40)
    scores = [metrics.scores(part, list("abcd"), seed=0) for part in sets]
    spread = np.std([score.encoder["miou"] for score in scores])
    assert np.mean([score.encoder["miou_se"] for score in scores]) == pytest.approx(spread, rel=0.3)


# Windows


@pytest.mark.parametrize(("length", "side", "stride"), [(8, 8, 3), (9, 8, 8), (16, 8, 8), (23, 8, 5), (24, 8, 4)])
def test_windows_cover_every_pixel_and_the_last_ends_at_the_border(length, side, stride):
    found = sliding_window.window_starts(length, side, stride)
    assert found[0] == 0
    assert found[-1] + side == length
    assert len(set(found)) == len(found) == -(-(length - side) // stride) + 1
    assert all(0 < after - before <= stride for before, after in pairwise(found))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_windows_reassemble_images_and_keep_a_constant(batch_size):
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((21, 34), (21, 21), (40, 21))]
    windows = WindowGrid(short_side=21, side=16, stride=5)
    same = sliding_window.sliding_window_logits(lambda x: x[:, None].float(), images, windows, batch_size=batch_size)
    coarse = torch.tensor([1.0, -2.0, 3.0]).view(1, 1, 3, 1, 1).expand(-1, 2, -1, 4, 4)
    level = sliding_window.sliding_window_logits(
        lambda x: coarse.expand(len(x), *coarse.shape[1:]), images, windows, batch_size=batch_size
    )
    for image, rebuilt, flat in zip(images, same, level, strict=True):
        torch.testing.assert_close(rebuilt, image[None].float())
        torch.testing.assert_close(flat, coarse[0, :, :, :1, :1].expand(-1, -1, *image.shape[1:]))


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_results_do_not_depend_on_the_batch_size(batch_size):
    reader = Painted((30, 48), (48, 60), (30, 30), (70, 31))

    def gray(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(torch.stack([images.float(), 255 - images.float()], 1).mean(2), 8)[
            :, None
        ]

    one, other = (
        sliding_window.evaluate(gray, reader, options_for(WindowGrid(30, 24, 10), size), num_classes=12)
        for size in (batch_size, 3)
    )
    np.testing.assert_array_equal(one, other)


def test_fewer_images_than_processes_are_refused():
    options = SlidingWindowOptions(WindowGrid(24, 24, 24), 8, 0, World(0, 3, ALONE.device))
    with pytest.raises(ValueError, match=r"2 image\(s\) to score, but 3 processes; expected at most"):
        sliding_window.evaluate(lambda x: x[:, None].float(), Painted((30, 48), (48, 60)), options, num_classes=12)


def test_windows_that_do_not_fit_are_refused():
    for wrong in ({"short_side": 30}, {"stride": 33}):
        with pytest.raises(ValueError, match="expected stride <= crop <= short_side"):
            WindowGrid(**({"short_side": 40, "side": 32, "stride": 16} | wrong))


def test_a_perfect_predictor_is_right_where_pixels_are_not_interpolated():
    reader = Painted((30, 48), (48, 60))  # one is enlarged, one reduced

    def knows(images: torch.Tensor) -> torch.Tensor:
        classes = 20 * torch.arange(12).view(1, 12, 1, 1)
        return (-10 * (images[:, :1].float() - classes).abs())[:, None]

    options, near = options_for(WindowGrid(36, 24, 10)), np.ones((7, 7))
    for _, labels, mask in sliding_window.predict_labels(knows, reader, options):
        mask = mask.numpy()
        inside = cv2.erode(mask, near) == cv2.dilate(mask, near)
        assert inside.mean() > 0.2
        assert (labels[0].numpy()[inside] == mask[inside]).all()
    counts = sliding_window.evaluate(knows, reader, options, num_classes=12)
    assert counts.shape == (1, 2, 3, 12)
    np.testing.assert_array_equal(counts[0, :, 2].sum(1), [30 * 48, 48 * 60])


def test_processes_share_the_images():
    reader = Painted((30, 48), (48, 60), (30, 30))
    mine = [
        [index for index, *_ in sliding_window.predict_labels(lambda x: x[:, None].float(), reader, options)]
        for options in (
            SlidingWindowOptions(WindowGrid(24, 24, 24), 8, 0, World(rank, 2, ALONE.device)) for rank in range(2)
        )
    ]
    assert mine == [[0, 2], [1]]


# Crops


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.5, 0.8), (1.0, 2.0)])
def test_a_crop_moves_image_and_mask_together(zoom):
    reader, near = Painted((60, 80), (96, 60), cell=24), np.ones((9, 9))
    load = TrainCrop(0, SegmentationCropConfig(zoom, 0.5), short_side=60, side=60)
    deep = 0
    for index in range(2):
        for epoch in range(20):
            sample = load(reader, index, epoch)
            image, mask = sample["image"].transpose(1, 2, 0), sample["mask"]
            outside = mask == IGNORE
            assert (image[outside] == PADDING).all()
            assert outside.any() == (zoom[1] < 1)
            inside = ~outside & (cv2.erode(mask, near) == cv2.dilate(mask, near))  # bicubic sampling blurs borders
            inside[MARGIN], inside[:, MARGIN] = False, False  # also those just outside of the crop
            assert (np.abs(image[inside, 0].astype(int) - 20 * mask[inside].astype(int)) < 10).all()
            deep += inside.mean() / 40
    assert deep > 0.1
    flipped = {bool((load(reader, 0, epoch)["mask"] != load(reader, 0, 0)["mask"]).any()) for epoch in range(20)}
    assert flipped == {False, True}


def test_a_crop_is_a_function_of_seed_epoch_and_key():
    load = TrainCrop(3, SegmentationCropConfig((0.5, 2.0), 0.5), short_side=48, side=32)
    one, same = (load(Painted((60, 80), (96, 60)), 1, 5) for _ in range(2))
    assert (one["image"] == same["image"]).all()
    assert (one["mask"] == same["mask"]).all()
    others = (
        load(Painted((60, 80), (96, 60)), 1, 6),
        TrainCrop(4, load.config, 48, 32)(Painted((60, 80), (96, 60)), 1, 5),
    )
    assert all((one["mask"] != other["mask"]).any() for other in others)


def test_a_whole_image_is_resized_and_its_mask_is_not():
    sample = WholeImage(36)(Painted((60, 83)), 0)
    assert sample["image"].shape == (3, 36, 50)
    assert sample["mask"].shape == (60, 83)


# Baselines and splits


def test_image_free_baselines_predict_the_frequent_classes_of_train():
    reader = Painted((64, 64))
    reader.meta = {"mask_names": [str(i) for i in range(12)]}
    train = np.zeros((1024, 12), np.int64)
    train[np.arange(1024), reader.masks[0][1::2, 1::2].ravel()] = 1
    baselines = score_image_free_baselines(train, reader, seed=0)
    assert baselines["position"]["pixel_accuracy"] == 1  # cells of 12 pixels: no border is inside a cell
    share = np.bincount(reader.masks[0].ravel()).max() / 64**2
    assert baselines["most_frequent"]["pixel_accuracy"] == pytest.approx(share)
    assert baselines["most_frequent"]["miou"] == pytest.approx(share / len(np.unique(reader.masks[0])))


def test_a_dataset_without_masks_is_refused(tmp_path: Path):
    creatures = Creatures(kind="creatures", train=3, val=3, size=32, seed=0)
    shard_writer.write(
        tmp_path / "toy", {"toy": creatures}, seed=0, short_side=None, samples_per_shard=8, max_rejects=0.0, workers=0
    )
    reader, counts = open_masked_split(tmp_path / "toy", "val")
    assert counts.sum() == 3 * 32 * 32
    assert len(reader) == 3
    meta = tmp_path / "toy/shards.json"
    meta.write_text(meta.read_text().replace('"mask_kind": "parts"', '"mask_kind": null'))
    with pytest.raises(ValueError, match=r"toy has no masks; segment needs a dataset"):
        open_masked_split(tmp_path / "toy", "val")
