"""The training of the part learner raises the information, and depends on nothing but its seed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from semmae.core import distributed
from semmae.parts.part_learner import PartLearner
from semmae.runs.run import Run
from semmae.training.parts_loop import PartLearnerConfig, train_part_learner
from tests.parts.planted import GRID, WIDTH, object_scenes, tokens_of

ALONE = distributed.World(0, 1, torch.device("cpu"))
PATCH, PART = object_scenes(40, 0)


def trained(folder: Path, *, steps: int, seed: int = 0, **changes: Any) -> tuple[PartLearner, list[dict[str, Any]]]:
    recipe = PartLearnerConfig(
        keys="content", smoothing_steps=1, position_weight=1.0, foreground=None, initial_entropy=0.8, steps=steps,
        batch_size=8, lr=0.05,
    )  # fmt: skip
    config = vars(recipe) | {"num_parts": 3, "grid": GRID, "embed_dim": WIDTH, "background": True} | changes
    model = PartLearner(config)
    model.fit(PATCH, seed=0)
    with Run("parts", ALONE, out=folder, params=recipe, inputs=[], checkpoint_minutes=60) as run:
        return model, train_part_learner(recipe, model, PATCH, seed=seed, run=run)


def test_training_raises_the_information(tmp_path: Path):
    _, history = trained(tmp_path, steps=60)
    information = [row["information"] for row in history]
    assert information[-1] > 1.5 * information[0]
    assert information[-1] < torch.tensor(3.0).log()


def test_the_trained_learner_finds_the_parts(tmp_path: Path):
    model, _ = trained(tmp_path, steps=60)
    found = model.assign(tokens_of(PATCH)).argmax(1)
    assert adjusted_rand_score(PART[PART > 0], found[PART > 0]) > 0.9


def test_the_seed_decides_the_queries(tmp_path: Path):
    model, history = trained(tmp_path, steps=5)
    again, same_history = trained(tmp_path, steps=5)
    assert same_history == history
    assert torch.equal(again.queries, model.queries)
    other, _ = trained(tmp_path, steps=5, seed=1)
    assert not torch.equal(other.queries, model.queries)


@pytest.mark.parametrize(("steps", "rows"), [(25, 10), (4, 4), (0, 0)])
def test_the_history_has_at_most_ten_rows(tmp_path: Path, steps: int, rows: int):
    _, history = trained(tmp_path, steps=steps)
    assert [row["epoch"] for row in history] == list(range(1, rows + 1))


def test_without_steps_the_queries_stay_as_k_means_found_them(tmp_path: Path):
    model, history = trained(tmp_path, steps=0)
    untrained = PartLearner(model.config)
    untrained.fit(PATCH, seed=0)
    assert history == []
    assert torch.equal(model.queries, untrained.queries)


@pytest.mark.parametrize("changes", [{"keys": "position", "foreground": None}, {"background": False}])
def test_queries_that_training_would_harm_keep_their_start(tmp_path: Path, changes: dict[str, Any]):
    model, history = trained(tmp_path, steps=5, **changes)
    untrained = PartLearner(model.config)
    untrained.fit(PATCH, seed=0)
    assert history == []
    assert torch.equal(model.queries, untrained.queries)
