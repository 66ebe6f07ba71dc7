"""What a benchmark is, how a model is run on one, and how its answers become scores.

A benchmark is one short file: a `Benchmark` that reads its published files, puts the questions for a judge and scores
an answer. Everything that benchmarks share is here. Knows pictures, regions and a predictor's public door; knows no
benchmark, no judge's endpoint and no statistics of two runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from string import Template
from typing import IO, TYPE_CHECKING, Any, TypeVar

from PIL import Image

from gar.bench.captions import figures_beside
from gar.bench.judges import LETTERS, Judge, NoReply, Question, Reply, Stopped, ask_all, side_by_side
from gar.bench.statistics import Estimate, mean
from gar.bench.views import AMONG_OTHERS, FEATURE_VIEWS, TOLD, VIEWS, sharing, unchanged
from gar.regions import Located, Region, load_image, prompt_name

if TYPE_CHECKING:
    from gar.bench.rivals import Rival
    from gar.predictor import Predictor

T = TypeVar("T")
PUBLISHED = "https://raw.githubusercontent.com/Haochen-Wang409/Grasp-Any-Region/main/evaluation"
OSPREY = "sunshine-lwt/Osprey-ValData"
DESCRIBE = "Describe {} in detail."
SILENT = 8  # items or questions without a reply, and none with one, after which an endpoint is asked no more
ORDERS = ("as-is", "circular", "balanced")
MANY = ("left-out", "as-published")  # what to do with more regions than a model can mark
AT = "@"  # between an item and the rotation of its choices
CACHE = Path("~/.cache/gar/bench").expanduser()
NO_ANSWER, NO_VERDICT, OTHER_ANSWER = "no answer", "no verdict", "the verdict is about another answer"
PASSING = "no reply for now: run again to ask"
REFUSED = "picture, regions or question are refused"
NO_PICTURE, DAMAGED = "the picture is missing", "the picture is damaged"
NO_REGION = "there is no region to describe"
NO_REPLY, UNCLEAR = "the judge did not reply", "the judge's reply cannot be parsed"


@dataclass(frozen=True)
class Item:
    """One thing that a model is asked.

    id: names it within its benchmark.
    image: the picture's file, from the folder of the annotations.
    masks: its regions `<Prompt0>`, `<Prompt1>`, ..., in pixels of the picture: COCO RLEs, or {"box": [x0, y0, x1, y1]}.
    question: what is asked; None asks for a description of each region.
    choices: the options with their letters ("A. red").
    picture: what the file shows: items of one picture may have files of their own. Intervals resample pictures.
    truth: what an answer is measured by, in the benchmark's own form.
    frame: of a video, where `picture` names that.
    unasked: why no model can be asked this, where so; answers to it can be scored.
    """

    id: str
    image: str
    masks: tuple[dict[str, Any], ...]
    question: str | None = None
    choices: tuple[str, ...] = ()
    type: str = ""
    picture: str = ""
    truth: Any = None
    frame: str = ""
    unasked: str = ""

    def regions(self) -> list[Region]:
        """The regions as prompts. Raises ValueError where one is malformed."""
        return [Region.box(*mask["box"]) if "box" in mask else Region.rle(mask) for mask in self.masks]

    def located(self, picture: Image.Image) -> list[Located]:
        """The regions in the item's picture. Raises ValueError where one is malformed, or of another picture."""
        return [region.locate(*picture.size) for region in self.regions()]

    def why_not(self, folder: Path) -> str:
        """Why a model cannot be asked this, with the pictures of a folder; empty where it can."""
        if self.unasked or not (self.image and (folder / self.image).is_file()):
            return self.unasked or NO_PICTURE
        return NO_REGION if self.question is None and not self.masks else ""


@dataclass(frozen=True)
class Score:
    """What an answer is worth.

    value: None is "unscored", which is not 0; `explanation` then says why, what comes before a colon being the reason
        that such items are counted under.
    parts: further figures of the item, by name.
    replies: what the judge said, or None where it gave no reply.
    verdicts: what it decided by that (a choice, True, a rating), each None where it is not clear; empty where none is.
    """

    value: float | None
    answer: str
    explanation: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    replies: tuple[str | None, ...] = ()
    verdicts: tuple[Any, ...] = ()


