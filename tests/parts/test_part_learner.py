"""Part methods that are fitted to tokens find planted parts, and the learner chooses keys that suit the tokens."""

from typing import Any

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from semmae.core import distributed
from semmae.parts.kmeans_parts import KMeansParts
from semmae.parts.part_learner import MIN_EVIDENCE, PartLearner, foreground_evidence
from semmae.parts.part_method import PartMethod
from semmae.parts.part_methods import PART_METHODS, load_parts, save_parts
from tests.parts.planted import GRID, WIDTH, bright_scenes, half_objects, object_scenes, tokens_of

CLUSTERS = {"clusterings": 8, "clusters": 8, "center_prior": 0.0, "diffusion_steps": 0, "threshold_classes": 2}


def config(method: str, **changes: Any) -> dict[str, Any]:
    shape = {"method": method, "num_parts": 3, "grid": GRID, "embed_dim": WIDTH, "background": method == "learned"}
    learned = {
        "keys": "auto", "smoothing_steps": 2, "position_weight": 2.0, "foreground": CLUSTERS, "initial_entropy": 0.5,
    }  # fmt: skip
    return shape | learned | {"temperature": 0.1} | changes


def rand_index(method: PartMethod, patch: torch.Tensor, part: torch.Tensor) -> float:
    """Return the adjusted Rand index of the labels inside the objects."""
    found = method.assign(tokens_of(patch)).argmax(1)
    return adjusted_rand_score(part[part > 0], found[part > 0])


def test_the_learner_finds_parts_by_content():
    model = PartLearner(config("learned"))
    metrics = model.fit(object_scenes(100, 0)[0], seed=0)
    patch, part = object_scenes(50, 1)
    assert model.config["keys"] == "content"
    assert metrics["content"] == 1
    assert MIN_EVIDENCE < metrics["evidence"] < 1
    assert metrics["foreground"] == pytest.approx(0.25, abs=0.01)  # 16 of 64 patches
    assert rand_index(model, patch, part) > 0.95
    found = model.assign(tokens_of(patch)).argmax(1)
    assert ((found == model.background) == (part == 0)).float().mean() > 0.99


def test_the_learner_finds_parts_by_position_if_tokens_vary_with_brightness():
    model = PartLearner(config("learned", num_parts=2))
    metrics = model.fit(bright_scenes(200, 0)[0], seed=0)
    patch, part = bright_scenes(50, 1)
    assert model.config["keys"] == "position"
    assert metrics["content"] == 0
    assert metrics["evidence"] < MIN_EVIDENCE
    found = model.assign(tokens_of(patch)).argmax(1)
    assert (found[part == 0] == model.background).float().mean() > 0.9
    assert rand_index(model, patch, part) > 0.6


def test_kmeans_finds_planted_parts():
    patch, part = object_scenes(100, 0)
    model = KMeansParts(config("kmeans", num_parts=8))
    assert model.fit(patch, seed=0)["cosine"] > 0.8
    assert rand_index(model, patch, part) > 0.95


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("learned", {"keys": "content"}),
        ("learned", {"keys": "position"}),
        ("learned", {"keys": "auto"}),
        ("learned", {"keys": "content", "background": False, "foreground": None}),
        ("learned", {"keys": "position", "background": False, "foreground": None}),
        ("kmeans", {}),
    ],
)
def test_shares_sum_to_one_and_survive_saving(method: str, changes: dict[str, Any], tmp_path):
    model = PART_METHODS[method](config(method, teacher="t", **changes))
    patch, _ = object_scenes(50, 0)
    model.fit(patch, seed=0)
    tokens = tokens_of(patch[:4])
    shares = model.assign(tokens)
    assert shares.shape == (4, model.num_labels, 64)
    torch.testing.assert_close(shares.sum(1), torch.ones(4, 64))
    save_parts(tmp_path, model)
    again = load_parts(tmp_path, teacher="t")
    assert torch.equal(again.assign(tokens), shares)
    assert again.config["keys"] != "auto" or method == "kmeans"
    assert again.background == (3 if model.config["background"] else None)
    assert again.digest


@pytest.mark.parametrize("keys", ["content", "position"])
def test_labels_do_not_depend_on_the_precision_of_the_teacher(keys: str):
    model = PartLearner(config("learned", keys=keys))
    patch, _ = object_scenes(50, 0)
    model.fit(patch, seed=0)
    expected = model.assign(tokens_of(patch))
    with distributed.autocast(torch.device("cpu"), "bf16"):
        assert torch.equal(model.assign(tokens_of(patch)), expected)


def test_the_queries_start_with_the_given_entropy():
    model = PartLearner(config("learned", keys="content", initial_entropy=0.8))
    patch, _ = object_scenes(50, 0)
    model.fit(patch, seed=0)
    keys, share = model.compute_keys(patch)
    shares = model.divide(keys)[share > 0.5]
    entropy = -(shares * shares.log()).sum(-1).mean() / torch.tensor(3.0).log()
    assert entropy.item() == pytest.approx(0.8, abs=1e-3)


def test_more_parts_than_patches_of_the_foreground_are_refused_with_what_to_change():
    model = PartLearner(config("learned", num_parts=4000))
    with pytest.raises(ValueError, match=r"num_parts is 4000, but \d+ patches of 100 images are foreground; lower it"):
        model.fit(object_scenes(100, 0)[0], seed=0)


def test_evidence_is_high_for_two_classes_of_which_the_center_is_one():
    center = torch.zeros(GRID)
    center[2:6, 2:6] = 1
    noise = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    gradient = torch.linspace(-1, 1, 8).expand(20, 8, 8).flatten(1)
    two_classes = (noise > 0).float()
    clear, blurred, elsewhere, anywhere = (
        foreground_evidence(scores, GRID)
        for scores in (center.flatten().expand(20, 64), center.flatten() + noise, gradient, two_classes)
    )
    assert clear > 0.7 > blurred > 0.1 > abs(elsewhere)
    assert abs(anywhere) < 0.1
    assert foreground_evidence(-center.flatten().expand(20, 64), GRID) == pytest.approx(-clear)
    assert foreground_evidence(10 * center.flatten().expand(20, 64) + 3, GRID) == pytest.approx(clear, abs=1e-5)
    assert foreground_evidence(torch.ones(3, 64), GRID) == 0


def test_half_objects_have_halves_of_the_same_content():
    """The tokens of `half_objects` do not tell their parts apart, so that only the position can."""
    patch, part = half_objects(200, 0)
    upper, lower = patch[part == 1], patch[part == 2]
    torch.testing.assert_close(upper.mean(0), lower.mean(0), atol=0.05, rtol=0)
