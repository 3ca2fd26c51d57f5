"""The linear head and the vote against scikit-learn on equal features."""

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from semmae.core.distributed import World
from semmae.data.dataset import Reader
from semmae.data.decoding import IGNORE
from semmae.evaluation import baselines, features
from semmae.evaluation.segmentation import heads, knn, linear
from semmae.evaluation.segmentation.heads import TokenMapEncoder
from semmae.evaluation.segmentation.knn import PatchBank
from semmae.evaluation.segmentation.linear import LinearSegmentationHeads
from semmae.evaluation.segmentation.sliding_window import SlidingWindowOptions, WindowGrid, pixel_loss
from semmae.evaluation.segmentation.transforms import SegmentationCropConfig, TrainCrop, WholeImage
from semmae.models import teacher, vit
from semmae.runs.run import Run
from tests.data.readers import sample_table

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
WHOLE = TrainCrop(
    0, SegmentationCropConfig((1.0, 1.0), 0.0), short_side=32, side=32
)  # an image of 32 pixels is not changed
OPTIONS = SlidingWindowOptions(WindowGrid(32, 32, 32), 8, 0, ALONE)
RECIPE = linear.LinearSegmentationConfig(base_lrs=[1.0], weight_decay=0.0, epochs=10, warmup_epochs=0, batch_size=20)


def colors(images: torch.Tensor) -> torch.Tensor:
    """Encode each pixel as a patch; the features are colors that are not normalized."""
    x = images.float() / 255
    return torch.cat([5 + x, x.square(), x.roll(1, 1) * x], dim=1)


def averaged(images: torch.Tensor) -> torch.Tensor:
    """Encode patches of 8 pixels by their mean features."""
    return torch.nn.functional.avg_pool2d(colors(images), 8)


def start_run(folder: Path, recipe: linear.LinearSegmentationConfig) -> Run:
    return Run("probe", ALONE, out=folder, params=recipe, inputs=[], checkpoint_minutes=5)


def train_heads(
    recipe: linear.LinearSegmentationConfig, encode: TokenMapEncoder, train: Reader, run: Run
) -> LinearSegmentationHeads:
    return linear.train_heads(recipe, encode, train, width=9, crops=WHOLE, workers=0, world=ALONE, run=run)


@pytest.fixture
def train(toy_dataset: Path) -> Reader:
    return Reader(toy_dataset, "train")


class Noisy(Reader):
    """Images whose colors depend on the class of a pixel, with noise, and masks that ignore some pixels."""

    def __init__(self, number: int, seed: int, side: int = 32) -> None:
        self.samples, self.meta = sample_table([str(i) for i in range(number)]), {"mask_names": list("abcd")}
        self.shuffle_shards = None
        rng = np.random.default_rng(seed)
        self.masks = (4 * rng.random((number, side, side)) ** 2).astype(np.uint8)
        centers = np.array([[90, 120, 120], [130, 110, 150], [150, 160, 100], [110, 150, 140]])
        self.images = (centers[self.masks] + 20 * rng.normal(size=(*self.masks.shape, 3))).clip(0, 255).astype(np.uint8)
        self.masks[rng.random(self.masks.shape) < 0.1] = IGNORE

    def select(self, ids):
        view = copy.copy(self)
        view.samples, view.masks, view.images = self.samples.take(ids), self.masks[ids], self.images[ids]
        return view

    def size(self, index):
        return self.masks[index].shape

    def image(self, index, *, at_least=(0, 0)):
        return self.images[index]

    def mask(self, index):
        return self.masks[index]


def test_a_linear_head_agrees_with_logistic_regression(tmp_path: Path):
    def pixels(reader: Noisy) -> tuple[np.ndarray, np.ndarray]:
        features = colors(torch.from_numpy(reader.images.transpose(0, 3, 1, 2))).permute(0, 2, 3, 1)
        known = reader.masks != IGNORE
        return features.numpy()[known], reader.masks[known]

    train, (features, labels) = Noisy(20, seed=0), pixels(Noisy(5, seed=1))
    recipe = dataclasses.replace(RECIPE, epochs=30, batch_size=10)
    with start_run(tmp_path, recipe) as run:
        model = linear.train_heads(recipe, colors, train, width=9, crops=WHOLE, workers=0, world=ALONE, run=run)
    with torch.no_grad():
        ours = model(torch.from_numpy(features.T.reshape(1, 9, 1, -1)))[0][0, :, 0].argmax(0).numpy()
    known, truth = pixels(train)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=np.inf)).fit(known, truth).predict(features)
    assert (ours == theirs).mean() > 0.96
    assert (ours == labels).mean() == pytest.approx((theirs == labels).mean(), abs=0.01)
    assert (ours == labels).mean() > (labels == 0).mean() + 0.2


def test_a_head_does_not_depend_on_the_other_rates(train: Reader, tmp_path: Path):
    def learn(base_lrs: list[float]) -> torch.nn.ModuleList:
        recipe = dataclasses.replace(RECIPE, base_lrs=base_lrs, epochs=2)
        with start_run(tmp_path, recipe) as run:
            return train_heads(recipe, averaged, train, run).heads

    many, alone = learn([0.1, 1.0, 3.0]), learn([1.0])
    torch.testing.assert_close(many[1].weight, alone[0].weight)
    assert (many[0].weight - many[2].weight).abs().max() > 0.01