class Benchmark:
    """A benchmark's files, protocol and arithmetic. Each file of this folder that is named after one holds it."""

    name: str
    title: str
    annotations: str
    """The file that marks the folder of the published data, and holds the items."""
    judged = True
    rated = False
    """A judge's verdicts are ratings, of which neighbours are nearly the same."""
    wording = ""
    """The judge's question with `$fields` (`string.Template`), in our own words; its first line is its version."""
    recognition = ""
    """What the judge is asked beside the questions of the items, where it is anything."""
    answer_field = "answer"
    """The field of the wording that stands for what is judged."""
    self_contained = False
    """A published predictions file repeats the annotations."""
    source = ""
    """The address before the names of `files`."""
    files: dict[str, str] = {}
    """The published files that `gar bench fetch` downloads, with their SHA-256."""
    dataset = ""
    """Or the data set of the hub that holds the annotations, at any depth."""

    def items(self, path: Path) -> list[Item]:
        """All items, from the file of annotations and those beside it."""
        raise NotImplementedError

    def references(self, item: Item) -> Sequence[str]:
        """Texts that an answer can be measured beside without a judge (`gar.bench.captions`)."""
        return ()

    def answers(self, rows: Any, items: Sequence[Item]) -> dict[str, str]:
        """Answers by item, from the parsed content of a published predictions file."""
        raise NotImplementedError

    def questions(self, item: Item, answer: str, wording: str, folder: Path | None) -> list[Question]:
        """What a judge has to be asked about an answer. Without a folder, no pictures.

        Raises:
            MissingPicture: it is to be shown one that is not there.
        """
        return []

    def verdicts(self, rows: Any, items: Sequence[Item], answers: dict[str, str]) -> dict[str, list[str | None] | str]:
        """The published judge's replies by item, one for each question; or why an item has none."""
        raise ValueError(f"{self.name} has no judge, so it takes no verdicts")

    def score(self, item: Item, answer: str, replies: Sequence[str | None], published: bool) -> Score:
        """An answer's worth, by the judge's replies (None: it gave none) to `questions`.

        published: read the replies as the published script does, instead of strictly.
        """
        raise NotImplementedError

    def finish(self, items: Sequence[Item], scores: Sequence[Score]) -> list[Score]:
        """The scores, completed by what is known of an item only beside all others."""
        return list(scores)

    def summary(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, Estimate]:
        """The figures, without what is unscored."""
        return {"score": average(items, [score.value for score in scores])}

    def as_published(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, float]:
        """The figures by the published arithmetic: its rounding, and its value for replies that cannot be parsed."""
        return {}

    def guess(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, float]:
        """By figure, what one who sees neither picture nor question would get on the scored items."""
        return {}

    def highest(self, figure: str) -> float | None:
        """The best value that there can be; None where no bound is known. For plots."""
        return 1

    def notes(self, items: Sequence[Item], scores: Sequence[Score]) -> list[str]:
        """What a reader of the figures has to know."""
        return []


class MissingPicture(ValueError):
    """A judge is to be shown a picture that is not there, is damaged, or has no such regions."""


def picture_for_judge(item: Item, folder: Path) -> tuple[Image.Image, list[Located]]:
    """The picture of an item, and its regions. Raises MissingPicture."""
    if not item.image or not (folder / item.image).is_file():
        raise MissingPicture(f"{NO_PICTURE}: give its folder with --data, or --text-only to judge by the words alone")
    try:
        picture = load_image(folder / item.image)
    except ValueError as error:
        raise MissingPicture(f"{DAMAGED}: {error}") from error
    try:
        return picture, item.located(picture)
    except ValueError as error:
        raise MissingPicture(f"{REFUSED}: {error}") from error


def average(items: Sequence[Item], values: Sequence[float | None]) -> Estimate:
    """The mean of the values that there are, resampled by pictures."""
    there = [(value, item.picture) for item, value in zip(items, values, strict=True) if value is not None]
    return mean([value for value, _ in there], [picture for _, picture in there])


def load(benchmark: Benchmark, data: Path | None, predictions: Path | None = None) -> tuple[list[Item], Path]:
    """All items, and the folder that their pictures are named from.

    Args:
        data: the folder of the published files, or one up to two levels above it, or the file of annotations itself.
            Without it: four folders that hold the predictions, and those in them; then where `gar bench fetch` puts
            the files; then the predictions themselves, where they repeat the annotations.

    Raises:
        ValueError: there are no annotations, or they are not of this benchmark, or hold no item; an item has no name
            of its own.
    """
    name = benchmark.annotations
    if data is not None and not data.exists():
        raise ValueError(f"--data {data}: no such folder")
    if data is not None and data.is_file():
        places = [data]
    elif data is not None:
        places = [path for depth in ("", "*/", "*/*/") for path in sorted(data.glob(depth + name))]
    else:
        folders = list(predictions.absolute().parents)[:4] if predictions else []
        folders.append(CACHE / benchmark.name)
        places = [path for folder in folders for depth in ("", "*/") for path in sorted(folder.glob(depth + name))]
        if not places and predictions and benchmark.self_contained:
            places = [predictions]
    if not places:
        looked = f"in {data} or the two levels below it" if data else f"in {CACHE / benchmark.name}"
        looked += " or beside the predictions" if predictions and not data else ""
        way = f"give the folder with --data DIR, or download it by `gar bench fetch {benchmark.name}`"
        raise ValueError(f"no {name} {looked}: {way}")
    try:
        items = benchmark.items(places[0])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{places[0]}: not the annotations of {benchmark.name}: {_missing(error)}") from error
    refuse_names(places[0], [(item.id, item.type) for item in items])
    return items, places[0].parent


