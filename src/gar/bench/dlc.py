"""DLC-Bench: is a detailed description of one region right, and does it keep to the region? 100 regions, 892 questions.

A judge first says whether the description names the region's class, then picks, for each question, the choice that
applies to the description; each choice has a score between -1 and 1. Where the class is not recognised, nothing counts
for the description. Positive questions ask for what is there, negative ones for what is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from gar.bench.judges import Question, read_choice
from gar.bench.statistics import Estimate, mean, proportion
from gar.bench.task import (
    NO_REPLY,
    OTHER_ANSWER,
    PUBLISHED,
    UNCLEAR,
    Benchmark,
    Item,
    Score,
    average,
    picture_for_judge,
    read_json,
)
from gar.bench.views import focal_crop

LETTERS = "abcde"  # of the published scripts
RECOGNITION = ("Yes", "No")


class DLC(Benchmark):
    name = "dlc-bench"
    title = "DLC-Bench, detailed descriptions of one region (judged)"
    annotations = "qa.json"
    source = f"{PUBLISHED}/DLC-Bench/annotations"
    files = {
        "annotations.json": "fe63b91826018e8bb7127f4cc69caf0db97d6a4b345dcaffe9dae2398af2fd29",
        "class_names.json": "1e5d2e9289013c9a2227f4a6e036207f94358c4f67d5b72f43bd0d86691c8713",
        "qa.json": "37899f4931a707db47a55118e078e8e44b9d60b25aaa9fe34bfa589aaf5504df",
    }
    wording = """\
[dlc-bench, wording 1]
Somebody described a marked object. Where pictures stand above, the first shows it with its surroundings, and the
second its mask in the same frame.
Description: $description

