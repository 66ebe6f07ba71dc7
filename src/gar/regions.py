"""What a user points at, and the pixels that it means.

Knows pictures, coordinates and masks (numpy, Pillow, COCO RLE). Knows no model, no token, no tile and no other module
of `gar`.

One frame everywhere: pixels of the picture *after* its EXIF rotation, x right, y down, the picture's top left corner is
(0, 0) and the centre of the first pixel is (0.5, 0.5). Boxes are half-open (x0, y0, x1, y1). A shape holds the pixels
whose centres lie in it, so that shapes that share an edge share no pixel.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

Kind = Literal["mask", "box", "point", "points", "scribble", "polygon", "rle"]
POINTING = ("point", "points", "scribble")  # kinds that say where an object is, and not which pixels are its own
Box = tuple[int, int, int, int]

MAX_PIXELS = 178_956_970  # where Pillow refuses to decode a picture; an RLE may not ask for more either
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error)
"""What Pillow's decoders are known to raise on damaged files."""


@dataclass(frozen=True, eq=False)
class Region:
    """A region as a user gives it: a prompt. `Region.box(...)` and its siblings make one, `locate` gives its pixels.

    Coordinates are pixels of the picture (see the head of this module), or 0..1 of its width and height with
    `normalized=True`.

    Attributes:
        kind: what was given.
        coordinates: (x, y) pairs as given: the two corners of a box, the points, or the vertices; empty for a mask.
        normalized: the coordinates are 0..1 instead of pixels.
        array: bool (H, W), the mask of a "mask" or "rle".
        resize: a mask of another size than the picture is resized to it (nearest) instead of refused.
        origin: the prompt that a segmenter made this mask from.
    """

    kind: Kind
    coordinates: tuple[tuple[float, float], ...] = ()
    normalized: bool = False
    array: np.ndarray | None = field(default=None, repr=False)
    resize: bool = False
    origin: Region | None = None

    @staticmethod
    def mask(mask: np.ndarray | str | os.PathLike[str], resize: bool = False) -> Region:
        """The pixels that are set in an array (H, W) or in a picture file.

        An array may be bool, integer (non-zero is in) or float (above 0.5 is in). In a file, every pixel that is not
        black is in, whatever its mode (1-bit, grey, palette, colour, 16 bit); where a file has an alpha channel that is
        not the same everywhere, every pixel that is not fully transparent is in, and its colours mean nothing. Several
        labels in one mask are one region. In a JPEG, which smears edges, what is brighter than half of its brightest is
        in.

        Args:
            mask: the array, or the path of the file.
            resize: accept a mask of another size than the picture, and resize it (nearest).

        Raises:
            ValueError: the file cannot be read, the array is not a mask, or nothing is set.
        """
        if isinstance(mask, (str, os.PathLike)):
            name = f"mask {os.fspath(mask)}"
            array = read_mask(mask, name)
        else:
            array, name = _as_mask(mask), "mask"
        if not array.any():
            raise ValueError(f"{name} of {_size(array)} is empty: at least one pixel must be set")
        return Region("mask", array=array, resize=resize)

    @staticmethod
    def box(x0: float, y0: float, x1: float, y1: float, *, normalized: bool = False) -> Region:
        """The rectangle x0 <= x < x1, y0 <= y < y1. Raises ValueError where it is inverted, empty or not finite."""
        corners = _coordinates("box", [(x0, y0), (x1, y1)], normalized)
        (x0, y0), (x1, y1) = corners
        if not (x0 < x1 and y0 < y1):
            raise ValueError(
                f"box {x0:g},{y0:g},{x1:g},{y1:g} has no area: x0 < x1 and y0 < y1 must hold "
                "(two corners, not a corner and a size)"
            )
        return Region("box", corners, normalized)

    @staticmethod
    def point(x: float, y: float, *, normalized: bool = False) -> Region:
        """The object under one click. A segmenter finds its mask (`gar.segment`)."""
        return Region("point", _coordinates("point", [(x, y)], normalized), normalized)

    @staticmethod
    def points(points: Sequence[Sequence[float]], *, normalized: bool = False) -> Region:
        """One object under several clicks [(x, y), ...]. A segmenter finds its mask."""
        return Region("points", _coordinates("points", points, normalized), normalized)

    @staticmethod
    def scribble(points: Sequence[Sequence[float]], *, normalized: bool = False) -> Region:
        """The object under a stroke [(x, y), ...], its points joined by lines. A segmenter finds its mask."""
        return Region("scribble", _coordinates("scribble", points, normalized), normalized)

    @staticmethod
    def polygon(points: Sequence[Sequence[float]], *, normalized: bool = False) -> Region:
        """The inside of a closed line [(x, y), ...], even-odd. Raises ValueError under three points or without area."""
        vertices = _coordinates("polygon", points, normalized)
        if len(vertices) < 3:
            raise ValueError(f"polygon of {len(vertices)} point(s): it needs at least 3")
        spokes = np.array(vertices) - vertices[0]
        farthest = spokes[np.abs(spokes).sum(1).argmax()]
        if not (spokes[:, 0] * farthest[1] != spokes[:, 1] * farthest[0]).any():
            raise ValueError(f"polygon of {len(vertices)} points has no area: they lie on one line")
        return Region("polygon", vertices, normalized)

    @staticmethod
    def rle(rle: dict[str, Any]) -> Region:
        """A COCO run-length mask {"size": [height, width], "counts": str or bytes (compressed), or list of int}.

        Raises:
            ValueError: a key is missing, a type is wrong, the counts are malformed or do not fill the size, or nothing
                is set.
        """
        array = decode_rle(rle)
        if not array.any():
            raise ValueError(f"RLE of {_size(array)} is empty: at least one pixel must be set")
        return Region("rle", array=array)

    def __str__(self) -> str:
        if self.array is not None:
            return f"{self.kind} of {_size(self.array)}"
        shown = " ".join(f"{x:g},{y:g}" for x, y in self.coordinates[:3])
        more = " ..." if len(self.coordinates) > 3 else ""
        return f"{self.kind} {shown}{more}" + (" (normalized)" if self.normalized else "")

    def pixels(self, width: int, height: int) -> np.ndarray:
        """The coordinates in pixels of a picture of this size: float64 (N, 2).

        Raises:
            ValueError: a coordinate lies outside the picture. Corners and vertices may touch its right and bottom edge;
                points must lie in a pixel.
        """
        inside = self.kind in POINTING
        size = np.array([width, height], np.float64)
        xy = np.array(self.coordinates, np.float64).reshape(-1, 2)
        if self.normalized:
            xy = xy * size
            if inside:  # 1.0 is the picture's last pixel, not one past it
                xy = np.minimum(xy, np.nextafter(size, 0))
        outside = (xy < 0) | ((xy >= size) if inside else (xy > size))
        if outside.any():
            x, y = self.coordinates[int(outside.any(1).argmax())]
            raise ValueError(
                f"{self.kind} reaches {x:g},{y:g}, outside of the picture of {width}x{height} "
                f"(x 0..{width}, y 0..{height})"
            )
        return xy

    def locate(self, width: int, height: int) -> Located:
        """The pixels that this region means in a picture of this size.

        Raises:
            ValueError: it reaches out of the picture, its mask has another size, it holds no pixel's centre, or its
                kind (point, points, scribble) needs a segmenter first.
        """
        if self.kind in POINTING:
            raise ValueError(
                f"{self} is not a mask yet: a segmenter must make one (gar.segment), or give a box or a mask"
            )
        if self.array is not None:
            mask = self.array
            if mask.shape != (height, width):
                if not self.resize:
                    hint = "; in Python, resize=True scales one of the same view" if self.kind == "mask" else ""
                    raise ValueError(
                        f"{self.kind} is {_size(mask)}, the picture is {width}x{height}: the sizes must agree{hint}"
                    )
                mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
        else:
            xy = self.pixels(width, height)
            if self.kind == "box":  # as a polygon, it is filled by the same rule
                (x0, y0), (x1, y1) = xy
                xy = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
            mask = fill(xy, width, height)
        if not mask.any():
            tiny = not self.normalized and self.coordinates and np.max(self.coordinates) <= 1
            hint = ", or for coordinates in 0..1 say normalized" if tiny else ""
            raise ValueError(f"{self} holds no pixel's centre in the picture of {width}x{height}: make it larger{hint}")
        return Located.from_mask(mask, self.origin or self)


