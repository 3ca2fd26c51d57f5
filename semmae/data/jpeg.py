"""Fast decoding of JPEGs at a reduced size, with libjpeg-turbo (simplejpeg).

The decoder can produce 1/2, 3/8, 1/4 or 1/8 of the full size. This is faster, because it uses fewer DCT frequencies.
Unusual files are not decoded here; the caller decodes them with Pillow.
"""

from collections.abc import Iterator

import simplejpeg
from jaxtyping import UInt8
from numpy import ndarray

COLORS = ("YCbCr", "RGB", "Gray")
ORIENTATION_MARKS = (b"Exif\0\0", b"Orientation")  # EXIF, and tiff:Orientation in XMP; both may rotate the image
SCAN_MARKER = b"\xff\xda"
# types of segments
SEQUENTIAL_FRAMES = (b"\xc0", b"\xc1")  # headers of frames that are not progressive
APP1 = b"\xe1"  # EXIF or XMP
SCAN_HEADER = SCAN_MARKER[1:]


def decode(
    data: bytes, *, at_least: tuple[int, int], max_pixels: int, max_scans: int
) -> UInt8[ndarray, "h w 3"] | None:
    """Decode a JPEG to RGB at the smallest scale that keeps `at_least` rows and columns; 0 keeps the full size.

    Returns:
        The pixels, or None if the caller must use Pillow. This holds for other formats, and for a JPEG that is damaged,
        is in CMYK, may have an orientation, or exceeds a limit.
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
    """Check that the header is complete and has no orientation, and that there are at most `max_scans` scans."""
    components = b""
    for kind, content in _segments(data):
        if kind == APP1 and any(mark in content for mark in ORIENTATION_MARKS):
            return False
        if kind in SEQUENTIAL_FRAMES:
            components = content[5:6]
        if kind == SCAN_HEADER:
            # counting scans is slow; a sequential frame has only one scan if its first scan holds all components
            return content[:1] == components or data.count(SCAN_MARKER) <= max_scans
    return False


def _segments(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and the content of each header segment, up to the header of the first scan."""
    position = 2
    while data[position : position + 1] == b"\xff":
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        yield (kind := data[position + 1 : position + 2]), data[position + 4 : end]
        if kind == SCAN_HEADER:
            return
        position = end