def refuse_names(path: Path, items: Sequence[tuple[Any, Any]]) -> None:
    """Raise ValueError where a file has no items, or their ids and types are not such that each counts for itself."""
    if not items:
        raise ValueError(f"{path}: there is no item")
    seen = set()
    for name, kind in items:
        if not isinstance(name, str) or AT in name or name in seen:
            raise ValueError(f"{path}: the id {name!r}: expected a text without {AT} that no other item has")
        if not isinstance(kind, str):
            raise ValueError(f"{path}: the type of item {name} is {kind!r}, expected a text")
        seen.add(name)


def refuse_overwrite(out: Path, *inputs: Path | None) -> None:
    """Raise ValueError where a file that is read would be lost by what is written."""
    if out.resolve() in (path.resolve() for path in inputs if path):
        raise ValueError(f"{out} is read here and would be lost: give another name, so that it stays")


def read_text(path: Path) -> str:
    """A text of UTF-8. Raises ValueError where it is of another encoding."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from error


def read_json(path: Path) -> Any:
    """A JSON file, or the list of a JSON Lines file's lines (of one that is named so, even where there is only one)."""
    text = read_text(path)
    try:
        content = json.loads(text)
        return [content] if path.suffix == ".jsonl" and isinstance(content, dict) else content
    except ValueError:
        pass
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # other ends of lines may stand in a text
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise ValueError(f"{path}: neither JSON nor JSON Lines: line {number}: {error}") from error
    return rows


def read_answers(benchmark: Benchmark, path: Path, items: Sequence[Item]) -> dict[str, str]:
    """Answers by item, from a file that `run` wrote or a published one.

    Raises:
        ValueError: the file is of another benchmark, or of other items, or holds no answer to any of these.
    """
    rows = read_json(path)
    if (facts := _run_facts(rows)) is None:
        try:
            answers = benchmark.answers(rows, items)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path}: not a predictions file of {benchmark.name}: {_missing(error)}") from error
    elif facts["benchmark"] != benchmark.name:
        raise ValueError(f"{path}: a run of {facts['benchmark']}, not of {benchmark.name}")
    else:
        known = {item.id for item in items}
        answers = {row["id"]: row["answer"] for row in rows[1:] if "answer" in row and row["id"] in known}
    if not answers:
        raise ValueError(f"{path}: no answer to any item of {benchmark.name}")
    if wrong := [name for name, text in answers.items() if not isinstance(text, str | None)]:
        raise ValueError(f"{path}: the answer to {wrong[0]} is {answers[wrong[0]]!r}, expected a text")
    return {name: text for name, text in answers.items() if text is not None}


def _run_facts(rows: Any) -> dict[str, Any] | None:
    """What was run, where the file is one that `run` wrote."""
    first = rows[0] if isinstance(rows, list) and rows else None
    return first["run"] if isinstance(first, dict) and "run" in first else None


@dataclass(frozen=True)
class Manner:
    """How a file's answers came about. Published files have the order of the annotations, and nothing else is known.

    model: its name. order: of the choices. unchanged: on how many items the view changed nothing. cut: on how many not
        all regions were marked.
    """

    model: str
    order: str = ORDERS[0]
    unchanged: int = 0
    cut: int = 0


def asked_how(path: Path, items: Sequence[Item]) -> Manner:
    """How a file of answers came about.

    Raises:
        ValueError: `run` wrote it, and asked about other items than all of these.
    """
    rows = read_json(path)
    if (facts := _run_facts(rows)) is None:
        return Manner(path.stem)
    if facts.get("items") not in (None, digest(items)):
        raise ValueError(
            f"{path}: answers about other items than these: give the folder that was asked about with --data"
        )
    counts = (len(_named(rows[1:], what)) for what in ("unchanged", "cut"))
    return Manner(facts.get("model", path.stem), facts.get("order", ORDERS[0]), *counts)


def _named(rows: Iterable[dict[str, Any]], what: str) -> set[str]:
    """The items of which a line says something, whatever the order of their choices."""
    return {row["id"].partition(AT)[0] for row in rows if what in row}