@dataclass(frozen=True, eq=False)
class Located:
    """The pixels of a region in one picture.

    Attributes:
        mask: bool (H, W), at least one pixel set.
        box: (x0, y0, x1, y1), the half-open extent of the mask in pixels.
        area: number of pixels set.
        region: the prompt it came from.
    """

    mask: np.ndarray = field(repr=False)
    box: Box
    area: int
    region: Region

    @staticmethod
    def from_mask(mask: np.ndarray, region: Region | None = None) -> Located:
        """A mask (H, W) with its box and area measured. Raises ValueError where it is empty or no mask."""
        mask = _as_mask(mask)
        columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        if not rows.size:
            raise ValueError(f"mask of {_size(mask)} is empty: at least one pixel must be set")
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        return Located(mask, box, int(mask.sum()), region or Region("mask", array=mask))

    def rle(self) -> dict[str, Any]:
        """The mask as compressed COCO RLE, ready for JSON: {"size": [height, width], "counts": str}."""
        return encode_rle(self.mask)


def prompt_name(k: int) -> str:
    """The name of region k in a text: `<Promptk>`."""
    return f"<Prompt{k}>"


def prompts_named(text: str) -> list[int]:
    """The prompt numbers that a text names, ascending, each once."""
    return sorted({int(k) for k in re.findall(r"<Prompt(\d+)>", text)})


