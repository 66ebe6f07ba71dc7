"""Ferret-Bench, referring description: 40 regions; a judge rates a reference and the model's text, 1 to 10 each.

The score is 100 times the mean rating of the model's texts over that of the references, so a judge who likes
references less flatters the model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from gar.bench.judges import Question, read_two_numbers
from gar.bench.statistics import Estimate, ratio
from gar.bench.task import NO_REPLY, OTHER_ANSWER, PUBLISHED, UNCLEAR, Benchmark, Item, Score, average, read_json

JUDGE_DATA = "ferret_gpt4_data/refer_desc"


class Ferret(Benchmark):
    name = "ferret-bench"
    title = "Ferret-Bench, referring description (judged)"
    annotations = "box_refer_caption.json"
    rated = True
    source = f"{PUBLISHED}/Ferret-Bench"
    files = {
        "annotations/box_refer_caption.json": "87a335dfae3c6e7742c5abd9872931c3dc0401550556eb5daba786543d562d84",
        f"{JUDGE_DATA}/answer.jsonl": "c5b3e73db1be1205fec2699827b41516fe842e7f477a89ecdbc0776d2a9f8cdd",
        f"{JUDGE_DATA}/context.jsonl": "cd86daab72b6d35b8bfca3cfb71d04cec4794d52be792e301093ece073debf92",
        f"{JUDGE_DATA}/question.jsonl": "1856c1a069d9f08257b23a18c03048bdb3d9c09b10ac613a140010a2b051c997",
    }
    wording = """\
[ferret-bench, wording 1]
You cannot see the picture. This is known of it (boxes are x0, y0, x1, y1 in 0..1):
$context

A question about a region of it: $question
Answer 1: $reference
Answer 2: $answer

Rate each answer from 1 to 10 by how well it fits the region and its surroundings, helps, keeps to the point, is
correct and detailed. Do not let the order or the length of the answers decide.
First line: the two ratings, that of answer 1 first, with one space between them and nothing else. Then your reasons."""

    def items(self, path: Path) -> list[Item]:
        folder = path.parent.parent / JUDGE_DATA
        texts: dict[str, dict[int, str]] = {}
        for name in ("question", "context", "answer"):
            rows = read_json(folder / f"{name}.jsonl") if (folder / f"{name}.jsonl").is_file() else []
            texts[name] = {row["question_id"]: row["text"] for row in rows}
        found = []
        for row in read_json(path):
            number, annotation = row["question_id"], row["annotation"]
            x, y, width, height = annotation["bbox"]
            shape = annotation.get("segmentation")
            mask = shape if isinstance(shape, dict) else {"box": [x, y, x + width, y + height]}
            image = f"coco/val2017/{row['image']}"
            truth = {name: texts[name].get(number, "") for name in texts}
            found.append(Item(str(number), image, (mask,), picture=row["image"], truth=truth))
        return found

    def references(self, item: Item) -> Sequence[str]:
        return (item.truth["answer"],) if item.truth["answer"] else ()

    def answers(self, rows: Any, items: Sequence[Item]) -> dict[str, str]:
        """Of the model's outputs (the picture's path has lost its last separator), or of the judge's answer file."""
        named = [(row.get("image_path") or row["image"], row.get("caption", row.get("text"))) for row in rows]
        return {
            item.id: postprocess(str(text))
            for item in items
            for path, text in named
            if text is not None and path.endswith(item.picture)
        }

    def questions(self, item: Item, answer: str, wording: str, folder: Path | None) -> list[Question]:
        if not item.truth["answer"]:
            raise ValueError(f"no {JUDGE_DATA} beside the folder of annotations: the judge needs its three files")
        texts = {"context": item.truth["context"], "question": item.truth["question"]}
        return [Question(Template(wording).substitute(texts, reference=item.truth["answer"], answer=answer))]

    def verdicts(self, rows: Any, items: Sequence[Item], answers: dict[str, str]) -> dict[str, list[str | None] | str]:
        by_number = {str(row["question_id"]): row for row in rows}
        found: dict[str, list[str | None] | str] = {}
        for item in items:
            if (row := by_number.get(item.id)) is not None:
                same = row.get("answer2", answers.get(item.id)) == answers.get(item.id)
                found[item.id] = [row["content"]] if same else OTHER_ANSWER
        return found

    def score(self, item: Item, answer: str, replies: Sequence[str | None], published: bool) -> Score:
        return rate(answer, replies, published)

    def summary(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, Estimate]:
        return ratings_summary(items, scores)

    def as_published(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, float]:
        reference, rating = published_means(scores)
        return {"score": round(100 * rating / reference, 1)} if reference > 0 else {}

    def highest(self, figure: str) -> float | None:
        return None if figure == "score" else 10


def rate(answer: str, replies: Sequence[str | None], published: bool) -> Score:
    """An answer's worth by the reply of a judge who rated a reference and it."""
    (reply,) = replies
    if reply is None:
        return Score(None, answer, NO_REPLY)
    try:
        ratings = parse_ratings(reply) if published else read_two_numbers(reply)
    except ValueError:
        return Score(None, answer, f"{UNCLEAR}: {reply[:80]!r}")
    why, parts = reply.partition("\n")[2].strip(), {"reference": ratings[0]}
    return Score(ratings[1], answer, why, parts, verdicts=(ratings[1],))


def parse_ratings(reply: str) -> tuple[float, float]:
    """The ratings at the head of a reply's first line, as the published script reads them: "7,4" and "7 4" but not
    "7, 4", for one space or comma alone parts the two.

    Raises:
        ValueError: it cannot read them, and takes both for -1.
    """
    words = reply.split("\n")[0].replace(",", " ").split(" ")
    ratings = [float(word) for word in words[:2]]
    if len(ratings) < 2 or not all(map(math.isfinite, ratings)):
        raise ValueError(f"{reply[:80]!r} does not begin with two ratings")
    return ratings[0], ratings[1]


def postprocess(text: str) -> str:
    """A text without the coordinates [..] that stand after a space."""
    return re.sub(r" \[[^\]]*\]", "", text)


def ratings_summary(items: Sequence[Item], scores: Sequence[Score]) -> dict[str, Estimate]:
    """The score in percent of the references' rating, and both mean ratings."""
    there = [(item, score) for item, score in zip(items, scores, strict=True) if score.value is not None]
    some = [item for item, _ in there]
    rated, references = [score.value or 0 for _, score in there], [score.parts["reference"] for _, score in there]
    return {
        "score": ratio(rated, references, [item.picture for item in some], scale=100),
        "rating": average(some, rated),
        "reference rating": average(some, references),
    }


def published_means(scores: Sequence[Score]) -> tuple[float, float]:
    """Mean ratings of references and texts, to three places, with -1 for each that cannot be parsed."""
    rated = [
        (score.parts.get("reference", -1.0), -1.0 if score.value is None else score.value)
        for score in scores
        if score.value is not None or score.explanation.startswith(UNCLEAR)
    ]
    if not rated:
        return 0.0, 0.0
    first, second = (round(sum(side) / len(rated), 3) for side in zip(*rated, strict=True))
    return first, second
