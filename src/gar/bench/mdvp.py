"""MDVP-Bench, detailed captions of boxes: six sets of ten pictures, 364 regions; rated as in Ferret-Bench.

The published scripts pair texts and pictures wrongly: all 364 texts are written out for each set and the first ten, all
of one screenshot, are judged against the ten pictures of the set. Here a picture's texts are judged on that picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from gar.bench.ferret import published_means, rate, ratings_summary
from gar.bench.judges import Question
from gar.bench.statistics import Estimate
from gar.bench.task import PUBLISHED, Benchmark, Item, Score, picture_for_judge, read_json, together
from gar.bench.views import numbered

PER_SET = 10  # questions, one a picture
GROUPS = {"ocr": ("ocr_doc", "ocr_spotting"), "screenshot": ("android", "web")}


class MDVP(Benchmark):
    name = "mdvp-bench"
    title = "MDVP-Bench, detailed captions of boxes in pictures, pages and screenshots (judged)"
    annotations = "mdvp_caption_mask.json"
    rated = True
    source = f"{PUBLISHED}/MDVP-Bench/annotations"
    files = {annotations: "557172feae3d5ec4f49a929aa51b2fc83909daf39c32c090d25f5edc3ddd1a31"}
    wording = """\
[mdvp-bench, wording 1]
The picture is $domain; the regions in question are drawn on it as numbered boxes.
Task: $question
Answer 1:
$reference
Answer 2:
$answer

Rate each answer from 1 to 10 by how well it fits the regions, helps, keeps to the point, is correct and detailed. Do
not let the order or the length of the answers decide.
First line: the two ratings, that of answer 1 first, with one space between them and nothing else. Then your reasons."""

    def items(self, path: Path) -> list[Item]:
        pictures: dict[str, list[dict[str, Any]]] = {}
        for row in read_json(path):
            pictures.setdefault(_short(row["image_path"]), []).append(row)
        found = []
        for image, rows in pictures.items():
            captions = [row["caption"] for row in rows]
            kind = rows[0]["dataset_name"].removesuffix("_detailed_caption_box")
            truth = {"question": rows[0]["question"], "captions": captions}
            masks = tuple(row["mask_rle"] for row in rows)
            found.append(Item(image, image, masks, type=kind, picture=image, truth=truth))
        return found

    def references(self, item: Item) -> Sequence[str]:
        return (together(item.truth["captions"]),)

    def answers(self, rows: Any, items: Sequence[Item]) -> dict[str, str]:
        texts: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            texts.setdefault((_short(row["image_path"]), row["gt"]), []).append(row["caption"])
        found = {}
        for item in items:
            mine = [texts.get((item.image, caption), [None]) for caption in item.truth["captions"]]
            if all(some[0] is not None for some in mine):
                found[item.id] = together([str(some.pop(0)) if len(some) > 1 else str(some[0]) for some in mine])
        return found

    def questions(self, item: Item, answer: str, wording: str, folder: Path | None) -> list[Question]:
        domain = {"android": "a screenshot of a phone", "web": "a screenshot of a web page", "natural": "a photograph"}
        domain |= {"multipanel": "made of several panels"}
        texts = {"domain": domain.get(item.type, "a page or sign with text"), "question": item.truth["question"]}
        reference = together(item.truth["captions"])
        text = Template(wording).substitute(texts, reference=reference, answer=answer)
        if folder is None:
            return [Question(text)]
        picture, regions = picture_for_judge(item, folder)
        return [Question(text, (numbered(picture.point(lambda level: level * 0.8), regions, first=1),))]

    def verdicts(self, rows: Any, items: Sequence[Item], answers: dict[str, str]) -> dict[str, list[str | None] | str]:
        raise ValueError(
            "the published verdicts of mdvp-bench are about texts of other pictures: ask a judge, with --judge"
        )

    def score(self, item: Item, answer: str, replies: Sequence[str | None], published: bool) -> Score:
        return rate(answer, replies, published)

    def summary(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, Estimate]:
        figures = {}
        for name, kinds in _sets(items).items():
            some = [(item, score) for item, score in zip(items, scores, strict=True) if item.type in kinds]
            figures |= {name: ratings_summary([item for item, _ in some], [score for _, score in some])["score"]}
        return figures

    def as_published(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, float]:
        """A group's figure is the mean of those of its sets."""
        figures = {}
        for kind in dict.fromkeys(item.type for item in items):
            some = [score for item, score in zip(items, scores, strict=True) if item.type == kind]
            reference, rating = published_means(some)
            if reference > 0:  # it is below where no reply could be read
                figures[kind] = round(100 * rating / (reference + 1e-6), 2)
        for name, kinds in GROUPS.items():
            if set(kinds) <= set(figures):
                figures[name] = round(sum(figures[kind] for kind in kinds) / len(kinds), 1)
        return figures

    def highest(self, figure: str) -> float | None:
        return None

    def notes(self, items: Sequence[Item], scores: Sequence[Score]) -> list[str]:
        right, questions = published_pairing(items)
        return [
            f"here all texts are judged on their own picture; by the published pairing {right} of {questions} would be"
        ]


def published_pairing(items: Sequence[Item]) -> tuple[int, int]:
    """How many questions the published pairing puts to a text about their own picture, and how many there are.

    The k-th question of every set gets the k-th of all regions, set after set and picture after picture.
    """
    regions = [item.image for item in items for _ in item.masks]
    right = questions = 0
    for kind in dict.fromkeys(item.type for item in items):
        pictures = [item.image for item in items if item.type == kind][:PER_SET]
        questions += len(pictures)
        right += sum(picture == region for picture, region in zip(pictures, regions, strict=False))
    return right, questions


def _sets(items: Sequence[Item]) -> dict[str, tuple[str, ...]]:
    """The figures to give: all, every set, and the published groups of sets."""
    kinds = tuple(dict.fromkeys(item.type for item in items))
    groups = {name: group for name, group in GROUPS.items() if set(group) & set(kinds)}
    return {"score": kinds, **{kind: (kind,) for kind in kinds}, **groups}


def _short(path: str) -> str:
    """The picture's path from its set on, whatever folder the predictions were made in."""
    return "/".join(path.split("/")[-3:])
