"""Every prompt of a user, good and bad, and the pixels that it means."""

from __future__ import annotations

import importlib
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from gar.regions import Located, Region, load_image

coco: Any = importlib.import_module("pycocotools.mask")  # its type stubs know fewer types than it takes
WIDTH, HEIGHT = 40, 30
sides = st.integers(1, 60)
masks = arrays.arrays(bool, st.tuples(sides, sides)).filter(lambda mask: mask.any())


def one_line(error: pytest.ExceptionInfo[ValueError], *parts: str) -> bool:
    text = str(error.value)
    return "\n" not in text and len(text) < 250 and all(part in text for part in parts)


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_a_box_is_half_open():
    located = Region.box(2, 3, 10, 8).locate(WIDTH, HEIGHT)
    assert located.box == (2, 3, 10, 8)
    assert located.area == 8 * 5 == located.mask.sum()
    assert located.mask.shape == (HEIGHT, WIDTH) and located.mask.dtype == bool


def test_a_box_of_the_whole_picture_holds_every_pixel():
    assert Region.box(0, 0, WIDTH, HEIGHT).locate(WIDTH, HEIGHT).mask.all()
    assert Region.box(0, 0, 1, 1, normalized=True).locate(WIDTH, HEIGHT).mask.all()


def test_a_box_holds_the_pixels_whose_centres_lie_in_it():
    assert Region.box(1.5, 0, 3.5, 1).locate(WIDTH, HEIGHT).box == (1, 0, 3, 1)
    assert Region.box(1.6, 0, 3.6, 1).locate(WIDTH, HEIGHT).box == (2, 0, 4, 1)


@given(st.integers(0, WIDTH), st.integers(0, WIDTH), st.integers(0, HEIGHT), st.integers(0, HEIGHT))
def test_an_integer_box_comes_back_as_given(xa: int, xb: int, ya: int, yb: int):
    x0, x1, y0, y1 = min(xa, xb), max(xa, xb), min(ya, yb), max(ya, yb)
    if x0 < x1 and y0 < y1:
        assert Region.box(x0, y0, x1, y1).locate(WIDTH, HEIGHT).box == (x0, y0, x1, y1)


@given(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.1, 1), st.floats(0.1, 1), sides, sides)
def test_a_normalized_box_is_the_box_of_its_pixels(x: float, y: float, w: float, h: float, width: int, height: int):
    x1, y1 = min(1.0, x + w), min(1.0, y + h)
    try:
        located = Region.box(x, y, x1, y1, normalized=True).locate(width, height)
    except ValueError as error:
        assert "centre" in str(error)
    else:
        assert (
            located.mask == Region.box(x * width, y * height, x1 * width, y1 * height).locate(width, height).mask
        ).all()


@given(st.lists(st.tuples(st.floats(0, WIDTH), st.floats(0, HEIGHT)), min_size=3, max_size=3), st.floats(0, 1))
def test_two_halves_of_a_triangle_share_no_pixel_and_lose_none(corners: list[tuple[float, float]], cut: float):
    a, b, c = corners
    middle = (a[0] + (b[0] - a[0]) * cut, a[1] + (b[1] - a[1]) * cut)

    def pixels(*points: tuple[float, float]) -> np.ndarray:
        try:
            return Region.polygon(points).locate(WIDTH, HEIGHT).mask
        except ValueError:
            return np.zeros((HEIGHT, WIDTH), bool)

    # the cut edge is shared; the new corner may round off the edge a-b by one pixel there, never elsewhere
    left, right, whole = pixels(a, middle, c), pixels(middle, b, c), pixels(a, b, c)
    assert not (left & right).any()
    rows, columns = np.nonzero((left | right) ^ whole)
    edge = np.array(b) - a
    distance = np.abs(edge[0] * (rows + 0.5 - a[1]) - edge[1] * (columns + 0.5 - a[0]))
    assert (distance <= 1e-6 * (1 + np.abs(edge).sum())).all()


