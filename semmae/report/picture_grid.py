"""Arrange pictures as the rows of one image, with titles, captions and legends."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 12  # space between pictures, in pixels
SWATCH = 22  # side of a color in a legend, in pixels

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Line = list[tuple[float, str, list[int] | None]]  # entries (x, text, RGB color)


def arrange_grid(
    rows: list[list[np.ndarray]],
    titles: Sequence[str] = (),
    *,
    captions: Sequence[str] = (),
    legends: Mapping[str, list[tuple[str, list[int]]]] | None = None,
    notes: Sequence[str] = (),
) -> Image.Image:
    """Arrange rows of square pictures on a white background.

    Args:
        rows: Pictures of equal size, RGB or RGBA.
        titles: The title of each column.
        captions: The caption of each row, drawn above it.
        legends: Names and RGB colors by title, drawn below the pictures. An empty legend is left out.
        notes: Sentences that explain the pictures, drawn below the legends; an empty one is left out.
    """
    gap, text_height, font = GAP, 32, ImageFont.load_default(18)
    tile = next(len(picture) for row in rows for picture in row)
    width = gap + max(len(row) for row in rows) * (tile + gap)
    row_height = tile + gap + text_height * bool(captions)
    top = text_height if titles else 0
    lines = [line for title, names in (legends or {}).items() for line in _wrap_legend(title, names, width - gap, font)]
    lines += _wrap_text(" ".join(filter(None, notes)), width - gap, font)
    grid = Image.new("RGB", (width, gap + top + len(rows) * row_height + len(lines) * text_height), "white")
    draw = ImageDraw.Draw(grid)

    def write(x: float, y: float, text: str) -> None:
        draw.text((x, y), text, fill="#333333", font=font)

    for column, title in enumerate(titles):
        write(gap + column * (tile + gap), gap, title)
    for number, row in enumerate(rows):
        y = gap + top + number * row_height
        if captions:
            write(gap, y, captions[number])
        for column, picture in enumerate(row):
            image = Image.fromarray(picture)
            corner = (gap + column * (tile + gap), y + row_height - tile - gap)
            grid.paste(image, corner, image if image.mode == "RGBA" else None)
    for number, line in enumerate(lines):
        y = gap + top + len(rows) * row_height + number * text_height
        for x, name, color in line:
            if color is None:
                write(x, y, name)
            else:
                draw.rounded_rectangle((x, y, x + SWATCH, y + SWATCH), radius=4, fill=tuple(color))
                write(x + SWATCH + 8, y, name)
    return grid


def _wrap_text(text: str, right: int, font: Font) -> list[Line]:
    """Divide a text into lines that end before x = `right`, in the form of `_wrap_legend`."""
    lines: list[Line] = []
    for word in text.split():
        longer = f"{lines[-1][0][1]} {word}" if lines else word
        if lines and GAP + font.getlength(longer) <= right:
            lines[-1] = [(GAP, longer, None)]
        else:
            lines.append([(GAP, word, None)])
    return lines


def _wrap_legend(title: str, names: list[tuple[str, list[int]]], right: int, font: Font) -> list[Line]:
    """Divide a legend into lines that end before x = `right`.

    Returns:
        Lines of entries (x, text, RGB color). The first entry is the title, which has no color.
    """
    start = GAP + font.getlength(title) + 20
    lines: list[Line] = [[(GAP, title, None)]] if names else []
    x = start
    for name, color in names:
        end = x + SWATCH + 8 + font.getlength(name)
        if end > right and x > start:
            lines.append([])
            end += start - x
            x = start
        lines[-1].append((x, name, color))
        x = end + 24
    return lines
