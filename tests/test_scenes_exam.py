"""The exam: questions are put as a user would put them, and answers are held against the scene."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from gar.data.sample import Sample, Turn
from gar.scenes.exam import examine, interval, report
from gar.scenes.world import held_out

THING = {"shape": "cube", "category": "cube", "material": "matte", "pattern": "plain", "size": None, "kind": "object"}
THING |= {"of": None, "visible": 1.0, "area": 400, "depth": 3.0, "radius": 0.5}


def scene(*turns: Turn) -> Sample:
    """A red cube on the left and a blue one on the right."""
    pixels = np.full((40, 100, 3), 200, np.uint8)
    masks, things = [], []
    for x, color, rgb in ((10, "red", (200, 0, 0)), (70, "blue", (0, 0, 200))):
        mask = np.zeros((40, 100), np.uint8)
        mask[10:30, x : x + 20] = 1
        pixels[mask > 0] = rgb
        rle: dict[str, Any] = dict(coco.encode(np.asfortranarray(mask)))
        masks.append({"size": [40, 100], "counts": rle["counts"].decode()})
        things.append(THING | {"color": color, "box": [x, 10, x + 20, 30]})
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Sample(file.getvalue(), masks, [*turns], meta={"size": [100, 40], "things": things, "relations": []})


class Says:
    """A predictor that always says the same, and notes what it was asked."""

    def __init__(self, text: str):
        self.text, self.asked = text, []

    def ask(self, picture: Any, question: str, regions: Any, choices: Any = None, **generation: Any) -> Any:
        self.asked.append((picture, question, len(regions), choices))
        return SimpleNamespace(text=self.text)


def marked(text: str, turn: Turn, **options: Any) -> bool:
    (mark,) = examine(Says(text), [scene(turn)], per_scene=1, **options)  # pyright: ignore[reportArgumentType]
    return mark.right


def test_a_description_is_held_against_the_region_that_the_question_names_first():
    turn = Turn("Describe <Prompt1> and its relation to <Prompt0>.", "", "relational")
    true, false = "A blue matte cube. It is to the {} of <Prompt0>, a red cube.", "A red matte cube."
    assert marked(true.format("right"), turn)
    assert not marked(true.format("left"), turn) and not marked(false, turn)


def test_what_captions_state_is_counted():
    turn = Turn("Caption <Prompt0>.", "", "caption")
    for text, right, facts in (("A red matte cube.", 1, 4), ("A red thing.", 1, 2), ("A blue cube.", 0, 2)):
        says: Any = Says(text)
        row = report(examine(says, [scene(turn)]))["caption"]
        assert (row["right"], row["facts"], row["majority"]) == (right, facts, None)


def test_of_scenes_with_unseen_combinations_only_questions_about_these_are_asked():
    turns = [Turn(f"What is the color of <Prompt{k}>?", "blue", "color") for k in (0, 1)]
    sample = scene(*turns)
    sample.meta["split"] = "unseen"
    says: Any = Says("blue")
    assert examine(says, [sample]) == [] and held_out("blue", "cube", "metal") and not held_out("blue", "cube", "matte")
    sample.meta["things"][1]["material"] = "metal"
    assert [mark.question for mark in examine(says, [sample])] == [turns[1].question]


def test_captions_of_records_without_facts_are_refused():
    says: Any = Says("cube")
    for kind in ("category", "caption"):
        sample = scene(Turn("What is <Prompt0>?", "cube", kind))
        sample.meta.clear()
        if kind == "category":
            assert examine(says, [sample])[0].right
        else:
            with pytest.raises(ValueError, match="has no facts: give shards that `gar scenes render` wrote"):
                examine(says, [sample])


def test_a_question_comes_with_the_regions_it_names_numbered_from_zero():
    says: Any = Says("blue")
    (mark,) = examine(says, [scene(Turn("What is the color of <Prompt1>?", "blue", "color"))])
    ((_, question, regions, choices),) = says.asked
    assert (question, regions, choices) == ("What is the color of <Prompt0>?", 1, None)
    assert mark.right and mark.type == "color"


@pytest.mark.parametrize(("said", "right"), [("blue", True), ("It is blue.", True), ("red", False)])
def test_open_answers_are_compared_by_what_they_mean(said, right):
    assert marked(said, Turn("What is the color of <Prompt1>?", "blue", "color")) is right


def test_a_choice_has_to_be_the_right_text():
    turn = Turn("What color?", "Blue", "color", ("Red", "Blue"))
    assert marked("Blue", turn) and not marked("Red", turn)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("A red matte cube.", True),
        ("A blue matte cube.", False),
        ("<Prompt0> is a red cube. It is to the left of <Prompt1>, a blue cube.", True),
        ("<Prompt0> is a red cube. It is to the right of <Prompt1>, a blue cube.", False),
        ("<Prompt0> is a red cube. It is to the left of <Prompt7>, a blue cube.", False),  # there is none
    ],
)
def test_a_caption_is_right_if_every_fact_in_it_is(said, right):
    question = "Describe <Prompt0> and its relation to <Prompt1>."
    assert marked(said, Turn(question, "<Prompt0> is a red cube.", "relational")) is right


def test_what_lies_outside_of_the_regions_can_be_hidden():
    says: Any = Says("red")
    examine(says, [scene(Turn("What is the color of <Prompt0>?", "red", "color"))], hide=True)
    pixels = np.asarray(says.asked[0][0])
    assert (pixels[15, 15] == (200, 0, 0)).all() and (pixels[15, 75] == 128).all() and (pixels[0, 0] == 128).all()


def test_types_are_asked_about_evenly_and_reported_with_intervals_and_a_guess():
    turns = [Turn(f"What is the color of <Prompt{k % 2}>?", ("red", "blue")[k % 2], "color") for k in range(8)]
    turns += [Turn("Is <Prompt0> a cube?", "yes", "shape")]
    says: Any = Says("red")
    rows = report(examine(says, [scene(*turns)], per_scene=5))
    assert (rows["color"]["n"], rows["shape"]["n"]) == (4, 1)
    upper = round(interval(0, 1)[1], 4)
    assert rows["shape"] == {"n": 1, "right": 0.0, "ci95": [0.0, upper], "majority": 1.0, "facts": None}
    low, high = rows["color"]["ci95"]
    assert low < rows["color"]["right"] < high or rows["color"]["right"] in (0, 1)


def test_the_interval_is_wilsons():
    assert interval(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert interval(0, 0) == (0, 1)
