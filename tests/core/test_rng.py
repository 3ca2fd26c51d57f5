"""A seed is a pure function of names: it never changes, and differs for different names."""

import random

import numpy as np
import pytest
import torch

from semmae.core.rng import fold, numpy_generator, seeded, torch_generator


def test_seeds_never_change():
    assert fold(0, "mask", 3) == 727265019029072475  # existing runs and shards depend on it


def test_different_names_give_different_seeds():
    names = [(), ("",), ("a",), ("b",), ("a", "b"), ("ab",), ("a", ""), ("1",), (1,), (-1,), (1, 2), (12,), ("1", 2)]
    seeds = {fold(seed, *name) for seed in (0, 1) for name in names}
    assert len(seeds) == 2 * len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_only_strings_and_integers_are_names():
    with pytest.raises(TypeError, match=r"0\.5"):
        fold(0, 0.5)  # type: ignore[arg-type]


def test_generators_repeat():
    assert torch.equal(
        torch.rand(4, generator=torch_generator(0, "a")), torch.rand(4, generator=torch_generator(0, "a"))
    )
    assert np.array_equal(numpy_generator(0, "a").random(4), numpy_generator(0, "a").random(4))
    assert not np.array_equal(numpy_generator(0, "a").random(4), numpy_generator(0, "b").random(4))


def test_bits_are_balanced():
    bits = np.array([[fold(7, "epoch", n) >> bit & 1 for bit in range(63)] for n in range(2000)])
    assert (np.abs(bits.mean(axis=0) - 0.5) < 0.06).all()


def test_the_global_generators_are_seeded_and_restored():
    def draw() -> tuple[float, float, float]:
        return random.gauss(0, 1), np.random.normal(), float(torch.randn(()))

    with seeded(0, "policy", 1):
        first = draw()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    expected = draw(), draw()
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before = draw()
    with pytest.raises(KeyError), seeded(0, "policy", 1):  # noqa: PT012 - the draws before the error matter
        assert draw() == first
        raise KeyError  # the generators are restored after an error too
    assert (before, draw()) == expected
    with seeded(0, "policy", 2):
        assert draw() != first
