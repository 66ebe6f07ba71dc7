"""Models that know no regions, behind an OpenAI-compatible endpoint: asked as a `Predictor` is, to be compared with it.

Regions are told in one of three ways: numbered boxes drawn on the picture, boxes written as text, or a cut-out of each
with its mask. Our own wording; what it is matters as much as the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from gar.bench.judges import Judge, NoReply, Reply, read_choice
from gar.bench.views import TOLD, focal_crop, numbered
from gar.predictor import Answer
from gar.regions import Region, load_image, prompt_name
from gar.segment import resolve

MARKS = (*TOLD, "crops")


class Rival:
    """A model behind an endpoint.

    Args:
        endpoint: a `gar.bench.judges.Endpoint`.
        marks: how regions are told, one of `MARKS`.
    """

    max_prompts = math.inf

    def __init__(self, endpoint: Judge, marks: str = "drawn"):
        if marks not in MARKS:
            raise ValueError(f"marks is {marks!r}, expected one of {', '.join(MARKS)}")
        self.name = f"{endpoint.name}, regions {marks}"
        self._endpoint, self._marks = endpoint, marks

    def marking(self, marks: str) -> Rival:
        """The same model, told of regions in another way."""
        return Rival(self._endpoint, marks)

    def open(self, image: Image.Image, regions: Sequence[Region]) -> RivalScene:
        """As `Predictor.open`."""
        return RivalScene(self._endpoint, *self._shown(image, regions))

    def describe_batch(
        self, images: Sequence[Image.Image], regions: Sequence[Sequence[Region]], **_: Any
    ) -> list[list[Answer]]:
        """As `Predictor.describe_batch`: each region by itself."""
        asked = f"Describe {prompt_name(0)} in detail, and nothing else."
        return [
            [self.open(image, [region]).ask(asked) for region in mine]
            for image, mine in zip(images, regions, strict=True)
        ]

    def ask_batch(
        self, images: Sequence[Image.Image], questions: Sequence[str], regions: Sequence[Sequence[Region]], **_: Any
    ) -> list[Answer]:
        """As `Predictor.ask_batch`: one after the other."""
        rows = zip(images, questions, regions, strict=True)
        return [self.open(image, mine).ask(question) for image, question, mine in rows]

    def _shown(self, image: Image.Image, regions: Sequence[Region]) -> tuple[str, list[Image.Image]]:
        """What is said of the regions, and the pictures to go with it."""
        picture = load_image(image)
        located = resolve(picture, regions)
        if self._marks in TOLD:
            shown = numbered(picture, located) if self._marks == "drawn" else picture
            return TOLD[self._marks](picture, located), [shown]
        pictures = [picture, *(crop for region in located for crop in focal_crop(picture, region))]
        names = ", ".join(prompt_name(k) for k in range(len(located)))
        return f"After the picture come, for each of {names}, its surroundings and its mask in them.", pictures


class RivalScene:
    """A picture with its regions; see `gar.predictor.Scene`."""

    def __init__(self, endpoint: Judge, told: str, pictures: Sequence[Image.Image]):
        self._endpoint, self._told, self._pictures = endpoint, told, pictures

    def ask(self, question: str, choices: Sequence[str] | None = None, **_: Any) -> Answer:
        """As `Scene.ask`; a choice that is not clear is the reply itself.

        Raises:
            NoReply: none for now.
            ValueError: the question is refused.
            Stopped: so would be every other one.
        """
        if choices is None:
            return _answer(self._endpoint.ask(f"{self._told}\n{question}", self._pictures))
        asked = "\n".join([self._told, f"Question: {question}", *choices, "Write the letter of the right option only."])
        answer = _answer(self._endpoint.ask(asked, self._pictures))
        texts = [choice.partition(". ")[2] for choice in choices]
        try:
            place = read_choice(answer.text, texts)
        except ValueError:
            return answer
        return Answer(texts[place], choices[place][0], answer.confidence, [], 0)


def _answer(reply: Reply) -> Answer:
    if reply.text is None:
        raise NoReply(reply.error) if reply.passing else ValueError(reply.error)
    return Answer(reply.text.strip(), None, math.nan, [], 0)