def load_image(image: str | os.PathLike[str] | Image.Image | np.ndarray) -> Image.Image:
    """A picture as RGB, upright.

    The EXIF rotation of a file (or of a PIL image that still carries it) is applied first: coordinates and masks are
    those of the upright picture. Grey, palette and CMYK become RGB, 16 bit keeps its high byte, alpha is dropped (not
    blended), of an animation the first frame is taken.

    Args:
        image: a path, a PIL image, or an array uint8 (H, W, 3) in RGB order (BGR, as OpenCV reads, cannot be told
            apart: reverse it first).

    Raises:
        ValueError: no such file, not a picture, damaged, too large to decode safely, or an array of another type or
            shape.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"picture is an array {image.dtype} {image.shape}: it must be uint8 (height, width, 3), RGB, 0..255"
            )
        return Image.fromarray(image)
    if not isinstance(image, (str, os.PathLike, Image.Image)):
        raise ValueError(
            f"picture is a {type(image).__name__}: it must be a path, a PIL image or an array (H, W, 3) uint8"
        )
    name = "picture" if isinstance(image, Image.Image) else f"picture {os.fspath(image)}"
    upright = _upright(image, name)
    if upright.mode == "F":
        raise ValueError(f"{name} holds floating-point values: convert it to 8 bit first")
    if upright.mode.startswith("I"):
        return Image.fromarray((np.clip(np.asarray(upright), 0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    try:
        return _in_colors(upright).convert("RGB")
    except ValueError as error:
        raise ValueError(f"{name} of mode {upright.mode} cannot become RGB: {error}") from error


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W), which may be empty, as compressed COCO RLE, ready for JSON."""
    from pycocotools import mask as coco

    rle = cast(dict[str, Any], coco.encode(np.asfortranarray(mask, np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def rle_area(rle: dict[str, Any]) -> int:
    """How many pixels a COCO RLE sets, without unpacking it. Raises ValueError as `Region.rle`, but not where empty."""
    return sum(_rle_runs(rle)[1::2])


def _upright(image: str | os.PathLike[str] | io.BytesIO | Image.Image, name: str) -> Image.Image:
    """Decode and rotate as EXIF says: a copy. `name` begins every error."""
    try:
        if isinstance(image, Image.Image):
            return ImageOps.exif_transpose(image)
        with Image.open(image) as opened:
            upright = ImageOps.exif_transpose(opened)
            upright.format = opened.format
            return upright
    except FileNotFoundError as error:
        raise ValueError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise ValueError(f"{name}: is a folder, not a file") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: not a picture, or of a format that Pillow does not read") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}: more than {MAX_PIXELS} pixels are not decoded: scale it down first") from error
    except DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{name}: cannot be read, it may be damaged: {reason}") from error


def _in_colors(image: Image.Image) -> Image.Image:
    """A picture with a palette in the colors that it stands for, their alpha too; others as they are."""
    if image.mode != "P":
        return image
    return image.convert("RGBA" if "transparency" in image.info else "RGB")


def read_mask(file: str | os.PathLike[str] | io.BytesIO, name: str) -> np.ndarray:
    """A mask file as bool (H, W), which may be empty, by the rule of `Region.mask`. Raises ValueError, `name` first."""
    image = _in_colors(_upright(file, name))
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):  # of these, black is not nothing everywhere
        image = image.convert("RGB")
    array = np.asarray(image)
    if image.mode in ("RGBA", "LA", "PA"):
        alpha = array[..., -1]
        array = alpha if alpha.min() != alpha.max() else np.asarray(image.convert("RGB"))
    if image.format == "JPEG":  # around an edge it leaves what is nearly black
        array = array > array.max() // 2
    if array.ndim == 3:
        array = array.any(2)
    return _as_mask(array)


def _as_mask(mask: object) -> np.ndarray:
    """A bool copy (H, W), by the rule of `Region.mask`."""
    array = np.asarray(mask)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"mask has shape {array.shape}: it must be (height, width)")
    if array.dtype.kind not in "buif":
        raise ValueError(f"mask has dtype {array.dtype}: it must be bool, integer or float")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ValueError("mask holds NaN or infinity: every value must be finite")
        return array > 0.5
    return array.astype(bool)


