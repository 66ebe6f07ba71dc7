"""From a record to a chat: as the published data set builds it, and what we do instead."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data import captions, encoded, square
from test_prompt import nano_config, released_config

from gar.data.annotated import Annotation, annotated
from gar.data.conversation import converse, request_of, training_request
from gar.data.formats import open_data
from gar.data.packing import NEGATIVE, named
from gar.data.sample import Sample, Turn, Unusable
from gar.data.wording import ask_for, in_sentences, in_words
from gar.inputs.processor import GARProcessor
from gar.inputs.prompt import DESCRIBE, ChatTurn

AS_PUBLISHED: dict[str, Any] = {"most": 4, "vary": False, "new_numbers": False}


@pytest.fixture(scope="module")
def nano(nano_tokenizer) -> GARProcessor:
    return GARProcessor(nano_config(nano_tokenizer), nano_tokenizer)


def test_the_published_records_become_the_published_examples(shared: Path, llama3_tokenizer):
    """Texts, ids, labels, boxes, and masks up to their edges, from the records of `golden/dataset` and its seeds."""
    golden = shared / "golden"
    processor = GARProcessor(released_config(max_num_tiles=4), llama3_tokenizer)
    samples = list(open_data(golden / "dataset" / "train_records.json", pictures=golden / "inputs"))
    assert len(samples) == 4
    for i, sample in enumerate(samples):
        set_order = [2, 0] if i == 2 else None
        request = request_of(
            sample, processor, converse(sample, random.Random(1234 + i), 5, order=set_order, **AS_PUBLISHED)
        )
        stored = np.load(golden / "dataset" / f"train_{i}.npz")
        boxes = json.loads((golden / "dataset" / f"train_{i}.json").read_text())["bboxes"][0]
        assert request.input_ids == stored["input_ids"].tolist()
        assert request.labels == stored["labels"].tolist()
        assert request.picture.grid == tuple(stored["aspect_ratios"].ravel().tolist())
        crops = processor.config.crop_token_ids
        for number, box in request.region_boxes.items():
            assert box == pytest.approx(boxes[str(crops[number])], abs=1e-12)
        if i != 2:  # there the published code also marks the mask that the text does not name
            marked = stored["mask_ids"][:, 0] < 5
            # Its prompt numbers are interpolated, so that other numbers stand along the edges.
            assert (request.mask_tiles.numpy() != marked).sum() < 0.01 * marked.sum()


def test_numbers_of_regions_are_random_and_texts_follow_them():
    turn = Turn("Is <Prompt1> on <Prompt0>?", "Yes, <Prompt1> is.")
    sample = Sample(encoded(), [square(), square(9), square(20)], [turn])
    seen = set()
    for seed in range(300):
        made = converse(sample, random.Random(seed), 5)
        number = dict(zip(made.regions, made.numbers, strict=True))
        assert sorted(made.regions) == [0, 1] and made.numbers == sorted(made.numbers)
        question = f"Is <Prompt{number[1]}> on <Prompt{number[0]}>?"
        assert made.turns == [ChatTurn(question, f"Yes, <Prompt{number[1]}> is.")] and made.asked == [turn]
        seen.add((number[0], number[1]))
    assert len(seen) == 20


def test_a_region_that_is_not_there_is_asked_for_once_at_most():
    sample = captions(0, 4)
    counts = Counter()
    for seed in range(400):
        made = converse(sample, random.Random(seed), 5)
        negative = [turn for turn in made.turns if turn.region is None]
        counts[len(negative)] += 1
        for turn in negative:
            (name,) = re.findall(r"<Prompt(\d)>", turn.answer)
            assert int(name) not in made.numbers and turn.question.startswith(f"<Prompt{name}>: ")
            assert turn.answer == f"<Prompt{name}> is not in the image."
            assert Turn(turn.question, turn.answer, NEGATIVE) in made.asked
        described = [turn for turn in made.asked if turn.type == "detailed"]
        assert [(named(turn), turn.answer) for turn in described] == [({k}, f"Thing 0.{k}") for k in range(4)]
    assert set(counts) == {0, 1} and 30 < counts[1] < 90  # 1 - .95 ** 3 of 400 are 57
    assert len(converse(captions(0, 5), random.Random(0), 5, negatives=1.0).turns) == 5  # no number is left
    assert len(converse(sample, random.Random(0), 5, negatives=0.0).turns) == 4


def test_of_more_regions_than_numbers_a_random_choice_is_marked():
    seen = set()
    for seed in range(40):
        made = converse(captions(0, 30), random.Random(seed), 5, negatives=0.0)
        assert len(made.turns) == len(set(made.numbers)) == 5
        for region, number, turn in zip(made.regions, made.numbers, made.turns, strict=True):
            assert (turn.answer, turn.region) == (f"Thing 0.{region}", number)
        seen |= {*made.regions}
    assert len(seen) == 30


def test_questions_that_name_too_many_regions_are_left_out():
    many = " ".join(f"<Prompt{k}>" for k in range(6))
    sample = Sample(encoded(), [square()] * 30, [Turn(f"Which of {many}?", "None."), Turn("Is <Prompt9> red?", "No.")])
    made = converse(sample, random.Random(0), 5)
    assert made.regions == [9] and len(made.turns) == 1
    with pytest.raises(Unusable, match="too many regions: no question is about 5 regions or fewer, of 30 masks"):
        converse(Sample(encoded(), [square()] * 30, sample.turns[:1]), random.Random(0), 5)


def test_every_question_of_a_picture_is_asked_at_some_time_and_in_order():
    turns = [Turn(f"Is <Prompt{k}> red?", f"{k}.") for k in range(30)]
    seen = set()
    for seed in range(60):
        made = converse(Sample(encoded(), [square()] * 30, turns), random.Random(seed), 15, most=4)
        assert len(made.asked) == 4 and made.asked == sorted(made.asked, key=turns.index)
        seen |= {turn.answer for turn in made.asked}
    assert len(seen) == 30


def test_a_description_that_names_its_region_names_the_number_that_it_has():
    sample = annotated(encoded(), [Annotation(square(k), text=f"<Prompt{k}> is red.") for k in range(3)])
    for seed in range(20):
        made = converse(sample, random.Random(seed), 15, negatives=0.0)
        assert [turn.answer for turn in made.turns] == [f"<Prompt{number}> is red." for number in made.numbers]
        assert [turn.answer for turn in made.asked] == [turn.answer for turn in sample.turns]


def test_a_question_that_names_none_is_about_all_regions_or_about_the_picture():
    turn = Turn("What is it?", "Noise.")
    assert len(converse(Sample(encoded(), [square()] * 3, [turn]), random.Random(0), 5).regions) == 3
    assert converse(Sample(encoded(), [], [turn]), random.Random(0), 5).numbers == []
    assert converse(Sample(encoded(), [square()] * 6, [turn]), random.Random(0), 5).numbers == []  # all are too many


def test_names_and_descriptions_are_asked_together_with_all_regions_marked_once():
    sample = annotated(encoded(), [Annotation(square(), "dog", "A dog."), Annotation(square(9), "cat")])
    made = converse(sample, random.Random(0), 5)
    assert len(made.regions) == 2 and [turn.answer for turn in made.turns] == ["dog", "A dog.", "cat"]
    assert all(turn.region is None for turn in made.turns)


def test_every_usable_sample_becomes_an_example(nano, tmp_path):
    from gar.data.folder import write_jsonl

    samples = [captions(0, 20), captions(1, 1), Sample(encoded(2), [], [Turn("What?", "noise")])]
    samples.append(annotated(encoded(3), [Annotation(square(), "dog", "a dog."), Annotation(square(9), "cat")]))
    write_jsonl(samples, tmp_path / "data.jsonl")
    data = open_data(tmp_path)
    walk = data.walk(0, make=lambda sample, rng: training_request(sample, nano, rng))
    requests = [request for _, request in islice(walk, 8)]
    batch = nano.collate(requests, padding_side="right")
    assert len(batch["labels"]) == 8 and not data.rejects.counts()
    assert (batch["labels"] != -100).sum(1).min() > 0


# How a description is asked for

CAPTIONS = ["short cap", "A cat sat. It was happy! Was it? Yes.", "word " * 55 + ".", "w " * 250 + ". b."]


def test_lengths_are_those_of_the_published_data(shared: Path):
    stored = json.loads((shared / "golden" / "dataset" / "prompt_aug.json").read_text())["results"]
    length = re.compile(r"in (?:a|one|about|more|\d+)\b.*?(?:words?|sentences?)")
    found = [(row["caption_kind"], match[0]) for row in stored if (match := length.search(row["prompt"]))]
    assert len(found) > 10
    for kind, wanted in found:
        ours = {in_words(CAPTIONS[kind])} | {in_sentences(CAPTIONS[kind], random.Random(s)) for s in range(20)}
        assert wanted in ours


@pytest.mark.parametrize(
    ("words", "wanted"),
    [(1, "in 1 word"), (9, "in 9 words"), (10, "in about 10 words"), (200, "in about 200 words")]
    + [(201, "in more than 200 words"), (26, "in about 30 words")],
)
def test_words_are_counted_in_tens_when_many(words: int, wanted: str):
    assert in_words("a " * words) == wanted


def test_two_in_five_questions_say_how_long_the_answer_is():
    asked = Counter()
    for seed in range(2000):
        question = ask_for(CAPTIONS[1], random.Random(seed))
        asked["words" if "in 9 words" in question else "sentences" if "4 sentences" in question else "open"] += 1
    assert asked["open"] == pytest.approx(1200, abs=100)
    assert asked["words"] == pytest.approx(400, abs=70) and asked["sentences"] == pytest.approx(400, abs=70)
    assert all("sentence" not in ask_for("", random.Random(s)) for s in range(50))
    assert DESCRIBE not in {ask_for(CAPTIONS[0], random.Random(s)) for s in range(200)}
