"""Ways to show a picture and its regions to a model or a judge: as they are, with something hidden, moved or redrawn.

A view takes an upright RGB picture and its regions, and returns both as they shall be shown, the very same objects
where it changes nothing. One of `FEATURE_VIEWS` leaves them alone, and changes the model's features of them. Knows
pixels, masks and features; knows no benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from gar.regions import Located, Region, prompt_name
from gar.segment import load_segmenter, resolve

if TYPE_CHECKING:
    from torch import Tensor

Shown = tuple[Image.Image, list[Region]]
View = Callable[[Image.Image, Sequence[Region]], Shown]

GRAY = (128, 128, 128)
SMALLEST_CROP = 56  # pixels a side, before the surroundings are added
SHIFT = 0.1  # of a region's width and height
DISTRACTORS = 4  # at most, so that one region and they are as many as published checkpoints mark
OBJECT = 0.06, 0.3  # of the picture's width and height, the sides of a distractor's box
FURTHER = 0.05, 0.2  # of the picture's width and height, the sides of regions that nobody asks about


def as_is(picture: Image.Image, regions: Sequence[Region]) -> Shown:
    """Nothing changed."""
    return picture, list(regions)


def _inside(picture: Image.Image, regions: Sequence[Region]) -> np.ndarray:
    """The pixels (H, W) of any region."""
    nowhere = np.zeros((picture.height, picture.width), bool)
    return np.logical_or.reduce([nowhere, *(region.locate(*picture.size).mask for region in regions)])


def _outside(hidden: Callable[[Image.Image], Image.Image]) -> View:
    """Everything outside the regions replaced."""

    def view(picture: Image.Image, regions: Sequence[Region]) -> Shown:
        seen = _inside(picture, regions)
        if seen.all():
            return picture, list(regions)
        return Image.composite(picture, hidden(picture), Image.fromarray(seen)), list(regions)

    return view


def _blurred(picture: Image.Image) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(max(picture.size) / 20))


def mean_outside(features: Tensor, marks: Tensor) -> Tensor:
    """Features (T, g, g, D) with the mean of its tile in each cell that no region reaches.

    Args:
        marks: (T, s, s), 1 in any region.
    """
    import torch
    import torch.nn.functional as F

    reached = F.adaptive_max_pool2d(marks[:, None].float(), features.shape[1:3])[:, 0, :, :, None] > 0
    return torch.where(reached, features, features.mean((1, 2), keepdim=True))


def unmarked(picture: Image.Image, regions: Sequence[Region]) -> Shown:
    """The picture without its regions: each is the whole picture."""
    return picture, [Region.box(0, 0, 1, 1, normalized=True) for _ in regions]


def blind(picture: Image.Image, regions: Sequence[Region]) -> Shown:
    """The question alone: a gray picture, in which each region is everything."""
    return unmarked(Image.new("RGB", picture.size, GRAY), regions)


def _reshaped(change: Callable[[Located], np.ndarray]) -> View:
    """Every mask changed; one of which nothing is left stays as it was."""

    def view(picture: Image.Image, regions: Sequence[Region]) -> Shown:
        shown = []
        for region in regions:
            before = region.locate(*picture.size)
            mask = change(before)
            shown.append(Region.mask(mask) if mask.any() and (mask != before.mask).any() else region)
        return picture, shown

    return view


def _steps(region: Located) -> int:
    """A tenth of the side of a square of the region's area."""
    return max(1, round(SHIFT * region.area**0.5))


def _eroded(region: Located) -> np.ndarray:
    import cv2

    return cv2.erode(region.mask.astype(np.uint8), _disk(_steps(region)), borderValue=0).astype(bool)


def _dilated(region: Located) -> np.ndarray:
    import cv2

    return cv2.dilate(region.mask.astype(np.uint8), _disk(_steps(region))).astype(bool)


def _disk(radius: int) -> np.ndarray:
    import cv2

    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def _shifted(region: Located) -> np.ndarray:
    x0, y0, x1, y1 = region.box
    right, down = (max(1, round(SHIFT * side)) for side in (x1 - x0, y1 - y0))
    moved = np.zeros_like(region.mask)
    moved[down:, right:] = region.mask[:-down, :-right]
    return moved


def _boxed(region: Located) -> np.ndarray:
    x0, y0, x1, y1 = region.box
    mask = np.zeros_like(region.mask)
    mask[y0:y1, x0:x1] = True
    return mask


