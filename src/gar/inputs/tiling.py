"""A picture, and the masks of its regions, cut into square tiles of one size by one and the same cut.

Knows pixels and grids. Knows no region prompt, no token and no model. The numbers are those of the released
preprocessing (PerceptionLM's), to the bit where that is asked for.

Legend: T tiles (thumbnail first when there is one, then row-major), H height, W width, s tile side.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_BAND = 512  # rows that are float at a time while a large picture shrinks


def choose_grid(width: int, height: int, tile_size: int, max_num_tiles: int) -> tuple[int, int]:
    """How many tiles a picture is stretched over.

    Among the grids that hold the picture without shrinking it, the one in which its short side grows the most; when
    none holds it, the grid of the nearest aspect ratio that is not wider (for a tall picture: not taller), as large
    as it comes.

    Args:
        width, height: of the picture, pixels.
        tile_size: side of a tile, pixels.
        max_num_tiles: most tiles, the thumbnail not counted.

    Returns:
        (tiles_w, tiles_h), with tiles_w * tiles_h <= max_num_tiles.

    Raises:
        ValueError: a picture without pixels, or a limit below one.
    """
    if width < 1 or height < 1:
        raise ValueError(f"the picture is {width}x{height} pixels, expected at least 1x1")
    if tile_size < 1 or max_num_tiles < 1:
        raise ValueError(f"tile_size is {tile_size} and max_num_tiles {max_num_tiles}, expected at least 1 each")
    if max_num_tiles == 1:
        return 1, 1
    by_ratio = _grids_by_ratio(max_num_tiles)
    ratio = width / height

    best, best_short_side = None, -1.0
    for grid in (grid for grids in by_ratio.values() for grid in grids):
        canvas_w, canvas_h = grid[0] * tile_size, grid[1] * tile_size
        if canvas_w >= width and canvas_h >= height:
            short_side = _short_side(width, height, canvas_w, canvas_h)
            if short_side >= best_short_side:  # of equals the last one wins, as in the released order
                best, best_short_side = grid, short_side
    if best is not None:
        return best
    if ratio >= 1:
        return max(by_ratio[max(r for r in by_ratio if r <= ratio)])
    nearest = min((r for r in by_ratio if r > ratio), key=lambda r: abs(1 / r - 1 / ratio))
    return max(by_ratio[nearest], key=lambda grid: grid[1])


def cut_image(
    image: np.ndarray, grid: tuple[int, int], tile_size: int, thumbnail: bool = True, exact: bool = True
) -> Tensor:
    """Stretch a picture over its grid (antialiased bicubic, the aspect ratio not kept) and cut it into tiles.

    Args:
        image: (H, W, 3) uint8, RGB.
        grid: (tiles_w, tiles_h), from `choose_grid`.
        tile_size: side s of a tile, pixels.
        thumbnail: put the whole picture, stretched to one tile, before the tiles.
        exact: as released, computed in float32; else in whole numbers, four times as fast, for training. Of photographs
            a sixth of the values is then off by one of 255, and one in 1,500 by more: at hard edges up to about 30,
            because what overshoots black or white is clipped after the first of two passes.

    Returns:
        (T, 3, s, s) uint8.

    Raises:
        ValueError: an array of another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the picture is {image.dtype} of shape {image.shape}, expected uint8 of shape (H, W, 3)")
    image_3HW = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # a copy: PIL's arrays are read-only
    stretch = _stretch if exact else _stretch_fast
    tiles = [_split(stretch(image_3HW, grid[1] * tile_size, grid[0] * tile_size), tile_size)]
    if thumbnail:
        tiles.insert(0, stretch(image_3HW, tile_size, tile_size)[None])
    return torch.cat(tiles)