@given(st.lists(st.tuples(st.integers(0, WIDTH), st.integers(0, HEIGHT)), min_size=3, max_size=12))
def test_a_polygon_holds_what_the_even_odd_rule_says(points: list[tuple[int, int]]):
    def inside(x: float, y: float) -> bool:
        odd = False
        for (xa, ya), (xb, yb) in zip(points, points[1:] + points[:1], strict=True):
            if (ya <= y < yb) or (yb <= y < ya):
                odd ^= (x - xa) * (yb - ya) * (1 if yb > ya else -1) >= (y - ya) * (xb - xa) * (1 if yb > ya else -1)
        return odd

    try:
        mask = Region.polygon(points).locate(WIDTH, HEIGHT).mask
    except ValueError:
        mask = np.zeros((HEIGHT, WIDTH), bool)
    for y in range(0, HEIGHT, 3):
        for x in range(0, WIDTH, 3):
            # centres that lie on an edge to within rounding may fall on either side
            if inside(x + 0.5 - 1e-9, y + 0.5) == inside(x + 0.5 + 1e-9, y + 0.5):
                assert mask[y, x] == inside(x + 0.5, y + 0.5)


def test_a_rectangle_is_the_same_as_box_and_as_polygon():
    polygon = Region.polygon([(2.2, 3.7), (20.5, 3.7), (20.5, 9.1), (2.2, 9.1)])
    assert (polygon.locate(WIDTH, HEIGHT).mask == Region.box(2.2, 3.7, 20.5, 9.1).locate(WIDTH, HEIGHT).mask).all()


def test_a_polygon_may_cross_itself():
    bow = Region.polygon([(0, 0), (20, 20), (20, 0), (0, 20)]).locate(WIDTH, HEIGHT)
    assert 190 <= bow.area <= 210 and bow.mask[10, 2] and not bow.mask[2, 10]


def test_points_and_scribbles_say_that_they_need_a_segmenter():
    for region in (Region.point(3, 4), Region.points([(3, 4), (5, 6)]), Region.scribble([(3, 4), (9, 9)])):
        with pytest.raises(ValueError) as error:
            region.locate(WIDTH, HEIGHT)
        assert one_line(error, "segmenter", region.kind)


def test_a_normalized_point_at_one_is_the_last_pixel():
    x, y = Region.point(1, 1, normalized=True).pixels(WIDTH, HEIGHT)[0]
    assert (int(x), int(y)) == (WIDTH - 1, HEIGHT - 1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Region.box(10, 5, 3, 9), "10,5,3,9"),
        (lambda: Region.box(1, 5, 1, 9), "no area"),
        (lambda: Region.box(float("nan"), 0, 1, 1), "nan"),
        (lambda: Region.box(0, 0, float("inf"), 1), "inf"),
        (lambda: Region.box(0, 0, 1.2, 1, normalized=True), "1.2"),
        (lambda: Region.box(*["a", 0, 1, 1]), "number"),
        (lambda: Region.point(float("nan"), 0), "nan"),
        (lambda: Region.points([]), "pairs"),
        (lambda: Region.points([(1, 2, 3)]), "pairs"),
        (lambda: Region.points([(1, 2), (3,)]), "number"),
        (lambda: Region.polygon([(0, 0), (1, 1)]), "at least 3"),
        (lambda: Region.polygon([(0, 0), (1, 1), (2, 2), (5, 5)]), "one line"),
        (lambda: Region.polygon([(3, 3)] * 4), "one line"),
        (lambda: Region.mask(np.zeros((4, 5))), "5x4"),
        (lambda: Region.mask(np.full((4, 5), np.nan)), "NaN"),
        (lambda: Region.mask(np.ones((4, 5, 3))), "(4, 5, 3)"),
        (lambda: Region.mask(np.ones((0, 5))), "(0, 5)"),
        (lambda: Region.mask(np.array([["a"]])), "dtype"),
        (lambda: Region.mask("no/such/mask.png"), "no/such/mask.png"),
    ],
)
def test_a_bad_prompt_is_refused_at_once_in_one_line(make, says: str):
    with pytest.raises(ValueError) as error:
        make()
    assert one_line(error, says)


