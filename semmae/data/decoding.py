"""Decode images and masks of many formats safely, and convert them to the forms that shards store.

Shards store images as JPEG, PNG or WebP in gray or RGB, and masks as 8-bit PNG of indices. This module first
checks the header of a file. It refuses files that are not images, and images that are too costly to decode. Every
refusal is a ValueError. Its text up to the first ": " names the problem without details, so that the shard writer can
count refusals by problem.
"""

import io
import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from semmae.data import jpeg

# the formats that Pillow may open; plugins for other formats run external programs or accept almost any bytes
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# the formats that are stored unchanged; an MPO file is a JPEG that is followed by more images
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
MAX_PIXELS = 100_000_000  # largest number of pixels in the header of an image
MAX_SCANS = 1000  # per JPEG; a progressive JPEG has about ten. Decoding a scan of 10 bytes can pass over all pixels
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
SWAPPED = (5, 6, 7, 8)  # orientations that swap width and height


class StoredImage(NamedTuple):
    """An image in the form that a shard stores."""

    extension: str
    data: bytes
    orientation: int  # EXIF orientation of `data`
    size: tuple[int, int]  # (width, height) of the upright image
    full_size: tuple[int, int]  # (width, height) of the upright image before it was reduced; its mask has this size


class ImageHeader(NamedTuple):
    """What the header of an image says."""

    format: str  # as Pillow names it, such as JPEG
    mode: str  # of Pillow, such as RGB or L
    size: tuple[int, int]  # height and width of the upright image


def to_rgb(data: bytes, *, at_least: tuple[int, int] = (0, 0)) -> UInt8[np.ndarray, "h w 3"]:
    """Decode an image to upright 8-bit RGB.

    Transparent pixels are blended with white. Gray values of more than 8 bits are scaled to 8 bits.

    Args:
        at_least: Minimum rows and columns of the result; 0 requires the full size. A JPEG without an orientation is
            decoded at the smallest sufficient scale out of 1, 1/2, 3/8, 1/4 and 1/8.

    Raises:
        ValueError: The bytes are not an image, or the image is damaged or too large.
    """
    pixels = jpeg.decode(data, at_least=at_least, max_pixels=MAX_PIXELS, max_scans=MAX_SCANS)
    return pillow_to_rgb(_open(data)) if pixels is None else pixels


