"""Grids, tiles and cut masks: the released numbers, and what holds for every picture."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as tvf
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import gar
from gar.inputs.tiling import choose_grid, cut_image, cut_mask, normalise, touched

NUMBERS = json.loads((GOLDEN / "tiles.json").read_text())
SIDES = st.integers(1, 120)
GRIDS = st.tuples(st.integers(1, 4), st.integers(1, 4))


def picture(k: str) -> Image.Image:
    return Image.open(GOLDEN / "inputs" / f"img_{k}.png")


def mask_of(k: str, *numbers: int) -> np.ndarray:
    masks = [np.asarray(Image.open(GOLDEN / "inputs" / f"mask_{k}_{i}.png").convert("L")) > 0 for i in numbers]
    return np.logical_or.reduce(masks)


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def put_together(tiles: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The picture (C, H, W) that row-major tiles (T, C, s, s) were cut from."""
    return torch.cat([torch.cat(list(row), dim=2) for row in tiles.split(grid[0])], dim=1)


def sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def test_every_picture_gets_the_released_grid():
    for most, width, height, tiles_w, tiles_h in NUMBERS["grids"]:
        assert choose_grid(width, height, 448, most) == (tiles_w, tiles_h), (width, height, most)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="without AVX2 torch rounds otherwise")
@pytest.mark.parametrize("name", NUMBERS["pictures"])
def test_tiles_are_the_released_ones_to_the_bit(name):
    k, variant = name.split("_")
    image = picture(k).convert({"gray": "L", "rgba": "RGBA"}.get(variant, "RGB")).convert("RGB")
    grid = choose_grid(*image.size, 448, 16 if variant == "max16" else 4)
    assert sha256(cut_image(np.asarray(image), grid, 448).numpy()) == NUMBERS["pictures"][name]


@pytest.mark.parametrize("grid", [(1, 1), (2, 1), (3, 3)])
def test_tiles_for_training_are_the_released_ones_but_for_rounding(grid):
    sample = Image.open(Path(gar.__file__).parent / "assets" / "sample.png").convert("RGB")
    exact, fast = (cut_image(np.asarray(sample), grid, 112, exact=exact).int() for exact in (True, False))
    off = (exact - fast).abs().float()
    assert fast.shape == exact.shape
    assert off.mean() < 0.3 and (off > 1).float().mean() < 0.005


@pytest.mark.parametrize("name", NUMBERS["masks"])
def test_masks_are_cut_as_released(name):
    kind, k = name.split("_")
    mask = mask_of(k, *range(1 if kind == "single" else 3))
    tiles = cut_mask(mask, choose_grid(mask.shape[1], mask.shape[0], 448, 4), 448)
    assert sha256(np.packbits(tiles.numpy())) == NUMBERS["masks"][name]


@pytest.mark.parametrize("k", "abc")
def test_all_stored_tiles_and_masks_are_reproduced(shared, k):
    stored = np.load(shared / "golden" / "preprocess" / f"pixels_{k}_max4.npz")
    grid = choose_grid(*picture(k).size, 448, 4)
    assert list(grid) == stored["aspect_ratio"].ravel().tolist()
    assert np.array_equal(cut_image(np.asarray(picture(k).convert("RGB")), grid, 448).numpy(), stored["tiles_u8"])
    ids = np.load(shared / "golden" / "prompts" / f"multi_{k}.npz")["mask_ids"]
    assert np.array_equal(cut_mask(mask_of(k, 0, 1, 2), grid, 448).numpy(), ids[:, 0] != 5)


@given(width=st.integers(1, 6000), height=st.integers(1, 6000), most=st.integers(1, 40))
def test_a_grid_stays_within_its_limit_and_shrinks_only_what_no_grid_holds(width, height, most):
    tiles_w, tiles_h = choose_grid(width, height, 448, most)
    assert 1 <= tiles_w * tiles_h <= most
    needed = math.ceil(width / 448) * math.ceil(height / 448)
    holds = tiles_w * 448 >= width and tiles_h * 448 >= height
    assert holds == (needed <= most)