def test_the_loss_is_the_mean_over_labeled_pixels():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 3, generator=generator, requires_grad=True)
    mask = torch.randint(4, (2, 9, 9), generator=generator, dtype=torch.uint8)
    mask[:, :5] = IGNORE
    loss = pixel_loss(logits, mask)
    scores = torch.nn.functional.interpolate(logits, size=(9, 9), mode="bilinear", align_corners=False)
    log_p = scores.log_softmax(1).gather(1, mask.clamp(max=3).long()[:, None])[:, 0]
    torch.testing.assert_close(loss, -log_p[mask != IGNORE].mean())
    found, gradient = linear._loss_and_gradient(logits, mask)
    (expected,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(found, loss.detach())
    assert (gradient[:, :, 0] == 0).all()  # no labeled pixel is near
    assert pixel_loss(logits, torch.full_like(mask, IGNORE)) == 0


def test_the_best_rate_is_chosen_on_the_held_out_images(train: Reader, tmp_path: Path):
    recipe = dataclasses.replace(RECIPE, base_lrs=[1e-6, 1.0], epochs=10)
    held = heads.hold_out(train, share=0.2, seed=0)
    assert len(held.held_out) == 8
    assert sorted([*held.kept, *held.held_out]) == list(range(40))
    with start_run(tmp_path, recipe) as run:
        probe = linear.fit_linear(recipe, averaged, held, width=9, crops=WHOLE, options=OPTIONS, run=run)
    assert probe.setting == {"base_lr": 1.0}
    assert [row["epoch"] for row in probe.history] == list(range(1, 11))
    assert probe.history[-1]["loss"] < probe.history[0]["loss"]
    assert probe.predict(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 1, 9, 4, 4)


def test_a_single_image_cannot_be_held_out(train: Reader):
    with pytest.raises(ValueError, match="a single image with a mask"):
        heads.hold_out(train.select(np.array([0])), share=0.5, seed=0)


@pytest.mark.parametrize("k", [1, 5])
def test_the_vote_equals_scikit_learn(k: int):
    rng = np.random.default_rng(0)
    tokens, labels = rng.normal(size=(300, 6)).astype(np.float32), rng.integers(0, 4, 300)
    images = torch.from_numpy(rng.normal(size=(2, 6, 5, 5)).astype(np.float32))
    voters = PatchBank(torch.from_numpy(tokens), torch.from_numpy(labels), torch.arange(300))
    window = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
    votes = voters.build_predictor(lambda _: images, num_classes=4, ks=[2, k], temperature=0.07)(window)
    peer = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    theirs = peer.fit(tokens, labels).predict_proba(images.permute(0, 2, 3, 1).reshape(-1, 6).numpy())
    ours = votes[:, 1].permute(0, 2, 3, 1).reshape(-1, 4)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-4)


def test_a_bank_is_bounded_and_a_patch_has_the_label_of_most_of_its_pixels(train: Reader):
    for patches, images in ((100, 40), (25, 25)):
        bank = knn.build_patch_bank(averaged, train, OPTIONS, max_patches=patches, seed=0)
        assert len(bank.samples.unique()) == images
        assert len(bank.tokens) == len(bank.labels) == patches // images * images <= patches
    found = knn.build_patch_bank(
        averaged, train, OPTIONS, max_patches=40 * 16, seed=0
    )  # all patches, so all can be found again
    for index in (0, 17):
        sample = WholeImage(32)(train, index)
        tokens = averaged(torch.from_numpy(sample["image"])[None])[0].flatten(1).T
        cells = sample["mask"].reshape(4, 8, 4, 8).transpose(0, 2, 1, 3).reshape(16, 64)
        expected = np.array([np.bincount(cell).argmax() for cell in cells])
        mine = found.samples == index
        order = torch.cdist(found.tokens[mine], tokens).argmin(1)
        assert (found.labels[mine].numpy() == expected[order]).mean() > 0.9  # equal patches may differ in label
    assert set(found.without_samples(np.array([0, 17])).samples.tolist()) == set(range(40)) - {0, 17}


def test_held_out_images_do_not_vote_while_the_number_of_neighbors_is_chosen():
    train = Noisy(20, seed=0)
    held = heads.hold_out(train, share=0.2, seed=0)
    probe = knn.fit_knn(
        knn.KnnSegmentationConfig(k=[1, 10, 900], temperature=0.07, patches=1000), colors, held, options=OPTIONS, seed=0
    )
    assert probe.setting == {"k": 10}  # 1 follows the noise, 900 of 1000 the most frequent class
    bank = knn.build_patch_bank(colors, train, OPTIONS, max_patches=1000, seed=0)
    assert len(bank.without_samples(held.held_out).tokens) == 800
    image = torch.from_numpy(WholeImage(32)(train, int(held.held_out[0]))["image"])[None]
    found = bank.build_predictor(colors, num_classes=4, ks=[10], temperature=0.07)(image)
    torch.testing.assert_close(probe.predict(image), found)  # the final predictor uses all images


def test_token_maps_are_the_patch_tokens_on_their_grid():
    config = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    network = vit.build(config)
    frozen_teacher = teacher.Teacher(network, {"class_token": False, "mean": vit.MEAN, "std": vit.STD}, "")
    images = torch.randint(256, (2, 3, 48, 48), dtype=torch.uint8)  # positions are resampled
    options = {"device": ALONE.device, "precision": "fp32"}
    encoders = (
        features.build_token_encoder(network, **options),
        baselines.build_teacher_token_encoder(frozen_teacher, **options),
    )
    maps = [heads.build_token_map_encoder(encode_tokens)(images) for encode_tokens in encoders]
    expected = vit.encode_tokens(network, vit.normalize(images))[:, 1:].reshape(2, 6, 6, 32).permute(0, 3, 1, 2)
    for found in maps:
        torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
