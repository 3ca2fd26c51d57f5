"""JPEG decoded fast, no finer than it is needed; whatever is unusual is left to Pillow.

libjpeg-turbo (by simplejpeg) decodes at 1/2, 3/8, 1/4 or 1/8 of the size from fewer frequencies, in a fraction of the
time.
"""

from collections.abc import Iterator

import simplejpeg
from jaxtyping import UInt8
from numpy import ndarray

COLORS = ("YCbCr", "RGB", "Gray")
TURNED = (b"Exif\0\0", b"Orientation")  # may say that the image lies on its side: EXIF, or XMP's tiff:Orientation
SCAN = b"\xff\xda"
SEQUENTIAL, APPLICATION, START = (b"\xc0", b"\xc1"), b"\xe1", SCAN[1:]  # segments: a frame, EXIF or XMP, a scan


def decode(
    data: bytes, *, at_least: tuple[int, int], max_pixels: int, max_scans: int
) -> UInt8[ndarray, "h w 3"] | None:
    """The image in RGB at the smallest scale that leaves `at_least` rows and columns (0: the full size).

    None for what this does not decode exactly as Pillow would: no JPEG, a damaged one, CMYK, one that may have to be
    turned, one beyond the limits.
    """
    if not data.startswith(b"\xff\xd8") or not _is_plain(data, max_scans):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > max_pixels or colors not in COLORS:
            return None
        return simplejpeg.decode_jpeg(data, "RGB", min_height=at_least[0], min_width=at_least[1], min_factor=2)
    except ValueError:
        return None


def _is_plain(data: bytes, max_scans: int) -> bool:
    """Whether the header is whole, says nothing of a turn, and what follows is one scan, or few."""
    components = b""
    for kind, content in _segments(data):
        if kind == APPLICATION and any(mark in content for mark in TURNED):
            return False
        if kind in SEQUENTIAL:
            components = content[5:6]
        if kind == START:  # with all components of such a frame a decoder asks for no other; a search is slow
            return content[:1] == components or data.count(SCAN) <= max_scans
    return False


def _segments(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and content of the segments of the header, one behind the other, the first scan's own header the last."""
    place = 2
    while data[place : place + 1] == b"\xff":
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4])
        yield (kind := data[place + 1 : place + 2]), data[place + 4 : end]
        if kind == START:
            return
        place = end
