"""Describe, ask and open against the plain path: one request, encoded and generated from nothing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tiny import CROP0, IMAGE, PROMPT0, PROMPTS, VOCAB, tiny_config, tiny_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LogitsProcessor, PreTrainedTokenizerFast

import gar
from gar.inputs.processor import GARProcessor
from gar.model.gar import GARForConditionalGeneration
from gar.model.released import FIRST_PROMPT_TOKEN, save_released
from gar.predictor import Answer, Predictor, Scene, _KeptLayer, _options, _Picture, _Pieces
from gar.regions import Region

SHORT: dict[str, Any] = {"max_new_tokens": 6}
REGIONS = [
    Region.box(10, 10, 60, 40),
    Region.box(100, 60, 145, 95),
    Region.polygon([(70, 5), (140, 20), (90, 50)]),
    Region.box(5, 70, 30, 98),
]
QUESTIONS = ["What is <Prompt0>?", "Is <Prompt0> left of <Prompt1>?", "Compare all."]
KINDS = [("nano", True, True), ("released", False, False)]  # style, class token, tied head


def picture(width: int = 150, height: int = 100, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def tiny_tokenizer(style: str) -> PreTrainedTokenizerFast:
    """Bytes, words that fill the vocabulary, and the special tokens of a style at the ids of the tiny models."""
    if style == "nano":
        layout = ["<|pad|>", "<|bos|>", "<|eos|>", "<|answer|>"]
    else:
        layout = ["<|end_of_text|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    special = {token: i for i, token in enumerate(layout)} | {"<|image|>": IMAGE}
    for k in range(PROMPTS):
        special |= {f"<Prompt{k}>": PROMPT0 + k, f"<|region{k}|>": CROP0 + k}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = letters + [f"Ġw{i}" for i in range(VOCAB)]
    free = [i for i in range(VOCAB) if i not in special.values()]
    tokenizer = Tokenizer(models.BPE(special | dict(zip(words, free, strict=False)), []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=layout[2],
        pad_token=layout[0],
        clean_up_tokenization_spaces=style != "nano",
    )


def tiny_predictor(style: str = "nano", class_token: bool = True, tied: bool = True, **changes) -> Predictor:
    changes = {"prompt_style": style, "mention_embedding": style == "nano"} | changes
    model = tiny_model(class_token=class_token, tied=tied, **changes)
    with torch.no_grad():  # so that all that is read matters, not only the last token
        model.model.language_model.embed_tokens.weight.normal_()
        for weight in model.model.language_model.layers.parameters():
            if weight.ndim == 2:
                weight *= 10
        if style == "nano":
            model.model.mention.weight.normal_()
    return Predictor(model, GARProcessor(model.config, tiny_tokenizer(style)))


@pytest.fixture(scope="module", params=KINDS, ids=["nano", "released"])
def predictor(request) -> Predictor:
    style, class_token, tied = request.param
    scoring = "texts" if style == "nano" else "letters"
    return tiny_predictor(style, class_token, tied, choice_scoring=scoring)


@pytest.fixture(scope="module")
def nano() -> Predictor:
    return tiny_predictor()


def plain(
    predictor: Predictor, image: np.ndarray, regions: Sequence[Region], question: str | None = None, **options: Any
) -> Answer:
    """One request from nothing: no tile, no key and no value is kept; the confidence from a forward over it all."""
    located = [region.locate(image.shape[1], image.shape[0]) for region in regions]
    batch = predictor.processor([image], [located], None if question is None else [question])
    return plain_batch(predictor, batch, located, **options)


def plain_batch(predictor: Predictor, batch: dict, located: list, **options) -> Answer:
    model: Any = predictor.model
    end = predictor.processor.prompts.end_id
    options = {"do_sample": False, "eos_token_id": end, "pad_token_id": end} | SHORT | options
    ids = model.generate(**batch, **options)[0].tolist()
    ids = ids[: ids.index(end) + 1] if end in ids else ids
    features = model.model.encode(batch["pixel_values"], batch["mask_values"])
    picture = {"tile_grids": batch["tile_grids"], "region_boxes": batch["region_boxes"], "features": features}
    embeds = model.embed(torch.tensor([batch["input_ids"][0].tolist() + ids]), **picture)
    with torch.no_grad():
        logits = model(inputs_embeds=embeds).logits[0, -len(ids) - 1 : -1].log_softmax(1)
    mean = logits[range(len(ids)), ids].mean().item()
    return Answer(predictor.processor.decode(ids), None, math.exp(mean), located, len(ids))


def same(ours: Answer, theirs: Answer) -> bool:
    return (
        (ours.text, ours.choice, ours.num_tokens) == (theirs.text, theirs.choice, theirs.num_tokens)
        and math.isclose(ours.confidence, theirs.confidence, rel_tol=1e-4)
        and [region.box for region in ours.regions] == [region.box for region in theirs.regions]
    )


class EndsAfter(LogitsProcessor):
    """Makes the answer end after so many tokens."""

    def __init__(self, tokens: int, end: int):
        self.left, self.end = tokens, end

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.left -= 1
        chosen = scores.clone()
        chosen[:, self.end] = math.inf if self.left == 0 else -math.inf
        return chosen if self.left else torch.full_like(scores, -50.0).index_fill(1, torch.tensor([self.end]), 50.0)


class Says(LogitsProcessor):
    """Makes the model say these tokens."""

    def __init__(self, ids: list[int]):
        self.ids = iter(ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -50.0).index_fill(1, torch.tensor([next(self.ids)]), 50.0)


# One by one


def test_changed_features_are_read_in_place_of_the_models_own(predictor, monkeypatch):
    def answers(seed: int) -> list[Answer]:
        image = picture(seed=seed)
        return [predictor.describe(image, REGIONS[:1], **SHORT)[0], predictor.ask(image, "What?", REGIONS, **SHORT)]

    assert not any(map(same, answers(0), answers(1)))
    shapes = set()

    def flat(features: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
        shapes.add((features.ndim, marks.ndim, len(features) == len(marks)))
        return torch.ones_like(features)

    monkeypatch.setattr(predictor, "change_features", flat)
    assert all(map(same, answers(0), answers(1))) and shapes == {(4, 3, True)}


def test_each_description_is_that_of_the_plain_path(predictor):
    image = picture()
    answers = predictor.describe(image, REGIONS, **SHORT)
    assert len({answer.text for answer in answers}) > 1
    for answer, region in zip(answers, REGIONS, strict=True):
        assert same(answer, plain(predictor, image, [region]))


def test_a_tile_is_encoded_again_only_where_a_region_touches_it(predictor, monkeypatch):
    image, model = picture(), predictor.model.model
    cut = predictor.processor.cut(image)
    located = [region.locate(150, 100) for region in REGIONS]
    masks = [predictor.processor.mark(cut, [one]) for one in located]
    marked = torch.stack([mask.flatten(1).any(1) for mask in masks])
    assert len(cut.tiles) > 4 and not marked.all(0)[1:].any() and marked.any(0).sum() > 2
    encoded, encode = [], model.encode

    def count(pixels, marks):
        encoded.append(len(pixels))
        return encode(pixels, marks)

    monkeypatch.setattr(model, "encode", count)
    tiles = _Picture(predictor.model, cut)
    found = tiles.encode(masks[:2]) + tiles.encode(masks[2:])
    assert sum(encoded) == marked.sum() + (~marked).any(0).sum()
    kept = ~marked[0] & ~marked[2]
    assert kept.any() and torch.equal(found[0][kept], found[2][kept])
    for mask, features in zip(masks, found, strict=True):
        pixels = (cut.tiles.float() - 127.5) / 127.5
        with torch.no_grad():
            assert torch.allclose(features, encode(pixels, mask.float()), atol=1e-5)


def test_a_kept_tile_is_equal_to_the_bit_to_one_encoded_anew_in_a_batch_of_the_same_shape(predictor, monkeypatch):
    monkeypatch.setattr(predictor.processor.config, "max_num_tiles", 1)
    cut = predictor.processor.cut(picture(56, 56))
    assert len(cut.tiles) == 2
    nothing = torch.zeros(2, 56, 56, dtype=torch.bool)
    thumbnail_only = nothing.clone()
    thumbnail_only[0, 10:20] = True
    (kept,) = _Picture(predictor.model, cut).encode([nothing])
    (anew,) = _Picture(predictor.model, cut).encode([thumbnail_only])
    assert torch.equal(kept[1], anew[1]) and not torch.equal(kept[0], anew[0])


def test_pictures_of_different_sizes_in_common_batches_give_the_answers_of_one_by_one(predictor):
    images = [picture(150, 100), picture(60, 170, seed=1), picture(50, 50, seed=2)]
    regions = [REGIONS[:3], [Region.box(5, 5, 50, 100)], [Region.box(0, 0, 20, 20), Region.box(20, 10, 50, 50)]]
    together = predictor.describe_batch(images, regions, batch_size=4, **SHORT)
    assert [len(answers) for answers in together] == [3, 1, 2]
    for image, mine, answers in zip(images, regions, together, strict=True):
        for region, answer in zip(mine, answers, strict=True):
            assert same(answer, plain(predictor, image, [region]))


def test_questions_about_different_pictures_in_common_batches_give_the_answers_of_one_by_one(predictor):
    images = [picture(150, 100), picture(60, 170, seed=1), picture(50, 50, seed=2)]
    regions = [REGIONS, [], [Region.box(0, 0, 20, 20), Region.box(20, 10, 50, 50)]]
    questions = [QUESTIONS[1], "What is this?", "Is <Prompt0> larger?"]
    answers = predictor.ask_batch(images, questions, regions, batch_size=2, **SHORT)
    assert len({len(answer.regions) for answer in answers}) == 3
    for image, question, mine, answer in zip(images, questions, regions, answers, strict=True):
        assert same(answer, plain(predictor, image, mine, question))


def test_a_batch_of_different_requests_gives_the_logits_of_one_by_one(predictor):
    images = [picture(150, 100), picture(60, 170, seed=1), picture(50, 50, seed=2)]
    regions = [
        [r.locate(i.shape[1], i.shape[0]) for r in [Region.box(2, 3, 40, 45)] * n] for n, i in enumerate(images, 1)
    ]
    with torch.no_grad():
        rows = predictor.model(**predictor.processor(images, regions, QUESTIONS[2:] * 3)).logits
        for row, image, mine in zip(rows, images, regions, strict=True):
            alone = predictor.model(**predictor.processor([image], [mine], QUESTIONS[2:])).logits[0]
            assert torch.allclose(row[-len(alone) :], alone, atol=1e-4)


# Together


def test_each_branch_is_answered_as_if_it_were_alone(predictor):
    image, processor = picture(), predictor.processor
    answers = predictor.describe(image, REGIONS, together=True, **SHORT)
    confidences = [answer.confidence for answer in answers]
    assert max(confidences) > 1.0005 * min(confidences)  # they are not all one answer
    numbers = range(len(REGIONS))
    located = [region.locate(150, 100) for region in REGIONS]
    batch = processor([image], [located], ["all"])
    for k, answer in enumerate(answers):
        ids = processor.prompts.encode_prefix(len(batch["pixel_values"]), numbers, "together")
        ids += processor.prompts.encode_question(processor.prompts.describing(k), numbers, "together", region=k)
        alone = batch | {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        assert same(answer, plain_batch(predictor, alone, [located[k]]))


def test_regions_beyond_the_prompts_of_the_checkpoint_are_described_in_groups(nano):
    boxes = [Region.box(10 * k, 5 * k, 10 * k + 30, 5 * k + 40) for k in range(PROMPTS + 2)]
    answers = nano.describe(picture(), boxes, together=True, batch_size=3, **SHORT)
    groups = [boxes[:PROMPTS], boxes[PROMPTS:]]
    apart = [answer for group in groups for answer in nano.describe(picture(), group, together=True, **SHORT)]
    assert len(answers) == PROMPTS + 2
    assert all(same(a, b) for a, b in zip(answers, apart, strict=True))
    assert len(nano.describe(picture(), boxes, **SHORT)) == PROMPTS + 2
    with pytest.raises(ValueError, match=f"ask about at most {PROMPTS}"):
        nano.ask(picture(), "How many?", boxes)


# Scenes


def test_a_scene_answers_every_question_as_the_plain_path_in_any_order(predictor):
    image = picture()
    scene = predictor.open(image, REGIONS)
    wanted = {question: plain(predictor, image, REGIONS, question) for question in QUESTIONS}
    assert len({answer.text for answer in wanted.values()}) > 1
    for question in QUESTIONS + QUESTIONS[::-1]:
        assert same(scene.ask(question, **SHORT), wanted[question])
        assert same(predictor.ask(image, question, REGIONS, **SHORT), wanted[question])
    described = plain(predictor, image, REGIONS, "Describe <Prompt2> in detail.")
    assert scene.describe(2, **SHORT).text == described.text


def test_nothing_of_a_question_is_left_in_a_scene(nano):
    scene = nano.open(picture(), REGIONS)
    first = scene.ask(QUESTIONS[1], **SHORT)

    def stop(piece: str) -> None:
        raise RuntimeError(piece)

    def interrupted() -> None:
        with pytest.raises(RuntimeError):
            scene.ask(QUESTIONS[0], on_text=stop, max_new_tokens=20)

    for between in (
        lambda: scene.ask(QUESTIONS[0], choices=["red", "blue"]),
        lambda: scene.ask(QUESTIONS[0], on_text=lambda piece: None, **SHORT),
        lambda: scene.ask(QUESTIONS[0], num_beams=3, **SHORT),
        lambda: scene.describe(1, **SHORT),
        interrupted,
    ):
        between()
        assert scene.ask(QUESTIONS[1], **SHORT) == first


def test_a_scene_of_the_whole_picture_needs_no_region(predictor):
    image = picture()
    assert same(predictor.ask(image, "What is this?", **SHORT), plain(predictor, image, [], "What is this?"))


def test_an_answer_longer_than_the_room_behind_a_cache_is_the_same(nano, monkeypatch):
    image = picture()
    longer = {"max_new_tokens": 9, "min_new_tokens": 9}
    asked, described = nano.ask(image, QUESTIONS[0], REGIONS, **longer), nano.describe(image, REGIONS, **longer)
    monkeypatch.setattr(_KeptLayer, "room", 2)
    assert same(nano.ask(image, QUESTIONS[0], REGIONS, **longer), asked)
    assert all(same(a, b) for a, b in zip(nano.describe(image, REGIONS, **longer), described, strict=True))


# Choices


def test_the_choice_is_one_of_the_given_and_its_confidence_a_share(predictor):
    scene = predictor.open(picture(), REGIONS)
    choices = ["A. red", "B. a blue cup", "C. green"]
    answer = scene.ask(QUESTIONS[0], choices)
    assert answer.text in ("red", "a blue cup", "green")
    assert answer.choice == "ABC"[["red", "a blue cup", "green"].index(answer.text)]
    assert 1 / 3 <= answer.confidence <= 1 and answer.num_tokens == 0
    swapped = scene.ask(QUESTIONS[0], ["(A) red", "(B) a blue cup", "(C) green"])
    assert (swapped.text, swapped.choice) == (answer.text, answer.choice)


def test_texts_are_ranked_by_the_mean_log_probability_of_their_tokens(nano):
    image, options = picture(), ["red", "a very dark blue", "green"]
    nano.model.config.choice_scoring = "texts"
    answer = nano.ask(image, QUESTIONS[0], REGIONS, options)
    scores = torch.tensor([forced_log_probability(nano, image, QUESTIONS[0], text) for text in options])
    assert answer.text == options[int(scores.argmax())]
    assert abs(answer.confidence - scores.softmax(0).max().item()) < 1e-4


def forced_log_probability(
    predictor: Predictor, image: np.ndarray, question: str, text: str, notes: Sequence[int] = ()
) -> float:
    located = [region.locate(150, 100) for region in REGIONS]
    batch = predictor.processor([image], [located], [question])
    answer = predictor.processor.prompts.encode_answer(text)
    ids = torch.tensor([[*batch["input_ids"][0].tolist(), *notes, *answer]])
    with torch.no_grad():
        logits = predictor.model(**batch | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
    return logits[0, -len(answer) - 1 : -1].log_softmax(1)[range(len(answer)), answer].mean().item()


def test_letters_are_ranked_by_their_probability_as_the_first_token():
    predictor = tiny_predictor("released", choice_scoring="letters")
    image = picture()
    answer = predictor.ask(image, QUESTIONS[0], REGIONS, ["red", "blue"])
    asked = f"Question: {QUESTIONS[0]}\nOptions:\nA. red\nB. blue\nAnswer with the correct option's letter directly."
    batch = predictor.processor([image], [[region.locate(150, 100) for region in REGIONS]], [asked])
    letters = [predictor.processor.prompts.encode_answer(letter)[0] for letter in "AB"]
    with torch.no_grad():
        share = predictor.model(**batch).logits[0, -1, letters].softmax(0)
    assert answer.choice == "AB"[int(share.argmax())]
    assert abs(answer.confidence - share.max().item()) < 1e-4


@pytest.mark.parametrize(
    ("choices", "options"),
    [
        (["A. red", "B. blue"], {"A": "red", "B": "blue"}),
        (["(B) red", "(D) blue"], {"B": "red", "D": "blue"}),
        (["a) red", "b: blue"], {"A": "red", "B": "blue"}),
        (["red", " blue "], {"A": "red", "B": "blue"}),
        (["A. red", "blue"], {"A": "A. red", "B": "blue"}),
        (["A. red", "A. blue"], {"A": "A. red", "B": "A. blue"}),
    ],
)
def test_choices_keep_their_letters_or_get_some(choices, options):
    assert _options(choices) == options


@pytest.mark.parametrize(
    ("choices", "message"),
    [([], "0 choice"), (["red"], "at least two"), (["x"] * 27, "at most 26"), (["red", " "], "empty one")],
)
def test_choices_that_are_none_are_refused(nano, choices, message):
    with pytest.raises(ValueError, match=message):
        nano.ask(picture(), QUESTIONS[2], REGIONS, choices=choices)


# Confidence, lengths, streaming


def test_an_answer_counts_its_tokens_with_the_end_and_stops_there(nano):
    end = nano.processor.prompts.end_id
    full = nano.describe(picture(), REGIONS[:1], max_new_tokens=5, min_new_tokens=5)[0]
    ended = nano.describe(picture(), REGIONS[:1], max_new_tokens=5, logits_processor=[EndsAfter(3, end)])[0]
    assert (full.num_tokens, ended.num_tokens) == (5, 3)
    assert full.text.startswith(ended.text) and "<|" not in ended.text
    assert 0 < full.confidence < 1


def test_the_pieces_of_a_streamed_answer_join_to_it(predictor):
    pieces = []
    scene = predictor.open(picture(), REGIONS)
    answer = scene.ask(QUESTIONS[0], on_text=pieces.append, max_new_tokens=12)
    assert len(pieces) > 1 and "".join(pieces) == answer.text == scene.ask(QUESTIONS[0], max_new_tokens=12).text


@pytest.mark.parametrize("text", ["we do n't know , a ' b ' s .", "naïve 🍎🍎 <Prompt1> , 苹果 .", "a", ""])
def test_pieces_join_where_letters_are_split_and_spaces_removed(predictor, text):
    pieces = []
    streamer = _Pieces(predictor.processor, pieces.append)
    ids = predictor.processor.prompts.encode_answer(text)
    for i in ids:
        streamer.put(torch.tensor([i]))
    streamer.end()
    assert "".join(pieces) == predictor.processor.decode(ids)
    assert all("\ufffd" not in piece for piece in pieces)


# Notes


def test_what_is_noted_down_before_an_answer_is_neither_shown_nor_counted(nano):
    prompts, pieces = nano.processor.prompts, []
    ids = prompts.encode_notes("<Prompt1> red, <Prompt0> blue") + prompts.encode_answer("yes, both")
    says = {"logits_processor": [Says(ids)]}
    answer = nano.open(picture(), REGIONS).ask(QUESTIONS[1], on_text=pieces.append, **says)
    assert answer.text == "".join(pieces) == "yes, both" and answer.num_tokens == len(ids)
    cut = nano.ask(picture(), QUESTIONS[1], REGIONS, max_new_tokens=3, logits_processor=[Says(ids)])
    assert cut.text == "yes"
    (batched,) = nano.ask_batch([picture()], QUESTIONS[1:2], [REGIONS], logits_processor=[Says(ids)])
    assert batched.text == answer.text
    endless = Says([prompts.encode_notes("a")[0]] + prompts.encode_answer("a", end=False) * 999)
    assert nano.ask(picture(), QUESTIONS[1], REGIONS, max_new_tokens=3, logits_processor=[endless]).text == ""


def test_choices_are_ranked_behind_the_notes(nano, monkeypatch):
    prompts, image, options = nano.processor.prompts, picture(), ["yes", "no, not at all"]
    notes = prompts.encode_notes("<Prompt1> red")
    nano.model.config.choice_scoring = "texts"
    plain = [forced_log_probability(nano, image, QUESTIONS[1], text) for text in options]
    noted = [forced_log_probability(nano, image, QUESTIONS[1], text, notes) for text in options]
    first = torch.nn.functional.one_hot(torch.tensor([[notes[0]]]), VOCAB).float()
    logits = Scene._logits
    monkeypatch.setattr(Scene, "_logits", lambda self, texts, keep: first if keep == 1 else logits(self, texts, keep))
    monkeypatch.setattr(nano.model, "generate", lambda **_: torch.tensor([notes]))
    share = nano.ask(image, QUESTIONS[1], REGIONS, options).confidence
    assert abs(share - torch.tensor(noted).softmax(0).max().item()) < 1e-4
    assert abs(share - torch.tensor(plain).softmax(0).max().item()) > 1e-3


# Options of generation


def test_sampling_repeats_with_its_seed(nano):
    def sampled(seed: int) -> list[str]:
        torch.manual_seed(seed)
        answers = nano.describe(picture(), REGIONS, do_sample=True, temperature=2.0, **SHORT)
        return [answer.text for answer in answers]

    assert sampled(1) == sampled(1) != sampled(2)


def test_beams_give_those_of_the_plain_path(predictor):
    image = picture()
    beams: dict[str, Any] = {"num_beams": 2} | SHORT
    (described,) = predictor.describe(image, REGIONS[:1], **beams)
    assert same(described, plain(predictor, image, REGIONS[:1], **beams))
    asked = predictor.ask(image, QUESTIONS[1], REGIONS, length_penalty=0.5, **beams)
    assert same(asked, plain(predictor, image, REGIONS, QUESTIONS[1], length_penalty=0.5, **beams))


def test_a_static_cache_describes_the_same(nano):
    dynamic = nano.describe(picture(), REGIONS, **SHORT)
    static = nano.describe(picture(), REGIONS, cache_implementation="static", **SHORT)
    assert all(same(a, b) for a, b in zip(static, dynamic, strict=True))


# What does not fit


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.describe(picture(), []), "no region to describe"),
        (lambda p: p.describe(picture(), REGIONS, batch_size=0), "batch_size is 0"),
        (lambda p: p.describe(picture(), REGIONS, num_return_sequences=2, num_beams=2), "num_return_sequences is 2"),
        (lambda p: p.describe_batch([picture()], []), "1 images but 0 lists"),
        (lambda p: p.ask_batch([picture()], [], [REGIONS]), "1 images, 0 questions and 1 lists of regions"),
        (lambda p: p.ask_batch([picture()], ["?"], [REGIONS], batch_size=0), "batch_size is 0"),
        (lambda p: p.describe(picture(), [Region.box(0, 0, 999, 9)]), "region 0"),
        (lambda p: p.describe(picture(), REGIONS[0]), "regions is a Region: give a list of them"),
        (lambda p: p.describe(picture(), [(1, 2, 30, 40)]), "region 0 is a tuple: make a Region of it"),
        (lambda p: p.describe_batch([picture()], np.ones((1, 2, 100, 150), bool)), "regions is a ndarray"),
        (lambda p: p.ask(picture(), "?", [*REGIONS, np.ones((100, 150), bool)]), "region 4 is a ndarray"),
        (lambda p: p.ask(picture(), "?", REGIONS, choices="red"), "choices is 'red': give a list of texts"),
        (lambda p: p.ask(picture(), "?", REGIONS, choices=[1, 2]), "choices is .1, 2.: give a list of texts"),
        (lambda p: p.ask(picture(), "?", REGIONS, generation_config=None), "generation_config is no option here"),
        (lambda p: p.describe(picture(), REGIONS, prompt_lookup_num_tokens=2), "prompt_lookup_num_tokens is no option"),
        (lambda p: p.ask(picture(), "Is it <Prompt4>?", REGIONS), "names <Prompt4>"),
        (lambda p: p.ask(picture(), "?", REGIONS[:1], choices=["<Prompt0>", "<Prompt1>"]), "choice names <Prompt1>"),
        (lambda p: p.ask(picture(), "?", REGIONS, choices={"A": "red", "B": "blue"}), "give a list of texts"),
        (lambda p: p.ask(picture(), "Is it \udcff?", REGIONS), "no valid text"),
        (lambda p: p.ask(picture(), None, REGIONS), "None is no valid text"),
        (lambda p: p.ask(picture(), " ", REGIONS), "question is empty"),
        (lambda p: p.open(picture(), REGIONS).describe(4), "region 4 of 4"),
    ],
)
def test_what_does_not_fit_is_refused(nano, call, message):
    with pytest.raises(ValueError, match=message):
        call(nano)


# Loading


def test_a_saved_folder_is_loaded_and_says_the_same(predictor, tmp_path):
    predictor.model.save_pretrained(tmp_path)
    predictor.processor.save_pretrained(tmp_path)
    again = gar.load(tmp_path, device="cpu")
    assert again.name == str(tmp_path)
    for ours, theirs in (
        (again.describe(picture(), REGIONS, **SHORT), predictor.describe(picture(), REGIONS, **SHORT)),
        ([again.ask(picture(), "?", REGIONS, ["A", "B"])], [predictor.ask(picture(), "?", REGIONS, ["A", "B"])]),
    ):
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_released_folder_is_loaded_and_described(released_tokenizer, tmp_path):
    config = tiny_config(tied=False, replay_frame="released", inclusive_boxes=True, describe_prompt_number=1)
    text: Any = config.text_config
    text.vocab_size = FIRST_PROMPT_TOKEN + 6
    config.image_token_id = 128002
    config.prompt_token_ids = [FIRST_PROMPT_TOKEN + k for k in range(5)]
    config.crop_token_ids = [128004, 128005, 128008, 128010, 128011]
    torch.manual_seed(0)
    model = GARForConditionalGeneration(config)
    known = [i for i in released_tokenizer.get_vocab().values() if i < 128000]
    with torch.no_grad():  # say only what the tokenizer of the tests can write
        words = torch.zeros_like(model.lm_head.weight)
        words[known] = torch.randn(len(known), words.shape[1])
        model.lm_head.weight.copy_(words)
    save_released(model, tmp_path)
    released_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"max_num_tiles": 4}))
    predictor = gar.load(tmp_path, device="cpu")
    assert predictor.processor.config.max_num_tiles == 4
    assert predictor.model.config.describe_prompt_number == 1
    for answer, region in zip(predictor.describe(picture(), REGIONS, **SHORT), REGIONS, strict=True):
        assert answer.text and same(answer, plain(predictor, picture(), [region]))
    answer = predictor.ask(picture(), QUESTIONS[1], REGIONS, choices=["yes", "no"])
    assert (answer.choice, answer.text) in (("A", "yes"), ("B", "no"))
    with pytest.raises(ValueError, match="at most 5"):
        predictor.ask(picture(), "How many?", REGIONS * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "no/such/folder"}, "cannot load 'no/such/folder'"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"device": "abacus"}, "device is 'abacus'"),
    ],
)
def test_what_cannot_be_loaded_is_named(options, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        gar.load(**options)


@pytest.mark.parametrize("device", ["cuda:99", "meta", "vulkan"])
def test_a_device_that_is_not_there_is_an_error_that_says_so(device):
    with pytest.raises(ValueError, match=f"device is '{device}', which torch cannot use here: take auto, cpu"):
        gar.load("nano", device=device)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", None),  # cut in half
        ("model.safetensors", ""),
        ("config.json", "[]"),
        ("config.json", '{"model_type": "GAR"}'),
        ("config.json", '{"model_type": "llama"}'),
        ("config.json", '{"mllm_config": {}}'),
        ("config.json", "{}"),
        ("tokenizer.json", "{"),
        ("processor_config.json", "[]"),
        ("processor_config.json", "{"),
        ("adapter_config.json", "{"),
    ],
)
def test_a_damaged_checkpoint_is_one_error_that_names_it(nano, tmp_path, file, content):
    nano.model.save_pretrained(tmp_path)
    nano.processor.save_pretrained(tmp_path)
    path = tmp_path / file
    if content is None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match="cannot load .*" + re.escape(str(tmp_path))):
        gar.load(tmp_path, device="cpu")


def test_an_adapter_without_its_weights_is_told_from_a_model(tmp_path):
    settings = {"peft_type": "LORA", "base_model_name_or_path": "nano", "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"no adapter_model\.safetensors"):
        gar.load(tmp_path, device="cpu")


def test_a_configuration_of_other_sizes_is_one_error(nano, tmp_path):
    nano.model.save_pretrained(tmp_path)
    nano.processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["intermediate_size"] //= 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot load .*" + re.escape(str(tmp_path))):
        gar.load(tmp_path, device="cpu")


def test_a_folder_that_is_called_nano_does_not_take_the_place_of_the_built_in_model(tmp_path, monkeypatch):
    (tmp_path / "nano").mkdir()
    (tmp_path / "nano" / "adapter_config.json").write_text('{"base_model_name_or_path": "nano", "peft_type": "LORA"}')
    monkeypatch.chdir(tmp_path)
    assert gar.load("nano", device="cpu").model.config.prompt_style == "nano"