def cut_mask(mask: np.ndarray, grid: tuple[int, int], tile_size: int, thumbnail: bool = True) -> Tensor:
    """Cut a mask as its picture was cut. Nearest neighbour by the floor index, as released.

    A region of a few pixels of a large picture can fall between the sampled ones and be absent from the thumbnail, or
    from a tile of a shrunk picture. Checkpoints were trained so, therefore it stays; the region's replayed
    features come from its box and are there all the same.

    Args:
        mask: (H, W) bool, in the picture's pixels; the union of all regions that are to be marked.
        grid, tile_size, thumbnail: as for `cut_image`.

    Returns:
        (T, s, s) bool.

    Raises:
        ValueError: an array of another shape or type.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"the mask is {mask.dtype} of shape {mask.shape}, expected bool of shape (H, W)")
    mask_11HW = torch.from_numpy(mask.astype(np.uint8))[None, None]
    size = (grid[1] * tile_size, grid[0] * tile_size)
    tiles = [_split(F.interpolate(mask_11HW, size, mode="nearest")[0], tile_size)]
    if thumbnail:
        tiles.insert(0, F.interpolate(mask_11HW, (tile_size, tile_size), mode="nearest"))
    return torch.cat(tiles)[:, 0].bool()


def touched(mask_tiles: Tensor) -> Tensor:
    """Which tiles a region reaches: (T, s, s) bool -> (T,) bool. The features of all others do not depend on it."""
    return mask_tiles.flatten(1).any(dim=1)


def normalise(tiles: Tensor) -> Tensor:
    """Pixels 0..255 to the model's -1..1: (T, 3, s, s) uint8 -> (T, 3, s, s) float32."""
    return tiles.float().sub_(127.5).div_(127.5)


@cache
def _grids_by_ratio(max_num_tiles: int) -> dict[float, list[tuple[int, int]]]:
    """Every grid of at most so many tiles, grouped by tiles_w / tiles_h. The order matters: it settles ties."""
    grids: dict[float, list[tuple[int, int]]] = {}
    for count in range(max_num_tiles, 0, -1):
        for tiles_w in range(1, count + 1):
            if count % tiles_w == 0:
                tiles_h = count // tiles_w
                grids.setdefault(tiles_w / tiles_h, []).append((tiles_w, tiles_h))
    return grids


def _short_side(width: int, height: int, canvas_w: int, canvas_h: int) -> float:
    """The picture's short side, once it fills the canvas with its aspect ratio kept; rounded as released."""
    factor = min(canvas_w / width, canvas_h / height)
    ratio = width / height
    if width > height:
        return math.floor(factor * width / ratio)
    return math.floor(factor * height * ratio) if width < height else factor * height


def _stretch(image_3HW: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bicubic resize of uint8, computed in float32, rounded.

    One channel and one band of rows at a time: only a picture of the new width is ever held in float, with the very
    numbers of a resize in one go, because torch too resizes along the width first.
    """

    def resize(x_HW: Tensor, height: int) -> Tensor:
        x_11HW = x_HW[None, None].float()
        return F.interpolate(x_11HW, (height, width), mode="bicubic", antialias=True, align_corners=False)[0, 0]

    channels = []
    for channel_HW in image_3HW:
        narrow_HW = torch.cat([resize(band, band.shape[0]) for band in channel_HW.split(_BAND)])
        channels.append(resize(narrow_HW, height).clamp_(0, 255).round_().to(torch.uint8))
    return torch.stack(channels)


def _stretch_fast(image_3HW: Tensor, height: int, width: int) -> Tensor:
    """The same, by torch's resize in whole numbers."""
    return F.interpolate(image_3HW[None], (height, width), mode="bicubic", antialias=True, align_corners=False)[0]


def _split(image_CHW: Tensor, s: int) -> Tensor:
    """(C, h * s, w * s) -> (h * w, C, s, s), row-major."""
    c, height, width = image_CHW.shape
    return image_CHW.view(c, height // s, s, width // s, s).permute(1, 3, 0, 2, 4).reshape(-1, c, s, s)
