"""The information of labels equals its closed forms and a loop over images and patches."""

import math

import pytest
import torch
from torch.nn import functional

from semmae.parts.image_information import entropy, image_information, temperature_of_entropy


def test_labels_that_are_used_equally_in_each_image_have_the_maximum():
    labels = torch.arange(12).remainder(4).expand(3, 12)
    information = image_information(functional.one_hot(labels, 4).float(), torch.ones(3, 12))
    assert information.item() == pytest.approx(math.log(4))


def test_a_label_for_each_kind_of_image_tells_nothing():
    labels = torch.arange(3)[:, None].expand(3, 12)
    information = image_information(functional.one_hot(labels, 4).float(), torch.ones(3, 12))
    assert information.item() == pytest.approx(0, abs=1e-6)


def test_equal_shares_tell_nothing():
    shares = torch.rand(3, 1, 4, generator=torch.Generator().manual_seed(0)).softmax(-1).expand(3, 12, 4)
    assert image_information(shares, torch.ones(3, 12)).item() == pytest.approx(0, abs=1e-6)


def test_the_information_equals_a_sum_over_images_and_patches():
    generator = torch.Generator().manual_seed(0)
    shares = (3 * torch.randn(3, 5, 4, generator=generator)).softmax(-1)
    weight = torch.rand(3, 5, generator=generator)
    total = 0.0
    for image, weights in zip(shares.tolist(), weight.tolist(), strict=True):
        marginal = [sum(w * row[k] for w, row in zip(weights, image, strict=True)) / sum(weights) for k in range(4)]
        for w, row in zip(weights, image, strict=True):
            total += w * sum(p * math.log(p / q) for p, q in zip(row, marginal, strict=True))
    expected = total / weight.sum().item()
    assert image_information(shares, weight).item() == pytest.approx(expected, rel=1e-5)


def test_patches_of_weight_0_do_not_count():
    shares = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    weight = torch.ones(3, 5)
    weight[:, 3:] = 0
    weight[2] = 0  # an image without foreground
    expected = image_information(shares[:2, :3], torch.ones(2, 3))
    torch.testing.assert_close(image_information(shares, weight), expected)


def test_the_gradient_of_certain_labels_is_finite():
    shares = functional.one_hot(torch.arange(4).expand(2, 4), 4).float().requires_grad_()
    image_information(shares, torch.ones(2, 4)).backward()
    assert torch.isfinite(shares.grad).all()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_temperature_gives_the_entropy(share: float):
    unit = functional.normalize(torch.randn(200, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    cosine = unit @ unit[:5].T
    found = entropy((cosine / temperature_of_entropy(cosine, share)).softmax(-1)).mean()
    assert found.item() == pytest.approx(share * math.log(5), rel=1e-3)
