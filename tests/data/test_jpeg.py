"""The fast decoder agrees with Pillow to the bit or returns None, and reduced images resemble the full image."""

import io

import numpy as np
import pytest
from PIL import Image

from semmae.data import decoding, jpeg
from semmae.sharding.creatures import draw

LIMITS = {"max_pixels": 10**6, "max_scans": 100}


def drawn(size: int = 160) -> Image.Image:
    return Image.fromarray(draw.draw(0, "train-000003", size).image[: size * 3 // 4])


def encoded(image: Image.Image, **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, **how)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("how", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}])
def test_the_full_size_agrees_with_pillow(mode: str, how: dict):
    data = encoded(drawn().convert(mode), **how)
    fast = jpeg.decode(data, at_least=(0, 0), **LIMITS)
    np.testing.assert_array_equal(fast, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize(
    ("at_least", "shape"),
    [((0, 0), (120, 160)), ((61, 10), (120, 160)), ((60, 80), (60, 80)), ((30, 41), (45, 60)), ((30, 40), (30, 40)),
     ((1, 1), (15, 20)), ((500, 500), (120, 160))],
)  # fmt: skip
def test_the_scale_is_the_smallest_that_is_enough(at_least, shape):
    reduced = decoding.to_rgb(encoded(drawn()), at_least=at_least)
    assert reduced.shape == (*shape, 3)
    mean = np.asarray(drawn().resize(shape[::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(reduced - mean).mean() < 4  # of 255: JPEG's own error and another filter


def turned(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = 6
    return encoded(image, exif=exif)


@pytest.mark.parametrize(
    "data",
    [turned(drawn()), encoded(drawn().convert("CMYK")), encoded(drawn())[:-400], encoded(drawn(1600)), b"\xff\xd8", b"",
     encoded(drawn(), progressive=True).replace(jpeg.SCAN_MARKER, 100 * jpeg.SCAN_MARKER),
     decoding.encode_png(np.asarray(drawn())),
     encoded(drawn(), xmp=b'<x tiff:Orientation="6"/>')],
    ids=["turned", "cmyk", "truncated", "too large", "no more than a marker", "nothing", "scans", "png", "xmp"],
)  # fmt: skip
def test_unusual_jpegs_are_left_to_pillow(data: bytes):
    assert jpeg.decode(data, at_least=(1, 1), **LIMITS) is None


def test_pillow_decodes_or_refuses_unusual_jpegs():
    assert decoding.to_rgb(turned(drawn()), at_least=(1, 1)).shape == (160, 120, 3)
    assert decoding.to_rgb(encoded(drawn().convert("CMYK")), at_least=(1, 1)).shape == (120, 160, 3)
    with pytest.raises(ValueError, match=r"the image cannot be decoded: .*truncated"):
        decoding.to_rgb(encoded(drawn())[:-400], at_least=(1, 1))
