"""GAR-Bench: multiple choice about regions (424 items), and captions of relations, simple (97) and detailed (107).

The multiple choice counts an answer that equals the right letter, upper or lower case. A caption is right or wrong by a
judge, who sees the picture, and each region cut out and masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from gar.bench.judges import LETTERS, Question
from gar.bench.statistics import Estimate, letter_prior, proportion
from gar.bench.task import (
    NO_REPLY,
    OTHER_ANSWER,
    PUBLISHED,
    UNCLEAR,
    Benchmark,
    Item,
    Score,
    picture_for_judge,
    read_json,
)
from gar.bench.views import focal_crop


class Choices(Benchmark):
    """Multiple choice: an answer is right that equals the right letter, in either case."""

    judged = False

    def score(self, item: Item, answer: str, replies: Sequence[str | None], published: bool) -> Score:
        right = answer.lower() == item.truth.lower()
        return Score(float(right), answer, "" if right else f"{item.truth} is right")

    def summary(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, Estimate]:
        figures = {}
        for name, kinds in self._types(items).items():
            some = [score for item, score in zip(items, scores, strict=True) if item.type in kinds]
            figures[name] = share(some)
        return figures

    def as_published(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, float]:
        figures = self.summary(items, scores)
        return {name: round(100 * figure.value, 1) for name, figure in figures.items() if figure.n}

    def _types(self, items: Sequence[Item]) -> dict[str, set[str]]:
        kinds = sorted({item.type for item in items})
        return {"accuracy": set(kinds), **{kind: {kind} for kind in kinds if kind != "accuracy"}}

    def guess(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, float]:
        """Always the most frequent right letter of each type."""
        there = [item for item, score in zip(items, scores, strict=True) if score.value is not None]
        prior = letter_prior([item.truth for item in there], [item.type for item in there])
        return {
            name: sum(prior[kind][1] for kind in kinds if kind in prior) / count
            for name, kinds in self._types(items).items()
            if (count := sum(item.type in kinds for item in there))
        }


class _GARBench(Benchmark):
    """What the three parts share: a list of objects that predictions repeat and extend by "model_output".

    An item is named by its index; one that `gar bench build` made has an "id" of its own.
    """

    self_contained = True
    source = f"{PUBLISHED}/GAR-Bench/annotations"

    def items(self, path: Path) -> list[Item]:
        return [self._item(str(row.get("id", index)), row) for index, row in enumerate(read_json(path))]

    def _item(self, index: str, row: dict[str, Any]) -> Item:
        raise NotImplementedError

    def answers(self, rows: Any, items: Sequence[Item]) -> dict[str, str]:
        said = _by_key(rows, lambda row: str(row.get("id", row["image"])))
        mine = [(item, said[key]) for item in items for key in (item.id, item.image) if key in said]
        for item, row in mine:
            if row.get("question", item.question) != item.question:
                raise ValueError(f"item {item.id} is another question there: give the folder of its items with --data")
        return {item.id: row["model_output"] for item, row in mine}


def _by_key(rows: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], str]) -> dict[str, dict[str, Any]]:
    """Rows by what names their item. Raises ValueError where two that differ have the same name."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if found.setdefault(key(row), row) != row:
            raise ValueError(f'two rows about {key(row)}: give each item, and its rows, an "id" of its own')
    return found


class VQA(_GARBench, Choices):
    name = "gar-bench-vqa"
    title = "GAR-Bench, multiple choice about one or many regions"
    annotations = "GAR-Bench-VQA.json"
    files = {annotations: "442701d1143cb1004a9e72d2ba0945bcfc5c1bf88b57d010cebe4dc1ef532827"}

    def _item(self, index: str, row: dict[str, Any]) -> Item:
        letters = [str(choice)[:3] for choice in row["choices"]]
        if letters != [f"{letter}. " for letter in LETTERS[: len(letters)]]:
            raise ValueError(f'item {index}: the choices begin with {letters}, expected "A. ", "B. " and so on')
        if row["answer"] not in [*LETTERS[: len(letters)]]:
            raise ValueError(f"item {index}: the answer is {row['answer']!r}, expected the letter of a choice")
        return Item(
            index,
            row["image"],
            tuple(row["mask_rles"]),
            row["question"],
            tuple(row["choices"]),
            row["type"],
            row.get("image_path", row["image"]),
            row["answer"],
        )


