"""Packing and the training loop, on pictures of coloured squares."""

from __future__ import annotations

import io
import json
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from torch import nn

import gar
from gar.data.conversation import converse, request_of
from gar.data.packing import (
    NEGATIVE,
    ROW,
    Reading,
    Spoken,
    collate,
    named,
    needs_picture,
    pack,
    packed_attention,
    renumber,
)
from gar.data.sample import Sample, Turn, Unusable, read_shards, write_shard
from gar.data.stream import Data, Rejects, Shard
from gar.inputs.processor import GARProcessor
from gar.inputs.prompt import DESCRIBE, ChatTurn
from gar.model.gar import GARForConditionalGeneration
from gar.train import nano, recipes, trainer
from gar.train.checkpoint import load, save
from gar.train.feed import Feed, Packer, Steps, share
from gar.train.heads import HARD, RegionHeads, middles
from gar.train.log import Log
from gar.train.muon import Muon
from gar.train.objective import Objective
from gar.train.recipes import Stage
from gar.train.trainer import train

COLORS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (30, 50, 200)}


def squares(seed: int) -> Sample:
    """Three squares, one of each color, side by side; questions on each and on all."""
    rng = random.Random(seed)
    names = rng.sample(list(COLORS), 3)
    pixels = np.full((64, 96, 3), 90, np.uint8)
    masks, things, turns = [], [], []
    for i, name in enumerate(names):
        mask = np.zeros((64, 96), np.uint8)
        x, y = 4 + 32 * i, rng.randint(0, 36)
        mask[y : y + 24, x : x + 24] = 1
        pixels[mask > 0] = COLORS[name]
        rle: dict[str, Any] = dict(coco.encode(np.asfortranarray(mask)))
        masks.append({"size": [64, 96], "counts": rle["counts"].decode()})
        thing = {"category": "cube", "color": name, "kind": "object", "of": None, "visible": 1.0, "area": 24 * 24}
        things.append(thing | {"box": [x, y, x + 24, y + 24], "depth": 1 + i})
        turns.append(Turn(f"What is the color of <Prompt{i}>?", name, "color"))
        turns.append(Turn(f"Describe <Prompt{i}> in detail.", f"A {name} square.", "detailed"))
    turns.append(Turn("How many squares are there?", "three", "counting", notes="159"))
    turns.append(Turn("Which color has <Prompt0>?", names[0], "color", choices=(names[1], names[0], names[2])))
    ends = ("<Prompt0>", "<Prompt2>")
    turns.append(Turn("Which is the leftmost?", ends[0], "ordering", choices=ends, notes=" ".join(ends)))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Sample(file.getvalue(), masks, turns, meta={"size": [96, 64], "things": things, "relations": []})


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [squares(seed) for seed in range(6)]


@pytest.fixture(scope="module")
def processor(samples) -> GARProcessor:
    texts = (text for s in samples for turn in s.turns for text in (turn.question, turn.answer))
    tokenizer = nano.build_tokenizer(texts)
    config = nano.config(tokenizer)
    config.tile_size = 72  # a twentieth of the work
    config.text_config.initializer_range = 0.02  # gentle: AdamW steps along rounding noise, which must not grow
    return GARProcessor(config, tokenizer)


@pytest.fixture(scope="module")
def released_processor(released_tokenizer) -> GARProcessor:
    changes: Any = {"replay_frame": "released", "inclusive_boxes": True, "describe_prompt_number": 1}
    changes["max_num_tiles"] = 4
    config = tiny_config(**changes)
    config.text_config.vocab_size = 128262
    config.image_token_id, config.crop_token_ids = 128002, [128004, 128005, 128008, 128010, 128011]
    config.prompt_token_ids = list(range(128256, 128261))
    return GARProcessor(config, released_tokenizer)


@pytest.fixture(params=["nano", "released"])
def either_processor(request) -> GARProcessor:
    return request.getfixturevalue("processor" if request.param == "nano" else "released_processor")


def fresh(processor: GARProcessor) -> GARForConditionalGeneration:
    torch.manual_seed(0)
    return GARForConditionalGeneration(processor.config).eval()


def test_a_shard_gives_back_what_was_written(samples, tmp_path):
    assert write_shard(samples, tmp_path / "a.parquet") == 6
    assert list(read_shards(tmp_path)) == samples
    assert [p.name for p in tmp_path.iterdir()] == ["a.parquet"]


def test_a_folder_without_shards_is_an_error_that_says_how_to_make_some(tmp_path):
    with pytest.raises(ValueError, match="gar scenes render"):
        list(read_shards(tmp_path))


def test_a_shard_of_other_columns_is_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="a.parquet has no column image: shards are written by `gar scenes render`"):
        list(read_shards(tmp_path))


def test_names_follow_their_regions_to_new_numbers():
    turn = Turn("Is <Prompt2> left of <Prompt0>?", "yes", choices=("<Prompt2>", "<Prompt4>"))
    assert named(turn) == {0, 2, 4}
    assert renumber(turn.question, {0: 2, 2: 0}) == "Is <Prompt0> left of <Prompt2>?"


def test_a_branch_sees_itself_its_parent_and_the_root():
    segments, parents = torch.tensor([[0, 0, 1, 2, 3, -1]]), torch.tensor([[0, 0, 0, 1, 1, -1]])
    assert packed_attention(segments, parents)[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]


def test_a_pack_marks_few_regions_and_asks_about_no_others(samples, processor):
    for seed in range(20):
        packed = pack(samples[0], processor, random.Random(seed), num_turns=4, max_regions=2)
        assert packed is not None
        assert len(packed.boxes) == len(packed.things) <= 2
        assert all(named(turn) <= set(packed.things) for turn in packed.turns)
        assert packed.segments == sorted(packed.segments)
        for turn, spans in zip(packed.turns, packed.answers, strict=True):
            assert len(spans) == max(len(turn.choices), 1)


