"""Decode images and masks of many formats safely, and convert them to the forms that shards store.

Shards store images as JPEG, PNG or WebP in gray or RGB, and masks as 8-bit PNG of indices. Files that are no images,
and images that are too costly to decode, are refused by their headers. Every refusal is a ValueError. Its text up to
the first ": " is the same for the same problem, so that reasons can be counted.
"""

import io
import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from semmae.data import jpeg

FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
)  # the only formats that Pillow may try: others run programs or guess
EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
}  # formats that are stored unchanged; MPO is a JPEG with more images behind it
MAX_PIXELS = 100_000_000  # of one image, by its header
MAX_SCANS = 1000  # of one JPEG; progressive ones have about ten. A scan of 10 bytes can cost a pass over all pixels
JPEG_QUALITY = 95
IGNORE = 255  # mask value of pixels without a label
ORIENTATION = 0x0112  # the EXIF tag
TIFF_SIDES = ((0x0100, 0x0142), (0x0101, 0x0143))  # tags of (image width, tile width) and (image height, tile height)
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class StoredImage(NamedTuple):
    """An image in the form that a shard stores."""

    extension: str
    data: bytes
    orientation: int  # EXIF orientation of `data`
    size: tuple[int, int]  # (width, height) of the upright image
    full_size: tuple[int, int]  # (width, height) of the upright image before it was reduced; its mask has this size


