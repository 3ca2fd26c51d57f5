"""Image bytes: judged by their header, decoded whatever their mode, stored in a form that every reader can use.

- `to_rgb(data)`: the pixels as a person sees them: upright, transparency over white, deep images scaled to 8 bits;
  those of a JPEG no finer than they are needed.
- `as_it_is(data)`: what is known of an image that stays where it lies, whatever its mode.
- `canonical(data)`: what goes into a shard: the bytes as they are wherever possible, else a conversion.
- `mask_indices(data)`, `canonical_mask(data)`: the same for masks, 8-bit PNG of indices, IGNORE = no statement.

What is no image, or too costly to decode, is refused by its header. Every refusal is a ValueError, whose text up to
the first ": " is the same for the same mistake: it can be counted.
"""

import io
import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Num, UInt8
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from semmae.data import jpeg

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow tries these only: others run programs, or guess
EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # stored as they are; MPO is a JPEG and more
MAX_PIXELS = 100_000_000  # of one image, known before anything is decoded
MAX_SCANS = 1000  # of one JPEG; a progressive one has about ten. Each costs a pass over all pixels, and may be 10 bytes
JPEG_QUALITY = 95
IGNORE = 255  # the mask value that says nothing about its pixel
ORIENTATION = 0x0112  # the EXIF tag
TIFF_SIDES = ((0x0100, 0x0142), (0x0101, 0x0143))  # tags: width of the image and of its tiles, the same for height
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
    extension: str
    data: bytes
    orientation: int  # still to be applied by who reads `data`
    size: tuple[int, int]  # (width, height) once it is applied
    full_size: tuple[int, int]  # (width, height) before the resize: a mask must have this size


def to_rgb(data: bytes, *, at_least: tuple[int, int] = (0, 0)) -> UInt8[np.ndarray, "h w 3"]:
    """The image upright, in RGB. A JPEG that must not be turned comes at the smallest of the scales 1, 1/2, 3/8,
    1/4, 1/8 that leaves `at_least` rows and columns; 0 stands for all.
    """
    fast = jpeg.decode(data, at_least=at_least, max_pixels=MAX_PIXELS, max_scans=MAX_SCANS)
    return np.array(_upright(_open(data)).convert("RGB")) if fast is None else fast


def convert_image(data: bytes, *, short_side: int | None) -> StoredImage:
    """The image as it goes into a shard, decoded once whatever happens, so that damage shows here.

    JPEG, PNG and WebP in gray or RGB keep their bytes. Others are converted, losslessly (PNG) unless they were JPEG.
    With `short_side`, an image whose short side is longer is reduced to it and comes out upright; none is enlarged.
    """
    image = _open(data)
    form, full_size = image.format, image.size
    short_side = short_side or min(full_size)
    shrinks = short_side < min(full_size)
    if shrinks and form in ("JPEG", "MPO"):
        image.draft(
            None, _reduced(full_size, 2 * short_side)
        )  # a smaller DCT decodes faster, twice is enough to filter
    upright = _upright(image)
    orientation = _orientation(image)
    if orientation >= 5 and form != "TIFF":  # Pillow turns a TIFF by itself, when it opens it
        full_size = full_size[::-1]
    if not shrinks and form in EXTENSIONS and image.mode in ("L", "RGB") and not image.has_transparency_data:
        return StoredImage(EXTENSIONS[form], data, orientation, full_size, full_size)
    if shrinks:
        upright = upright.resize(_reduced(full_size, short_side), Image.Resampling.BICUBIC)
    extension = "jpg" if form in ("JPEG", "MPO") else "png"
    return StoredImage(extension, _encode(upright, extension), 1, upright.size, full_size)


def inspect_image(data: bytes) -> StoredImage:
    """What is known of an image that is not copied: decoded once, so that damage shows here; the data are left out.

    Its mode does not matter: `to_rgb` converts whatever `convert_image` would have converted.
    """
    image = _open(data)
    size = _upright(image).size  # first: who asks a PNG for its orientation decodes it, and its damage is forgotten
    orientation = 1 if image.format == "TIFF" else _orientation(image)  # Pillow turns a TIFF by itself
    return StoredImage("", b"", orientation, size, size)


