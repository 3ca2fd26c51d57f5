"""An epoch's order is a function of seed and epoch, and of the weights, which are met exactly."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from semmae.core import rng
from semmae.data.dataset import Reader
from semmae.data.epoch_order import epoch_order, epoch_size
from semmae.sharding import shard_writer
from semmae.sharding.sources.sources import Creatures

WEIGHTS = np.repeat([1.0, 2.0, 0.25, 1.5], [30, 10, 20, 7])


def test_an_epoch_is_a_permutation_known_from_seed_and_epoch():
    orders = [epoch_order(1000, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert len({order.tobytes() for order in orders}) == 4
    assert np.array_equal(orders[3], epoch_order(1000, seed=1, epoch=1))


def test_equal_weights_change_nothing():
    plain = epoch_order(50, seed=3, epoch=4)
    assert np.array_equal(plain, rng.numpy_generator(3, "epoch_order", 4).permutation(50))
    assert np.array_equal(plain, epoch_order(50, seed=3, epoch=4, weights=np.ones(50)))
    assert epoch_size(50, None) == epoch_size(50, np.ones(50)) == 50


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_every_epoch_sees_the_weights_exactly(epoch):
    order = epoch_order(67, seed=0, epoch=epoch, weights=WEIGHTS)
    assert len(order) == epoch_size(67, WEIGHTS) == 30 + 20 + 5 + 10  # round(1.5 * 7) is 10
    seen = np.bincount(order, minlength=67)
    assert (seen[:30] == 1).all()
    assert (seen[30:40] == 2).all()
    assert sorted(seen[40:60]) == [0] * 15 + [1] * 5
    assert sorted(seen[60:]) == [1] * 4 + [2] * 3
    assert np.array_equal(order, epoch_order(67, seed=0, epoch=epoch, weights=WEIGHTS))
    assert not np.array_equal(seen, np.bincount(epoch_order(67, seed=1, epoch=epoch, weights=WEIGHTS), minlength=67))


def test_shuffle_shards_mixes_few_shards_at_a_time_and_misses_nothing():
    shards = np.repeat(np.arange(7), 10)
    orders = [epoch_order(70, seed=0, epoch=epoch, shards=shards, shuffle_shards=3) for epoch in range(20)]
    dealt = set()
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(70))
        windows = [frozenset(shards[order[first : first + 30]].tolist()) for first in (0, 30, 60)]
        assert [len(window) for window in windows] == [3, 3, 1]
        dealt |= set(windows)
        assert (shards[order[:10]] != shards[order[0]]).any()  # mixed inside
    assert len(dealt) > 20  # other shards come together in other epochs
    assert np.array_equal(orders[3], epoch_order(70, seed=0, epoch=3, shards=shards, shuffle_shards=3))
    assert np.array_equal(
        orders[3], epoch_order(70, seed=0, epoch=3, shards=50 * shards, shuffle_shards=3)
    )  # of a subset
    everything = epoch_order(70, seed=0, epoch=3, shards=shards, shuffle_shards=7)
    assert np.array_equal(everything, epoch_order(70, seed=0, epoch=3))  # one window of all is the plain permutation


def test_shuffle_shards_keeps_the_weights():
    shards = np.repeat(np.arange(7), [10, 10, 10, 10, 10, 10, 7])
    order = epoch_order(67, seed=0, epoch=1, weights=WEIGHTS, shards=shards, shuffle_shards=2)
    assert np.array_equal(np.sort(order), np.sort(epoch_order(67, seed=0, epoch=1, weights=WEIGHTS)))
    found = shards[order]
    begins = [at for at in range(1, len(order)) if not set(found[:at]) & set(found[at:])]  # where a window may begin
    assert [len(set(window.tolist())) for window in np.split(found, begins)] == [2, 2, 2, 1]


def test_a_fraction_of_a_source_rotates_over_all_its_samples():
    """Four epochs of a quarter see each sample once, ten of them each two or three times."""
    seen = [np.bincount(epoch_order(67, seed=0, epoch=epoch, weights=WEIGHTS), minlength=67) for epoch in range(10)]
    assert (np.sum(seen[:4], axis=0)[40:60] == 1).all()
    assert set(np.sum(seen, axis=0)[40:60]) == {2, 3}


def test_the_order_mixes_the_sources():
    order = epoch_order(2000, seed=0, epoch=0, weights=np.repeat([1.0, 3.0], 1000))
    shares = [(order[i : i + 400] >= 1000).mean() for i in range(0, 4000, 400)]
    assert np.allclose(shares, 0.75, atol=0.08)


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 creatures of weight 1, and 8 of weight 2."""
    out = tmp_path_factory.mktemp("shards") / "weighted"
    named = {
        name: Creatures(kind="creatures", train=train, val=2, size=16, seed=0, weight=weight)
        for name, train, weight in (("many", 12, None), ("few", 8, 2.0))
    }
    shard_writer.write(out, named, seed=0, short_side=None, samples_per_shard=8, max_rejects=0.0, workers=0)
    return out


def test_the_reader_knows_the_weight_of_every_sample(weighted):
    reader = Reader(weighted, "train")
    expected = [2.0 if key.startswith("few_") else 1.0 for key in reader.keys]
    assert reader.weights.tolist() == expected
    assert reader.select(np.array([3, 1])).weights.tolist() == [expected[3], expected[1]]
    seen = Counter(reader.keys[i] for i in epoch_order(20, seed=0, epoch=0, weights=reader.weights))
    assert seen == {key: round(weight) for key, weight in zip(reader.keys, expected, strict=True)}


def test_without_weights_there_are_none(weighted, tmp_path):
    plain = shutil.copytree(weighted, tmp_path / "plain")
    meta = json.loads((plain / "shards.json").read_text())
    meta["sources"]["few"]["weight"] = 1.0
    (plain / "shards.json").write_text(json.dumps(meta))
    assert Reader(plain, "train").weights is None


@pytest.mark.parametrize("weight", ["0", "-1", "1e999", '"2"'])
def test_a_weight_is_a_positive_number(weight):
    given = f'{{"kind": "creatures", "train": 1, "val": 0, "size": 16, "seed": 0, "weight": {weight}}}'
    with pytest.raises(ValidationError):
        TypeAdapter(Creatures).validate_json(given)