def _coordinates(kind: str, points: Sequence[Sequence[float]], normalized: bool) -> tuple[tuple[float, float], ...]:
    """Finite (x, y) pairs, in 0..1 where normalized."""
    try:
        array = np.array(points, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{kind} {str(points)[:80]}: every coordinate must be a number") from error
    if array.ndim != 2 or array.shape[1] != 2 or not array.size:
        raise ValueError(f"{kind} has coordinates of shape {array.shape}: it needs one or more (x, y) pairs")
    if not np.isfinite(array).all():
        raise ValueError(f"{kind} holds {array[~np.isfinite(array)][0]}: every coordinate must be finite")
    if normalized and not ((array >= 0) & (array <= 1)).all():
        wrong = array[(array < 0) | (array > 1)][0]
        raise ValueError(f"{kind} holds {wrong:g}: normalized coordinates lie in 0..1 (leave it away for pixels)")
    return tuple((float(x), float(y)) for x, y in array)


def fill(xy: np.ndarray, width: int, height: int) -> np.ndarray:
    """Bool (H, W): the pixels whose centres lie inside the closed line xy (N, 2), left and top edges included.

    The line may reach out of the picture. Even-odd rule: every edge flips the pixels to its right in the rows that it
    crosses.
    """
    flips = np.zeros((height, width + 1), bool)
    for (xa, ya), (xb, yb) in zip(xy, np.roll(xy, -1, axis=0), strict=True):
        if ya > yb:  # one direction for both polygons that share the edge: the same rounding, so no gap and no overlap
            xa, ya, xb, yb = xb, yb, xa, ya
        rows = np.arange(max(np.ceil(ya - 0.5), 0), min(np.ceil(yb - 0.5), height))
        if rows.size:
            x = xa + (rows + 0.5 - ya) * ((xb - xa) / (yb - ya))
            columns = np.clip(np.ceil(x - 0.5), 0, width)
            flips[rows.astype(int), columns.astype(int)] ^= True
    return np.logical_xor.accumulate(flips, axis=1)[:, :width]


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
    """Bool (H, W) of a COCO RLE."""
    runs = _rle_runs(rle)
    height, width = (int(side) for side in rle["size"])
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T.copy()


def _rle_runs(rle: dict[str, Any]) -> list[int]:
    """The runs of a COCO RLE. Checked here because pycocotools reads past the end of malformed counts."""
    if not isinstance(rle, dict) or "size" not in rle or "counts" not in rle:
        raise ValueError(f'RLE is {str(rle)[:80]}: it must be {{"size": [height, width], "counts": ...}}')
    size, counts = rle["size"], rle["counts"]
    if not (isinstance(size, (list, tuple)) and len(size) == 2 and all(_is_integer(n) and n > 0 for n in size)):
        raise ValueError(f"RLE has size {str(size)[:80]}: it must be [height, width], two positive integers")
    height, width = int(size[0]), int(size[1])
    if height * width > MAX_PIXELS:
        raise ValueError(f"RLE has size {size}: more than {MAX_PIXELS} pixels")
    if isinstance(counts, (str, bytes)):
        runs = _run_lengths(counts)
    elif isinstance(counts, (list, tuple)) and all(_is_integer(run) for run in counts):
        runs = [int(run) for run in counts]
    else:
        raise ValueError(f"RLE has counts of type {type(counts).__name__}: it must be a string, or a list of integers")
    if any(run < 0 for run in runs):
        raise ValueError(f"RLE has a run of {min(runs)}: no run may be negative")
    if sum(runs) != height * width:
        raise ValueError(f"RLE has counts that add up to {sum(runs)}: they must fill {height} x {width} pixels")
    return runs


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _run_lengths(counts: str | bytes) -> list[int]:
    """The runs of a compressed COCO string: signed numbers of 5 bits a character, low ones first.

    From the fourth on, a number is the difference to the run before the last.
    """
    text = counts.encode("utf-8") if isinstance(counts, str) else counts
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if ((codes < 0) | (codes > 63)).any() or (codes.size and codes[-1] & 32):
        raise ValueError(f"RLE has counts {str(counts)[:40]!r}...: not a compressed COCO string")
    ends = np.flatnonzero(codes < 32)  # the sixth bit says that the run goes on
    starts = np.concatenate([[0], ends + 1])[:-1]
    place = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    if (place > 6).any():
        raise ValueError(f"RLE has counts {str(counts)[:40]!r}...: a run of more than {MAX_PIXELS} pixels")
    runs = np.add.reduceat((codes & 31) << (5 * place), starts) if starts.size else starts
    runs = runs - np.where(codes[ends] & 16, 1 << (5 * (place[ends] + 1)), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs.tolist()


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
