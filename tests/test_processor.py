"""The batch that the model gets, and the text that comes back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN
from PIL import Image
from test_prompt import CONVERSATIONS, STORED, expand, nano_config, released_config
from transformers import AutoProcessor

import gar
from gar.inputs.processor import GARProcessor
from gar.inputs.prompt import DESCRIBE, ChatTurn, ReleasedFaults
from gar.inputs.tiling import cut_image, normalise
from gar.regions import Located, Region


@pytest.fixture(scope="module")
def released(released_tokenizer) -> GARProcessor:
    return GARProcessor(released_config(max_num_tiles=4), released_tokenizer)


@pytest.fixture(scope="module")
def nano(nano_tokenizer) -> GARProcessor:
    return GARProcessor(nano_config(nano_tokenizer), nano_tokenizer)


def path_of(k: str) -> Path:
    return GOLDEN / "inputs" / f"img_{k}.png"


def regions_of(k: str, count: int = 3) -> list[Located]:
    size = Image.open(path_of(k)).size
    return [Region.mask(GOLDEN / "inputs" / f"mask_{k}_{i}.png").locate(*size) for i in range(count)]


def by_number(boxes: dict[str, list[float]]) -> dict[int, tuple[float, ...]]:
    return {int(k): tuple(box) for k, box in boxes.items()}


def stored_ids(name: str) -> list[int]:
    return expand(STORED[name]["ids"])


@pytest.mark.parametrize("k", "abc")
def test_a_question_about_three_regions_is_the_released_batch_with_its_faults(released, k):
    stored = STORED[f"multi_{k}"]
    faults = ReleasedFaults(double_bos=True, region_order=(2, 1, 0), last_box=True)
    batch = released([path_of(k)], [regions_of(k)], [stored["question"]], faults)
    assert batch["input_ids"].tolist() == [stored_ids(f"multi_{k}")]
    assert batch["tile_grids"].tolist() == [stored["grid"]]
    assert batch["region_boxes"] == [by_number(stored["boxes"])]
    assert batch["attention_mask"].all()


@pytest.mark.parametrize("k", "abc")
def test_without_the_faults_each_region_has_its_own_box_and_the_text_begins_once(released, k):
    stored = STORED[f"multi_{k}"]
    batch = released([path_of(k)], [regions_of(k)], [stored["question"]])
    assert batch["region_boxes"] == [by_number(stored["boxes_of_each"])]
    assert batch["input_ids"][0].tolist().count(128000) == 1


@pytest.mark.parametrize("k", "abc")
def test_a_description_is_the_released_batch(released, k):
    stored = STORED[f"single_{k}"]
    batch = released([path_of(k)], [regions_of(k, 1)], faults=ReleasedFaults(double_bos=True))
    assert batch["input_ids"].tolist() == [stored_ids(f"single_{k}")]
    assert batch["region_boxes"] == [by_number(stored["boxes"])]


@pytest.mark.parametrize("name", ["train_0", "train_1"])
def test_a_training_example_has_the_released_ids_and_labels(released, name):
    turns, numbers = CONVERSATIONS[name]
    request = released.train(released.cut(path_of("a")), regions_of("a", len(numbers)), turns, numbers)
    batch = released.collate([request], padding_side="right")
    assert batch["input_ids"].tolist() == [stored_ids(name)]
    assert batch["labels"].tolist() == [expand(STORED[name]["labels"])]
    assert list(batch["region_boxes"][0]) == numbers


def test_all_stored_batches_are_reproduced(shared, llama3_tokenizer):
    processor = GARProcessor(released_config(max_num_tiles=4), llama3_tokenizer)
    faults = ReleasedFaults(double_bos=True, region_order=(2, 1, 0), last_box=True)
    for k in "abc":
        stored = np.load(shared / "golden" / "prompts" / f"multi_{k}.npz")
        batch = processor([path_of(k)], [regions_of(k)], [STORED[f"multi_{k}"]["question"]], faults)
        assert batch["input_ids"][0].tolist() == stored["input_ids"].tolist()
        assert np.array_equal(batch["mask_values"].numpy(), stored["mask_ids"][:, 0] != 5)
        tiles = np.load(shared / "golden" / "preprocess" / f"pixels_{k}_max4.npz")["tiles_u8"]
        assert torch.equal(batch["pixel_values"], normalise(torch.from_numpy(tiles)))


def test_requests_of_all_sizes_join_one_left_padded_batch(released):
    images = [path_of("a"), Image.open(path_of("c")), np.zeros((10, 10, 3), np.uint8)]
    dot = Region.box(2, 3, 5, 7).locate(10, 10)
    questions = ["What?", "Is <Prompt0> left of <Prompt1>?", "Is <Prompt0> red?"]
    batch = released(images, [regions_of("a"), regions_of("c", 2), [dot]], questions)
    alone = [
        released([image], [regions], [question])
        for image, regions, question in zip(
            images, [regions_of("a"), regions_of("c", 2), [dot]], questions, strict=True
        )
    ]
    for b, one in enumerate(alone):
        length = one["input_ids"].shape[1]
        padding = batch["input_ids"].shape[1] - length
        assert batch["input_ids"][b, padding:].tolist() == one["input_ids"][0].tolist()
        assert set(batch["input_ids"][b, :padding].tolist()) <= {released.tokenizer.pad_token_id}
        assert batch["attention_mask"][b].tolist() == [0] * padding + [1] * length
        assert batch["region_boxes"][b] == one["region_boxes"][0]
    for name in ("pixel_values", "mask_values", "tile_grids"):
        assert torch.equal(batch[name], torch.cat([one[name] for one in alone]))
    counts = (batch["tile_grids"].prod(1) + 1).sum()
    assert len(batch["pixel_values"]) == len(batch["mask_values"]) == counts
    assert batch["pixel_values"].dtype == batch["mask_values"].dtype == torch.float32


def test_training_examples_are_padded_on_the_side_that_is_asked_for(nano):
    picture, region = nano.cut(np.zeros((20, 20, 3), np.uint8)), Region.box(0, 0, 9, 9).locate(20, 20)
    short = nano.train(picture, [region], [ChatTurn("Is it red?", "no")])
    long = nano.train(picture, [region], [ChatTurn("Is it red, or what is it?", "it is black")], numbers=[7])
    batch = nano.collate([short, long], padding_side="right")
    length = len(short.input_ids)
    assert batch["labels"][0, :length].tolist() == short.labels
    assert set(batch["labels"][0, length:].tolist()) == {-100}
    assert batch["attention_mask"].sum(1).tolist() == [length, len(long.input_ids)]
    assert [list(boxes) for boxes in batch["region_boxes"]] == [[0], [7]]
    with_mask = nano.collate([short, long])
    assert with_mask["attention_mask"][0, -length:].all() and not with_mask["attention_mask"][0, :-length].any()


def test_a_normalised_box_is_half_open_unless_the_checkpoint_wants_the_last_pixel(released, nano):
    image = np.zeros((48, 64, 3), np.uint8)
    whole = Region.box(0, 0, 64, 48).locate(64, 48)
    assert nano.rel_box(nano.cut(image), whole) == (0, 0, 1, 1)
    assert released.rel_box(released.cut(image), whole) == (0, 0, 63 / 64, 47 / 48)


def test_mask_values_mark_every_region_of_the_picture(nano):
    picture = nano.cut(np.zeros((40, 40, 3), np.uint8))
    one, two = Region.box(0, 0, 20, 20).locate(40, 40), Region.box(20, 20, 40, 40).locate(40, 40)
    both = nano.mark(picture, [one, two])
    assert torch.equal(both, nano.mark(picture, [one]) | nano.mark(picture, [two]))
    assert nano.mark(picture, []).all()


def test_a_cut_picture_without_thumbnail_has_only_tiles(nano_tokenizer):
    config = nano_config(nano_tokenizer)
    config.thumbnail, config.max_num_tiles = False, 1
    processor = GARProcessor(config, nano_tokenizer)
    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8)
    region = Region.box(5, 5, 25, 25).locate(50, 30)
    batch = processor([image], [[region]])
    assert torch.equal(batch["pixel_values"], normalise(cut_image(image, (1, 1), 56, thumbnail=False)))
    assert batch["input_ids"].eq(config.image_token_id).sum() == config.tokens_per_tile


def test_counts_that_do_not_match_fail_with_both_numbers(nano):
    picture, region = nano.cut(np.zeros((20, 20, 3), np.uint8)), Region.box(0, 0, 9, 9).locate(20, 20)
    request = nano.describe(picture, region)
    fewer = replace(request, picture=replace(picture, tiles=picture.tiles[:-1]))
    tiles, tokens = len(picture.tiles), nano.config.tokens_per_tile
    with pytest.raises(ValueError, match=rf"{tiles * tokens} placeholders <\|image\|>.*, but {(tiles - 1) * tokens}"):
        nano._check_counts(fewer)
    with pytest.raises(ValueError, match=r"4 placeholders <\|region0\|>.*, but 0 features"):
        nano._check_counts(replace(request, region_boxes={}))


def test_requests_that_do_not_fit_together_are_refused(nano):
    image = np.zeros((20, 20, 3), np.uint8)
    region, other = Region.box(0, 0, 9, 9).locate(20, 20), Region.box(0, 0, 9, 9).locate(30, 40)
    with pytest.raises(ValueError, match="2 images, 1 lists of regions, 2 questions: expected one of each"):
        nano([image, image], [[region]], ["a", "b"])
    with pytest.raises(ValueError, match="2 regions to describe in one request"):
        nano([image], [[region, region]])
    with pytest.raises(ValueError, match="a region of a picture of 30x40 in one of 20x20"):
        nano([image], [[other]])
    with pytest.raises(ValueError, match="names <Prompt1>"):
        nano([image], [[region]], ["Is <Prompt1> red?"])


def test_decoding_keeps_names_and_drops_the_layout(released, nano):
    for processor in (released, nano):
        writer = processor.prompts
        ids = writer.encode_answer("the mug in <Prompt1> is left of <Prompt0>")
        assert processor.decode(ids) == "the mug in <Prompt1> is left of <Prompt0>"
        prompt = writer.encode_prefix(2, [0]) + writer.encode_question("red", [0])
        assert "red" in processor.decode(torch.tensor(prompt))
        assert "|" not in processor.decode(torch.tensor(prompt))


def test_released_answers_lose_spaces_before_punctuation(released):
    assert released.decode(released.prompts.encode_answer("A cup , it 's red .")) == "A cup, it's red."


def test_a_saved_processor_comes_back_through_auto_processor(nano, tmp_path):
    assert gar.GARProcessor is GARProcessor
    nano.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is GARProcessor
    assert again.config.to_dict() == nano.config.to_dict()
    image, region = np.zeros((20, 20, 3), np.uint8), Region.box(0, 0, 9, 9).locate(20, 20)
    ours, theirs = nano([image], [[region]]), again([image], [[region]])
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


def test_saving_leaves_the_configuration_of_a_model_alone(nano, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    nano.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("preprocessor_config.json", {"max_num_tiles": 9}),
        ("processor_config.json", {"image_processor": {"max_num_tiles": 9}}),
    ],
)
def test_a_released_folder_keeps_its_tile_limit_beside_the_configuration(released, tmp_path, file, fields):
    released.tokenizer.save_pretrained(tmp_path)
    released.config.save_pretrained(tmp_path)
    assert GARProcessor.from_pretrained(tmp_path).config.max_num_tiles == 4
    (tmp_path / file).write_text(json.dumps(fields))
    processor = GARProcessor.from_pretrained(tmp_path)
    assert processor.config.max_num_tiles == 9
    picture = processor.cut(path_of("a"))
    request = processor.describe(picture, regions_of("a", 1)[0])
    assert request.input_ids.count(128002) == 256 * len(picture.tiles)
    assert processor.decode(processor.prompts.encode_question(DESCRIBE, [1], "describe")).startswith(DESCRIBE)
