"""Compare the autoencoder with transformers' ViTMAE and a naive loss, and check what each mask hides."""

import pytest
import torch

from semmae.models import mae, masking, vit
from tests.vitmae import to_vitmae

CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
DECODER = {"embed_dim": 16, "depth": 2, "num_heads": 2}
N, MASKED = 16, 12


@pytest.fixture
def model() -> mae.MAE:
    torch.manual_seed(0)
    return mae.MAE(vit.build(CONFIG), **DECODER).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask() -> torch.Tensor:
    return masking.random(3, N, 0.75, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_loss_and_prediction_equal_transformers(model, images, mask, norm_pix_loss):
    peer = to_vitmae(model, norm_pix_loss=norm_pix_loss)
    with torch.no_grad():
        pred = model(images, mask, MASKED)
        ours = mae.loss(pred, images, mask, patch_size=8, norm_pix_loss=norm_pix_loss)
        expected = peer(images, noise=mask.float())  # transformers keeps the patches with the lowest noise
    assert torch.equal(expected.mask.bool(), mask)
    torch.testing.assert_close(ours, expected.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(pred[mask], expected.logits[mask], rtol=1e-4, atol=1e-5)
    assert (pred[~mask] == 0).all()


def test_changing_masked_pixels_does_not_change_the_latent(model, images, mask):
    noise = torch.randn_like(mae.patchify(images, 8))
    changed = mae.unpatchify(torch.where(mask[:, :, None], noise, mae.patchify(images, 8)), 8)
    assert not torch.equal(changed, images)
    keep_indices, _, _ = masking.split_indices(mask, MASKED)
    with torch.no_grad():
        assert torch.equal(model.encode(images, keep_indices), model.encode(changed, keep_indices))


def test_patches_that_are_not_decoded_have_no_influence(model, images, mask):
    decode_mask = masking.subsample_mask(mask, torch.rand(3, N, generator=torch.Generator().manual_seed(3)), 5)
    latent = model.encode(images, masking.split_indices(mask, MASKED)[0])
    pred = model(images, mask, MASKED, decode_mask, 5)
    x = torch.cat([model.decoder["embed"](latent), model.mask_token.expand(3, 5, -1)], dim=1)
    for row in range(3):  # the decoder by hand, on its tokens in a random order
        visible, decoded = (~mask[row]).nonzero()[:, 0], decode_mask[row].nonzero()[:, 0]
        indices = torch.cat([torch.zeros(1, dtype=torch.int64), visible + 1, decoded + 1])
        shuffled = torch.randperm(len(indices), generator=torch.Generator().manual_seed(row))
        tokens = (x[row] + model.positions[0, indices])[shuffled][None]
        out = model.decoder["pred"](model.decoder["norm"](model.decoder["blocks"](tokens)))[0]
        expected = out[shuffled.argsort()][-5:]
        torch.testing.assert_close(pred[row][decode_mask[row]], expected, rtol=1e-4, atol=1e-5)


def test_the_indices_of_each_mask_are_computed_once(model, images, mask, monkeypatch):
    masks, split_indices = [], masking.split_indices
    monkeypatch.setattr(masking, "split_indices", lambda mask, count: masks.append(mask) or split_indices(mask, count))
    decode_mask = masking.subsample_mask(mask, torch.rand(3, N), 5)
    model(images, mask, MASKED)
    assert [id(given) for given in masks] == [id(mask)]
    model(images, mask, MASKED, decode_mask, 5)
    assert [id(given) for given in masks[1:]] == [id(mask), id(decode_mask)]


def test_visible_patches_have_no_gradient(model, images, mask):
    pred = model(images, mask, MASKED)
    pred.retain_grad()
    mae.loss(pred, images, mask, patch_size=8, norm_pix_loss=True).backward()
    assert (pred.grad[~mask] == 0).all()
    assert (pred.grad[mask] != 0).any(-1).all()


def test_loss_equals_an_explicit_loop(images, mask):
    pred = torch.randn(3, N, 192)
    errors = []
    for b in range(3):
        for y in range(4):
            for x in range(4):
                if mask[b, 4 * y + x]:
                    patch = images[b, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8].permute(1, 2, 0).flatten()
                    patch = (patch - patch.mean()) / (patch.var() + 1e-6) ** 0.5
                    errors.append((pred[b, 4 * y + x] - patch).square().mean())
    ours = mae.loss(pred, images, mask, patch_size=8, norm_pix_loss=True)
    torch.testing.assert_close(ours, torch.stack(errors).mean())


def test_patchify_round_trip(images):
    assert torch.equal(mae.unpatchify(mae.patchify(images, 8), 8), images)


def test_images_of_one_color_have_a_finite_loss(model, mask):
    flat = torch.full((3, 3, 32, 32), 0.3)
    loss = mae.loss(model(flat, mask, MASKED), flat, mask, patch_size=8, norm_pix_loss=True)
    assert loss.isfinite()


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_a_perfect_prediction_reconstructs_the_image(images, mask, norm_pix_loss):
    target = mae.patchify(images, 8)
    if norm_pix_loss:
        mean, deviation = mae.moments(target)
        target = (target - mean) / deviation
    rebuilt = mae.reconstruct(target, images, mask, patch_size=8, norm_pix_loss=norm_pix_loss)
    torch.testing.assert_close(rebuilt, images, rtol=0, atol=1e-5)


def test_reconstruction_changes_only_masked_patches(images, mask):
    rebuilt = mae.reconstruct(torch.zeros(3, N, 192), images, mask, patch_size=8, norm_pix_loss=True)
    same = (mae.patchify(rebuilt, 8) == mae.patchify(images, 8)).all(-1)
    assert same[~mask].all()
    assert not same[mask].any()


def test_a_loaded_model_predicts_as_before_saving(model, images, mask, tmp_path):
    mae.save(tmp_path, model, encoder=CONFIG, decoder=DECODER | {"norm_pix_loss": True})
    again, config = mae.load(tmp_path)
    assert config["norm_pix_loss"] is True
    with torch.no_grad():
        assert torch.equal(again(images, mask, MASKED), model(images, mask, MASKED))