def test_where_few_are_marked_it_is_two_and_the_picture_is_seen(samples, processor):
    make = partial(pack, samples[0], processor, num_turns=4, max_regions=3, few=0.5)
    marked = [len(packed.boxes) for seed in range(40) if (packed := make(random.Random(seed)))]
    fewer = [len(packed.boxes) for seed in range(40) if (packed := make(random.Random(seed), few=1.0))]
    assert max(marked) == 3 and max(fewer) == 2
    unseen = [packed for seed in range(40) if (packed := make(random.Random(seed), few=1.0, hidden=1.0))]
    assert unseen and all(packed.hidden for packed in unseen) and max(len(packed.boxes) for packed in unseen) == 3


def test_regions_grow_around_a_turn_that_fits_and_where_none_does_the_reason_says_so(samples, processor):
    both, one = Turn("Is <Prompt0> left of <Prompt1>?", "Yes."), samples[0].turns[0]
    for seed in range(20):
        mixed = replace(samples[0], turns=[both, one])
        packed = pack(mixed, processor, random.Random(seed), num_turns=4, max_regions=1)
        assert packed is not None and packed.turns == [one]
    with pytest.raises(Unusable, match="too many regions: no question is about 1 regions or fewer, of 3 masks"):
        pack(replace(samples[0], turns=[both]), processor, random.Random(0), num_turns=4, max_regions=1)


def branches(packed) -> list[list[int]]:
    """For each answer of a pack the tokens that lead to it, as places in the sequence."""
    segments, parents = np.array(packed.segments), np.array(packed.parents)
    paths = []
    for spans in packed.answers:
        for start, end in spans:
            question = parents[start]
            paths.append([*np.flatnonzero((segments == 0) | (segments == question)), *range(start, end)])
    return paths


def test_a_packs_logits_and_losses_are_those_of_its_turns_one_by_one(samples, either_processor):
    model = fresh(either_processor)
    packed = pack(samples[0], either_processor, random.Random(2), num_turns=9, max_regions=3)
    assert packed is not None and any(turn.choices for turn in packed.turns)
    batch, reading = collate([packed]), Reading.of([packed], 0)
    ids, labels = reading.input_ids, reading.labels
    with torch.no_grad():
        features = model.model.encode(batch["pixel_values"], batch["mask_values"])
        common = {"features": features, "tile_grids": batch["tile_grids"], "region_boxes": batch["region_boxes"]}
        rest = {name: getattr(reading, name) for name in ("attention_mask", "position_ids", "labels")}
        together = model(input_ids=ids, **common, **rest)
        losses, scores = [], []  # of each text that is trained, and of each option
        noted = {spans[0][0]: notes for spans, notes in zip(packed.answers, packed.notes, strict=True)}
        for path in branches(packed):
            alone = model(input_ids=ids[:, path], **common, labels=labels[:, path])
            assert torch.allclose(together.logits[0, path], alone.logits[0], atol=1e-5)
            each = -alone.logits[0, :-1].log_softmax(-1).gather(1, ids[0, path[1:]][:, None])[:, 0]
            where = {place: n - 1 for n, place in enumerate(path)}
            if (start := next((p for p in path if p in noted), None)) is not None:
                losses += [each[[where[p] for p in path if p >= start]]]
                losses += [each[[where[p] for p in range(*noted[start])]]] if noted[start][0] < start else []
            length = len(path) - len([i for i in path if packed.segments[i] != packed.segments[path[-1]]])
            spoken = alone.logits[0, -length - 1 : -1].log_softmax(-1)
            scores.append(spoken.gather(1, ids[0, path[-length:]][:, None]).mean())
    takes_notes = model.config.prompt_style == "nano"
    assert [end > start for start, end in packed.notes] == [bool(t.notes) and takes_notes for t in packed.turns]
    assert torch.allclose(together.loss, torch.cat(losses).mean(), atol=1e-5)
    spoken = Spoken.of([packed], reading, lambda rows, places: together.logits[rows, places])
    assert torch.allclose(spoken.answer_loss(), together.loss, atol=1e-5)
    alike = torch.stack([text.mean() for text in losses]).mean()
    assert torch.allclose(spoken.answer_loss(balance=1), alike, atol=1e-5)
    ranking, _, asked = spoken.ranking_loss()
    each, groups = iter(scores), []
    for spans in packed.answers:
        group = torch.stack([next(each) for _ in spans])
        if len(spans) > 1:
            groups.append(-group.log_softmax(0)[0])
    assert asked == len(groups) > 0
    assert torch.allclose(ranking, torch.stack(groups).mean(), atol=1e-5)


def test_a_packs_gradients_are_those_of_its_turns_one_by_one(samples, either_processor):
    packed: Any = pack(samples[0], either_processor, random.Random(2), num_turns=9, max_regions=3)
    stage = Stage("a", steps=1, batch=1, turns=9, regions=3, heads=0.0, ranking=0.0)
    together, alone = fresh(either_processor), fresh(either_processor)
    Objective(together, stage)([packed])[0].backward()

    batch, reading = collate([packed]), Reading.of([packed], 0)
    total = sum(label != -100 for label in packed.labels)
    for path in branches(packed):
        labels = reading.labels[:, path]
        if labels[0, -1] != -100:  # not a wrong option
            loss = alone(input_ids=reading.input_ids[:, path], **batch, labels=labels).loss
            (loss * (labels != -100).sum() / total).backward()
    pairs = zip(together.parameters(), alone.parameters(), strict=True)
    each = [(a.grad.flatten(), b.grad.flatten()) for a, b in pairs if a.grad is not None and b.grad is not None]
    assert len(each) > 0.9 * len([*alone.parameters()])
    ours, theirs = (torch.cat(gradients) for gradients in zip(*each, strict=True))
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


