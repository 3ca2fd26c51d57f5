"""Embed pictures in a page."""

import base64
import io

import numpy as np
from PIL import Image


def data_uri(picture: np.ndarray) -> str:
    """Encode a picture as a data URI, in WebP.

    Args:
        picture: RGB or RGBA pixels, (h, w, 3 or 4), in [0, 255].
    """
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=90, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