@pytest.mark.parametrize(
    "region",
    [
        Region.box(-1, 0, 5, 5),
        Region.box(0, 0, WIDTH + 1, 5),
        Region.box(0, 0, 5, HEIGHT + 0.5),
        Region.polygon([(0, 0), (WIDTH + 1, 0), (3, 9)]),
    ],
)
def test_a_shape_that_leaves_the_picture_is_refused_with_its_size(region: Region):
    with pytest.raises(ValueError) as error:
        region.locate(WIDTH, HEIGHT)
    assert one_line(error, f"{WIDTH}x{HEIGHT}", region.kind)


def test_a_point_on_the_right_edge_lies_in_no_pixel():
    with pytest.raises(ValueError, match="outside"):
        Region.point(WIDTH, 0).pixels(WIDTH, HEIGHT)


def test_a_box_between_two_pixel_centres_is_refused():
    with pytest.raises(ValueError) as error:
        Region.box(1.6, 1.6, 2.4, 2.4).locate(WIDTH, HEIGHT)
    assert one_line(error, "centre", "larger")


# --- masks ------------------------------------------------------------------------------------------------------------


@given(masks)
def test_a_mask_keeps_its_pixels_its_box_and_its_area(mask: np.ndarray):
    height, width = mask.shape
    located = Region.mask(mask).locate(width, height)
    x0, y0, x1, y1 = located.box
    assert (located.mask == mask).all() and located.area == mask.sum()
    assert mask[y0:y1, x0:x1].sum() == located.area
    assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()


@pytest.mark.parametrize(
    "array", [np.array([[0, 7]], np.uint8), np.array([[0, -1]]), np.array([[0.5, 0.51]]), np.array([[False, True]])]
)
def test_a_mask_may_be_bool_integer_or_float(array: np.ndarray):
    assert Region.mask(array).locate(2, 1).box == (1, 0, 2, 1)


def test_a_mask_is_a_copy():
    array = np.ones((2, 2), bool)
    region = Region.mask(array)
    array[:] = False
    assert region.locate(2, 2).area == 4


def test_a_mask_of_another_size_is_refused_with_both_sizes_unless_resize_is_said():
    mask = np.zeros((15, 20), bool)
    mask[5:10, 5:10] = True
    with pytest.raises(ValueError) as error:
        Region.mask(mask).locate(WIDTH, HEIGHT)
    assert one_line(error, "20x15", f"{WIDTH}x{HEIGHT}", "resize")
    assert Region.mask(mask, resize=True).locate(WIDTH, HEIGHT).box == (10, 10, 20, 20)


def test_a_mask_that_vanishes_when_resized_is_refused():
    mask = np.zeros((300, 400), bool)
    mask[1, 1] = True
    with pytest.raises(ValueError, match="holds no pixel"):
        Region.mask(mask, resize=True).locate(WIDTH, HEIGHT)


def _masks_of_every_mode(inside: np.ndarray) -> dict[str, Image.Image]:
    grey = np.where(inside, 255, 0).astype(np.uint8)
    colour = np.stack([grey, 0 * grey, 0 * grey], -1)
    palette = Image.fromarray(np.where(inside, 3, 0).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 9, 9, 9, 9, 9, 9, 200, 0, 0])
    return {
        "1": Image.fromarray(inside),
        "L": Image.fromarray(grey),
        "L of ones": Image.fromarray(inside.astype(np.uint8)),
        "RGB": Image.fromarray(colour),
        "alpha": Image.fromarray(np.dstack([0 * colour, grey])),
        "inverted colours below alpha": Image.fromarray(np.dstack([255 - colour, grey])),
        "opaque": Image.fromarray(np.dstack([colour, 0 * grey + 255])),
        "LA": Image.fromarray(np.dstack([0 * grey, grey])),
        "palette": palette,
        "16 bit": Image.fromarray(inside.astype(np.uint16) * 300),
    }