def _missing(error: Exception) -> str:
    return f"no {error.args[0]!r}" if isinstance(error, KeyError) and error.args else "it is built in another way"


def evaluate(
    benchmark: Benchmark,
    items: Sequence[Item],
    answers: dict[str, str],
    *,
    verdicts: Path | None = None,
    judge: Judge | None = None,
    folder: Path | None = None,
    wording: str | None = None,
    repeat: int = 0,
) -> list[Score]:
    """The score of each item, in order.

    Args:
        verdicts: a published file of a judge's replies, instead of a judge.
        folder: of the pictures for the judge; None sends it none.
        wording: the judge's question, instead of the benchmark's own.
        repeat: asked with another number, the judge answers anew; see `gar.bench.judges.Question`.

    Raises:
        ValueError: the benchmark needs a judge or verdicts, having no references either, or takes none; the wording has
            other fields; the verdicts are not of this benchmark.
    """
    if judge is not None:
        refuse_judge(benchmark)
    if wording is not None:
        _check_wording(benchmark, wording)
    replies: dict[str, list[str | None] | str] = {}
    errors: dict[str, str] = {}
    published = False
    if verdicts is not None:
        rows = read_json(verdicts)
        ours = isinstance(rows, dict) and "items" in rows
        published = not ours or (rows.get("judge") or {}).get("published", False)
        try:
            replies = _kept_replies(rows["items"], answers) if ours else benchmark.verdicts(rows, items, answers)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{verdicts}: not verdicts of {benchmark.name}: {_missing(error)}") from error
        if not replies.keys() & {item.id for item in items} or (ours and rows.get("benchmark") != benchmark.name):
            raise ValueError(f"{verdicts}: no verdict on any item of {benchmark.name}")
        for name, said in replies.items():
            if wrong := [reply for reply in said if not isinstance(reply, str | None)]:
                raise ValueError(f"{verdicts}: the verdict on {name} is {wrong[0]!r}, expected a text")
    elif judge is not None:
        replies, errors = _ask(benchmark, items, answers, judge, wording or benchmark.wording, folder, repeat)
    elif benchmark.judged and not any(benchmark.references(item) for item in items):
        raise ValueError(
            f"{benchmark.name} needs a judge: give --judge URL --judge-model ID, or stored replies with --verdicts FILE"
        )

    def score(item: Item) -> Score:
        if (answer := answers.get(item.id)) is None:
            return Score(None, "", NO_ANSWER)
        mine = replies.get(item.id, NO_VERDICT) if benchmark.judged else []
        if isinstance(mine, str):
            return Score(None, answer, mine)
        found = replace(benchmark.score(item, answer, mine, published), replies=tuple(mine))
        if found.value is None and item.id in errors:
            return replace(found, explanation=f"{NO_REPLY}: {errors[item.id]}")
        return found

    return benchmark.finish(items, [score(item) for item in items])


def refuse_judge(benchmark: Benchmark) -> None:
    """Raise ValueError where a benchmark would not ask a judge that is given."""
    if not benchmark.judged:
        raise ValueError(f"{benchmark.name} is scored without a judge: leave --judge away")


def _check_wording(benchmark: Benchmark, wording: str) -> None:
    """Refuse a wording that would send a judge a field's name for its content, or no answer."""
    template = Template(wording)
    if not template.is_valid():
        raise ValueError("the wording has a $ that begins no field: write $$ for a dollar sign")
    fields, known = ({*some.get_identifiers()} for some in (template, Template(benchmark.wording)))
    if wrong := sorted(fields - known):
        raise ValueError(f"the wording has ${wrong[0]}, expected some of {', '.join(f'${x}' for x in sorted(known))}")
    if benchmark.answer_field not in fields:
        raise ValueError(f"the wording has no ${benchmark.answer_field}: the judge would not see what it judges")


def _ask(
    benchmark: Benchmark,
    items: Sequence[Item],
    answers: dict[str, str],
    judge: Judge,
    wording: str,
    folder: Path | None,
    repeat: int,
) -> tuple[dict[str, list[str | None] | str], dict[str, str]]:
    """A judge's replies by item, and the errors of those questions that it did not answer. Raises Stopped."""
    asked: list[str] = []
    replies: dict[str, list[str | None] | str] = {}

    def questions() -> Iterator[Question]:
        for item in items:
            if item.id in answers:
                try:
                    mine = benchmark.questions(item, answers[item.id], wording, folder)
                except MissingPicture as error:
                    replies[item.id] = str(error)
                    continue
                for question in mine:
                    asked.append(item.id)
                    yield question._replace(repeat=repeat)

    found: dict[int, Reply] = {}
    for index, reply in ask_all(judge, questions()):
        found[index] = reply
        if len(found) == SILENT and not any(one.error is None for one in found.values()):
            raise Stopped(f"{judge.name}: no reply to {SILENT} questions, the last: {reply.error}; run again to go on")
    errors: dict[str, str] = {}
    for index, name in enumerate(asked):
        mine = replies.setdefault(name, [])
        assert isinstance(mine, list)
        mine.append(found[index].text)
        if found[index].error is not None:
            errors[name] = str(found[index].error)
    return replies, errors