def segmented(picture: Image.Image, regions: Sequence[Region]) -> Shown:
    """What GrabCut finds in the box of each region."""
    boxes = [Region.box(*region.locate(*picture.size).box) for region in regions]
    return picture, [Region.mask(found.mask) for found in resolve(picture, boxes, load_segmenter("grabcut"))]


def points(picture: Image.Image, regions: Sequence[Region]) -> Shown:
    """Each region as one click on the pixel that lies deepest in it. A segmenter makes the mask (`gar.segment`)."""
    import cv2

    clicks = []
    for region in regions:
        mask = np.pad(region.locate(*picture.size).mask.astype(np.uint8), 1)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        clicks.append(Region.point(float(x) + 0.5, float(y) + 0.5))
    return picture, clicks


def _crowded(count: int) -> View:
    """Further regions marked after the given ones, until there are `count`.

    Boxes of random sides, whose centres lie at random pixels outside of the given regions, or anywhere where those fill
    the picture. Always the same for one picture and regions, and the first of them are those of a lower count.
    """

    def view(picture: Image.Image, regions: Sequence[Region]) -> Shown:
        asked = _inside(picture, regions)
        free = np.flatnonzero(~asked) if not asked.all() else np.arange(asked.size)
        rng = np.random.default_rng(int(asked.sum()))
        further = []
        for _ in range(count - len(regions)):
            y, x = divmod(int(rng.choice(free)), picture.width)
            width, height = (max(1, round(side * rng.uniform(*FURTHER))) for side in picture.size)
            left, top = max(x - width // 2, 0), max(y - height // 2, 0)
            further.append(Region.box(left, top, min(left + width, picture.width), min(top + height, picture.height)))
        return picture, [*regions, *further]

    return view


def distractors(picture: Image.Image, regions: Sequence[Region]) -> Shown:
    """Up to four objects marked behind the given regions: GrabCut's masks in boxes that look like objects."""
    asked, segmenter = _inside(picture, regions), load_segmenter("grabcut")
    taken, shown = asked.copy(), list(regions)
    for x0, y0, x1, y1 in _likely_objects(picture, seed=int(asked.sum())):
        if len(shown) - len(regions) >= DISTRACTORS:
            break
        if taken[y0:y1, x0:x1].mean() > 0.1:
            continue
        try:
            found = resolve(picture, [Region.box(x0, y0, x1, y1)], segmenter)[0].mask & ~asked
        except ValueError:  # nothing is in the box
            continue
        if found.any():
            shown.append(Region.mask(found))
            taken[y0:y1, x0:x1] = True
    return picture, shown


def _likely_objects(picture: Image.Image, seed: int, tries: int = 1000) -> list[tuple[int, int, int, int]]:
    """Random boxes, those first that have many edges in them and few around (after Zitnick and Dollar 2014)."""
    import cv2

    scale = 256 / max(picture.size)
    size = np.array([max(8, round(side * scale)) for side in picture.size])
    small = cv2.cvtColor(np.asarray(picture.resize(tuple(size), Image.Resampling.BOX)), cv2.COLOR_RGB2Lab)
    slopes = [cv2.Sobel(small, cv2.CV_32F, right, 1 - right) for right in (0, 1)]
    edges = np.sqrt(sum((slope**2).sum(2) for slope in slopes))
    sums = cv2.integral(np.minimum(edges, np.quantile(edges, 0.95)))  # a few strong edges are not to decide alone
    rng = np.random.default_rng(seed)
    sides = rng.uniform(*OBJECT, (tries, 2)) * size
    corners = rng.uniform(0, 1, (tries, 2)) * (size - sides)

    def within(grown: float) -> tuple[np.ndarray, np.ndarray]:
        """The sum of edges in each box and its area, with so much of each side added at either end."""
        x0, y0 = np.clip(corners - grown * sides, 0, size - 1).astype(int).T
        x1, y1 = np.clip(corners + (1 + grown) * sides, 1, size).astype(int).T
        return sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0], (x1 - x0) * (y1 - y0)

    (inner, inner_area), (outer, outer_area) = within(-0.1), within(0.15)
    objectness = inner / inner_area - (outer - inner) / (outer_area - inner_area)
    boxes = np.concatenate([corners, corners + sides], 1) / np.tile(size, 2) * np.tile(picture.size, 2)
    return [tuple(box) for box in boxes[np.argsort(-objectness)].astype(int).tolist()]