RECOMPUTED = {"use_reentrant": False}


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 0.0), (torch.bfloat16, 0.02)])
def test_gradients_stay_the_same_where_activations_are_recomputed_and_nearly_so_in_bfloat16(
    samples, either_processor, dtype, error
):
    """What a GPU does, here on a CPU."""
    packs: Any = [pack(samples[0], either_processor, random.Random(1), num_turns=9, max_regions=3)]
    found = []
    for like_a_gpu in (False, True):
        model = fresh(either_processor)
        if like_a_gpu:
            model.gradient_checkpointing_enable(RECOMPUTED)
        objective = Objective(model, Stage("a", steps=1, batch=1, turns=9, regions=3, heads=0.0))
        objective.training_mode()
        with torch.autocast("cpu", dtype, enabled=like_a_gpu and dtype != torch.float32):
            objective(packs)[0].backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    plain, recomputed = (torch.cat([gradient.flatten() for gradient in one.values()]) for one in found)
    assert error / 10 <= (recomputed - plain).norm() / plain.norm() <= error


@pytest.mark.parametrize("kind", ["detailed", ""])
def test_a_chat_is_trained_as_the_model_reads_it_where_later_answers_see_the_earlier(samples, either_processor, kind):
    rows = replace(samples[0], turns=[replace(turn, choices=()) for turn in samples[0].turns])
    if kind:
        rows = replace(rows, turns=[turn for turn in rows.turns if turn.type == kind])
    stage = replace(recipes.gar_1b(samples=64)[0], regions=3)
    packed = Packer(either_processor, stage)(rows, random.Random(1))
    assert packed is not None and len(packed.turns) == len(packed.answers) > 2
    conversation = converse(rows, random.Random(1), either_processor.config.max_prompts, most=3)
    batch = either_processor.collate([request_of(rows, either_processor, conversation, exact=False)])
    model = fresh(either_processor)
    with torch.no_grad():
        trained, figures, spoken = Objective(model, stage)([packed])
        wanted = model(**batch).loss
    assert trained.item() == pytest.approx(wanted.item(), abs=1e-5) == pytest.approx(figures["language"], abs=1e-5)
    said = [either_processor.decode(packed.input_ids[start:end]) for ((start, end),) in packed.answers]
    assert [text.lower().strip(".") for text in said] == [t.answer.lower().strip(".") for t in conversation.turns]
    assert spoken is not None and len(spoken.word_for_word()) == len(packed.turns)
    if not kind:
        assert packed.turns == rows.turns[: len(packed.turns)]
    assert {turn.type for turn in packed.turns} == ({"detailed"} if kind else {turn.type for turn in rows.turns})


def test_descriptions_in_the_released_form_are_the_published_conversations_of_one_turn(samples, released_processor):
    described = replace(samples[0], turns=[turn for turn in samples[0].turns if turn.type == "detailed"])
    packed = pack(described, released_processor, random.Random(0), num_turns=3, max_regions=3)
    assert packed is not None
    numbers = dict(zip(packed.things, packed.boxes, strict=True))
    for path, turn in zip(branches(packed), packed.turns, strict=True):
        (region,) = named(turn)
        alone = [ChatTurn(turn.question.removeprefix(f"<Prompt{region}>: "), turn.answer, numbers[region])]
        tiles = len(packed.cut.tiles)
        expected = released_processor.prompts.encode_conversation(tiles, alone, sorted(numbers.values()))
        assert ([packed.input_ids[i] for i in path], [packed.labels[i] for i in path]) == expected


def test_descriptions_are_asked_for_in_many_words_and_at_times_of_a_region_that_is_not_there(
    samples, released_processor
):
    described = replace(samples[0], turns=[turn for turn in samples[0].turns if turn.type == "detailed"])
    texts, negatives = Counter(), 0
    for seed in range(120):
        packed = pack(described, released_processor, random.Random(seed), num_turns=3, max_regions=3)
        assert packed is not None
        decode = released_processor.tokenizer.decode
        for turn, (right, *wrong) in zip(packed.turns, packed.answers, strict=True):
            answer = decode(packed.input_ids[right[0] : right[1] - 1]).strip()
            if turn.type == NEGATIVE:
                (absent,) = named(turn)
                assert absent not in packed.boxes and answer == f"<Prompt{absent}> is not in the image." and not wrong
                negatives += 1
            else:
                texts[turn.question.partition(": ")[2]] += 1
                assert answer == turn.answer
    assert 0.4 < texts[DESCRIBE] / texts.total() < 0.6 and len(texts) > 15
    assert 3 <= negatives <= 25  # one in twenty beside each description but the first


@pytest.mark.parametrize("question", ["Describe <Prompt0> and what is right of it.", "Describe all of it."])
def test_a_description_that_names_another_region_or_none_is_asked_for_as_it_stands(samples, either_processor, question):
    other = " <Prompt1>" if "<" in question else " nothing"
    turns = [Turn(question, f"A square beside{other}", "detailed"), *samples[0].turns[1:2]]
    for seed in range(20):
        sample = replace(samples[0], turns=turns)
        packed = pack(sample, either_processor, random.Random(seed), num_turns=2, max_regions=3)
        assert packed is not None
        numbers = dict(zip(packed.things, packed.boxes, strict=True))
        for turn, ((start, end),) in zip(packed.turns, packed.answers, strict=True):
            if turn.question == question:
                said = either_processor.decode(packed.input_ids[start : end - 1]).lower()
                assert said.replace(" ", "") == renumber(turn.answer, numbers).lower().replace(" ", "")


def test_a_run_that_was_stopped_ends_with_the_same_weights(samples, processor, tmp_path):
    stage = Stage("language", steps=4, batch=2, turns=3, regions=3, warmup=2, muon_rate=0.01)
    colors = {color: processor.prompts.encode_answer(color)[0] for color in sorted(COLORS)}

    def run(out, model, validate=None):
        torch.manual_seed(1)
        heads = RegionHeads(processor.config.text_config.hidden_size, {"color": colors})
        options = {"heads": heads, "save_every": 2, "log_every": 3, "workers": 0, "validate": validate}
        train(model, processor, samples, stage, out, **options)
        return {**model.state_dict(), **heads.state_dict()}

    def stop(_) -> dict[str, float]:
        raise KeyboardInterrupt

    whole = run(tmp_path / "whole", fresh(processor))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", fresh(processor), validate=stop)
    resumed = run(tmp_path / "parts", fresh(processor))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    lines = [figures(tmp_path / name) for name in ("whole", "parts")]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == [3, 4]  # saved after 2: in between


