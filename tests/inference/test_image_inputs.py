"""Images of every form become upright RGB, and wrong forms are refused with the name of the image."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from semmae.inference.image_inputs import ImageList, as_images

GRAY = np.arange(12, dtype=np.uint8).reshape(3, 4)


def test_gray_images_become_rgb(tmp_path: Path):
    Image.fromarray(GRAY).save(tmp_path / "gray.png")
    images = as_images([GRAY, torch.from_numpy(GRAY)[None], Image.fromarray(GRAY), tmp_path / "gray.png"])
    for index in range(4):
        assert np.array_equal(images.image(index), np.stack([GRAY] * 3, axis=-1))
        assert images.size(index) == (3, 4)


def test_transparent_pillow_images_are_blended_with_white():
    pixels = np.zeros((1, 2, 4), np.uint8)
    pixels[0, 0, 3] = 255
    assert as_images(Image.fromarray(pixels)).image(0).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_and_pillow_images_are_turned_upright(orientation: int, tmp_path: Path, pictures):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pictures[0]).save(tmp_path / "x.png", exif=exif)
    images = as_images([tmp_path / "x.png", Image.open(tmp_path / "x.png")])
    assert np.array_equal(images.image(0), images.image(1))
    assert images.size(0) == images.size(1) == images.image(0).shape[:2]
    assert images.size(0) == ((20, 31) if orientation < 5 else (31, 20))


def test_an_image_is_not_changed_by_its_user(pictures):
    images = as_images(pictures[0])
    images.image(0)[:] = 0
    assert pictures[0].any()
    frozen = np.asarray(Image.fromarray(pictures[0]))  # not writable
    assert as_images(frozen).image(0).flags.writeable


WRONG = {
    "float array": (np.zeros((4, 4, 3)), "image 0 is an array of float64 with shape (4, 4, 3); expected uint8"),
    "channels first": (np.zeros((3, 4, 4), np.uint8), "shape (3, 4, 4); expected uint8 with shape (h, w, 3)"),
    "empty": (np.zeros((0, 4, 3), np.uint8), "shape (0, 4, 3)"),
    "channels last": (torch.zeros(4, 4, 3), "a tensor of torch.float32 with shape (4, 4, 3); expected"),
    "integers": (torch.zeros(3, 4, 4, dtype=torch.int64), "a tensor of torch.int64"),
    "normalized": (torch.full((3, 4, 4), -2.0), "values from -2 to -2; expected [0, 1]"),
    "not finite": (torch.full((3, 4, 4), torch.nan), "values from nan to nan"),
    "missing": ("nothing.jpg", "nothing.jpg does not exist; expected an image file"),
    "folder": (Path("/"), "/ is a folder; expected an image file"),
}


@pytest.mark.parametrize("image", WRONG)
def test_wrong_images_are_refused(image: str):
    value, message = WRONG[image]
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageList([value])


def test_wrong_types_and_unreadable_files_are_refused(tmp_path: Path):
    for value, name in ((3, "images"), ([None], "image 0")):
        with pytest.raises(TypeError, match=rf"{name} has the type \w+; expected a path, a Pillow image"):
            as_images(value)
    with pytest.raises(ValueError, match="no images"):
        as_images([])
    (tmp_path / "x.jpg").write_text("text")
    with pytest.raises(ValueError, match=r"x\.jpg cannot be read: not a readable image"):
        as_images(tmp_path / "x.jpg").image(0)