class _Caption(_GARBench):
    """A caption that a judge calls true or false."""

    def verdicts(self, rows: Any, items: Sequence[Item], answers: dict[str, str]) -> dict[str, list[str | None] | str]:
        by_image = _by_key(rows, lambda row: row["image"])
        found: dict[str, list[str | None] | str] = {}
        for item in items:
            if (row := by_image.get(item.image)) is not None:
                same = row.get("model_output", answers.get(item.id)) == answers.get(item.id)
                found[item.id] = [row["eval_result"]] if same else OTHER_ANSWER
        return found

    def questions(self, item: Item, answer: str, wording: str, folder: Path | None) -> list[Question]:
        text = Template(wording).substitute(item.truth, question=item.question, answer=answer)
        if folder is None:
            return [Question(text)]
        picture, regions = picture_for_judge(item, folder)
        shown = [picture]
        for region in regions:
            shown += focal_crop(picture, region)
        return [Question(text, tuple(shown))]

    def score(self, item: Item, answer: str, replies: Sequence[str | None], published: bool) -> Score:
        (reply,) = replies
        if reply is None:
            return Score(None, answer, NO_REPLY)
        said = reply.strip().rstrip(".").lower()
        if said not in ("true", "false"):
            return Score(None, answer, f"{UNCLEAR}: {reply[:80]!r}")
        right = said == "true"
        return Score(float(right), answer, f"the judge says {said}", verdicts=(right,))

    def summary(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, Estimate]:
        return {"accuracy": share(scores)}

    def as_published(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, float]:
        """What is not exactly "True" is false."""
        judged = [score for score in scores if score.replies and score.replies[0] is not None]
        right = sum(score.replies == ("True",) for score in judged)
        return {"accuracy": round(right / len(judged), 4)} if judged else {}


class Simple(_Caption):
    name = "gar-bench-caption-simple"
    title = "GAR-Bench, one sentence on how regions relate (judged)"
    annotations = "GAR-Bench-Caption-Simple.json"
    files = {annotations: "0d3efcea2057eeba3915d62b0986f3d00ddc990a3a42fdf4724013af5c20d26c"}
    wording = """\
[gar-bench-caption-simple, wording 1]
You see a picture, then for each marked object its surroundings and its mask within them, in the order <Prompt0>,
<Prompt1> and so on.
Asked "$question", somebody wrote a correct answer and a model wrote another one.
Correct answer: $truth
Model's answer: $answer
Does the model's answer say the same about the marked objects? Other words of the same sense are fine; objects that
have changed places are not.
Write one word: True or False."""

    def _item(self, index: str, row: dict[str, Any]) -> Item:
        truth = {"truth": row["answer"]}
        picture = row.get("image_path", row["image"])
        return Item(index, row["image"], tuple(row["mask_rles"]), row["question"], picture=picture, truth=truth)

    def references(self, item: Item) -> Sequence[str]:
        return (item.truth["truth"],)


class Detailed(_Caption):
    name = "gar-bench-caption-detailed"
    title = "GAR-Bench, a description of one region that tells its relation to another (judged)"
    annotations = "GAR-Bench-Caption-Detailed.json"
    files = {annotations: "4c8d016aecce6f37c01ad9f94591e5818a0ddc6e2b8f718c316a6a2fb78a80e1"}
    wording = """\
[gar-bench-caption-detailed, wording 1]
You see a picture, then for each marked object its surroundings and its mask within them: first <Prompt0>, which is
the subject, then <Prompt1>, which is the object.
A model described the subject: $answer
Check two things. It must speak of the subject, "$subject_name". And it must tell that the relation of the subject to
the object, "$object_name", is "$predicate_name", in whatever words.
Write one word: True where both hold, otherwise False."""

    def _item(self, index: str, row: dict[str, Any]) -> Item:
        truth = {name: row[name] for name in ("subject_name", "object_name", "predicate_name")}
        question = "Describe <Prompt0> in detail, including the relationship with <Prompt1>."
        return Item(index, row["image"], tuple(row["mask_rles"]), question, picture=row["image"], truth=truth)


def share(scores: Sequence[Score]) -> Estimate:
    """The share of right ones among those that are scored."""
    values = [score.value for score in scores if score.value is not None]
    return proportion(sum(value == 1 for value in values), len(values))