def _kept_replies(rows: Sequence[dict[str, Any]], answers: dict[str, str]) -> dict[str, list[str | None] | str]:
    """The replies in a file that `gar bench score --out` wrote."""
    return {
        row["id"]: row["replies"] if row["answer"] == answers.get(row["id"]) else OTHER_ANSWER
        for row in rows
        if row["replies"]
    }


def result(benchmark: Benchmark, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, Any]:
    """The figures of a run, in the form of `gar bench score --json`."""
    figures = benchmark.summary(items, scores)
    beside = _beside_references(benchmark, items, scores)
    return {
        "benchmark": benchmark.name,
        "n": len(items),
        "scores": {name: estimate.json() for name, estimate in figures.items() if not math.isnan(estimate.value)},
        "without_judge": {name: estimate.json() for name, estimate in beside.items() if name not in figures},
        "as_published": benchmark.as_published(items, scores),
        "guess": {name: round(value, 6) for name, value in benchmark.guess(items, scores).items()},
        "unscored": Counter(score.explanation.partition(":")[0] for score in scores if score.value is None),
        "notes": benchmark.notes(items, scores),
    }


def _beside_references(benchmark: Benchmark, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, Estimate]:
    """The figures of all answers to items with references, judged or not."""
    there = [
        (score.answer, texts, item.picture)
        for item, score in zip(items, scores, strict=True)
        if score.explanation != NO_ANSWER and (texts := benchmark.references(item))
    ]
    return figures_beside(*zip(*there, strict=True)) if there else {}


def ordered(items: Sequence[Item], order: str) -> list[Item]:
    """Items as they are asked in one of `ORDERS`: "circular" asks each once in every rotated order of its choices,
    "balanced" once with its choices rotated by `balance`.

    Raises:
        ValueError: there is no such order.
    """
    if order == "circular":
        return [
            replace(rotated(item, places), id=f"{item.id}{AT}{places}") if item.choices else item
            for item in items
            for places in range(max(len(item.choices), 1))
        ]
    if order == "balanced":
        return [rotated(item, places) for item, places in zip(items, balance(items), strict=True)]
    if order not in ORDERS:
        raise ValueError(f"--order {order}: expected one of {', '.join(ORDERS)}")
    return list(items)


def balance(items: Sequence[Item]) -> list[int]:
    """By how many places to rotate the choices of each item, so that among items of one type with as many choices each
    letter is right equally often."""
    seen: Counter[tuple[str, int]] = Counter()
    places = []
    for item in items:
        options = len(item.choices)
        wanted = seen[item.type, options]
        places.append((wanted - (ord(item.truth) - ord("A"))) % options if options else 0)
        seen[item.type, options] += 1
    return places


def rotated(item: Item, places: int) -> Item:
    """The item with its choices moved on by so many places, the last ones to the front."""
    if not item.choices:
        return item
    texts = [choice.partition(". ")[2] for choice in item.choices]
    texts = texts[len(texts) - places :] + texts[: len(texts) - places]
    choices = tuple(f"{letter}. {text}" for letter, text in zip(LETTERS, texts, strict=False))
    return replace(item, choices=choices, truth=_moved(item.truth, places, len(texts)))


def _moved(letter: str, places: int, options: int) -> str:
    """The letter so many places on among so many; what is none of them stays."""
    place = LETTERS[:options].find(letter.upper()) if len(letter) == 1 else -1
    return letter if place < 0 else LETTERS[(place + places) % options]


def in_every_order(items: Sequence[Item], scores: Sequence[Score]) -> list[Score]:
    """The scores of `items` from those of `ordered(items, "circular")`: the lowest, or unscored if one order is.

    Their answer is what each order's answer means in the item's own order of choices, said once where all mean the
    same.
    """
    found = iter(scores)
    together = []
    for item in items:
        mine = [next(found) for _ in range(max(len(item.choices), 1))]
        worst = min(mine, key=lambda score: -1 if score.value is None else score.value)
        orders = sum(score.value or 0 for score in mine) / len(mine)
        if item.choices:
            answers = [_moved(score.answer, -places, len(mine)) for places, score in enumerate(mine)]
            answer = answers[0] if len({*answers}) == 1 else ", ".join(answers)
            right = sum(score.value == 1 for score in mine)
            said = f"right in {right} of {len(mine)} orders" if worst.value == 0 else worst.explanation
            worst = replace(worst, answer=answer, explanation=said)
        together.append(replace(worst, parts=worst.parts | {"orders": orders}))
    return together