def unchanged(name: str, before: Shown, after: Shown) -> bool:
    """Whether a view that should have changed something has not."""
    if name in FEATURE_VIEWS:
        return bool(_inside(*before).all())
    if VIEWS[name] is as_is:
        return False
    things, shown = ([picture, *regions] for picture, regions in (before, after))
    return len(things) == len(shown) and all(a is b for a, b in zip(things, shown, strict=True))


def sharing(picture: Image.Image, regions: Sequence[Region], most: int) -> list[Region]:
    """`most` regions, of which the last one is all that are left, as one mask."""
    return [*regions[: most - 1], Region.mask(_inside(picture, regions[most - 1 :]))]


def drawn(picture: Image.Image, regions: Sequence[Region]) -> Shown:
    """Each region a numbered box drawn on the picture, and no mark beside that: each is the whole picture."""
    return unmarked(numbered(picture, [region.locate(*picture.size) for region in regions]), regions)


def numbered(picture: Image.Image, regions: Sequence[Located], first: int = 0) -> Image.Image:
    """A copy with the regions' boxes drawn on it, and their numbers at the top left corners."""
    shown = picture.copy()
    pen = ImageDraw.Draw(shown)
    width = max(2, max(picture.size) // 300)
    for number, region in enumerate(regions, first):
        x0, y0, x1, y1 = region.box
        pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=(0, 255, 0), width=width)
        pen.rectangle(pen.textbbox((x0, y0), str(number), font_size=8 * width), fill=(0, 0, 0))
        pen.text((x0, y0), str(number), fill=(255, 255, 255), font_size=8 * width)
    return shown


def told_numbers(picture: Image.Image, regions: Sequence[Located]) -> str:
    """Which number `numbered` gives each region."""
    names = ", ".join(f"{prompt_name(k)} in the box with number {k}" for k in range(len(regions)))
    return f"The picture shows {names}."


def told_boxes(picture: Image.Image, regions: Sequence[Located]) -> str:
    """The regions' boxes as text."""
    lines = [f"{prompt_name(k)}: {', '.join(map(str, region.box))}" for k, region in enumerate(regions)]
    size = f"{picture.width} x {picture.height} pixels"
    return "\n".join([f"Boxes as x0, y0, x1, y1 in the picture of {size}:", *lines])


VIEWS: dict[str, View] = {
    "as-is": as_is,
    "gray": _outside(lambda picture: Image.new("RGB", picture.size, GRAY)),
    "blur": _outside(_blurred),
    "mean-feature": as_is,
    "flipped": _outside(ImageOps.mirror),  # a world as likely as the true one, and wrong
    "unmarked": unmarked,
    "blind": blind,
    "eroded": _reshaped(_eroded),
    "dilated": _reshaped(_dilated),
    "shifted": _reshaped(_shifted),
    "segmented": segmented,
    "box": _reshaped(_boxed),
    "point": points,
    "drawn": drawn,
    "text": unmarked,
    "distractors": distractors,
    **{f"{count}-regions": _crowded(count) for count in (2, 5, 10, 20, 50, 100)},
}
FEATURE_VIEWS = {"mean-feature": mean_outside}
TOLD = {"drawn": told_numbers, "text": told_boxes}  # said before a question; no region is marked beside it
CROWDED = tuple(name for name in VIEWS if name.endswith("-regions"))
AMONG_OTHERS = ("distractors", *CROWDED)
HIDING = ("gray", "blur", "mean-feature")  # the world outside of the regions
CONTEXT = ("as-is", *HIDING, "flipped", "distractors", "unmarked", "blind")
ROBUSTNESS = ("as-is", "eroded", "dilated", "shifted", "segmented", "box", "point", *TOLD, *CROWDED)


def focal_crop(picture: Image.Image, region: Located) -> tuple[Image.Image, Image.Image]:
    """A region with its surroundings, and its mask (white on black) in the same frame, as judges are shown them.

    Three times the region's box, which counts as 56 pixels a side at least, as far as the picture goes.
    """
    x0, y0, x1, y1 = region.box
    width, height = max(x1 - x0, SMALLEST_CROP), max(y1 - y0, SMALLEST_CROP)
    left, top = int((x0 + x1) / 2 - width / 2), int((y0 + y1) / 2 - height / 2)
    frame = (
        max(left - width, 0),
        max(top - height, 0),
        min(left + 2 * width, picture.width),
        min(top + 2 * height, picture.height),
    )
    return picture.crop(frame), Image.fromarray(region.mask).convert("L").crop(frame)