def pillow_to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Convert an image of Pillow to upright 8-bit RGB, with the rules of `to_rgb`.

    Raises:
        ValueError: The image is damaged.
    """
    return np.array(_upright(image).convert("RGB"))


def convert_image(data: bytes, *, short_side: int | None) -> StoredImage:
    """Convert an image to the form that a shard stores. Always decode the image, to detect damage.

    A JPEG, PNG or WebP in gray or RGB keeps its bytes, if it is not reduced. Any other JPEG is encoded as JPEG again,
    and any other image as PNG.

    Args:
        short_side: Reduce a larger image to this short side, in pixels, and store it upright. None keeps the size.

    Raises:
        ValueError: The bytes are not an image, or the image is damaged or too large.
    """
    image = _open(data)
    image_format, full_size = image.format, image.size
    short_side = short_side or min(full_size)
    shrinks = short_side < min(full_size)
    if shrinks and image_format in ("JPEG", "MPO"):
        # draft reduces the size of a JPEG while decoding, which is faster; the resampling filter needs twice the target
        image.draft(None, _scale_size(full_size, 2 * short_side))
    upright = _upright(image)
    orientation = _orientation(image)
    if orientation in SWAPPED and image_format != "TIFF":  # Pillow has already rotated a TIFF
        full_size = full_size[::-1]
    if not shrinks and image_format in EXTENSIONS and image.mode in ("L", "RGB") and not image.has_transparency_data:
        return StoredImage(EXTENSIONS[image_format], data, orientation, full_size, full_size)
    if shrinks:
        upright = upright.resize(_scale_size(full_size, short_side), Image.Resampling.BICUBIC)
    extension = "jpg" if image_format in ("JPEG", "MPO") else "png"
    return StoredImage(extension, _encode(upright, extension), 1, upright.size, full_size)


def inspect_image(data: bytes) -> StoredImage:
    """Describe an image that is indexed in place; the result has no data. Decode the image, to detect damage.

    Raises:
        ValueError: The bytes are not an image, or the image is damaged or too large.
    """
    image = _open(data)
    size = _upright(image).size  # must come before `_orientation`, which decodes a PNG and hides damage
    orientation = 1 if image.format == "TIFF" else _orientation(image)  # Pillow has already rotated a TIFF
    return StoredImage("", b"", orientation, size, size)


def read_header(data: bytes) -> ImageHeader:
    """Describe an image from its header, without decoding the pixels.

    Raises:
        ValueError: The bytes are not an image, or the image is too large.
    """
    image = _open(data)
    width, height = image.size
    is_swapped = _orientation(image) in SWAPPED and image.format != "TIFF"  # Pillow rotates a TIFF and its size
    return ImageHeader(str(image.format), image.mode, (width, height) if is_swapped else (height, width))


def decode_mask(data: bytes, *, num_names: int = IGNORE) -> UInt8[np.ndarray, "h w"]:
    """Decode a mask: an 8-bit PNG of indices, either gray or with a palette. The colors of a palette are ignored.

    Raises:
        ValueError: The bytes are not such a PNG, or an index is `num_names` or more; 255 is always allowed.
    """
    image = _open(data)
    is_8_bit = data[24:25] == b"\x08"  # bit depth in the header; Pillow would scale fewer bits to 0...255
    if image.format != "PNG" or not (image.mode == "P" or (image.mode == "L" and is_8_bit)):
        raise ValueError(f"the mask is not an 8-bit PNG of indices: {image.format}, mode {image.mode}")
    return _check_indices(np.array(_load(image)), num_names)


def convert_mask(data: bytes, stored: StoredImage, *, num_names: int) -> bytes:
    """Convert a mask to a gray PNG of the same size as its stored image.

    A gray PNG of the right size keeps its bytes.

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
    """Return the indices unchanged; raises ValueError if an index has no name."""
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
    except Exception as error:  # plugins of Pillow raise many types of errors for damaged files
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
    """Compute the (width, height) that the decoder allocates. For a tiled TIFF, this is a multiple of the tile size."""
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
    except Exception:  # ignore EXIF data that cannot be parsed
        return 1
    return int(value) if value in TRANSPOSE else 1  # int, because some cameras write a fraction


def _upright(image: Image.Image) -> Image.Image:
    """Decode an image to mode L or RGB, and apply its orientation.

    For a TIFF, Pillow applies and removes the orientation while it decodes.
    """
    _load(image)
    plain = _to_plain_mode(image)
    transpose = TRANSPOSE.get(_orientation(image))
    return plain if transpose is None else plain.transpose(transpose)


def _to_plain_mode(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to L or RGB."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_scale_to_8_bits(np.asarray(image), full_range=image.mode.startswith("I;16")))
    try:
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
    except ValueError as error:
        raise ValueError(f"the image's colors cannot be converted: mode {image.mode}") from error


def _scale_to_8_bits(values: Num[np.ndarray, "h w"], *, full_range: bool) -> UInt8[np.ndarray, "h w"]:
    """Scale gray values of more than 8 bits to 0...255.

    The input range is 0...65535 with `full_range`, [0, 1] if it contains all values, or else minimum to maximum.
    """
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the image holds values that are not finite")
    low, high = values.min(), values.max()
    if full_range:
        low, high = 0.0, 65535.0
    elif low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    return np.round((values - low) / max(high - low, np.finfo(np.float64).tiny) * 255).astype(np.uint8)


def _scale_size(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Scale a (width, height) so that the short side is `short_side`."""
    scale = short_side / min(size)
    return max(short_side, round(size[0] * scale)), max(short_side, round(size[1] * scale))


def _encode(image: Image.Image, extension: str) -> bytes:
    """Encode the pixels as JPEG or PNG, without metadata such as EXIF and color profiles."""
    buffer = io.BytesIO()
    without_metadata = Image.fromarray(np.asarray(image))
    without_metadata.save(buffer, "JPEG" if extension == "jpg" else "PNG", quality=JPEG_QUALITY)
    return buffer.getvalue()
