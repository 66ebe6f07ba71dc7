"""Can a judge be relied on? Its agreement with another judge, with itself, and its liking of long answers.

A verdict is whatever a judge decided about an item: a letter, True, a rating. None is unscored: such items are left out
and are missing from an estimate's `n`. Intervals resample pictures. Knows lists of verdicts only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from gar.bench.statistics import RESAMPLES, Estimate, mean


def kappa(first: Sequence[Any], second: Sequence[Any], pictures: Sequence[Hashable], squared: bool = False) -> Estimate:
    """Cohen's kappa of two judges: 1 is agreement on every item, 0 what two would reach by chance who decide as often
    for each verdict. NaN where both give one and the same verdict to all.

    Args:
        pictures: which picture each item shows.
        squared: verdicts are numbers, and a disagreement counts as the square of their distance (weighted kappa); for
            ratings, of which neighbours are nearly the same.
    """
    known = [k for k, pair in enumerate(zip(first, second, strict=True)) if None not in pair]
    values = sorted({verdict for k in known for verdict in (first[k], second[k])})
    kinds = {value: row for row, value in enumerate(values)}
    size = len(values)
    tables = np.zeros((len(known), size, size))
    for table, k in zip(tables, known, strict=True):
        table[kinds[first[k]], kinds[second[k]]] = 1
    numbers = np.array(values if squared else range(size), float)
    apart = np.subtract.outer(numbers, numbers) ** 2 if squared else 1 - np.eye(size)

    def statistic(sums: np.ndarray) -> np.ndarray:
        table = sums.reshape(-1, size, size)
        by_chance = table.sum(2)[:, :, None] * table.sum(1)[:, None, :]
        return 1 - (table * apart).sum((1, 2)) * table.sum((1, 2)) / (by_chance * apart).sum((1, 2))

    return _resampled(tables.reshape(len(known), size * size), [pictures[k] for k in known], statistic)


def length_bias(verdicts: Sequence[float | None], answers: Sequence[str], pictures: Sequence[Hashable]) -> Estimate:
    """Spearman's correlation of a judge's verdicts with the number of words in the answers they are about.

    Longer answers may be better ones. To see the judge alone, give the differences between its verdicts and those of
    another judge, or of people, on the same answers. The ranks are those of all items, also where pictures are drawn
    again for the interval. NaN where all verdicts or all lengths are the same.
    """
    from scipy.stats import rankdata

    known = [k for k, (verdict, _) in enumerate(zip(verdicts, answers, strict=True)) if verdict is not None]
    x, y = rankdata([verdicts[k] for k in known]), rankdata([len(answers[k].split()) for k in known])

    def statistic(sums: np.ndarray) -> np.ndarray:
        n, sx, sy, sxx, syy, sxy = sums.T
        return (n * sxy - sx * sy) / np.sqrt((n * sxx - sx**2) * (n * syy - sy**2))

    figures = np.stack([np.ones(len(known)), x, y, x * x, y * y, x * y], 1)
    return _resampled(figures, [pictures[k] for k in known], statistic)


def consistency(repeats: Sequence[Sequence[Any]], pictures: Sequence[Hashable]) -> Estimate:
    """How often a judge that is asked twice decides the same: over all pairs of repeats of an item, then over items.

    Args:
        repeats: the verdicts of each repeat, over all items.
    """
    same, where = [], []
    for verdicts, picture in zip(zip(*repeats, strict=True), pictures, strict=True):
        pairs = [a == b for a, b in combinations([v for v in verdicts if v is not None], 2)]
        if pairs:
            same.append(sum(pairs) / len(pairs))
            where.append(picture)
    return mean(same, where)


def _resampled(
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
