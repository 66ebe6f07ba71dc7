"""Pictures with their regions drawn on them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gar.regions import Region
from gar.show import COLORS, draw

GREY = Image.new("RGB", (800, 600), (120, 120, 120))
BOX = Region.box(100, 100, 400, 300).locate(800, 600)
SMALL = Region.box(700, 500, 710, 510).locate(800, 600)


def test_a_region_is_tinted_and_outlined_and_the_rest_stays_as_it_was():
    drawn = np.asarray(draw(GREY, [BOX], [""]))
    assert drawn.shape == (600, 800, 3)
    assert (drawn[~BOX.mask] == 120).all()
    assert (drawn[100, 100:400] == COLORS[0]).all(), "the outline lies within the region"
    assert (drawn[120, 120] != 120).all(), "the fill"


def test_texts_go_beneath_a_wide_picture_and_beside_or_beneath_a_tall_one():
    wide = draw(GREY, [BOX], ["a red cube"])
    assert wide.width == 800 and wide.height > 600
    assert np.asarray(wide)[600:].min() < 100, "there is ink in the panel"
    tall = draw(GREY.rotate(90, expand=True), [Region.box(0, 0, 90, 90).locate(600, 800)], ["a red cube"])
    assert tall.height == 800 and tall.width > 600


def test_a_region_too_small_for_its_number_has_it_outside():
    drawn = np.asarray(draw(GREY, [SMALL], [""]))
    assert (drawn[~SMALL.mask] != 120).any()
    assert (drawn[505, 705] != COLORS[0]).any(), "the region itself can still be seen"


@pytest.mark.parametrize("size", [(1, 1), (30, 20), (20, 30), (2000, 10), (10, 2000)])
def test_pictures_of_any_size_and_shape_are_drawn(size: tuple[int, int]):
    located = Region.box(0, 0, 1, 1, normalized=True).locate(*size)
    drawn = draw(Image.new("RGB", size), [located, located], ["one", "two"], title="a question")
    assert max(drawn.size) >= 640 and min(drawn.size) >= 100


def test_long_texts_are_wrapped_and_long_words_broken():
    short = draw(GREY, [BOX], ["word"])
    long = draw(GREY, [BOX], ["word " * 200])
    unbroken = draw(GREY, [BOX], ["x" * 1000])
    assert long.width == unbroken.width == 800
    assert long.height > short.height + 100 and unbroken.height > short.height + 100
    right_margin = np.asarray(unbroken)[610:, 795:]
    assert (right_margin == 255).all()


def test_a_text_too_few_is_refused():
    with pytest.raises(ValueError, match="1 texts for 2 regions"):
        draw(GREY, [BOX, SMALL], ["one"])
    with pytest.raises(ValueError, match=r"\(600, 800\)"):
        draw(Image.new("RGB", (50, 50)), [BOX], ["one"])
