"""Caption metrics against the packages that define them, where those are installed, and against sums done by hand."""

from __future__ import annotations

import math
import random
import shutil

import pytest

from gar.bench.captions import cider, meteor, words

WORDS = ["a", "the", "red", "blue", "cup", "dog", "left", "of", "on", "table", "small", "standing", "next", "to", "and"]


def texts(count: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Captions that share words with their references, some of them empty or of one word."""
    rng = random.Random(seed)
    references = [[" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(rng.randint(1, 4))]
                  for _ in range(count)]  # fmt: skip
    captions = [" ".join(rng.sample(words := some[0].split(), rng.randint(0, len(words)))) for some in references]
    captions[::3] = [some[-1] for some in references[::3]]
    return captions, references


def test_words_are_lower_case_and_bare():
    assert words('A "well-known" dog,\n it\'s 3.') == "a well-known dog it's 3"


def test_cider_of_a_sum_done_by_hand():
    # "red" and "cup" are in one item of two each: weight log 2. Lengths by bigrams: 1 and 0.
    found = cider(["red cup", "dog"], [["red"], ["cup"]])
    assert found == pytest.approx([10 * math.exp(-1 / 72) / math.sqrt(2) / 4, 0])
    assert cider(["a b c d e", "x"], [["a b c d e"], ["y"]])[0] == pytest.approx(10)


def test_saying_it_more_often_gains_nothing():
    once, often = (cider([text, "x"], [["red cup on table"], ["y"]])[0] for text in ("red cup", "red cup red cup"))
    assert often < once


def test_one_item_alone_has_no_cider():
    assert cider(["red cup"], [["red cup"]]) == [0]


@pytest.mark.parametrize("seed", range(3))
def test_cider_is_that_of_pycocoevalcap(seed: int):
    package = pytest.importorskip("pycocoevalcap.cider.cider", reason="pycocoevalcap is not installed")
    captions, references = texts(40, seed)
    mean, each = package.Cider().compute_score(dict(enumerate(references)), {k: [c] for k, c in enumerate(captions)})
    found = cider(captions, references)
    assert found == pytest.approx(list(each), abs=1e-6) and sum(found) / 40 == pytest.approx(mean, abs=1e-6)


def test_meteor_is_one_for_the_same_words_and_less_for_others():
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    if shutil.which("java") is None:
        pytest.skip("no java")
    same, other = meteor(["a red cup on the table", "a dog"], [["a red cup on the table"], ["the white cat", "cats"]])
    assert same == pytest.approx(1) and other < 0.3