@settings(max_examples=40, deadline=None)
@given(width=SIDES, height=SIDES, grid=GRIDS, s=st.integers(1, 24), thumbnail=st.booleans())
def test_tiles_put_together_are_the_resized_picture(width, height, grid, s, thumbnail):
    image = noise(width, height)
    tiles = cut_image(image, grid, s, thumbnail)
    assert tiles.shape == (grid[0] * grid[1] + thumbnail, 3, s, s)

    def resized(h: int, w: int) -> torch.Tensor:
        image_3HW = torch.from_numpy(image).permute(2, 0, 1)
        return tvf.resize(image_3HW, [h, w], tvf.InterpolationMode.BICUBIC, antialias=True)

    assert torch.equal(put_together(tiles[int(thumbnail) :], grid), resized(grid[1] * s, grid[0] * s))
    if thumbnail:
        assert torch.equal(tiles[0], resized(s, s))


def test_a_large_picture_resized_in_bands_is_the_same_as_in_one_go():
    image = noise(300, 1700)
    whole = tvf.resize(
        torch.from_numpy(image).permute(2, 0, 1), [128, 64], tvf.InterpolationMode.BICUBIC, antialias=True
    )
    assert torch.equal(put_together(cut_image(image, (1, 2), 64, thumbnail=False), (1, 2)), whole)


@settings(max_examples=40, deadline=None)
@given(width=SIDES, height=SIDES, grid=GRIDS, s=st.integers(1, 24), seed=st.integers(0, 9), thumbnail=st.booleans())
def test_mask_tiles_put_together_are_the_resized_mask(width, height, grid, s, seed, thumbnail):
    mask = np.random.default_rng(seed).random((height, width)) > 0.9
    tiles = cut_mask(mask, grid, s, thumbnail)
    mask_11HW = torch.from_numpy(mask)[None, None].float()
    resized = F.interpolate(mask_11HW, (grid[1] * s, grid[0] * s), mode="nearest")[0].bool()
    assert torch.equal(put_together(tiles[int(thumbnail) :, None], grid), resized)
    assert touched(tiles).tolist() == [bool(tile.any()) for tile in tiles]


def test_a_region_touches_the_thumbnail_and_the_tiles_that_it_lies_in():
    mask = np.zeros((60, 90), bool)
    mask[35:55, 5:50] = True  # of 3x2 tiles: the lower left and the lower middle one
    assert touched(cut_mask(mask, (3, 2), 30)).tolist() == [True, False, False, False, True, True, False]


def test_one_pixel_can_be_absent_from_the_thumbnail_but_not_from_the_tiles_of_an_enlarged_picture():
    mask = np.zeros((200, 200), bool)
    mask[101, 101] = True
    assert touched(cut_mask(mask, (2, 2), 100)).tolist() == [False, False, False, False, True]


def test_pixels_become_minus_one_to_one():
    values = torch.arange(256, dtype=torch.uint8)
    assert np.array_equal(normalise(values).numpy(), (np.arange(256, dtype=np.float32) - 127.5) / np.float32(127.5))


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_a_picture_of_another_shape_or_type_is_refused(image):
    with pytest.raises(ValueError, match=r"expected uint8 of shape \(H, W, 3\)"):
        cut_image(image, (1, 1), 8)


@pytest.mark.parametrize("mask", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 1), bool)])
def test_a_mask_of_another_shape_or_type_is_refused(mask):
    with pytest.raises(ValueError, match=r"expected bool of shape \(H, W\)"):
        cut_mask(mask, (1, 1), 8)


@pytest.mark.parametrize("size", [(0, 4, 8, 1), (4, -1, 8, 1), (4, 4, 0, 1), (4, 4, 8, 0)])
def test_sizes_and_limits_below_one_are_refused(size):
    with pytest.raises(ValueError, match="expected at least"):
        choose_grid(*size)