def figures(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without what differs from time to time."""
    lines = (json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines if "seconds" in line]


def test_turns_without_a_prefix_stand_in_short_rows_and_ask_only_what_summaries_can_tell(samples, processor):
    asked = replace(samples[0], turns=samples[0].turns * 16)
    hidden = pack(asked, processor, random.Random(0), num_turns=90, max_regions=3, hidden=1.0)
    assert hidden is not None and hidden.hidden and len(hidden.input_ids) > 2 * ROW
    assert {turn.type for turn in hidden.turns} == {"color", "detailed", "ordering"}  # not what names no region
    reading = Reading.of([hidden], 0)
    assert len(reading.rows) > 2 and reading.input_ids.shape[1] <= ROW
    assert [start for _, start, _ in reading.rows[1:]] == [end for _, _, end in reading.rows[:-1]]
    spans = [span for answers in hidden.answers for span in answers]
    assert all(any(a < start and end <= b for _, a, b in reading.rows) for start, end in spans)


def test_where_other_packs_hide_the_picture_one_that_shows_it_asks_first_what_needs_it(samples, processor):
    more = [Turn(f"How many {color} things are there?", "one", "counting") for color in ("red", "blue", "gray")]
    asked = replace(samples[0], turns=[*samples[0].turns * 16, *more])
    seen = [
        packed
        for seed in range(20)
        if (packed := pack(asked, processor, random.Random(seed), num_turns=6, max_regions=3, hidden=0.5))
    ]
    assert {packed.hidden for packed in seen} == {True, False}
    for packed in seen:
        about = [turn for turn in packed.turns if needs_picture(turn)]
        assert len(packed.turns) == 6 and len(about) == (0 if packed.hidden else 4)


def test_packs_without_a_prefix_have_the_losses_of_each_by_itself(samples, processor):
    asked = [replace(sample, turns=[t for t in sample.turns if t.type == "color"] * 6) for sample in samples[:4]]
    stage = Stage("language", steps=1, batch=4, turns=30, regions=3)
    objective = Objective(fresh(processor), stage, pad_id=0).eval()
    packs: list[Any] = [
        pack(sample, processor, random.Random(i), num_turns=30, max_regions=3, hidden=i % 2)
        for i, sample in enumerate(asked)
    ]
    with torch.no_grad():
        together: Any = objective(packs)[2]
        alone = Spoken.joined([objective([p])[2] for p in sorted(packs, key=lambda p: p.hidden)])
    assert together.turns == alone.turns and torch.equal(together.ids, alone.ids)
    assert torch.allclose(together.losses, alone.losses, atol=1e-5)


def test_what_regions_tell_is_held_to_what_was_said_before_while_other_turns_are_learned(samples, processor):
    told = [turn for turn in samples[0].turns if turn.type in ("color", "detailed")]
    other = [turn for turn in samples[0].turns if turn.type in ("counting", "ordering")]
    known, new = (
        [pack(replace(samples[0], turns=turns), processor, random.Random(1), num_turns=9, max_regions=3)]
        for turns in (told, other)
    )
    plain = Stage("a", steps=1, batch=1, turns=9, regions=3, heads=0.0, rate=3e-4)
    model = fresh(processor)
    objective, learning = (Objective(model, stage) for stage in (replace(plain, kept=2.0), plain))
    objective.training_mode()

    def loss(of: Objective, *packs: Any) -> float:
        return of(packs)[0].item()

    assert loss(objective, *known) < 1e-5 and loss(learning, *known) > 1
    assert loss(objective, *new) == pytest.approx(loss(learning, *new))
    with torch.no_grad():
        for parameter in model.model.language_model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    figures = objective(known)[1]
    drift = figures["drift"]
    assert trainer._averages(Counter(figures))["drift"] == pytest.approx(drift, abs=1e-5)
    assert loss(objective, *known) == pytest.approx(2 * drift) and drift > 0.01
    assert loss(objective, *known, *new) == pytest.approx(loss(objective, *known) + loss(learning, *new), rel=1e-4)
    optimizer, _ = objective.optimizer()
    for _ in range(8):
        optimizer.zero_grad()
        objective(known)[0].backward()
        optimizer.step()
    assert objective(known)[1]["drift"] < drift / 2
    objective.eval()  # where it is only measured, the right words count
    assert loss(objective, *known) == pytest.approx(loss(learning.eval(), *known))
    assert not any("before" in name for name in objective.state_dict())


def test_nano_goes_on_from_an_earlier_one_and_a_model_of_another_kind_does_not(samples, tmp_path, released_processor):
    write_shard(samples, tmp_path / "scenes" / "part.parquet")

    def tell(facts, rng) -> list[Turn]:
        return samples[0].turns

    stages = [replace(stage, steps=1, batch=2) for stage in recipes.nano_again()]
    out, data = tmp_path / "run", tmp_path / "scenes"
    nano.run([data], data, out, tell, tell, start="nano", stages=stages)
    earlier, later = gar.load("nano"), gar.load(out / "model")
    assert later.processor.tokenizer.get_vocab() == earlier.processor.tokenizer.get_vocab()
    were, are = earlier.model.state_dict(), later.model.state_dict()
    moved = [(before - are[name]).abs().max().item() for name, before in were.items()]
    assert 0 < max(moved) < 0.05  # the first step of a warm-up, from where the earlier one was
    other = GARForConditionalGeneration(released_processor.config)
    other.save_pretrained(tmp_path / "other")
    released_processor.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="is no nano"):
        nano.run([data], data, tmp_path / "again", tell, tell, start=str(tmp_path / "other"))


def test_nano_learns_from_no_other_data_than_rendered_scenes(samples, tmp_path):
    write_shard([*samples, replace(samples[0], meta={})], tmp_path / "own" / "part.parquet")
    with pytest.raises(ValueError, match="own: not every sample is a rendered scene, .* take `gar train finetune`"):
        nano.run([tmp_path / "own"], tmp_path / "own", tmp_path / "run", lambda *_: [], lambda *_: [])


def test_an_earlier_nano_grown_says_what_it_said_and_one_of_other_sizes_is_refused(processor):
    config = nano.config(processor.tokenizer)
    config.text_config.num_hidden_layers -= 2
    config.mention_place, config.tile_size, config.context_pooling = False, 224, 2
    torch.manual_seed(1)
    earlier = GARForConditionalGeneration(config).eval()
    with torch.no_grad():
        earlier.get_parameter("model.pyramid.position").copy_(torch.arange(28.0))
    later = nano.grown(earlier, processor.tokenizer).eval()
    ids = torch.arange(20)[None]
    torch.testing.assert_close(later(input_ids=ids).logits, earlier(input_ids=ids).logits)
    assert later.num_parameters() > earlier.num_parameters()
    assert not later.get_parameter("model.picture_place.weight").any()
    across = later.get_parameter("model.pyramid.position")[0, 0, 0]  # a cell of 42 is two thirds of one of 28
    torch.testing.assert_close(across[1:-1], (torch.arange(1.0, 41.0) + 0.5) * 2 / 3 - 0.5)
    config.mention_place, config.picture_place = True, False
    earlier = GARForConditionalGeneration(config)
    with torch.no_grad():
        earlier.get_parameter("model.mention_place.weight").normal_()
    of_regions, of_cells = (
        model.get_parameter(f"model.{name}_place.weight")
        for model, name in ((earlier, "mention"), (nano.grown(earlier, processor.tokenizer), "picture"))
    )
    ratio = of_cells / of_regions
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio))
    config.replay_size = 2
    with pytest.raises(ValueError, match="other sizes"):
        nano.grown(GARForConditionalGeneration(config), processor.tokenizer)


def test_a_picture_is_cropped_about_its_regions_and_heads_find_their_middles(samples, processor):
    for seed in range(20):
        packed = pack(samples[0], processor, random.Random(seed), num_turns=1, max_regions=1, zoomed=1.0)
        assert packed is not None
        (thing,), (x0, y0, x1, y1) = packed.things, packed.window
        left, top, right, bottom = samples[0].meta["things"][thing]["box"]
        assert x0 <= left and y0 <= top and right <= x1 and bottom <= y1 and (x1 - x0, y1 - y0) >= (48, 32)
        assert (packed.cut.width, packed.cut.height) == (x1 - x0, y1 - y0)
        (box,) = packed.boxes.values()
        middle = (x0 + (x1 - x0) * (box[0] + box[2]) / 2, y0 + (y1 - y0) * (box[1] + box[3]) / 2)
        assert middle == pytest.approx(((left + right) / 2, (top + bottom) / 2), abs=1.5)
        x, y = (middle[0] - x0) / (x1 - x0), (middle[1] - y0) / (y1 - y0)
        heat, found = middles(packed, 8)
        cell = int(y * 8), int(x * 8)
        assert found[cell] == samples[0].meta["things"][thing] and heat[cell] == 1


def test_the_map_of_middles_has_one_for_each_thing_and_leaves_out_what_is_hard_to_see():
    def thing(x: int, y: int, area: int, visible: float = 1.0) -> dict[str, Any]:
        return {"box": [x - 5, y - 5, x + 5, y + 5], "area": area, "visible": visible}

    def found(*things: dict[str, Any]) -> tuple[torch.Tensor, dict[tuple[int, int], Any]]:
        packed: Any = SimpleNamespace(sample=SimpleNamespace(meta={"things": things}), window=(0, 0, 100, 100))
        return middles(packed, 20)

    ball, near = thing(31, 52, 90), thing(42, 52, 60)
    heat, own = found(near, ball)
    assert own == {(10, 6): ball, (10, 8): near}
    assert {(row, column) for row, column in (heat == 1).nonzero().tolist()} == {*own}
    assert 0 < heat[10, 5] < 1 and heat[10, 4] < heat[10, 5] and heat[0, 0] < 1e-6 and heat.min() >= 0
    for hidden in (thing(71, 52, 90, visible=0.1), thing(71, 52, 0)):
        heat, own = found(ball, hidden)
        assert own == {(10, 6): ball} and heat[10, 14] == HARD and heat[10, 6] == 1
    assert found(thing(120, 52, 90))[1] == {}


def test_peaks_are_counted_as_found_where_a_thing_has_its_middle(samples, processor):
    packed = pack(samples[0], processor, random.Random(0), num_turns=2, max_regions=3)
    assert packed is not None
    heat, own = middles(packed, 9)
    heads, blank = RegionHeads(8, {}), torch.zeros(len(packed.things), 8)

    def heard(logits: torch.Tensor) -> tuple[float, tuple[int, int]]:
        loss, right = heads(blank, torch.zeros(1, 9, 9, 8), logits[None], [packed], torch.eye(8))
        return loss.item(), right["middles"]

    exact = torch.where(heat == 1, 9.0, -9.0)
    moved, none = exact.roll(1, 1), torch.full_like(exact, -9.0)
    assert heard(exact)[1] == heard(moved)[1] == (len(own), len(own)) and heard(none)[1] == (0, len(own))
    assert heard(exact)[0] < heard(moved)[0] < heard(none - exact)[0]
    assert heard(exact.roll(4, 0))[1] == (0, 2 * len(own))


@pytest.mark.parametrize("shape", [(4, 7), (7, 4)])
def test_muon_moves_a_matrix_by_its_gradients_orthogonal_factor_and_the_rest_by_adamw(shape):
    generator = torch.Generator().manual_seed(0)
    gradient, other = torch.randn(shape, generator=generator), torch.randn(3, generator=generator)
    matrix, rest, adamw = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    matrix.grad, rest.grad, adamw.grad = gradient.clone(), other.clone(), other.clone()
    options: dict[str, Any] = {"lr": 0.5, "weight_decay": 0.0}
    Muon([{"params": [rest]}, {"params": [matrix], "muon": True}], **options).step()
    torch.optim.AdamW([adamw], **options).step()
    assert torch.equal(rest, adamw)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    seen = left.T @ -matrix.detach() @ right.T / (0.5 * max(1, shape[0] / shape[1]) ** 0.5)
    assert (seen.diagonal() > 0.6).all() and (seen.diagonal() < 1.3).all()
    assert (seen - seen.diagonal().diag()).abs().max() < 1e-4


def test_an_attribute_is_read_off_by_the_embeddings_of_its_words(samples, processor):
    packed = pack(samples[0], processor, random.Random(0), num_turns=2, max_regions=3)
    assert packed is not None
    tokens = {color: 5 + i for i, color in enumerate(COLORS)}
    heads, embeddings_VD = RegionHeads(8, {"color": tokens}), torch.eye(8)
    own = [tokens[packed.sample.meta["things"][i]["color"]] for i in packed.things]
    _, of_cells = middles(packed, 6)
    around_PggD = torch.zeros(1, 6, 6, 8)
    for cell, thing in of_cells.items():
        around_PggD[(0, *cell)] = embeddings_VD[tokens[thing["color"]]]
    picture = around_PggD, torch.zeros(1, 6, 6)
    assert heads(embeddings_VD[own], *picture, [packed], embeddings_VD)[1]["color"] == (len(own), len(own))
    assert heads(-embeddings_VD[own], *picture, [packed], embeddings_VD)[1]["color"] == (0, len(own))
    found = heads(embeddings_VD[own], *picture, [packed], embeddings_VD)[1]["color in cell"]
    assert found == (len(of_cells), len(of_cells)) and len(of_cells) > 1


def test_the_vision_is_sure_of_words_that_stand_out():
    tokens = {"red": 0, "blue": 1, "green": 2}
    heads = RegionHeads(9, {"color": tokens, "kind": {"object": 3, "picture": 0}})
    words = torch.eye(9)
    colors = torch.stack([words[0], words[0] + 0.99 * words[1], words[8]])  # red, red or blue, none of them
    assert heads.unsure(9 * colors, 3 * words) == [[], ["color"], ["color"]]


def test_asking_what_the_vision_is_sure_of_changes_nothing_and_says_the_same_again(samples, processor):
    model = fresh(processor).train()
    heads = RegionHeads(processor.config.text_config.hidden_size, {"color": {c: 5 + i for i, c in enumerate(COLORS)}})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    unsure = nano.unsure(model, processor, heads, samples[:2])
    assert [len(names) for names in unsure] == [len(s.masks) for s in samples[:2]]
    assert all(names == ["color"] for of_one in unsure for names in of_one)  # of random weights
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    told = nano.Told(samples[:2], lambda facts, _: [Turn("", str(facts["unsure"]))], lambda *_: [], 0.0, "", unsure)
    assert told[3].turns[0].answer == str(unsure[1])


# Importing everything anew takes longer than what the processes do; but none may be forked once a GPU has been used.
START = "spawn" if torch.cuda.is_available() else "fork"


def two_processes(function: Callable[..., None], *arguments: Any) -> None:
    """Run a function in two processes, each with its rank before the arguments."""
    torch.multiprocessing.start_processes(function, arguments, nprocs=2, start_method=START)  # pyright: ignore


def _part(rank: int, samples: list[Sample], processor: GARProcessor, stage: Stage, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    model = fresh(processor)
    train(model, processor, samples, stage, Path(folder) / "run", workers=0, save_every=2, log_every=3)
    save_file({k: v.clone() for k, v in model.state_dict().items()}, f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one_that_takes_the_mean_of_both_parts(samples, processor, tmp_path):
    stage = Stage("language", steps=3, batch=2, turns=6, regions=3, warmup=2, heads=0.0)
    two_processes(_part, samples, processor, stage, str(tmp_path))
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)

    alone = fresh(processor)
    train(alone, processor, samples, replace(stage, at_once=1), tmp_path / "alone", workers=0)
    assert all(torch.allclose(first[name], value, atol=1e-5) for name, value in alone.state_dict().items())
    assert sum((first[name] - value).abs().sum() for name, value in fresh(processor).state_dict().items()) > 1


def test_two_processes_killed_at_any_moment_end_with_the_very_weights_of_two_that_ran(samples, processor, tmp_path):
    stage = Stage("a", steps=6, batch=2, turns=4, regions=3, warmup=2, heads=0.0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    two_processes(_part, samples, processor, stage, str(whole))
    started: Any = torch.multiprocessing.start_processes(  # pyright: ignore
        _part, (samples, processor, stage, str(killed)), nprocs=2, start_method=START, join=False
    )
    while not list((killed / "run").glob("step-0*")):
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1))
    for process in started.processes:
        process.kill()  # SIGKILL
        process.join()
    (killed / "meet").unlink(missing_ok=True)
    two_processes(_part, samples, processor, stage, str(killed))
    first, second = (load_file(folder / "0.safetensors") for folder in (whole, killed))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    lines = [figures(folder / "run") for folder in (whole, killed)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]] == [3, 6]
    for one, other in zip(*lines, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_pictures_that_processes_cannot_share_evenly_are_refused(samples, processor):
    stage = Stage("a", steps=1, batch=3, turns=1, regions=1)
    (packs,) = Feed(samples, processor, stage, 0, None, 0, 1, 0, [], workers=0)
    assert len(packs) == 3
    with pytest.raises(ValueError, match="3 pictures a step .* 2 processes"):
        Steps(samples, processor, stage, 0, rank=0, world=2)
    with pytest.raises(ValueError, match="groups of 2: expected whole groups"):
        Steps(samples, processor, replace(stage, at_once=2), 0)


def groups_of(world: int, lengths: list[int], stage: Stage) -> list[list[tuple[float, list[Any]]]]:
    """For each process its groups with their weights; packs know their place in the step."""
    found = []
    for rank in range(world):
        packs: Any = [SimpleNamespace(input_ids=[0] * lengths[i], place=i) for i in share(stage, rank, world)]
        groups: Any = trainer._groups(packs, stage, world)
        found.append(list(groups))
    return found


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_groups_are_shared_whole_and_weigh_the_same_whatever_the_number_of_processes(world: int):
    stage = Stage("a", steps=1, batch=10, turns=1, regions=1, at_once=2)
    weights: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for weight, group in (one for part in groups_of(world, [5, 1, 2, 9, 3, 3, 8, 2, 1, 4], stage) for one in part):
        weights[tuple(p.place for p in group)] += weight / world
    assert weights == pytest.approx({(0, 1): 0.2, (2, 3): 0.2, (4, 5): 0.2, (6, 7): 0.2, (8, 9): 0.2})


def test_processes_that_wait_for_each_other_at_every_group_wait_half_as_long_as_without_an_order():
    rng = random.Random(0)
    lengths = [rng.randint(700, 4700) for _ in range(64)]
    parts = groups_of(8, lengths, Stage("a", steps=1, batch=64, turns=1, regions=1, at_once=1))
    ordered = [[len(group[0].input_ids) for _, group in part] for part in parts]
    drawn = [lengths[i : i + 8] for i in range(0, 64, 8)]
    waited = [sum(map(max, zip(*rows, strict=True))) - sum(lengths) / 8 for rows in (ordered, drawn)]
    assert waited[0] < waited[1] / 2


def test_the_loss_falls_and_is_logged(samples, processor, tmp_path):
    stage = Stage("language", steps=12, batch=2, turns=6, regions=3, warmup=2, heads=0.0)
    train(fresh(processor), processor, samples, stage, tmp_path, workers=0, log_every=1)
    losses = [json.loads(line)["language"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 12
    assert losses[-1] < 0.8 * losses[0]


def data_of(samples: list[Sample]) -> Data:
    return Data([Shard("a", lambda: samples[:4]), Shard("b", lambda: samples[4:])], Rejects())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_walk_over_data_goes_on_behind_the_very_sample_it_was_stopped_at(samples, processor, workers):
    stage = Stage("a", steps=7, batch=2, turns=2, regions=2)

    def ids(start: int, places: list, count: int) -> tuple[list, list]:
        feed = Feed(data_of(samples), processor, stage, 0, None, 0, 1, start, places, workers)
        seen = [[p.input_ids for p in packs] for packs in islice(feed, count)]
        return seen, feed.places

    whole, _ = ids(0, [], 7)
    first, places = ids(0, [], 3)
    rest, _ = ids(3, json.loads(json.dumps(places)), 4)
    assert len(whole) == 7 and first + rest == whole


@pytest.mark.parametrize("workers", [0, 1])
def test_data_without_a_usable_sample_says_the_same_from_a_data_worker(samples, processor, workers):
    data = Data([Shard("empty", lambda: [replace(samples[0], turns=[])])], Rejects())
    feed = Feed(data, processor, Stage("a", steps=1, batch=1, turns=1, regions=1), 0, None, 0, 1, 0, [], workers)
    with pytest.raises(
        ValueError, match="^empty: not one usable sample for taker 0 of 1 .*no question with an answer$"
    ):
        list(feed)


def test_what_of_a_list_cannot_be_used_is_a_reject_and_the_run_goes_on(samples, processor, tmp_path, capsys):
    cut = replace(samples[0], image=samples[0].image[:200])
    mixed = [samples[1], replace(samples[2], turns=[]), cut, *samples[3:]]
    stage = Stage("a", steps=6, batch=2, turns=3, regions=3, heads=0.0)
    train(fresh(processor), processor, mixed, stage, tmp_path, workers=1)
    rejects = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert sorted((r["record"], r["reason"]) for r in rejects) == [
        ("sample 1", "nothing to train"),
        ("sample 2", "damaged picture"),
    ]
    assert "rejected: 1 " in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_a_list_without_a_usable_sample_ends_with_the_reasons_and_one_that_is_usable_is_found(
    samples, processor, workers
):
    def packs(good: list[Sample]) -> list[list]:
        mixed = [*good, *(replace(sample, turns=[]) for sample in samples)]
        stage = Stage("a", steps=3, batch=2, turns=3, regions=3)
        return list(Feed(mixed, processor, stage, 0, None, 0, 1, 0, [], workers))

    assert {p.sample.image for made in packs(samples[:1]) for p in made} == {samples[0].image}
    with pytest.raises(ValueError, match="^not one of 6 samples can be used in stage a .*no text of it fits$"):
        packs([])


def test_data_in_streaming_trains_and_its_place_is_kept(samples, processor, tmp_path):
    stage = Stage("a", steps=3, batch=2, turns=2, regions=2, heads=0.0)
    train(fresh(processor), processor, data_of(samples), stage, tmp_path, workers=0, save_every=1, keep=2)
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000002", "step-00000003"]
    about = json.loads((tmp_path / "step-00000003" / "step.json").read_text())
    assert about["step"] == 3 and about["places"] == [[0, 0, 6]]


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_taken(samples, processor, tmp_path, capsys):
    stage = Stage("a", steps=2, batch=1, turns=1, regions=1, heads=0.0)
    objective = train(fresh(processor), processor, samples, stage, tmp_path, workers=0, save_every=1)
    file = tmp_path / "step-00000002" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert load(tmp_path, objective, objective.optimizer()[0])[0] == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"gar: {tmp_path / 'step-00000002'} is damaged")


def test_a_new_checkpoint_takes_the_place_of_damaged_ones_that_were_further(tmp_path):
    model: Any = SimpleNamespace(model=nn.Linear(2, 2), heads=None)
    optimizer = torch.optim.AdamW(model.model.parameters())
    for step in (1, 2, 3):
        save(tmp_path, step, model, optimizer, {}, keep=2)
    for step in (2, 3):
        (tmp_path / f"step-{step:08}" / "model.safetensors").write_bytes(b"x")
    assert load(tmp_path, model, optimizer)[0] == 0
    save(tmp_path, 1, model, optimizer, {}, keep=2)
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-00000001"]
    assert load(tmp_path, model, optimizer)[0] == 1


def test_a_checkpoint_of_another_model_is_refused_by_the_name_of_a_weight(samples, processor, tmp_path):
    stage = Stage("a", steps=1, batch=1, turns=1, regions=1, heads=0.0)
    objective = train(fresh(processor), processor, samples, stage, tmp_path, workers=0)
    del objective.model.model.mention
    with pytest.raises(ValueError, match="another run: 2 weights differ in name, such as model.mention.bias"):
        load(tmp_path, objective, objective.optimizer()[0])


@pytest.mark.parametrize("part", recipes.PARTS)
def test_a_frozen_part_stays_as_it_is_and_the_others_train(samples, processor, tmp_path, part):
    stage = Stage("a", steps=1, batch=1, turns=4, regions=2, frozen=(part,), heads=0.0, rate=0.1)
    before = {name: value.clone() for name, value in fresh(processor).named_parameters()}
    after = dict(train(fresh(processor), processor, samples, stage, tmp_path, workers=0).model.named_parameters())
    names = {
        "tower": ("vision_tower",),
        "stem": ("conv_stem.", "timm_model.bn1.", "blocks.0.", "blocks.1."),
        "mask": ("mask_patch",),
        "projector": ("projector",),
        "language": ("layers.0",),
    }
    for other, some in names.items():
        for name in some:
            same = [torch.equal(before[n], after[n]) for n in before if name in n]
            assert same
            assert all(same) == (other == part or (other, part) == ("stem", "tower")), name


def test_a_loss_that_is_no_number_stops_the_run_with_its_batch_and_untouched_weights(samples, processor, tmp_path):
    stage = Stage("a", steps=1, batch=2, turns=2, regions=2, heads=0.0)
    model = fresh(processor)
    with torch.no_grad():
        model.model.mention.weight[0, 0] = float("nan")
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(ValueError, match="the loss is nan.*stopped-0 has the samples"):
        train(model, processor, samples, stage, tmp_path, workers=0)
    assert len(list(read_shards(tmp_path / "stopped-0"))) == 2
    assert len(load_file(tmp_path / "stopped-0" / "batch-0.safetensors")["input_ids"]) == 2
    assert all(torch.equal(value, before[name]) or "mention" in name for name, value in model.named_parameters())


def test_a_sudden_loss_is_a_spike_and_a_small_one_is_not(samples, processor, tmp_path):
    stage = Stage("a", steps=1, batch=1, turns=1, regions=1, spike=5)
    packs: Any = Steps(samples, processor, stage, 0)[0]
    objective = Objective(fresh(processor), stage)

    def check(usual: float, loss: float, scatter: float = 0.0) -> None:
        recent = deque([usual - scatter, usual + scatter] * 25, 50)
        trainer._check(loss, 1.0, recent, stage, tmp_path / "stopped-0", packs, objective)

    check(0.001, 0.4)
    check(1.0, 5.0)
    with pytest.raises(ValueError, match="5 times that of the steps before"):
        check(1.0, 5.6)
    check(1.0, 8.0, scatter=0.8)
    with pytest.raises(ValueError, match="9 times that of the steps before"):
        check(1.0, 10.0, scatter=0.8)


def test_a_loss_that_falls_and_is_noisy_has_no_spike_and_one_that_goes_back_to_chance_has(samples, processor, tmp_path):
    """As nano's: from 4 to .2; the noise is that of the sum of ranking losses of few questions."""
    noise, stage = np.random.default_rng(0), Stage("a", steps=1, batch=1, turns=1, regions=1)
    packs: Any = Steps(samples, processor, stage, 0)[0]
    rest = (stage, tmp_path / "stopped", packs, Objective(fresh(processor), stage))
    recent: deque[float] = deque(maxlen=50)
    for step in range(5000):
        loss = (0.2 + 3.8 * np.exp(-step / 100)) * noise.lognormal(0, 0.3)
        trainer._check(loss, 1.0, recent, *rest)
    with pytest.raises(ValueError, match="times that of the steps before"):
        trainer._check(4.0, 1.0, recent, *rest)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_settings_that_were_cut_off_are_written_anew(tmp_path, content):
    (tmp_path / "stage.json").write_text(content)
    log = Log(tmp_path, "a", 1)
    log.begin({"steps": 2})
    log.close()
    assert json.loads((tmp_path / "stage.json").read_text()) == {"steps": 2}


def test_a_run_that_goes_on_drops_the_lines_after_its_checkpoint(tmp_path):
    log = Log(tmp_path, "a", 0)
    log({"step": 1, "language": 2.0})
    log({"step": 2, "language": 1.0})
    log.close()
    again = Log(tmp_path, "a", 1)
    again({"step": 2, "language": 1.5, "validation": {"loss": 3.0}})
    again.plot()
    again.close()
    assert [json.loads(line)["language"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [2.0, 1.5]
    assert Image.open(tmp_path / "loss.png").size == (960, 540)
    assert list((tmp_path / "tensorboard").iterdir())
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "log.jsonl").write_text("{}\n{broken\n")
    with pytest.raises(ValueError, match=r"log.jsonl has a line that is not JSON .*: remove that line"):
        Log(tmp_path, "a", 1)
