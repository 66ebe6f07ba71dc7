"""RefCOCOg, short captions of regions, beside those that people wrote: CIDEr, and METEOR where its package is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gar.bench.captions import cider, meteor, words
from gar.bench.statistics import Estimate
from gar.bench.task import OSPREY, Benchmark, Item, Score, average, read_json
from gar.data.published import segmentation_rle


class RefCOCOg(Benchmark):
    name = "refcocog"
    title = "RefCOCOg, short captions of regions"
    annotations = "finetune_refcocog_val_with_mask.json"
    judged = False
    dataset = OSPREY
    question = "Give a short description of <Prompt0>."

    def items(self, path: Path) -> list[Item]:
        content = read_json(path)
        pictures = {image["id"]: image for image in content["images"]}
        references: dict[str, list[str]] = {}
        for row in content["annotations"]:
            references.setdefault(str(row["id"]), []).append(pictures[row["image_id"]]["caption"])
        found = {}
        for row in content["annotations"]:
            image = pictures[row["image_id"]]
            # Pictures are named as COCO 2014 does, and lie in the folders of 2017.
            file = image["file_name"].split("_")[-1]
            mask = segmentation_rle(row["segmentation"], image["height"], image["width"])
            key = str(row["id"])
            found[key] = Item(key, file, (mask,), self.question, picture=file, truth=references[key])
        return list(found.values())

    def references(self, item: Item) -> Sequence[str]:
        return item.truth

    def answers(self, rows: Any, items: Sequence[Item]) -> dict[str, str]:
        """A list in the form of COCO captions' results, in which "image_id" names the region."""
        return {str(row["image_id"]): row["caption"] for row in rows}

    def score(self, item: Item, answer: str, replies: Sequence[str | None], published: bool) -> Score:
        return Score(0.0, answer, " / ".join(item.truth))  # CIDEr is known when all answers are: see `finish`

    def finish(self, items: Sequence[Item], scores: Sequence[Score]) -> list[Score]:
        there = [k for k, score in enumerate(scores) if score.value is not None]
        said = [words(scores[k].answer) for k in there]
        meant = [[words(text) for text in items[k].truth] for k in there]
        parts: list[dict[str, float]]
        try:
            parts = [{"meteor": value} for value in meteor(said, meant)]
        except ValueError:
            parts = [{} for _ in there]
        found = list(scores)
        for k, value, more in zip(there, cider(said, meant), parts, strict=True):
            found[k] = replace(scores[k], value=value, parts=more)
        return found

    def summary(self, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, Estimate]:
        return {
            "cider": average(items, [score.value for score in scores]),
            "meteor": average(items, [score.parts.get("meteor") for score in scores]),
        }

    def highest(self, figure: str) -> float | None:
        return 1 if figure == "meteor" else None

    def notes(self, items: Sequence[Item], scores: Sequence[Score]) -> list[str]:
        if any("meteor" in score.parts for score in scores):
            return []
        return ["no METEOR, which needs pycocoevalcap and Java: pip install pycocoevalcap"]