def refuse_manner(out: Path, view: str, many_regions: str, order: str) -> None:
    """Raise ValueError where a model would be asked in a manner that there is not, or for a file that cannot be."""
    for name, value, known in (("view", view, VIEWS), ("many-regions", many_regions, MANY), ("order", order, ORDERS)):
        if value not in known:
            raise ValueError(f"--{name} {value}: expected one of {', '.join(known)}")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: no such folder: {out.absolute().parent}")


def run(
    benchmark: Benchmark,
    items: Sequence[Item],
    folder: Path,
    predictor: Predictor | Rival,
    out: Path,
    *,
    view: str = "as-is",
    many_regions: str = "left-out",
    order: str = "as-is",
    batch_size: int = 8,
    max_new_tokens: int = 256,
) -> Counter[str]:
    """Ask a model everything, and write a line for each item. A file that is there already is gone on with.

    Descriptions, and answers to questions without choices, are generated `batch_size` at once. Multiple choice
    generates nothing: questions about the same regions of the same picture share one reading of it. An endpoint is
    asked several at once. The first line says what was run; the file of a stopped run ends as that of one that never
    stopped.

    Args:
        out: JSON Lines {"id", "answer", "text", "confidence"}, "unchanged" where the view changed nothing, and "cut",
            the number of regions that were not marked; an item that was left out has {"id", "skipped"}.
        view: how picture and regions are shown (`gar.bench.views`).
        many_regions: an item with more regions than the model has prompts is "left-out", or treated "as-published": the
            first ones are marked, the others stay names in the text that mean nothing. Those that a view adds beyond
            the model's prompts share its last one.
        order: of the choices, see `ordered`.

    Returns:
        How many items were left out, by reason (what comes before a colon). Those that an endpoint gave no reply to
        have no line, and are asked again by the next run.

    Raises:
        ValueError: no item can be asked; the file is of another run, or another one is writing it.
        Stopped: the endpoint answers nothing, or nothing more; the next run goes on.
    """
    from gar.bench.rivals import Rival

    refuse_manner(out, view, many_regions, order)
    if view in FEATURE_VIEWS:
        if isinstance(predictor, Rival):
            raise ValueError(f"--view {view} changes the model's features, which no endpoint gives: take gray or blur")
        predictor = copy(predictor)
        predictor.change_features = FEATURE_VIEWS[view]
    show = view
    if isinstance(predictor, Rival) and view in TOLD:
        predictor, show = predictor.marking(view), "as-is"
    left_out = Counter(filter(None, (item.why_not(folder) for item in items)))
    if left_out.total() == len(items):
        reason = left_out.most_common(1)[0][0] if items else "there is none"
        raise ValueError(f"no item of {benchmark.name} with its pictures in {folder} can be asked: {reason}")
    # In an order that does not depend on which pictures are there.
    asked = [item for item in ordered(items, order) if not item.why_not(folder)]
    facts = {"benchmark": benchmark.name, "model": predictor.name, "view": view, "many_regions": many_regions}
    facts |= {"order": order, "items": digest(items), "batch_size": batch_size, "max_new_tokens": max_new_tokens}
    most = predictor.max_prompts if isinstance(predictor, Rival) else predictor.model.config.max_prompts
    asking = _Asking(predictor, folder, show, most, many_regions, batch_size, max_new_tokens)

    held: list[dict[str, Any]] = []
    without_reply: set[str] = set()
    last = ""
    with _alone(out) as file:
        rows = _resume(out, {"run": facts})
        found = asking.everything(_groups(asked, batch_size), {row["id"] for row in rows})
        # What an endpoint refuses before it has answered anything has no line yet: it may refuse all, for a wrong
        # setting.
        sure = not isinstance(predictor, Rival) or any("answer" in row for row in rows)
        for item, line in found:
            if isinstance(line, NoReply):
                without_reply.add(item.id.partition(AT)[0])
                last = str(line)
            else:
                held.append({"id": item.id, **line})
                sure, last = sure or "answer" in line, line.get("skipped", "")
            if sure:
                file.writelines(json.dumps(row) + "\n" for row in held)
                file.flush()
                rows += held
                held.clear()
            elif len(held) + len(without_reply) >= SILENT:
                break
    if held or (len(without_reply) >= SILENT and not sure):
        asked_for = len(held) + len(without_reply)
        raise Stopped(f"{predictor.name}: no answer to {asked_for} items, the last: {last}; run again to go on")
    if without_reply:
        left_out[PASSING] = len(without_reply)
    reasons = {row["id"].partition(AT)[0]: row["skipped"].partition(":")[0] for row in rows if "skipped" in row}
    return left_out + Counter(reasons.values())


