"""Examine a model on rendered scenes: answers against the scene's truth, by type of question.

Each question is put as a user would put it: the picture, the regions it names and no others, the options if it has
some. Knows predictor and grammar; knows nothing of how the model was trained.
"""

from __future__ import annotations

import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from gar.data.packing import named, renumber
from gar.data.sample import Sample, Turn
from gar.predictor import Predictor
from gar.regions import Region
from gar.scenes.grammar import check_caption, normalise
from gar.scenes.world import held_out

CAPTIONS = ("caption", "detailed", "relational")


@dataclass(frozen=True)
class Mark:
    """One question, answered. `guess` is what a guesser who sees neither picture nor question has to hit: the place of
    the right option, as a letter, or the word. `facts`: how many true facts a caption states."""

    type: str
    question: str
    truth: str
    answer: str
    right: bool
    guess: str
    options: bool
    facts: int = 0


def examine(
    predictor: Predictor, samples: Sequence[Sample], per_scene: int = 8, seed: int = 0, hide: bool = False
) -> list[Mark]:
    """Ask up to `per_scene` questions of each scene, as evenly over the types as it allows.

    Of scenes of the split "unseen", only such as name a thing whose combination no training scene has.

    Args:
        hide: paint everything outside the question's regions gray, to see what a type needs from the context.

    Raises:
        ValueError: a caption is asked for, and the record has no facts to hold it against.
    """
    marks = []
    asked: Counter[str] = Counter()
    for index, sample in enumerate(
        track(samples, "asking", console=Console(stderr=True), disable=not sys.stderr.isatty())
    ):
        rng = random.Random(f"{seed}/{index}")
        turns = rng.sample(sample.turns, len(sample.turns))
        if sample.meta.get("split") == "unseen":
            things = sample.meta["things"]
            unseen = {i for i, t in enumerate(things) if held_out(t["color"], t["category"], t["material"])}
            turns = [turn for turn in turns if named(turn) & unseen]
        for _ in range(min(per_scene, len(turns))):
            turn = min(turns, key=lambda t: asked[t.type])
            turns.remove(turn)
            asked[turn.type] += 1
            marks.append(_ask(predictor, sample, turn, hide))
    return marks


def _ask(predictor: Predictor, sample: Sample, turn: Turn, hide: bool) -> Mark:
    regions = sorted(named(turn))
    numbers = {region: k for k, region in enumerate(regions)}
    prompts = [Region.rle(sample.masks[i]) for i in regions]
    picture: Any = sample.picture()
    if hide and regions:
        picture = _hidden(picture, prompts)
    truth = renumber(turn.answer, numbers)
    choices = [renumber(c, numbers) for c in turn.choices] or None
    answer = predictor.ask(picture, renumber(turn.question, numbers), prompts, choices, max_new_tokens=80).text
    facts = 0
    if turn.type in CAPTIONS:
        if "things" not in sample.meta:
            raise ValueError("a record with captions has no facts: give shards that `gar scenes render` wrote")
        back = {k: region for region, k in numbers.items()}
        about = int(re.findall(r"<Prompt(\d+)>", turn.question)[0])  # others are what it is related to
        meant = named(Turn("", answer)) <= set(back)  # a region that it was not given is none
        true, false = check_caption(renumber(answer, back), sample.meta, about) if meant else ([], ["another region"])
        right, facts = not false, len(true)
    elif choices:
        right = answer == truth
    else:
        right = normalise(answer) == normalise(truth)
    guess = "ABCDEF"[turn.choices.index(turn.answer)] if turn.choices else normalise(truth)
    return Mark(turn.type, turn.question, truth, answer, right, guess, bool(choices), facts)


def _hidden(picture: Any, prompts: list[Region]) -> Any:
    import numpy as np

    pixels = np.asarray(picture).copy()
    height, width = pixels.shape[:2]
    keep = np.logical_or.reduce([p.locate(width, height).mask for p in prompts])
    pixels[~keep] = 128
    return pixels


def interval(right: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a proportion."""
    if not total:
        return 0.0, 1.0
    z, p = 1.96, right / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def report(marks: Sequence[Mark]) -> dict[str, dict[str, Any]]:
    """By type: n, the share of right answers with its interval, and the share that always the commonest place (of
    questions with options) or the commonest word (of those without) would get; of captions how many true facts one
    states, since one that says little is easily right."""
    groups: dict[str, list[Mark]] = defaultdict(list)
    for mark in marks:
        groups[mark.type].append(mark)
    rows = {}
    for name in sorted(groups):
        group = groups[name]
        right = sum(m.right for m in group)
        low, high = interval(right, len(group))
        guesses = [Counter(m.guess for m in group if m.options is kind) for kind in (True, False)]
        commonest = sum(max(g.values(), default=0) for g in guesses) / len(group)
        rows[name] = {
            "n": len(group),
            "right": round(right / len(group), 4),
            "ci95": [round(low, 4), round(high, 4)],
            "majority": None if name in CAPTIONS else round(commonest, 4),
            "facts": round(sum(m.facts for m in group) / len(group), 2) if name in CAPTIONS else None,
        }
    return rows


def table(rows: dict[str, dict[str, Any]]) -> Table:
    """`report` for people."""
    shown = Table("type", "n", "right", "95 %", "majority", "true facts")
    for name, row in rows.items():
        low, high = row["ci95"]
        majority, facts = (
            "" if row[key] is None else format(row[key], of) for key, of in (("majority", ".3f"), ("facts", ".1f"))
        )
        shown.add_row(name, str(row["n"]), f"{row['right']:.3f}", f"{low:.3f}-{high:.3f}", majority, facts)
    return shown
