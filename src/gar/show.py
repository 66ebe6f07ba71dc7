"""Draws a picture with its regions numbered and coloured, and what was said about them in a panel.

Knows pictures, masks and texts. Knows nothing of where they come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from gar.regions import Located

COLORS = [
    (230, 25, 75),
    (0, 130, 200),
    (245, 130, 48),
    (60, 170, 75),
    (145, 30, 180),
    (0, 160, 160),
    (240, 50, 230),
    (150, 100, 30),
    (90, 90, 220),
    (128, 128, 0),
]
INK, PAPER = (25, 25, 25), (255, 255, 255)
SMALLEST = 640  # a smaller picture is enlarged until its longer side has so many pixels: lines and numbers need room


def draw(image: Image.Image, located: Sequence[Located], texts: Sequence[str], title: str = "") -> Image.Image:
    """The picture with outlined, lightly filled, numbered regions, and their texts in a panel beneath or beside it.

    Args:
        image: an upright RGB picture.
        located: its regions; the number of each is its place here, as in `<Prompt0>`.
        texts: one for each region; an empty one gets no line.
        title: a text about the whole, above the others.

    Returns:
        An RGB picture, larger than the given one by the panel; a small picture is enlarged first.

    Raises:
        ValueError: the number of texts differs from that of the regions, or a mask has another size than the picture.
    """
    if len(texts) != len(located):
        raise ValueError(f"{len(texts)} texts for {len(located)} regions: there must be one for each")
    if wrong := [one.mask.shape for one in located if one.mask.shape != (image.height, image.width)]:
        raise ValueError(f"a mask has shape {wrong[0]}: it must be {(image.height, image.width)}, as the picture")
    scale = max(1.0, SMALLEST / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    masks = [np.asarray(Image.fromarray(one.mask).resize(size, Image.Resampling.NEAREST)) for one in located]
    unit = max(size) // 40  # what everything is measured by: the height of a number
    picture = _marked(image.resize(size, Image.Resampling.LANCZOS), masks, unit)
    lines = [(number, text) for number, text in enumerate(texts) if text]
    if not lines and not title:
        return picture
    beside = size[1] > 1.2 * size[0]
    panel = _panel(lines, title, unit, max(size[0], 24 * unit) if not beside else max(size[0], 18 * unit))
    if beside:
        whole = Image.new("RGB", (size[0] + panel.width, max(size[1], panel.height)), PAPER)
        whole.paste(panel, (size[0], 0))
    else:
        whole = Image.new("RGB", (max(size[0], panel.width), size[1] + panel.height), PAPER)
        whole.paste(panel, (0, size[1]))
    whole.paste(picture, (0, 0))
    return whole


def _marked(picture: Image.Image, masks: list[np.ndarray], unit: int) -> Image.Image:
    """The picture with the regions' fills and outlines, then all numbers on top of them."""
    pixels = np.asarray(picture).astype(np.float32)
    line = max(2, unit // 6)
    for number, mask in enumerate(masks):
        color = np.array(COLORS[number % len(COLORS)], np.float32)
        pixels[mask] = 0.7 * pixels[mask] + 0.3 * color
        framed = np.pad(mask.astype(np.uint8), 1)  # so that the picture's edge closes an outline as well
        depth = cv2.distanceTransform(framed, cv2.DIST_L2, 5)[1:-1, 1:-1]
        pixels[mask & (depth <= 1.5 * line)] = PAPER  # a light line within tells the outline from any background
        pixels[mask & (depth <= line)] = color
    marked = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(marked)
    for number, mask in enumerate(masks):
        _badge(pen, _place(mask, unit, marked.size), number, unit)
    return marked


def _place(mask: np.ndarray, unit: int, size: tuple[int, int]) -> tuple[float, float]:
    """Where the number of a region goes: its widest place, or beside it where it is too small for the number."""
    depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    if depth[y, x] >= 2 * unit:
        return float(x), float(y)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    above = float(rows[0]) - 0.8 * unit
    if above < 0.8 * unit:
        above = float(rows[-1]) + 0.8 * unit
    margin = 0.8 * unit
    return (
        float(np.clip(columns.mean(), margin, max(margin, size[0] - margin))),
        float(np.clip(above, margin, max(margin, size[1] - margin))),
    )


def _badge(pen: ImageDraw.ImageDraw, center: tuple[float, float], number: int, unit: int) -> None:
    """A region's number in its colour, on a disc about 1.5 units wide."""
    x, y = center
    font = ImageFont.load_default(unit)
    half = max(0.75 * unit, pen.textlength(str(number), font) / 2 + 0.25 * unit)
    box = (x - half, y - 0.75 * unit, x + half, y + 0.75 * unit)
    color = COLORS[number % len(COLORS)]
    pen.rounded_rectangle(box, 0.75 * unit, fill=color, outline=PAPER, width=max(1, unit // 12))
    pen.text((x, y), str(number), PAPER, font, anchor="mm")


def _panel(lines: list[tuple[int, str]], title: str, unit: int, width: int) -> Image.Image:
    """The texts, each beside its region's number, wrapped to the width."""
    font = ImageFont.load_default(unit)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    indent, step = 2.5 * unit, 1.4 * unit
    heading = _wrapped(measure, title, font, width - 1.5 * unit) if title else []
    blocks = [(number, _wrapped(measure, text, font, width - indent - 0.75 * unit)) for number, text in lines]
    rows = len(heading) + sum(len(block) for _, block in blocks)
    gaps = 0.5 * unit * (len(blocks) + bool(heading) - 1)
    panel = Image.new("RGB", (width, int(rows * step + gaps + 1.5 * unit)), PAPER)
    pen = ImageDraw.Draw(panel)
    y = 0.75 * unit + step / 2
    for text in heading:
        pen.text((0.75 * unit, y), text, INK, font, anchor="lm")
        y += step
    y += 0.5 * unit * bool(heading)
    for number, block in blocks:
        _badge(pen, (1.4 * unit, y), number, unit)
        for text in block:
            pen.text((indent, y), text, INK, font, anchor="lm")
            y += step
        y += 0.5 * unit
    return panel


def _wrapped(pen: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float):
    """The text as lines of at most this width; a word that is too long is broken."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            while pen.textlength(word, font) > width and len(word) > 1:
                fits = max(1, int(len(word) * width / pen.textlength(word, font)) - 1)
                lines += [line] * bool(line) + [word[:fits]]
                line, word = "", word[fits:]
            longer = f"{line} {word}".strip()
            if pen.textlength(longer, font) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines
