"""VideoRefer-Bench: questions (Q, multiple choice) and descriptions (D, judged) about objects of videos.

Predictions are scored whatever made them. A model is run in the benchmark's single-frame mode: it sees the one frame
that has the masks, as a picture. The videos of Q are folders of frames; those of D are films, whose frames have to lie
in folders of their names ("film.mp4": "film/00057.jpg", counted from 0).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from string import Template
from typing import Any

from gar.bench.gar_bench import Choices
from gar.bench.judges import Question, read_object
from gar.bench.statistics import Estimate
from gar.bench.task import NO_REPLY, OTHER_ANSWER, UNCLEAR, Benchmark, Item, Score, average, read_json

ASPECTS = ("Subject Correspondence", "Appearance Description", "Temporal Description", "Hallucination Detection")
HIGHEST = 5
NOT_IN_FRAME = "a region that is asked about has no mask in the frame"


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What each row is called: its id, or its place where ids do not tell all rows apart."""
    ids = [str(row.get("id", index)) for index, row in enumerate(rows)]
    return ids if len({*ids}) == len(ids) else [*map(str, range(len(ids)))]


class _VideoRefer(Benchmark):
    dataset = "DAMO-NLP-SG/VideoRefer-Bench"

    def answers(self, rows: Any, items: Sequence[Item]) -> dict[str, str]:
        return {name: row["pred"] for name, row in zip(_names(rows), rows, strict=True)}


class VideoReferQ(_VideoRefer, Choices):
    name = "videorefer-bench-q"
    title = "VideoRefer-Bench-Q, multiple choice about objects of a video (one frame of it)"
    annotations = "VideoRefer-Bench-Q.json"

    def items(self, path: Path) -> list[Item]:
        found = []
        rows = read_json(path)
        for name, row in zip(_names(rows), rows, strict=True):
            numbers = count()
            marked = re.sub(r"(?:<object\d+>\s*)?<region>", lambda _, k=numbers: f"<Prompt{next(k)}>", row["Question"])
            found.append(
                Item(
                    name,
                    question=marked,
                    choices=tuple(
                        f"{letter_of(option)}. {option.partition(')')[2].strip()}" for option in row["options"]
                    ),
                    type=row["type"],
                    truth=letter_of(row["Answer"]),
                    **_frame(row, next(numbers)),
                )
            )
        return found

    def score(self, item: Item, answer: str, replies: Sequence[str | None], published: bool) -> Score:
        return super().score(item, letter_of(answer), replies, published)


def _frame(row: dict[str, Any], named: int) -> dict[str, Any]:
    """The frame that has the masks, and these, as fields of an item; of regions beyond the `named` ones, those in it.

    A region that is named and has no mask there cannot be left out: the names after it would mean others.
    """
    frame = str(row["frame_idx"])
    masks = [(one.get(frame) or {}).get("segmentation") for one in row["annotation"]]
    there = tuple(mask for mask in masks if mask is not None)
    return {
        "image": f"{row['video'].removesuffix('.mp4')}/{int(frame):05}.jpg",
        "masks": there,
        "picture": row["video"],
        "frame": frame,
        "unasked": "" if len(there) >= max(named, 1) and None not in masks[:named] else NOT_IN_FRAME,
    }


def letter_of(text: str) -> str:
    """The letter in an answer, as the published script reads it: "(B) ...", then "B)", then the first character."""
    match = re.search(r"\(([A-Z])\)", text) or re.search(r"([A-Z])\)", text)
    return match[1] if match else text.replace(".", "")[:1]


class VideoReferD(_VideoRefer):
    name = "videorefer-bench-d"
    title = "VideoRefer-Bench-D, descriptions of objects of a video (judged)"
    annotations = "VideoRefer-Bench-D.json"
    rated = True
    wording = """\
[videorefer-bench-d, wording 1]
An object of a video was described by a person, who is right, and by a model.
The person: $reference
The model: $answer

Rate the model from 0 (worst) to 5 (best) on each of these, by the person's description alone:
Subject Correspondence: does it speak of the same object?
Appearance Description: are color, shape, material and the like right?
Temporal Description: is what the object does, and how it moves, right?
Hallucination Detection: is everything that it says true? 5 means that nothing is made up.
Write one JSON object with these four names and their ratings, nothing else."""

    def items(self, path: Path) -> list[Item]:
        rows = read_json(path)
        return [
            Item(name, truth=row["caption"], **_frame(row, 0)) for name, row in zip(_names(rows), rows, strict=True)
        ]

    def references(self, item: Item) -> Sequence[str]:
        return (item.truth,)

    def questions(self, item: Item, answer: str, wording: str, folder: Path | None) -> list[Question]:
        return [Question(Template(wording).substitute(reference=item.truth, answer=answer))]

    def verdicts(self, rows: Any, items: Sequence[Item], answers: dict[str, str]) -> dict[str, list[str | None] | str]:
        found: dict[str, list[str | None] | str] = {}
        for name, row in zip(_names(rows), rows, strict=True):
            rated = json.dumps({aspect: row[aspect] for aspect in ASPECTS if aspect in row})
            found[name] = [rated] if row.get("pred", answers.get(name)) == answers.get(name) else OTHER_ANSWER
        return found

    def score(self, item: Item, answer: str, replies: Sequence[str | None], published: bool) -> Score:
        (reply,) = replies
        if reply is None:
            return Score(None, answer, NO_REPLY)
        try:
            rated = read_object(reply)
        except ValueError:
            rated = {}
        parts = {name: rated[name] for name in ASPECTS if _is_rating(rated.get(name))}
        if len(parts) < len(ASPECTS):
            return Score(None, answer, f"{UNCLEAR}: {reply[:80]!r}")
        return Score(sum(parts.values()) / len(ASPECTS), answer, "", parts, verdicts=tuple(parts.values()))

    def summary(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, Estimate]:
        aspects = {name: average(items, [score.parts.get(name) for score in scores]) for name in ASPECTS}
        return {"average": average(items, [score.value for score in scores]), **aspects}

    def highest(self, figure: str) -> float | None:
        return HIGHEST


def _is_rating(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= HIGHEST
