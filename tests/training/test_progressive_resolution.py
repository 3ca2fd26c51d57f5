"""Check the image size of each epoch, and MAE on smaller images."""

import math

import pytest
import torch

from semmae.models import mae, vit
from semmae.training.progressive_resolution import ResolutionConfig, epoch_sizes


def test_smaller_sizes_get_equal_numbers_of_epochs():
    rising = ResolutionConfig(start=160, step=32, until=0.75)
    assert epoch_sizes(rising, img_size=224, epochs=8, patch_size=16) == (160,) * 3 + (192,) * 3 + (224,) * 2
    assert epoch_sizes(None, img_size=224, epochs=3, patch_size=16) == (224,) * 3


@pytest.mark.parametrize("epochs", [1, 2, 7, 148, 296])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("until", [0.01, 0.3, 1 / 3, 0.75, 1.0])
def test_sizes_rise_to_the_full_size(epochs: int, steps: int, until: float):
    sizes = epoch_sizes(
        ResolutionConfig(start=32, step=16, until=until), img_size=32 + 16 * steps, epochs=epochs, patch_size=8
    )
    assert len(sizes) == epochs
    assert list(sizes) == sorted(sizes)
    assert sizes[-1] == 32 + 16 * steps
    smaller = sum(size < sizes[-1] for size in sizes)
    assert smaller == min(math.ceil(until * epochs - 1e-9), epochs - 1)


@pytest.mark.parametrize(
    ("start", "step", "reason"),
    [
        (96, 16, "smaller start"),
        (64, 20, "a step that divides"),
        (68, 4, "multiples of patch_size, 8"),
        (16, 8, "11 sizes; expected at most 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(start: int, step: int, reason: str):
    with pytest.raises(ValueError, match=reason):
        epoch_sizes(ResolutionConfig(start=start, step=step, until=0.5), img_size=96, epochs=4, patch_size=8)


def test_masked_patches_of_smaller_images_have_no_influence():
    torch.manual_seed(0)
    encoder = vit.build({"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2})
    model = mae.MAE(encoder, embed_dim=16, depth=1, num_heads=2).eval()
    images = torch.randn(3, 3, 32, 32)
    mask = torch.rand(3, 16).argsort(1) < 12
    with torch.no_grad():
        pred = model(images, mask, 12)
        assert pred.shape == (3, 16, 192)
        hidden = mae.unpatchify(torch.where(mask[:, :, None], 9.0, mae.patchify(images, 8)), 8)
        assert torch.equal(model(hidden, mask, 12), pred)
        torch.testing.assert_close(model(images, mask, 12, mask.clone(), 12)[mask], pred[mask])


def test_positions_of_a_smaller_grid_are_means_of_the_full_grid():
    """The center of a cell on the 2 x 2 grid is the corner of four cells on the 4 x 4 grid."""
    encoder = vit.build({"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2})
    model = mae.MAE(encoder, embed_dim=16, depth=1, num_heads=2)
    assert model._positions(16) is model.positions
    assert torch.equal(model._positions(4)[:, 0], model.positions[:, 0])  # the position of the class token
    model.positions[:, 1:] = torch.arange(4.0).repeat_interleave(4)[None, :, None]  # the number of the row
    rows = model._positions(4)[0, 1:, 0]
    assert rows[0] == rows[1] < rows[2] == rows[3]
    assert float(rows.mean()) == pytest.approx(1.5, abs=1e-5)
