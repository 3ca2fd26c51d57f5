"""Every mode decodes to the visible pixels, bytes are kept where possible, damage and bombs are refused."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from semmae.data import decoding
from tests.troublesome import encoded, png

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GRAY = RNG.integers(0, 256, (6, 9), dtype=np.uint8)
SMOOTH = np.stack(np.meshgrid(np.arange(64), np.arange(48)), -1)[..., [0, 1, 0]].astype(np.uint8) * 3


def gray3(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def over_white(alpha: np.ndarray, colors: np.ndarray) -> np.ndarray:
    alpha = alpha[..., None] / 255
    return alpha * colors + (1 - alpha) * 255


def palette(transparent: int | None) -> tuple[bytes, np.ndarray]:
    """An image with a palette of four colors, and its pixels."""
    colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    indices = (GRAY % 4).astype(np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colors.ravel().tolist())
    if transparent is None:
        return encoded(image), colors[indices]
    colors[transparent] = 255
    return encoded(image, transparency=transparent), colors[indices]


DEEP = RNG.integers(0, 65536, (6, 9)).astype(np.uint16)
FLOAT = RNG.random((6, 9)).astype(np.float32)
SEEN = {
    "grayscale": (encoded(GRAY), gray3(GRAY)),
    "1-bit": (encoded(Image.fromarray(GRAY > 127)), gray3((GRAY > 127) * 255)),
    "rgba": (encoded(np.dstack([RGB, GRAY])), over_white(GRAY, RGB)),
    "gray + alpha": (encoded(Image.merge("LA", [Image.fromarray(GRAY)] * 2)), over_white(GRAY, gray3(GRAY))),
    "palette": palette(None),
    "palette + transparency": palette(2),
    "cmyk tiff": (encoded(Image.fromarray(np.dstack([255 - RGB, 0 * GRAY]), "CMYK"), "TIFF"), RGB),
    "16-bit png": (encoded(DEEP), gray3(np.round(DEEP / 257))),
    "16-bit tiff": (encoded(DEEP, "TIFF"), gray3(np.round(DEEP / 257))),
    "float tiff in [0, 1]": (encoded(FLOAT, "TIFF"), gray3(np.round(FLOAT * 255.0))),
    "float tiff": (
        encoded(FLOAT * 1000 - 7, "TIFF"),
        gray3(np.round((FLOAT - FLOAT.min()) / (FLOAT.max() - FLOAT.min()) * 255.0)),
    ),
    "constant float tiff": (encoded(0 * FLOAT + 70, "TIFF"), gray3(0 * GRAY)),
    "bmp": (encoded(RGB, "BMP"), RGB),
    "gif": (encoded(Image.fromarray(GRAY), "GIF"), gray3(GRAY)),
    "webp": (encoded(RGB, "WEBP", lossless=True), RGB),
}


@pytest.mark.parametrize("name", SEEN)
def test_every_mode_and_its_stored_form_decode_to_the_visible_pixels(name):
    data, seen = SEEN[name]
    stored = decoding.convert_image(data, short_side=None)
    for rgb in (decoding.to_rgb(data), decoding.to_rgb(stored.data)):
        assert rgb.dtype == np.uint8
        assert rgb.shape == (6, 9, 3)
        assert np.abs(rgb.astype(float) - seen).max() <= 1
    assert stored[2:] == (1, (9, 6), (9, 6))


def test_a_cmyk_jpeg_becomes_an_rgb_jpeg():
    data = encoded(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)
    stored = decoding.convert_image(data, short_side=None)
    assert stored.extension == "jpg"
    assert Image.open(io.BytesIO(stored.data)).mode == "RGB"
    assert np.abs(decoding.to_rgb(stored.data).astype(int) - SMOOTH).mean() < 3


@pytest.mark.parametrize(
    ("data", "extension"),
    [
        (encoded(RGB, "JPEG"), "jpg"),
        (encoded(GRAY, "JPEG"), "jpg"),
        (encoded(RGB, "MPO"), "jpg"),
        (encoded(RGB), "png"),
        (encoded(RGB, "WEBP"), "webp"),
    ],
)
@pytest.mark.parametrize("short_side", [None, 6, 100])
def test_common_formats_keep_their_bytes(data, extension, short_side):
    stored = decoding.convert_image(data, short_side=short_side)
    assert (stored.extension, stored.data) == (extension, data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("short_side", [None, 24])
def test_orientation_is_applied_once(form, orientation, short_side):
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    data = encoded(SMOOTH, form, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert np.array_equal(decoding.to_rgb(data), np.asarray(expected))
    assert decoding.read_header(data)[::2] == (form, expected.size[::-1])

    stored = decoding.convert_image(data, short_side=short_side)
    assert stored.full_size == expected.size
    assert stored.orientation == (orientation if short_side is None and form != "TIFF" else 1)
    shown = decoding.to_rgb(stored.data)
    assert stored.size == (shown.shape[1], shown.shape[0])
    assert min(stored.size) == (short_side or 48)
    reference = np.asarray(expected.resize(stored.size, Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(shown - reference).mean() < 4  # a second turn would cost about 40


@pytest.mark.parametrize(("size", "reduced"), [((64, 48), (32, 24)), ((100, 30), (80, 24)), ((24, 500), (24, 500))])
def test_resize_is_of_the_short_side_and_never_enlarges(size, reduced):
    data = encoded(np.zeros((size[1], size[0], 3), np.uint8))
    assert decoding.convert_image(data, short_side=24).size == reduced


@pytest.mark.parametrize("size", [(10_001, 10_000), (60_000, 60_000)])
@pytest.mark.parametrize("read", [decoding.to_rgb, decoding.inspect_image, decoding.read_header, decoding.decode_mask])
def test_image_bombs_are_refused_by_their_header(size, read):
    with pytest.raises(ValueError, match="too many pixels"):
        read(png(*size))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"not an image at all", "not a readable image: known are JPEG"),
        (encoded(SMOOTH, "JPEG")[:-200], "cannot be decoded: image file is truncated"),
        (encoded(RGB)[:150], "cannot be decoded"),
        (encoded(FLOAT * np.nan, "TIFF"), "not finite"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a readable image: known are JPEG"),
    ],
)
@pytest.mark.parametrize("read", [decoding.to_rgb, lambda data: decoding.convert_image(data, short_side=None)])
def test_damage_is_refused_with_a_reason(data, reason, read):
    with pytest.raises(ValueError, match=reason):
        read(data)


INDICES = RNG.choice(np.array([0, 1, 2, 255], np.uint8), (48, 64))


def test_a_good_mask_keeps_its_bytes_and_a_palette_its_indices():
    stored = decoding.convert_image(encoded(SMOOTH), short_side=None)
    data = encoded(INDICES)
    assert decoding.convert_mask(data, stored, num_names=3) == data
    image = Image.fromarray(INDICES)
    image.putpalette(RNG.integers(0, 256, 768, dtype=np.uint8).tolist())
    mask = decoding.convert_mask(encoded(image), stored, num_names=3)
    assert Image.open(io.BytesIO(mask)).mode == "L"
    assert np.array_equal(decoding.decode_mask(mask), INDICES)


def test_a_mask_is_reduced_with_its_image_by_nearest():
    blocks = np.kron(INDICES[::4, ::4], np.ones((4, 4), np.uint8))
    stored = decoding.convert_image(encoded(SMOOTH), short_side=12)
    mask = decoding.convert_mask(encoded(blocks), stored, num_names=3)
    assert np.array_equal(decoding.decode_mask(mask), INDICES[::4, ::4])


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (encoded(INDICES.T.copy()), "the mask and its upright image differ in size: 48x64 for 64x48"),
        (encoded(np.full((48, 64), 3, np.uint8)), "index without a name: 3"),
        (encoded(SMOOTH), "not an 8-bit PNG of indices: PNG, mode RGB"),
        (encoded(INDICES, "BMP"), "not an 8-bit PNG of indices: BMP"),
        (encoded(Image.fromarray(INDICES > 0)), "not an 8-bit PNG of indices: PNG, mode 1"),
        (encoded(INDICES.astype(np.uint16)), "not an 8-bit PNG of indices"),
        (encoded(INDICES)[:100], "cannot be decoded"),
    ],
)
def test_a_bad_mask_is_refused_with_a_reason(mask, reason):
    stored = decoding.convert_image(encoded(SMOOTH), short_side=None)
    with pytest.raises(ValueError, match=reason):
        decoding.convert_mask(mask, stored, num_names=3)
