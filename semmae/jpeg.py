"""JPEG decoded fast, no finer than it is needed; whatever is unusual is left to Pillow.

libjpeg-turbo (by simplejpeg) decodes at 1/2, 3/8, 1/4 or 1/8 of the size from fewer frequencies, in a fraction of the
time.
"""

import simplejpeg
from jaxtyping import UInt8
from numpy import ndarray

COLOURS = ("YCbCr", "RGB", "Gray")
TURNED = (b"Exif\0\0", b"Orientation")  # may say that the image lies on its side: EXIF, or XMP's tiff:Orientation
SCAN = b"\xff\xda"


def decode(
    data: bytes, *, at_least: tuple[int, int], max_pixels: int, max_scans: int
) -> UInt8[ndarray, "h w 3"] | None:
    """The image in RGB at the smallest scale that leaves `at_least` rows and columns (0: the full size).

    None for what this does not decode exactly as Pillow would: no JPEG, a damaged one, CMYK, one that may have to be
    turned, one beyond the limits.
    """
    if not data.startswith(b"\xff\xd8") or data.count(SCAN) > max_scans or any(mark in data for mark in TURNED):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > max_pixels or colours not in COLOURS:
            return None
        return simplejpeg.decode_jpeg(data, "RGB", min_height=at_least[0], min_width=at_least[1], min_factor=2)
    except ValueError:
        return None