def decode_mask(data: bytes, *, num_names: int = IGNORE) -> UInt8[np.ndarray, "h w"]:
    """The indices of a mask: an 8-bit PNG with one channel (gray, or a palette whose colors mean nothing).

    ValueError: it is none, or an index has no name.
    """
    image = _open(data)
    is_8_bit = data[24:25] == b"\x08"  # in the PNG header; Pillow stretches shallower gray to 0...255
    if image.format != "PNG" or not (image.mode == "P" or (image.mode == "L" and is_8_bit)):
        raise ValueError(f"the mask is not an 8-bit PNG of indices: {image.format}, mode {image.mode}")
    return _named(np.array(_loaded(image)), num_names)


def convert_mask(data: bytes, stored: StoredImage, *, num_names: int) -> bytes:
    """The mask of the image `stored` as it goes into a shard: gray, of the image's size; its bytes if they are that."""
    indices = decode_mask(data)
    height, width = indices.shape
    if (width, height) != stored.full_size:
        theirs = "x".join(map(str, stored.full_size))
        raise ValueError(f"the mask's size is not that of its upright image: {width}x{height} for {theirs}")
    _named(indices, num_names)
    if stored.size == stored.full_size and _open(data).mode == "L":
        return data
    return _encode(Image.fromarray(indices).resize(stored.size, Image.Resampling.NEAREST), "png")


def _named(indices: UInt8[np.ndarray, "h w"], num_names: int) -> UInt8[np.ndarray, "h w"]:
    """The `indices`, unless one of them has no name."""
    unknown = indices[(indices >= num_names) & (indices != IGNORE)]
    if unknown.size:
        raise ValueError(f"the mask holds an index without a name: {unknown.max()}, names are for 0 to {num_names - 1}")
    return indices


def encode_png(pixels: UInt8[np.ndarray, "h w *c"]) -> bytes:
    """An array of gray values, indices or RGB as PNG."""
    return _encode(Image.fromarray(pixels), "png")


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warning about size; the limit here is an error
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"the image has too many pixels: more than {MAX_PIXELS}") from None
    except Exception as error:  # Pillow's plugins raise whatever their parsing meets
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
    """What a decoder fills, (width, height): whole tiles of a TIFF that has them, which may be far larger than that."""
    if not isinstance(image, TiffImageFile):
        return image.size
    tags = image.tag_v2
    sides = ((tags[side], tags[tile] if isinstance(tags.get(tile), int) else 1) for side, tile in TIFF_SIDES)
    width, height = (-(-side // max(tile, 1)) * tile for side, tile in sides)
    return width, height


def _loaded(image: Image.Image) -> Image.Image:
    try:
        image.load()
    except Exception as error:
        raise ValueError(f"the image cannot be decoded: {error}") from error
    return image


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # EXIF that cannot be parsed says nothing
        return 1
    return int(value) if value in TRANSPOSE else 1  # some write it as a fraction


def _upright(image: Image.Image) -> Image.Image:
    """Decoded, in mode L or RGB, orientation applied. Pillow has turned a TIFF already and dropped the tag."""
    _loaded(image)
    plain = _plain(image)
    turn = TRANSPOSE.get(_orientation(image))
    return plain if turn is None else plain.transpose(turn)


def _plain(image: Image.Image) -> Image.Image:
    """Any mode as L or RGB."""
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
    """Deep gray values in 8 bits: 16-bit over their full range, values in [0, 1] as such, others from min to max."""
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
    """`size` with its short side at `short_side`, the other rounded."""
    scale = short_side / min(size)
    return max(short_side, round(size[0] * scale)), max(short_side, round(size[1] * scale))


def _encode(image: Image.Image, extension: str) -> bytes:
    """Pixels only: what else the file said (EXIF, color profile) stays behind."""
    buffer = io.BytesIO()
    pixels = Image.fromarray(np.asarray(image))
    pixels.save(buffer, "JPEG" if extension == "jpg" else "PNG", quality=JPEG_QUALITY)
    return buffer.getvalue()
