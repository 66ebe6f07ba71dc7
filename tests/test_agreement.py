"""Agreement of judges against figures that are known."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

stats = pytest.importorskip("scipy.stats", reason="statistics need scipy")

from gar.bench.agreement import consistency, kappa, length_bias  # noqa: E402


def verdicts(table: list[list[int]]) -> tuple[list[str], list[str]]:
    """Two judges' verdicts from how often they gave each pair of them."""
    pairs = [("abc"[i], "abc"[k]) for i, row in enumerate(table) for k, count in enumerate(row) for _ in range(count)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_kappa_is_that_of_the_textbook():
    found = kappa(*verdicts([[20, 5], [10, 15]]), range(50))
    assert found.value == pytest.approx(0.4) and found.n == 50
    # The large-sample interval is 0.4 +- 1.96 * 0.1254.
    assert found.low == pytest.approx(0.154, abs=0.03) and found.high == pytest.approx(0.646, abs=0.03)


def test_kappa_of_three_verdicts_is_that_of_the_formula():
    a, b = verdicts([[10, 2, 1], [3, 12, 4], [0, 5, 13]])
    observed = 35 / 50
    expected = (13 * 13 + 19 * 19 + 18 * 18) / 50**2
    assert kappa(a, b, range(50)).value == pytest.approx((observed - expected) / (1 - expected))


def test_squared_kappa_is_one_less_the_squares_met_over_those_of_all_pairs():
    rng = random.Random(0)
    a = [rng.randint(1, 10) for _ in range(60)]
    b = [min(max(x + rng.randint(-2, 2), 1), 10) for x in a]
    met = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 60
    chance = sum((x - y) ** 2 for x in a for y in b) / 60**2
    found = kappa(a, b, range(60), squared=True)
    assert found.value == pytest.approx(1 - met / chance)
    assert found.low < found.value < found.high < 1


def test_judges_who_agree_have_kappa_one_and_strangers_about_zero():
    rng = random.Random(0)
    a, b = ([rng.random() < 0.5 for _ in range(400)] for _ in range(2))
    same, strange = kappa(a, a, range(400)), kappa(a, b, range(400))
    assert (same.value, same.low, same.high) == (1, 1, 1)
    assert strange.low < 0 < strange.high and strange.high - strange.low < 0.25


def test_kappa_of_one_verdict_for_all_is_none():
    assert math.isnan(kappa([True] * 5, [True] * 5, range(5)).value)
    assert math.isnan(kappa([], [], []).value)


def test_what_is_unscored_is_left_out_and_not_counted():
    a, b = verdicts([[20, 5], [10, 15]])
    found = kappa([*a, None, "a", None], [*b, "b", None, None], range(53))
    assert found == kappa(a, b, range(50)) and found.n == 50
    assert length_bias([1, None, 2, 3], ["a", "b c", "d e f", "g h i j"], range(4)).n == 3
    assert consistency([["a", None], ["a", "b"]], range(2)).n == 1


def test_items_of_one_picture_widen_an_interval():
    a, b = verdicts([[20, 5], [10, 15]])
    alone = kappa(a, b, range(50))
    together = kappa(a * 4, b * 4, [*range(50)] * 4)
    assert (together.value, together.low, together.high, together.n) == (alone.value, alone.low, alone.high, 200)
    assert kappa(a * 4, b * 4, range(200)).low > alone.low


def test_length_bias_is_spearmans_correlation():
    rng = random.Random(0)
    lengths = [rng.randint(1, 60) for _ in range(200)]
    ratings = [min(round(n / 10 + rng.random() * 5), 10) for n in lengths]
    found = length_bias(ratings, ["word " * n for n in lengths], range(200))
    expected: Any = stats.spearmanr(lengths, ratings)
    assert found.value == pytest.approx(expected.statistic)
    assert found.low < found.value < found.high


def test_length_bias_of_equal_answers_is_none():
    assert math.isnan(length_bias([1, 2, 3], ["one word", "two words", "more words"], range(3)).value)


def test_consistency_is_the_share_of_pairs_of_repeats_that_agree():
    found = consistency([["a", "b", "a"], ["a", "b", "b"], ["a", "c", "c"]], range(3))
    assert found.value == pytest.approx((1 + 1 / 3 + 0) / 3) and found.n == 3