@pytest.mark.parametrize("mode", list(_masks_of_every_mode(np.ones((1, 1), bool))))
def test_a_mask_file_of_any_mode_means_the_same_pixels(mode: str, tmp_path):
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[4:9, 5:21] = True
    _masks_of_every_mode(inside)[mode].save(tmp_path / "mask.png")
    assert (Region.mask(tmp_path / "mask.png").locate(WIDTH, HEIGHT).mask == inside).all()


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_a_mask_file_in_which_black_is_not_zero_means_the_same_pixels_too(mode: str, tmp_path):
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[4:9, 5:21] = True
    Image.fromarray(np.dstack([inside * np.uint8(255)] * 3)).convert(mode).save(tmp_path / "mask.tif")
    assert (Region.mask(tmp_path / "mask.tif").locate(WIDTH, HEIGHT).mask == inside).all()


# --- RLE --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_mask_does_not_grow_by_what_it_smears(mode: str, tmp_path):
    y, x = np.mgrid[:200, :200]
    disc = (x - 100) ** 2 + (y - 90) ** 2 < 60**2
    Image.fromarray(disc.astype(np.uint8) * 255).convert(mode).save(tmp_path / "disc.jpg", quality=75)
    found = Region.mask(tmp_path / "disc.jpg").locate(200, 200)
    assert np.count_nonzero(found.mask != disc) < 0.005 * disc.sum()


@given(masks)
def test_rle_goes_out_and_comes_back(mask: np.ndarray):
    height, width = mask.shape
    rle = json.loads(json.dumps(Located.from_mask(mask).rle()))
    assert (coco.decode(rle) == mask).all()
    assert (Region.rle(rle).locate(width, height).mask == mask).all()
    assert (Region.rle({**rle, "counts": rle["counts"].encode()}).locate(width, height).mask == mask).all()


@given(masks)
def test_uncompressed_rle_means_the_same(mask: np.ndarray):
    height, width = mask.shape
    column_first = mask.T.reshape(-1)
    changes = np.flatnonzero(np.diff(column_first)) + 1
    counts = np.diff(np.concatenate([[0], changes, [column_first.size]])).tolist()
    counts = [0, *counts] if column_first[0] else counts
    assert (Region.rle({"size": [height, width], "counts": counts}).locate(width, height).mask == mask).all()


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30), sides, sides)
@settings(max_examples=300)
def test_malformed_counts_are_refused_and_never_crash(counts: str, width: int, height: int):
    try:
        located = Region.rle({"size": [height, width], "counts": counts}).locate(width, height)
    except ValueError as error:
        assert str(error).startswith("RLE") and "\n" not in str(error)
    else:
        assert (coco.decode({"size": [height, width], "counts": counts}) == located.mask).all()


@pytest.mark.parametrize(
    ("rle", "says"),
    [
        ("abc", '"size"'),
        ({"size": [4, 5]}, '"counts"'),
        ({"size": [4], "counts": [20]}, "[4]"),
        ({"size": [4, -5], "counts": [20]}, "-5"),
        ({"size": [4, 5.0], "counts": [20]}, "5.0"),
        ({"size": [4, True], "counts": [4]}, "True"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, "1000000"),
        ({"size": [4, 5], "counts": [3, 3]}, "add up to 6"),
        ({"size": [4, 5], "counts": [3, 30]}, "add up to 33"),
        ({"size": [4, 5], "counts": [23, -3]}, "-3"),
        ({"size": [4, 5], "counts": [3.5, 16.5]}, "integers"),
        ({"size": [4, 5], "counts": 20}, "int"),
        ({"size": [4, 5], "counts": [20]}, "empty"),
        ({"size": [4, 5], "counts": []}, "add up to 0"),
        ({"size": [4, 5], "counts": ""}, "add up to 0"),
        ({"size": [4, 5], "counts": "é!"}, "COCO"),
        ({"size": [4, 5], "counts": "oooooooooooooooo"}, "COCO"),
        ({"size": [4, 5], "counts": "ooooooooooooooo0"}, "run of more"),
    ],
)
def test_a_bad_rle_is_refused_in_one_line(rle, says: str):
    with pytest.raises(ValueError) as error:
        Region.rle(rle)
    assert one_line(error, "RLE", says)