def digest(items: Sequence[Item]) -> str:
    """Tells other items apart, and the same in another order of choices."""
    shown = [(item.id, item.image, item.masks, item.question, item.choices) for item in items]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:16]


def _in_order(results: Iterable[tuple[int, T]]) -> Iterator[T]:
    """Numbered results in the order of their numbers, so that a file does not depend on who was faster."""
    early: dict[int, T] = {}
    following = 0
    for number, found in results:
        early[number] = found
        while following in early:
            yield early.pop(following)
            following += 1


class _TooMany(ValueError):
    """More regions than the model can mark."""


@dataclass(frozen=True)
class _Asking:
    """Puts items to a model, all in the manner of one run; see `run` for what is not said here.

    view: of `VIEWS`. most: regions that the model can mark.
    """

    predictor: Predictor | Rival
    folder: Path
    view: str
    most: float
    many_regions: str
    batch_size: int
    max_new_tokens: int

    def everything(self, groups: list[list[Item]], done: set[str]) -> Iterator[tuple[Item, dict[str, Any] | NoReply]]:
        """The lines of all those items of all `_groups` that have none yet, or why one has none now."""
        from gar.bench.rivals import Rival

        def replies(item: Item) -> list[tuple[Item, dict[str, Any] | NoReply]]:
            try:
                return list(self.lines([item], done))
            except NoReply as error:
                return [(item, error)]

        shown: Iterable[list[Item]] = progress(groups, "asking")
        if isinstance(self.predictor, Rival):  # which saves nothing by a group
            yield from chain.from_iterable(_in_order(side_by_side(replies, chain.from_iterable(shown))))
        else:
            for group in shown:
                yield from self.lines(group, done)

    def lines(self, group: list[Item], done: set[str]) -> Iterator[tuple[Item, dict[str, Any]]]:
        """The lines of those items of one of `_groups` that have none yet."""
        todo = [item for item in group if item.id not in done]
        if todo and group[0].choices:
            yield from self._chosen(todo)
        elif todo:
            # The whole group again: what shares a batch may differ in the last bits.
            for item, line in zip(group, self._written(group), strict=True):
                if item in todo:
                    yield item, line

    def _chosen(self, items: list[Item]) -> Iterator[tuple[Item, dict[str, Any]]]:
        """The lines of multiple-choice items with the same picture and regions, from one reading of these."""
        try:
            picture, regions, told, remarks = self._shown(items[0], load_image(self.folder / items[0].image))
            scene = self.predictor.open(picture, regions)
        except (Stopped, NoReply):
            raise
        except ValueError as error:
            yield from ((item, _refused(error)) for item in items)
            return
        for item in items:
            choices = [unmarked(choice, self.most) for choice in item.choices]
            try:
                answer = scene.ask(told + unmarked(item.question or "", self.most), choices)
                yield item, _line([answer]) | remarks
            except (Stopped, NoReply):
                raise
            except ValueError as error:
                yield item, _refused(error)

    def _written(self, items: list[Item]) -> list[dict[str, Any]]:
        """The lines of items that are answered in words, in common batches; each alone where these are refused."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "max_new_tokens": self.max_new_tokens}
        try:
            loaded = {name: load_image(self.folder / name) for name in dict.fromkeys(item.image for item in items)}
            shown = [self._shown(item, loaded[item.image]) for item in items]
            if self._described(items[0]):
                pictures, regions = [picture for picture, *_ in shown], [marked for _, marked, *_ in shown]
                answers = self.predictor.describe_batch(pictures, regions, **options)
            else:
                asked = [
                    (picture, told + unmarked(question, self.most), marked)
                    for item, (picture, marked, told, _) in zip(items, shown, strict=True)
                    for question in _questions(item)
                ]
                pictures, questions, regions = map(list, zip(*asked, strict=True))
                found = iter(self.predictor.ask_batch(pictures, questions, regions, **options))
                answers = [[next(found) for _ in _questions(item)] for item in items]
        except (Stopped, NoReply):
            raise
        except ValueError as error:
            return [_refused(error)] if len(items) == 1 else [self._written([item])[0] for item in items]
        return [_line(mine) | remarks for mine, (*_, remarks) in zip(answers, shown, strict=True)]

    def _described(self, item: Item) -> bool:
        """Whether each of its regions is described by itself, no other one being marked or told of."""
        return item.question is None and self.view not in (*AMONG_OTHERS, *TOLD)

    def _shown(self, item: Item, picture: Image.Image) -> tuple[Image.Image, list[Region], str, dict[str, Any]]:
        """The picture and the regions to mark, what is said before a question, and what the item's line remarks: that
        the view changed nothing, and how many regions were cut off.

        Raises:
            ValueError: a region is refused, or there are too many.
        """
        regions = item.regions()
        alone = self._described(item)
        remarks = {}
        if not alone and len(regions) > self.most and self.many_regions == "as-published":
            remarks["cut"] = len(regions) - int(self.most)
            regions = regions[: int(self.most)]
        shown, marked = VIEWS[self.view](picture, regions)
        if unchanged(self.view, (picture, regions), (shown, marked)):
            remarks["unchanged"] = True
        if alone:
            return shown, marked, "", remarks
        if len(regions) < self.most < len(marked):
            marked = sharing(shown, marked, int(self.most))
        if len(marked) > self.most:
            raise _TooMany(f"more than the {self.most} regions that the model can mark")
        if self.view not in TOLD:
            return shown, marked, "", remarks
        told = TOLD[self.view](picture, [one.locate(*picture.size) for one in regions])
        return shown, marked, f"{told}\n", remarks


def _questions(item: Item) -> list[str]:
    """What is asked of an item that is not simply described."""
    if item.question is not None:
        return [item.question]
    return [DESCRIBE.format(prompt_name(k)) for k in range(len(item.masks))]


def _refused(error: ValueError) -> dict[str, Any]:
    """The line of an item that is left out."""
    return {"skipped": str(error) if isinstance(error, _TooMany) else f"{REFUSED}: {error}"}


def _line(answers: Sequence[Any]) -> dict[str, Any]:
    """A line of the file: one answer, or descriptions of several regions. A rival tells no confidence."""
    text, confidence = together([answer.text for answer in answers]), sum(answer.confidence for answer in answers)
    certain = None if math.isnan(confidence) else round(confidence / len(answers), 6)
    return {"answer": answers[0].choice or text, "text": text, "confidence": certain}


def together(texts: Sequence[str]) -> str:
    """Descriptions of several regions as one text."""
    if len(texts) == 1:
        return texts[0]
    return "\n".join(f"<Region {number}>: {text}" for number, text in enumerate(texts, 1))


def unmarked(text: str, most: float) -> str:
    """The names of regions from `most` on without their brackets, so that they are words and no marks."""
    return re.sub(r"<(Prompt(\d+))>", lambda name: name[0] if int(name[2]) < most else name[1], text)


def _groups(items: Iterable[Item], size: int) -> list[list[Item]]:
    """Items that are answered together: by `size` descriptions, by `size` open questions, or all multiple-choice
    questions about the same regions.

    In an order that depends on nothing else, so that a run that was stopped has the batches of one that was not.
    """
    chosen: dict[Any, list[Item]] = {}
    written: dict[bool, dict[str, list[Item]]] = {True: {}, False: {}}
    for item in items:
        if item.choices:
            chosen.setdefault((item.picture or item.image, item.frame, json.dumps(item.masks)), []).append(item)
        else:
            written[item.question is None].setdefault(item.image, []).append(item)
    groups = []
    for by_picture in written.values():
        flat = [item for group in by_picture.values() for item in group]
        groups += [flat[i : i + size] for i in range(0, len(flat), size)]
    return groups + list(chosen.values())


@contextmanager
def _alone(out: Path) -> Iterator[IO[str]]:
    """A file to append to, which one run has at a time. Raises ValueError where another one has it."""
    with out.open("a", encoding="utf-8") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{out}: another run is writing it: give another file, or wait") from error
        except (ModuleNotFoundError, OSError):  # a system, or a file system, without locks
            pass
        yield file


def _resume(out: Path, header: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines that a file has already. Starts the file, or cuts off a line that was being written at its end."""
    first = (json.dumps(header) + "\n").encode()
    content = out.read_bytes() if out.exists() else b""
    if first.startswith(content):  # there is none, or it died while it began
        out.write_bytes(first)
        return []
    if not content.startswith(first):
        start = content.decode("utf-8", "replace").partition("\n")[0][:200]
        raise ValueError(f"{out}: holds something else ({start}): give another file, or remove it")
    content = content[: content.rindex(b"\n") + 1]
    lines = content.decode("utf-8").splitlines()
    with out.open("r+b") as file:
        file.truncate(len(content))
    return [json.loads(line) for line in lines[1:]]


def progress(things: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """The same things, with a bar on stderr where that is a terminal. `total`: of things without a length."""
    from rich.console import Console
    from rich.progress import track

    return track(things, what, total, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
