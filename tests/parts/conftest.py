"""Fixtures of the tests of part maps."""

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path) -> Path:
    """Write 24 flat colors into a folder."""
    for i in range(24):
        path = tmp_path / "images" / "train" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (i, 2 * i, 3 * i)).save(path)
    return tmp_path / "images"