def to_rgb(data: bytes, *, at_least: tuple[int, int] = (0, 0)) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image, upright, in RGB, with transparency over white and deep values scaled to 8 bits.

    Args:
        at_least: Rows and columns to keep; 0 keeps all. A JPEG without an orientation is decoded at the smallest of the
            scales 1, 1/2, 3/8, 1/4 and 1/8 that keeps them.

    Raises:
        ValueError: The bytes are no image, or the image is damaged or too large.
    """
    fast = jpeg.decode(data, at_least=at_least, max_pixels=MAX_PIXELS, max_scans=MAX_SCANS)
    return np.array(_upright(_open(data)).convert("RGB")) if fast is None else fast


def convert_image(data: bytes, *, short_side: int | None) -> StoredImage:
    """Convert an image to the form that a shard stores, and decode it to find damage.

    JPEG, PNG and WebP in gray or RGB keep their bytes. Other images become PNG, or JPEG if they were JPEG.

    Args:
        short_side: Reduce a larger image to this short side, in pixels, and store it upright; None keeps the size.

    Raises:
        ValueError: The bytes are no image, or the image is damaged or too large.
    """
    image = _open(data)
    form, full_size = image.format, image.size
    short_side = short_side or min(full_size)
    shrinks = short_side < min(full_size)
    if shrinks and form in ("JPEG", "MPO"):
        # a JPEG decodes faster at a reduced size; twice the target is enough for the filter
        image.draft(None, _reduced(full_size, 2 * short_side))
    upright = _upright(image)
    orientation = _orientation(image)
    if orientation >= 5 and form != "TIFF":  # Pillow has already rotated a TIFF
        full_size = full_size[::-1]
    if not shrinks and form in EXTENSIONS and image.mode in ("L", "RGB") and not image.has_transparency_data:
        return StoredImage(EXTENSIONS[form], data, orientation, full_size, full_size)
    if shrinks:
        upright = upright.resize(_reduced(full_size, short_side), Image.Resampling.BICUBIC)
    extension = "jpg" if form in ("JPEG", "MPO") else "png"
    return StoredImage(extension, _encode(upright, extension), 1, upright.size, full_size)


def inspect_image(data: bytes) -> StoredImage:
    """Describe an image that is indexed in place, without its data, and decode it to find damage.

    Raises:
        ValueError: The bytes are no image, or the image is damaged or too large.
    """
    image = _open(data)
    size = _upright(image).size  # before the orientation, whose lookup decodes a PNG and hides damage
    orientation = 1 if image.format == "TIFF" else _orientation(image)  # Pillow has already rotated a TIFF
    return StoredImage("", b"", orientation, size, size)


def decode_mask(data: bytes, *, num_names: int = IGNORE) -> UInt8[np.ndarray, "h w"]:
    """Decode a mask: an 8-bit PNG of indices, gray or with a palette, whose colors are ignored.

    Raises:
        ValueError: The bytes are no such PNG, or an index other than 255 is not below `num_names`.
    """
    image = _open(data)
    is_8_bit = data[24:25] == b"\x08"  # bit depth in the header; Pillow scales gray of fewer bits to 0...255
    if image.format != "PNG" or not (image.mode == "P" or (image.mode == "L" and is_8_bit)):
        raise ValueError(f"the mask is not an 8-bit PNG of indices: {image.format}, mode {image.mode}")
    return _check_indices(np.array(_load(image)), num_names)


def convert_mask(data: bytes, stored: StoredImage, *, num_names: int) -> bytes:
    """Convert a mask to a gray PNG of the size of its image; a mask that is one already keeps its bytes.

    Raises:
        ValueError: The mask cannot be decoded, or its size differs from that of the upright image.
    """
    indices = decode_mask(data)
    height, width = indices.shape
    if (width, height) != stored.full_size:
        expected = "x".join(map(str, stored.full_size))
        raise ValueError(f"the mask and its upright image differ in size: {width}x{height} for {expected}")
    _check_indices(indices, num_names)
    if stored.size == stored.full_size and _open(data).mode == "L":
        return data
    return _encode(Image.fromarray(indices).resize(stored.size, Image.Resampling.NEAREST), "png")


def _check_indices(indices: UInt8[np.ndarray, "h w"], num_names: int) -> UInt8[np.ndarray, "h w"]:
    """Return the indices; raises ValueError if one of them has no name."""
    unknown = indices[(indices >= num_names) & (indices != IGNORE)]
    if unknown.size:
        raise ValueError(f"the mask holds an index without a name: {unknown.max()}, names are for 0 to {num_names - 1}")
    return indices


def encode_png(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """Encode gray values, indices or RGB as PNG."""
    return _encode(Image.fromarray(pixels), "png")


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large images; MAX_PIXELS is the limit here
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"the image has too many pixels: more than {MAX_PIXELS}") from None
    except Exception as error:  # damaged files make the plugins of Pillow raise errors of many types
        raise ValueError(
            f"not a readable image: known are {', '.join(FORMATS)}" if data else "the file is empty"
        ) from error
    width, height = _decoded_size(image)
    if width * height > MAX_PIXELS:
        raise ValueError(f"the image has too many pixels: {width}x{height}, allowed are {MAX_PIXELS}")
    if image.format in ("JPEG", "MPO") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ValueError(f"the image has too many scans: {scans}, allowed are {MAX_SCANS}")
    return image


def _decoded_size(image: Image.Image) -> tuple[int, int]:
    """Compute the (width, height) that a decoder allocates: complete tiles of a TIFF that has tiles."""
    if not isinstance(image, TiffImageFile):
        return image.size
    tags = image.tag_v2
    sides = ((tags[side], tags[tile] if isinstance(tags.get(tile), int) else 1) for side, tile in TIFF_SIDES)
    width, height = (-(-side // max(tile, 1)) * tile for side, tile in sides)
    return width, height


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except Exception as error:
        raise ValueError(f"the image cannot be decoded: {error}") from error
    return image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # EXIF that cannot be parsed is ignored
        return 1
    return int(value) if value in TRANSPOSE else 1  # some cameras write it as a fraction


def _upright(image: Image.Image) -> Image.Image:
    """Decode an image to mode L or RGB and apply its orientation. Of a TIFF, Pillow has applied and removed it."""
    _load(image)
    plain = _to_plain_mode(image)
    transpose = TRANSPOSE.get(_orientation(image))
    return plain if transpose is None else plain.transpose(transpose)


def _to_plain_mode(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to L or RGB."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image), full_range=image.mode.startswith("I;16")))
    try:
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
    except ValueError as error:
        raise ValueError(f"the image's colors cannot be converted: mode {image.mode}") from error


def _eight_bits(values: Num[np.ndarray, "h w"], *, full_range: bool) -> UInt8[np.ndarray, "h w"]:
    """Scale deep gray values to 8 bits: from the range of 16 bits, from [0, 1], or from minimum to maximum."""
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the image holds values that are not finite")
    low, high = values.min(), values.max()
    if full_range:
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.round((values - low) / max(high - low, np.finfo(np.float64).tiny) * 255).astype(np.uint8)


def _reduced(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Scale a size so that its short side is `short_side`."""
    scale = short_side / min(size)
    return max(short_side, round(size[0] * scale)), max(short_side, round(size[1] * scale))


def _encode(image: Image.Image, extension: str) -> bytes:
    """Encode the pixels, without metadata such as EXIF and color profiles."""
    buffer = io.BytesIO()
    pixels = Image.fromarray(np.asarray(image))
    pixels.save(buffer, "JPEG" if extension == "jpg" else "PNG", quality=JPEG_QUALITY)
    return buffer.getvalue()