def test_an_rle_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(ValueError) as error:
        Region.rle({"size": [4, 5], "counts": [0, 20]}).locate(WIDTH, HEIGHT)
    assert one_line(error, "5x4", f"{WIDTH}x{HEIGHT}")


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_picture_may_be_a_path_an_image_or_an_array(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    for image in (array, Image.fromarray(array), tmp_path / "a.png", str(tmp_path / "a.png")):
        loaded = load_image(image)
        assert loaded.mode == "RGB" and (np.asarray(loaded) == array).all()


def test_the_exif_rotation_is_applied_before_coordinates_mean_anything(tmp_path):
    array = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    array[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    Image.fromarray(array).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    loaded = load_image(tmp_path / "turned.jpg")
    assert loaded.size == (HEIGHT, WIDTH)
    assert np.asarray(loaded)[:8, -8:].mean() > 250
    assert np.asarray(load_image(loaded))[:8, -8:].mean() > 250, "a second time it stays upright"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "CMYK", "I;16", "I"])
def test_a_picture_of_any_mode_becomes_rgb(mode: str, tmp_path):
    grey = np.tile(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, 1))
    if mode.startswith("I"):
        image = Image.fromarray((grey.astype(np.uint16 if mode == "I;16" else np.int32)) * 257)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "I") else "a.png")
    image.save(path)
    loaded = load_image(path)
    assert loaded.mode == "RGB" and loaded.size == (WIDTH, HEIGHT)
    if mode != "1":
        assert np.abs(np.asarray(loaded).astype(int) - grey[..., None]).max() <= (0 if mode != "P" else 60)


def test_alpha_is_dropped_not_blended():
    array = np.full((2, 2, 4), 200, np.uint8)
    array[..., 3] = 0
    assert (np.asarray(load_image(Image.fromarray(array))) == 200).all()


@pytest.mark.filterwarnings("error")
def test_alpha_of_a_palette_is_dropped_without_a_word(tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)).quantize(4)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128, 255, 255]))
    assert (np.asarray(load_image(tmp_path / "a.png")) == np.asarray(image.convert("RGB"))).all()


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((4, 5), np.uint8), "(4, 5)"),
        (np.zeros((4, 5, 3), np.float32), "float32"),
        (np.zeros((4, 5, 4), np.uint8), "(4, 5, 4)"),
        (np.zeros((0, 5, 3), np.uint8), "(0, 5, 3)"),
        (Image.fromarray(np.zeros((4, 5), np.float32)), "floating"),
        (7, "int"),
    ],
)
def test_an_array_of_another_kind_is_refused(image, says: str):
    with pytest.raises(ValueError) as error:
        load_image(image)
    assert one_line(error, says)


def test_a_missing_file_a_folder_and_a_text_are_refused_by_name(tmp_path):
    (tmp_path / "note.png").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    for path, says in [("none.png", "no such file"), ("", "folder"), ("note.png", "not a"), ("empty.png", "not a")]:
        with pytest.raises(ValueError) as error:
            load_image(tmp_path / path)
        assert one_line(error, says, str(tmp_path / path))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_a_damaged_file_is_refused_or_read_but_never_raises_anything_else(suffix: str, tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(path)
    good = path.read_bytes()
    refused = 0
    for trial in range(60):
        bad = bytearray(good[: rng.integers(1, len(good))] if trial % 2 else good)
        for place in rng.integers(0, len(bad), 3 if trial % 2 == 0 else 0):
            bad[place] = rng.integers(0, 256)
        path.write_bytes(bytes(bad))
        try:
            load_image(path)
        except ValueError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 10


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_too_large_to_decode_is_refused(tmp_path):
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b""))
    with pytest.raises(ValueError) as error:
        load_image(tmp_path / "bomb.png")
    assert one_line(error, "pixels", "scale it down")
