"""Both part methods find planted parts, and the losses equal their closed forms."""

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from semmae.core import optim
from semmae.models.teacher import Tokens
from semmae.parts import kmeans_parts, part_decoder, part_learner, part_methods

GRID, WIDTH = (6, 6), 12


def config(method: str, **changes) -> dict:
    shape = {"method": method, "num_parts": 4, "grid": GRID, "embed_dim": WIDTH, "background": False}
    learned = {
        "foreground": {
            "clusterings": 4, "clusters": 6, "center_prior": 0.2, "diffusion_steps": 2, "threshold_classes": 2
        },
        "position_weight": 0.0, "temperature": 0.1, "blur_sigma": 0.5, "decoder_width": 16, "decoder_depth": 2,
        "target_dim": WIDTH, "class_token": False,
    }  # fmt: skip
    return shape | learned | changes


def planted(images: int, seed: int) -> tuple[Tokens, torch.Tensor]:
    """Return tokens of images in four quarters of four kinds, and the kind of each patch (b, n).

    Each image has its own order of kinds, and its own point where the quarters meet.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(7)) * 2
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    corner = torch.randint(2, 5, (images, 2, 1, 1), generator=generator)
    quarter = ((rows >= corner[:, 0]).long() * 2 + (columns >= corner[:, 1])).flatten(1)
    truth = torch.rand(images, 4, generator=generator).argsort(1).gather(1, quarter)
    patch = kinds[truth] + 0.03 * torch.randn(images, 36, WIDTH, generator=generator)
    heads = torch.full((images, 2, 36), 1 / 36)
    return Tokens(patch, patch.mean(1), heads.mean(1), heads, patch.mean(1), patch), truth


def test_the_learner_finds_planted_parts():
    torch.manual_seed(0)
    model = part_learner.PartLearner(config("learned"))
    model.fit(planted(64, 0)[0].patch, seed=0)
    optimizer = optim.adamw(model, weight_decay=0.0, betas=(0.9, 0.95))
    optim.set_rate(optimizer, 5e-3)
    for step in range(150):
        tokens, _ = planted(16, step)
        maps, output = model(tokens)
        loss = (output - model.prepare_tokens(tokens.patch)).square().mean()
        loss = loss + 0.1 * part_decoder.diversity_loss(maps) + part_decoder.balance_loss(maps.mean((0, 2)), 0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, truth = planted(32, 1000)
    found = model.assign(tokens).argmax(1)
    assert adjusted_rand_score(truth.flatten(), found.flatten()) > 0.8


def test_kmeans_finds_planted_parts():
    tokens, truth = planted(64, 0)
    model = kmeans_parts.KMeansParts(config("kmeans"))
    assert model.fit(tokens.patch, seed=0)["cosine"] > 0.8
    assert adjusted_rand_score(truth.flatten(), model.assign(tokens).argmax(1).flatten()) > 0.8


@pytest.mark.parametrize(("method", "background"), [("learned", True), ("learned", False), ("kmeans", False)])
def test_shares_sum_to_one_and_survive_saving(method, background, tmp_path):
    model = part_methods.PART_METHODS[method](config(method, background=background))
    tokens, _ = planted(4, 0)
    model.fit_whitening(tokens.patch)
    shares = model.assign(tokens)
    assert shares.shape == (4, model.num_labels, 36)
    torch.testing.assert_close(shares.sum(1), torch.ones(4, 36))
    part_methods.save_parts(tmp_path, model)
    again = part_methods.load_parts(tmp_path)
    assert torch.equal(again.assign(tokens), shares)
    assert again.background == (4 if background else None)
    assert again.digest


def test_only_a_trained_class_token_changes_the_queries():
    tokens, _ = planted(4, 0)
    other = tokens._replace(cls=tokens.cls + 1)
    model = part_learner.PartLearner(config("learned", class_token=True))
    torch.nn.init.normal_(model.embed_class[-1].weight)
    assert not torch.equal(model.assign(tokens), model.assign(other))
    model = part_learner.PartLearner(config("learned", class_token=False))
    assert torch.equal(model.assign(tokens), model.assign(other))
    unused = [name for name, _ in model.named_parameters() if name.startswith("embed_class")]
    assert not unused  # parameters without gradient are an error in DistributedDataParallel


def test_the_maps_are_the_decoders_only_spatial_input():
    """The same maps in every patch and the same style give the same values in every patch."""
    model = part_learner.PartLearner(config("learned"))
    maps = torch.full((2, 4, 6, 6), 0.25)
    values = model.decoder(maps, torch.randn(2, WIDTH))
    torch.testing.assert_close(values, values[:, :, :1, :1].expand_as(values))


def test_diversity_loss_is_the_overlap_of_pairs():
    maps = torch.rand(2, 3, 5).softmax(1)
    pairs = sum((maps[:, i] * maps[:, j]).mean() for i in range(3) for j in range(3) if i != j)
    torch.testing.assert_close(part_decoder.diversity_loss(maps), pairs)
    decided = torch.nn.functional.one_hot(torch.randint(0, 3, (2, 5)), 3).transpose(1, 2).float()
    assert part_decoder.diversity_loss(decided) == 0


def test_balance_loss_is_zero_above_the_floor():
    assert part_decoder.balance_loss(torch.tensor([1.0, 0.0]), 0.1) == 0.5  # one of two labels has no patches
    assert part_decoder.balance_loss(torch.tensor([0.9, 0.1]), 0.1) == 0
    assert part_decoder.balance_loss(torch.tensor([0.9, 0.1]), 0.2) == 0.25


def test_blur_keeps_the_mean_and_spreads_a_point():
    maps = torch.zeros(1, 2, 7, 7)
    maps[0, 0, 3, 3] = 1
    out = part_decoder.blur(maps, 0.7)
    torch.testing.assert_close(out.sum(), torch.tensor(1.0))
    assert out[0, 0, 3, 3] > out[0, 0, 3, 4] > out[0, 0, 2, 2] > 0
    torch.testing.assert_close(out[0, 0], out[0, 0].T)
    assert torch.equal(part_decoder.blur(maps, 0.0), maps)
    flat = torch.ones(1, 2, 7, 7)
    torch.testing.assert_close(part_decoder.blur(flat, 1.0), flat)
