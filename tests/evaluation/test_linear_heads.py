"""Linear heads against a loop of torch modules, sweeps against single rates, selections against copies."""

import numpy as np
import pytest
import torch
from torch import nn

from semmae.core.optim import warmup_cosine
from semmae.core.rng import numpy_generator, torch_generator
from semmae.evaluation import linear_heads, subsets
from semmae.evaluation.linear_heads import FeatureSet, LinearHeadsRecipe

LRS = [0.03, 0.1, 0.3, 1.0, 3.0]
RECIPE = LinearHeadsRecipe(epochs=4, warmup_epochs=1, batch_size=32, seed=3, device=torch.device("cpu"))


def planted(
    n: int, *, views: int = 2, width: int = 12, classes: int = 4, spread: float = 0.7, seed: int = 0
) -> FeatureSet:
    """Noisy class centers, far from zero mean and unit variance."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    noise = torch.randn(views, n, width, generator=generator)
    return FeatureSet(5 + 3 * (noise * spread + 2 * torch.eye(width)[labels]), labels)


def plain_probe(train: FeatureSet, base_lr: float, recipe: LinearHeadsRecipe, classes: int) -> nn.Module:
    """Train a single head by the same recipe with torch modules."""
    views, n, width = train.features.shape
    model = nn.Sequential(nn.BatchNorm1d(width, eps=1e-6, affine=False), nn.Linear(width, classes))
    weight = torch.randn(width, 1, classes, generator=torch_generator(recipe.seed, "head"))
    model[1].weight.data, model[1].bias.data = 0.01 * weight[:, 0].T.contiguous(), torch.zeros(classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    per_epoch = n // recipe.batch_size
    for step in range(recipe.epochs * per_epoch):
        epoch, number = divmod(step, per_epoch)
        order = numpy_generator(recipe.seed, "order", epoch).permutation(n)
        ids = order[number * recipe.batch_size : (number + 1) * recipe.batch_size]
        peak, warmup = base_lr * recipe.batch_size / 256, recipe.warmup_epochs * per_epoch
        optimizer.param_groups[0]["lr"] = warmup_cosine(
            step, steps=recipe.epochs * per_epoch, warmup=warmup, peak=peak, end=0.0
        )
        loss = nn.functional.cross_entropy(model(train.features[epoch % views, ids]), train.labels[ids])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("base_lr", LRS)
def test_a_head_equals_a_plain_loop_with_torch_modules(base_lr):
    train, val = planted(200), planted(50, seed=1).features[0]
    trained, _ = linear_heads.train_heads(train, num_classes=4, base_lrs=[base_lr], recipe=RECIPE)
    expected = plain_probe(train, base_lr, RECIPE, 4)(val)
    torch.testing.assert_close(trained.predict(val)[:, 0], expected.detach(), rtol=1e-4, atol=1e-5)


def test_a_rate_does_not_depend_on_the_others_of_its_sweep():
    train, val = planted(200), planted(50, seed=1).features[0]
    sweep, history = linear_heads.train_heads(train, num_classes=4, base_lrs=LRS, recipe=RECIPE)
    for i, base_lr in enumerate(LRS):
        alone, curve = linear_heads.train_heads(train, num_classes=4, base_lrs=[base_lr], recipe=RECIPE)
        torch.testing.assert_close(sweep.predict(val)[:, i], alone.predict(val)[:, 0], rtol=1e-4, atol=1e-5)
        assert [row["train_loss"][i] for row in history] == pytest.approx([row["train_loss"][0] for row in curve])


def choose(train: FeatureSet, base_lrs: list[float], recipe: LinearHeadsRecipe = RECIPE) -> linear_heads.ChosenRate:
    held_out = subsets.stratified_split(train.labels.numpy(), share=0.2, seed=0)
    return linear_heads.choose_base_lr(
        train, num_classes=4, base_lrs=base_lrs, recipe=recipe, held_out=held_out, holdout=train.select(held_out)
    )


def test_the_probe_learns_and_returns_its_curve():
    train, val = planted(400), planted(200, seed=1)
    choice = choose(train, LRS)
    scores = linear_heads.train_and_predict(train, val, num_classes=4, base_lr=choice.base_lr, recipe=RECIPE)
    assert (scores.argmax(1) == val.labels).double().mean() > 0.8
    assert [row["epoch"] for row in choice.history] == [1, 2, 3, 4]
    assert choice.history[-1]["lr"] == 0
    assert choice.history[-1]["train_loss"] < choice.history[0]["train_loss"]


def test_the_probe_is_a_function_of_its_seed():
    train, val = planted(200), planted(50, seed=1)
    recipes = [LinearHeadsRecipe(4, 1, 32, seed, torch.device("cpu")) for seed in (3, 3, 4)]
    again = [
        linear_heads.train_and_predict(train, val, num_classes=4, base_lr=1.0, recipe=recipe) for recipe in recipes
    ]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2])


def test_the_chosen_rate_is_the_best_on_the_holdout():
    train = planted(400, spread=2.0)
    held_out = subsets.stratified_split(train.labels.numpy(), share=0.2, seed=0)
    kept = np.setdiff1d(np.arange(400), held_out)
    rates = [1e-6, 0.1]
    _, sweep = linear_heads.train_heads(
        train.select(kept), num_classes=4, base_lrs=rates, recipe=RECIPE, holdout=train.select(held_out)
    )
    best = int(np.argmax(sweep[-1]["holdout_top1"]))
    assert choose(train, rates).base_lr == rates[best]


def test_a_selection_equals_a_copy():
    train, val = planted(200), planted(50, seed=1)
    ids = numpy_generator(0, "some").permutation(200)[:80]
    selection, copy = (
        train.select(ids[::-1]).select(np.arange(80)[::-1]),
        FeatureSet(train.features[:, ids], train.labels[ids]),
    )
    assert selection.features is train.features
    logits = [
        linear_heads.train_and_predict(x, val, num_classes=4, base_lr=0.3, recipe=RECIPE) for x in (selection, copy)
    ]
    assert torch.equal(*logits)


def test_scores_do_not_depend_on_the_chunk_size(monkeypatch):
    train, val = planted(200), planted(50, seed=1)
    trained, _ = linear_heads.train_heads(train, num_classes=4, base_lrs=LRS, recipe=RECIPE)
    expected = (trained.predict(val.features[0]).argmax(2) == val.labels[:, None]).double().mean(0).tolist()
    for chunk in (7, 50):
        monkeypatch.setattr(linear_heads, "CHUNK", chunk)
        assert trained.top1(val) == pytest.approx(expected)
        assert len(linear_heads.train_and_predict(train, val, num_classes=4, base_lr=0.3, recipe=RECIPE)) == 50


@pytest.mark.parametrize("few", [10, 32, 33, 70, 1000])
def test_a_recipe_for_few_samples_takes_as_many_steps(few):
    longer = RECIPE.with_equal_steps(few, reference=1000)
    steps, per_epoch = RECIPE.epochs * RECIPE.steps_per_epoch(1000), RECIPE.steps_per_epoch(few)
    assert steps <= longer.epochs * per_epoch < steps + per_epoch


def test_a_batch_is_never_larger_than_the_training_set():
    train, val = planted(40), planted(20, seed=1).features[0]
    of_size = [
        linear_heads.train_heads(
            train, num_classes=4, base_lrs=[0.3], recipe=LinearHeadsRecipe(3, 0, size, 0, torch.device("cpu"))
        )[0]
        for size in (40, 1000)
    ]
    assert torch.equal(of_size[0].predict(val), of_size[1].predict(val))
