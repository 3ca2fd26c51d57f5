"""Views against resize and center crop, seeded random crops."""

import numpy as np
import pytest
from PIL import Image

from semmae.evaluation.views import CenterView, RandomView
from tests.evaluation.test_features import Pictures


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (120, 48)])
def test_the_center_view_is_a_resize_and_a_center_crop(shape):
    reader = Pictures([shape])
    size = shape[1] * 256 // min(shape), shape[0] * 256 // min(shape)
    left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
    resized = Image.fromarray(reader.image(0)).resize(size, Image.Resampling.BICUBIC)
    expected = np.array(resized.crop((left, top, left + 224, top + 224)))
    found = CenterView(224)(reader, 0)["image"].transpose(1, 2, 0)
    assert (
        np.abs(found.astype(int) - expected)[4:-4, 4:-4].max() <= 1
    )  # at its edges a crop has no neighbors to interpolate with


def test_random_views_cover_from_8_to_100_percent_of_an_image():
    reader = Pictures([(60, 90)])
    ramp = np.broadcast_to(np.linspace(0, 255, 90).astype(np.uint8)[None, :, None], (60, 90, 3))
    reader.image = lambda index, **_: np.ascontiguousarray(ramp)
    views = [RandomView(16, 0, view)(reader, 0)["image"][0].astype(int) for view in range(100)]
    spread = [abs(view[:, -1].mean() - view[:, 0].mean()) / 255 for view in views]
    assert min(spread) < 0.35
    assert max(spread) > 0.75
    assert 0.3 < np.mean([view[0, 0] > view[0, -1] for view in views]) < 0.7  # flipped