Which choice fits best? $question
$choices
Write the letter and the text of one choice, nothing else."""
    answer_field = "description"
    recognition = "The object is: $name. Does the description speak of that, or of something of a similar kind?"

    def items(self, path: Path) -> list[Item]:
        names = path.with_name("class_names.json")
        regions = path.with_name("annotations.json")
        class_names = read_json(names) if names.is_file() else {}
        content = read_json(regions) if regions.is_file() else {"annotations": [], "images": []}
        files = {image["id"]: image["file_name"] for image in content["images"]}
        annotations = {str(row["id"]): row for row in content["annotations"]}
        found = []
        for key, questions in read_json(path).items():
            row = annotations.get(key)
            image = f"images/{files[row['image_id']]}" if row else ""
            masks = (row["segmentation"],) if row else ()
            truth = {"name": class_names.get(key), "questions": questions}
            found.append(Item(key, image, masks, picture=image or key, truth=truth))
        return found

    def answers(self, rows: Any, items: Sequence[Item]) -> dict[str, str]:
        return {item.id: rows[item.id] for item in items if isinstance(rows.get(item.id), str)}

    def questions(self, item: Item, answer: str, wording: str, folder: Path | None) -> list[Question]:
        if item.truth["name"] is None:
            raise ValueError(f"no class_names.json with {item.id} beside {self.annotations}: the judge needs its name")
        shown: tuple[Any, ...] = ()
        if folder is not None:
            picture, regions = picture_for_judge(item, folder)
            shown = focal_crop(picture, regions[0])
        asked = [(Template(self.recognition).substitute(name=item.truth["name"]), RECOGNITION)]
        asked += [(row["question"], [text for text, _ in row["choices"]]) for row in item.truth["questions"]]
        return [
            Question(
                Template(wording).substitute(
                    description=answer,
                    question=question,
                    choices="\n".join(f"{chr(ord('A') + k)}. {text}" for k, text in enumerate(choices)),
                ),
                shown,
            )
            for question, choices in asked
        ]

    def verdicts(self, rows: Any, items: Sequence[Item], answers: dict[str, str]) -> dict[str, list[str | None] | str]:
        found: dict[str, list[str | None] | str] = {}
        for item in items:
            if (row := rows.get(item.id)) is not None:
                same = row.get("pred", answers.get(item.id)) == answers.get(item.id)
                found[item.id] = list(row["response"]) if same else OTHER_ANSWER
        return found

    def score(self, item: Item, answer: str, replies: Sequence[str | None], published: bool) -> Score:
        questions = item.truth["questions"]
        if len(replies) != 1 + len(questions):
            return Score(None, answer, f"a reply to each question is needed: {len(replies)} of {1 + len(questions)}")
        read = parse_choice if published else _read_strictly
        recognised = read(replies[0], RECOGNITION)
        verdicts = [recognised if recognised in (0, 1) else None]
        values: dict[str, list[float | None]] = {"positive": [], "negative": []}
        for question, reply in zip(questions, replies[1:], strict=True):
            choices = [text for text, _ in question["choices"]]
            index = read(reply, choices)
            verdicts.append(index if index is not None and index < len(choices) else None)
            value = None if verdicts[-1] is None else question["choices"][verdicts[-1]][1]
            values[question["type"]].append(value if value is None or recognised == 0 else min(0, value))
        parts: dict[str, float] = {}
        for kind, some in values.items():
            if some and None not in replies:
                parts[f"{kind}, as published"] = sum(value or 0 for value in some) / len(some)
            if there := [value for value in some if value is not None]:
                parts[kind] = sum(there) / len(there)
        parts["unclear"] = sum(value is None for some in values.values() for value in some)
        if recognised not in (0, 1):
            reason = NO_REPLY if replies[0] is None else f"{UNCLEAR}: {replies[0][:80]!r}"
            return Score(None, answer, reason, parts, verdicts=tuple(verdicts))
        there = [value for some in values.values() for value in some if value is not None]
        if not there:
            return Score(None, answer, f"{UNCLEAR}: none of {len(questions)}", parts, verdicts=tuple(verdicts))
        parts["recognised"] = 1 - recognised
        explanation = "" if recognised == 0 else "not recognised"
        return Score(sum(there) / len(there), answer, explanation, parts, verdicts=tuple(verdicts))

    def summary(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, Estimate]:
        there = [(item, score) for item, score in zip(items, scores, strict=True) if score.value is not None]
        some = [item for item, _ in there]
        sides = [[score.parts.get(kind) for _, score in there] for kind in ("positive", "negative")]
        positive, negative = (average(some, side) for side in sides)
        # A region without questions of one side counts for the other alone, as in the mean of both figures.
        asked = sum(figure.n > 0 for figure in (positive, negative))
        weights = [len(there) / max(figure.n, 1) / max(asked, 1) for figure in (positive, negative)]
        shares = [
            sum(weight * (value or 0) for weight, value in zip(weights, pair, strict=True))
            for pair in zip(*sides, strict=True)
        ]
        recognised = sum(score.parts["recognised"] == 1 for _, score in there)
        return {
            "average": mean(shares, [item.picture for item in some]),
            "positive": positive,
            "negative": negative,
            "recognised": proportion(recognised, len(there)),
        }

    def as_published(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, float]:
        sides = {}
        for kind in ("positive", "negative"):
            name = f"{kind}, as published"
            there = [score.parts[name] for score in scores if name in score.parts]
            sides[kind] = sum(there) / max(len(there), 1)
        if not any(name.endswith("as published") for score in scores for name in score.parts):
            return {}
        both = {"average": (sides["positive"] + sides["negative"]) / 2, **sides}
        return {name: round(value, 3) for name, value in both.items()}

    def notes(self, items: Sequence[Item], scores: Sequence[Score]) -> list[str]:
        unclear = sum(int(score.parts.get("unclear", 0)) for score in scores)
        return [f"{unclear} questions without a clear reply: left out, but 0 as published"] if unclear else []


def _read_strictly(reply: str | None, choices: Sequence[str]) -> int | None:
    try:
        return read_choice(reply or "", choices)
    except ValueError:
        return None


def parse_choice(reply: str | None, choices: Sequence[str]) -> int | None:
    """The choice that a judge means, by its place, as the published scripts read it; None where unclear, or where they
    crash. A letter may name a place that is not there.

    In this order, case and outer space ignored: the text, the letter, or both; the only choice that the reply contains;
    a letter with its dot; of several contained choices the one that ends last, then the longest; the longest choice
    that contains the reply; a letter on a line of its own.
    """
    said = (reply or "").lower().strip()
    texts = [choice.lower().strip() for choice in choices]
    for place, text in enumerate(texts):
        if said in (text, LETTERS[place : place + 1], f"{LETTERS[place : place + 1]}. {text}"):
            return place if said else None
    if len(said) < 2:
        return None
    inside = [place for place, text in enumerate(texts) if text in said]
    if len(inside) == 1:
        return inside[0]
    if said[0] in LETTERS and said[1] == ".":
        return LETTERS.index(said[0])
    if inside:
        return max(inside, key=lambda place: (said.rfind(texts[place]) + len(texts[place]), len(texts[place])))
    around = [place for place, text in enumerate(texts) if said in text]
    if around:
        return max(around, key=lambda place: len(texts[place]))
    if said[0] in LETTERS and said[1] == "\n":
        return LETTERS.index(said[0])
    return None
