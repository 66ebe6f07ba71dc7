"""Can a judge be relied on? Its agreement with another judge, with itself, and its liking of long answers.

A verdict is whatever a judge decided about an item: a letter, True, a rating. None is unscored: such items are left out
and are missing from an estimate's `n`. Intervals resample pictures. Knows lists of verdicts, and scored runs
(`gar.bench.report`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from gar.bench.catalog import benchmark
from gar.bench.statistics import Estimate, mean, resampled

WHO = ("name", "wording", "digest", "text_only")  # what makes a judge, of the record of a scored run


def agreement(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How judges agree on the answers that all of them judged, with each other and with themselves.

    Args:
        runs: scored runs (`gar.bench.report.read_scored`) of the same answers, each by another judge, or by one that
            was asked again (`--repeat`).

    Returns:
        {"benchmark", "n": answers, "left_out": items on which the runs do not hold one and the same answer, "judges":
        [{"name", "wording", "digest" of that, "text_only", "repeats", "consistency" where it has repeats,
        "length_bias"}], "pairs": [{"judges": [i, k], "kappa", "length_bias" of k's scores less i's}]}. A model asked
        in other words, or without pictures, is another judge. Bias and pairs are about the first repeat given.
        Ratings have the squared kappa. Several verdicts on an answer (DLC-Bench) count one by one, but for the bias,
        which is that of the answer's score.

    Raises:
        ValueError: two benchmarks; a run without a judge; the same replies twice; no answer in common.
    """
    name = runs[0]["benchmark"]
    repeats: dict[tuple[Any, ...], list[int]] = {}
    for k, run in enumerate(runs):
        if run["benchmark"] != name:
            raise ValueError(f"runs of {name} and of {run['benchmark']}: judges are compared on one benchmark")
        if "judge" not in run:
            raise ValueError(f"{run['predictions']} was scored without a judge: give --judge or --verdicts, and --out")
        mine = repeats.setdefault(tuple(map(run["judge"].get, WHO)), [])
        if run["judge"] in [runs[other]["judge"] for other in mine]:
            raise ValueError(f"the same replies of {run['judge']['name']} twice: ask again with `--repeat {len(mine)}`")
        mine.append(k)
    by_id = [{row["id"]: row for row in run["items"]} for run in runs]
    said = {item: {rows[item]["answer"] if item in rows else "" for rows in by_id} for item in by_id[0]}
    same = [item for item, answers in said.items() if len(answers) == 1 and answers != {""}]
    if not same:
        raise ValueError("no answer is the same in all runs: judges are compared on the same answers")
    judged = [[rows[item] for item in same] for rows in by_id]
    firsts = [judged[mine[0]] for mine in repeats.values()]
    judges = []
    for (who, mine), first in zip(repeats.items(), firsts, strict=True):
        found: dict[str, Any] = {**dict(zip(WHO, who, strict=True)), "repeats": len(mine)}
        if len(mine) > 1:
            found["consistency"] = consistency(*_verdicts([judged[k] for k in mine])).json()
        judges.append(found | {"length_bias": _length_bias([row["value"] for row in first], first)})
    rated = benchmark(name).rated
    both = combinations(range(len(firsts)), 2)
    pairs = [{"judges": [i, k], **_pair(firsts[i], firsts[k], rated)} for i, k in both]
    return {"benchmark": name, "n": len(same), "left_out": len(said) - len(same), "judges": judges, "pairs": pairs}


def _pair(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], rated: bool) -> dict[str, Any]:
    (one, other), pictures = _verdicts([first, second])
    values = [(a["value"], b["value"]) for a, b in zip(first, second, strict=True)]
    apart = [None if a is None or b is None else b - a for a, b in values]
    return {"kappa": kappa(one, other, pictures, rated).json(), "length_bias": _length_bias(apart, first)}


def _verdicts(judged: Sequence[Sequence[dict[str, Any]]]) -> tuple[list[list[Any]], list[Hashable]]:
    """The verdicts of each run in one row, None where one has none, and the picture of each."""
    columns: list[list[Any]] = [[] for _ in judged]
    pictures = []
    for rows in zip(*judged, strict=True):
        most = max(len(row["verdicts"]) for row in rows)
        for column, row in zip(columns, rows, strict=True):
            column += [*row["verdicts"], *[None] * (most - len(row["verdicts"]))]
        pictures += [rows[0]["picture"]] * most
    return columns, pictures


def _length_bias(values: Sequence[float | None], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return length_bias(values, [row["answer"] for row in rows], [row["picture"] for row in rows]).json()


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

    return resampled(tables.reshape(len(known), size * size), [pictures[k] for k in known], statistic)


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
    return resampled(figures, [pictures[k] for k in known], statistic)


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
