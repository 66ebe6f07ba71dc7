"""Estimates with 95 % intervals, and paired tests between two runs.

Items that show one picture are not independent, so everything but a plain proportion is resampled by pictures. Knows
numbers only; scipy comes with the extra `bench`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 9999


@dataclass(frozen=True)
class Estimate:
    """A figure. `low` and `high` bound its 95 % interval (NaN where under two pictures leave nothing to resample)."""

    value: float
    low: float
    high: float
    n: int

    def json(self) -> dict[str, Any]:
        """{"value", "ci95": [low, high], "n"}; what is not a number becomes null."""
        value, low, high = (None if math.isnan(x) else round(x, 6) for x in (self.value, self.low, self.high))
        return {"value": value, "ci95": [low, high], "n": self.n}


def proportion(right: int, total: int) -> Estimate:
    """A share of independent items, with Wilson's interval."""
    from scipy.stats import binomtest

    if not total:
        return Estimate(math.nan, math.nan, math.nan, 0)
    interval = binomtest(right, total).proportion_ci(0.95, "wilson")
    return Estimate(right / total, interval.low, interval.high, total)


def mean(values: Sequence[float], pictures: Sequence[Hashable]) -> Estimate:
    """A mean over items, resampled by their pictures."""
    return ratio(values, [1.0] * len(values), pictures)


def ratio(above: Sequence[float], below: Sequence[float], pictures: Sequence[Hashable], scale: float = 1) -> Estimate:
    """`scale` times the sum of one figure of the items over the sum of another, resampled by their pictures."""
    figures = np.stack([np.asarray(above, float), np.asarray(below, float)], 1)
    return resampled(figures, pictures, lambda sums: scale * sums[:, 0] / np.where(sums[:, 1], sums[:, 1], np.nan))


def resampled(
    figures: np.ndarray, pictures: Sequence[Hashable], statistic: Callable[[np.ndarray], np.ndarray]
) -> Estimate:
    """A statistic of sums over items, with its percentile interval.

    Args:
        figures: what is summed, a row for each item.
        statistic: from sums (draws, figures) to values (draws,).
    """
    names = {name: k for k, name in enumerate(dict.fromkeys(pictures))}
    sums = np.zeros((len(names), figures.shape[1]))
    np.add.at(sums, [names[picture] for picture in pictures], figures)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(sums.sum(0, keepdims=True))[0]) if len(names) else math.nan
        if math.isnan(value) or len(names) < 2:
            return Estimate(value, math.nan, math.nan, len(figures))
        times = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
        low, high = np.nanpercentile(statistic(times @ sums), [2.5, 97.5])
    return Estimate(value, float(low), float(high), len(figures))


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact p-value that two runs, right or wrong on the same items, differ by chance."""
    from scipy.stats import binomtest

    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    return float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0


def letter_prior(letters: Sequence[str], types: Sequence[str]) -> dict[str, tuple[str, int]]:
    """By type: the most frequent right letter, and how many items always saying it would get."""
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    for letter, kind in zip(letters, types, strict=True):
        by_type[kind][letter] += 1
    return {kind: counts.most_common(1)[0] for kind, counts in by_type.items()}
