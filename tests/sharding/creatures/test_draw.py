"""Drawn animals are a pure function of seed and key, their masks are valid, and only shapes tell species apart."""

import cv2
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from semmae.sharding.creatures.draw import PARTS, SPECIES, Creature, draw, label_of

SEED, SIZE = 3, 96
TRAIN, VAL = 480, 160
CHANCE = 1 / len(SPECIES)


@pytest.fixture(scope="module")
def creatures() -> list[Creature]:
    return [draw(SEED, f"train-{i:06d}", SIZE) for i in range(TRAIN + VAL)]


@pytest.fixture(scope="module")
def easy() -> list[Creature]:
    return [draw(SEED, f"train-{i:06d}", SIZE, difficulty="easy") for i in range(80)]


@pytest.fixture(scope="module")
def labels(creatures) -> np.ndarray:
    return np.array([c.label for c in creatures])


def top1(classifier, features: np.ndarray, labels: np.ndarray) -> float:
    classifier.fit(features[:TRAIN], labels[:TRAIN])
    return classifier.score(features[TRAIN:], labels[TRAIN:])


def test_same_names_same_bytes():
    first, again = (draw(SEED, "train-000017", SIZE) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.mask.tobytes() == again.mask.tobytes()
    other_seed, other_key = draw(SEED + 1, "train-000017", SIZE), draw(SEED, "val-000017", SIZE)
    for other in (other_seed, other_key):
        assert (other.image != first.image).mean() > 0.5
        assert other.label == first.label


@pytest.mark.parametrize("size", [32, 96, 97, 224])
def test_types_and_ranges(size):
    creature = draw(SEED, "val-3", size)
    assert creature.image.shape == (size, size, 3)
    assert creature.image.dtype == creature.mask.dtype == np.uint8
    assert creature.mask.shape == (size, size)
    assert creature.mask.max() < len(PARTS)
    assert creature.image.std() > 10


def test_a_key_is_the_same_animal_at_every_size():
    for i in range(2 * len(SPECIES)):
        small, large = draw(SEED, f"val-{i}", 96), draw(SEED, f"val-{i}", 240)
        assert small.label == large.label
        shrunk = cv2.resize(large.mask, (96, 96), interpolation=cv2.INTER_NEAREST)
        assert (shrunk == small.mask).mean() > 0.96
        average = cv2.resize(large.image, (96, 96), interpolation=cv2.INTER_AREA)
        assert np.abs(average.astype(float) - small.image).mean() < 8


def test_labels_are_balanced_and_read_from_the_key(labels):
    counts = np.bincount(labels, minlength=len(SPECIES))
    assert counts.max() - counts.min() <= 1
    assert label_of("train-000017") == 17 % len(SPECIES)
    with pytest.raises(ValueError, match="no trailing number"):
        label_of("train")


def test_masks(creatures):
    masks = np.stack([c.mask for c in creatures])
    areas = (masks > 0).mean(axis=(1, 2))
    assert areas.min() > 0.05
    assert areas.max() < 0.45
    assert 0.2 < areas.mean() < 0.3
    seen = [(masks == part).any(axis=(1, 2)).mean() for part in range(1, len(PARTS))]
    assert min(seen) > 0.2  # every part is common


def test_eyes_are_in_the_face(creatures):
    """What touches an eye is nearly always head, snout or ears."""
    face = [PARTS.index(name) for name in ("head", "eyes", "snout", "ears")]
    eyes = PARTS.index("eyes")
    near_face = []
    for creature in creatures:
        around = cv2.dilate(np.uint8(creature.mask == eyes), np.ones((3, 3), np.uint8)) > 0
        near_face.append(np.isin(creature.mask[around], face).mean() if around.any() else 1.0)
    assert np.mean(near_face) > 0.9


def test_color_does_not_predict_the_species(creatures, labels):
    images = np.stack([c.image for c in creatures]) / 255
    masks = np.stack([c.mask > 0 for c in creatures])[..., None]
    coat = (images * masks).sum(axis=(1, 2)) / masks.sum(axis=(1, 2))
    features = np.hstack([images.mean(axis=(1, 2)), images.std(axis=(1, 2)), coat])
    assert top1(LogisticRegression(max_iter=300), features, labels) < CHANCE + 0.15


def test_thumbnails_predict_little_and_silhouettes_much(creatures, labels):
    def small(pictures) -> np.ndarray:
        resized = [cv2.resize(p, (16, 16), interpolation=cv2.INTER_AREA) for p in pictures]
        return np.stack(resized).reshape(len(creatures), -1)

    def cropped(mask: np.ndarray) -> np.ndarray:
        ys, xs = np.nonzero(mask)
        return np.float32(mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] > 0)

    neighbors = KNeighborsClassifier(10, metric="cosine")
    assert 0.15 < top1(neighbors, small([c.image for c in creatures]), labels) < 0.45
    assert top1(neighbors, small([cropped(c.mask) for c in creatures]), labels) > 0.85


def test_shuffled_parts_do_not_predict_the_label():
    """The control looks alike and has masks, but its silhouette does not know its label."""
    pictures = [draw(SEED, f"train-{i}", 48, shuffle_parts=True) for i in range(240)]
    shapes = np.stack([cv2.resize(np.float32(p.mask > 0), (12, 12)).ravel() for p in pictures])
    labels = np.array([p.label for p in pictures])
    knn = KNeighborsClassifier(10, metric="cosine").fit(shapes[:160], labels[:160])
    assert knn.score(shapes[160:], labels[160:]) < CHANCE + 0.15
    assert 0.15 < np.mean([(p.mask > 0).mean() for p in pictures]) < 0.35


def test_easy_animals_are_larger(creatures, easy):
    def mean_area(pictures) -> float:
        return float(np.mean([(c.mask > 0).mean() for c in pictures]))

    assert mean_area(easy) > 1.05 * mean_area(creatures[: len(easy)])
    assert [c.label for c in easy] == [c.label for c in creatures[: len(easy)]]


def test_easy_backdrops_are_plain(creatures, easy):
    """The color of an easy backdrop varies with the light and the grain alone."""

    def spread(pictures) -> float:
        return float(np.median([c.image[c.mask == 0].std(axis=0).mean() for c in pictures]))

    assert spread(easy) < 0.7 * spread(creatures[: len(easy)])


@pytest.mark.parametrize(("part", "direction"), [("legs", 1), ("ears", -1)])
def test_easy_parts_have_patterns_of_their_own(easy, part, direction):
    """Rows differ more from top to bottom, and columns from left to right, inside a part and in most pictures."""
    energies = []
    for creature in easy:
        gray = cv2.cvtColor(creature.image, cv2.COLOR_RGB2GRAY).astype(float)
        inside = cv2.erode(np.uint8(creature.mask == PARTS.index(part)), np.ones((3, 3), np.uint8)) > 0
        if inside.sum() >= 30:
            down, across = (np.abs(np.gradient(gray, axis=axis))[inside].mean() for axis in (0, 1))
            energies.append(direction * (down - across) > 0)
    assert len(energies) > 10
    assert np.mean(energies) > 0.75
