"""Token ids of prompts: the released ones, and the promises that the predictor and the training build on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from gar.inputs.prompt import DESCRIBE, IGNORED, ChatTurn, PromptWriter, ReleasedFaults
from gar.model.config import GARConfig

STORED = json.loads((GOLDEN / "prompts.json").read_text())
CROPS = [128004, 128005, 128008, 128010, 128011]
TILES = 5

# What the published data set chose for its records: the turns with the regions they mark, and the order of regions.
CONVERSATIONS = {
    "train_0": ([ChatTurn(DESCRIBE, "A red disc near the top left corner. It is round.", 1)], [1]),
    "train_1": (
        [
            ChatTurn(DESCRIBE, "A red disc. It is round.", 2),
            ChatTurn(DESCRIBE, "A rectangle on the right side.", 0),
            ChatTurn(DESCRIBE, "A slanted polygon at the bottom.", 1),
        ],
        [2, 0, 1],
    ),
    "train_2": ([ChatTurn("What is between <Prompt0> and <Prompt2>?", "<Prompt0> is above <Prompt2>.")], [2, 0]),
    "train_3": ([ChatTurn("Describe.", "A red disc near the top left corner. It is round.")], []),
}


def expand(runs: list) -> list[int]:
    """Stored ids, in which [id, n] stands for n times id."""
    return [i for run in runs for i in ([run[0]] * run[1] if isinstance(run, list) else [run])]


def released_config(**changes) -> GARConfig:
    return GARConfig(
        image_token_id=128002,
        prompt_token_ids=list(range(128256, 128261)),
        crop_token_ids=CROPS,
        describe_prompt_number=1,
        inclusive_boxes=True,
        **changes,
    )


def nano_config(tokenizer) -> GARConfig:
    def ids(names: list[str]) -> list[int]:
        return tokenizer.convert_tokens_to_ids(names)

    return GARConfig(
        image_token_id=ids(["<|image|>"])[0],
        prompt_token_ids=ids([f"<Prompt{k}>" for k in range(16)]),
        crop_token_ids=ids([f"<|region{k}|>" for k in range(16)]),
        tile_size=56,
        replay_size=2,
        prompt_style="nano",
    )


@pytest.fixture(scope="module")
def released(released_tokenizer) -> PromptWriter:
    return PromptWriter(released_tokenizer, released_config())


@pytest.fixture(scope="module")
def nano(nano_tokenizer) -> PromptWriter:
    return PromptWriter(nano_tokenizer, nano_config(nano_tokenizer))


@pytest.fixture(scope="module", params=["released", "nano"])
def writer(request) -> PromptWriter:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=["words", "all of Llama 3"])
def golden_writer(request) -> PromptWriter:
    name = "released_tokenizer" if request.param == "words" else "llama3_tokenizer"
    return PromptWriter(request.getfixturevalue(name), released_config())


def ask(writer: PromptWriter, question: str, regions: list[int], faults: ReleasedFaults | None = None) -> list[int]:
    prefix = writer.encode_prefix(TILES, regions, faults=faults or ReleasedFaults())
    return prefix + writer.encode_question(question, regions)


@pytest.mark.parametrize("k", "abc")
def test_questions_about_three_regions_have_the_released_ids(golden_writer, k):
    stored = STORED[f"multi_{k}"]
    as_published = ReleasedFaults(double_bos=True, region_order=(2, 1, 0))
    assert ask(golden_writer, stored["question"], [0, 1, 2], as_published) == expand(stored["ids"])


@pytest.mark.parametrize("k", "abc")
def test_descriptions_have_the_released_ids_but_one_begin_token(golden_writer, k):
    ids = golden_writer.encode_prefix(TILES, [1], "describe") + golden_writer.encode_question(DESCRIBE, [1], "describe")
    stored = expand(STORED[f"single_{k}"]["ids"])
    assert stored[:2] == [128000, 128000]
    assert ids == stored[1:]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_training_examples_have_the_released_ids_and_labels(golden_writer, name):
    ids, labels = golden_writer.encode_conversation(TILES, *CONVERSATIONS[name])
    assert ids == expand(STORED[name]["ids"])
    assert labels == expand(STORED[name]["labels"])


def test_all_stored_ids_and_labels_are_reproduced(shared, llama3_tokenizer):
    writer = PromptWriter(llama3_tokenizer, released_config())
    for k in "abc":
        question = STORED[f"multi_{k}"]["question"]
        ids = np.load(shared / "golden" / "prompts" / f"multi_{k}.npz")["input_ids"].tolist()
        assert ask(writer, question, [0, 1, 2], ReleasedFaults(True, (2, 1, 0))) == ids
    for name, conversation in CONVERSATIONS.items():
        stored = np.load(shared / "golden" / "dataset" / f"{name}.npz")
        ids, labels = writer.encode_conversation(TILES, *conversation)
        assert (ids, labels) == (stored["input_ids"].tolist(), stored["labels"].tolist())


def test_regions_are_listed_in_ascending_order_after_one_begin_token(released, released_tokenizer):
    ids = ask(released, "What?", [2, 0, 1])
    assert ids.count(128000) == 1
    assert [i for i in dict.fromkeys(ids) if i in CROPS] == CROPS[:3]
    assert "about: <Prompt0>; <Prompt1>; <Prompt2>; \n<Prompt0>: " in released_tokenizer.decode(ids)


def test_to_nano_a_name_is_one_however_it_is_typed(nano, released):
    wanted = ask(nano, "is <Prompt1> red", [1, 0])
    for typed in ("is <prompt1> red", "is <PROMPT1> red", "is < Prompt 1 > red"):
        assert ask(nano, typed, [1, 0]) == wanted
    assert nano.encode_answer("<prompt0>") == nano.encode_answer("<Prompt0>")
    with pytest.raises(ValueError, match="names <Prompt3>"):
        ask(nano, "is <prompt3> red", [1, 0])
    assert ask(released, "is <prompt1> red", [1, 0]) != ask(released, "is <Prompt1> red", [1, 0])


def test_nano_says_the_same_without_the_chat(nano, nano_tokenizer):
    ids = ask(nano, "is it red", [1, 0])
    text = nano_tokenizer.decode(ids)
    regions = "".join(f" <Prompt{k}>" + f"<|region{k}|>" * 4 for k in (0, 1))
    assert text == "<|bos|>" + "<|image|>" * TILES * 4 + regions + " is it red<|answer|>"


TEXTS = st.text(st.sampled_from("ab 1.,:?!\n\t'é<>|"), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(before=TEXTS, after=TEXTS, k=st.integers(0, 2), form=st.sampled_from(["ask", "together"]))
def test_prefix_and_question_are_exactly_the_ids_of_the_whole_text(writer, before, after, k, form):
    question = f"{before}<Prompt{k}>{after}"
    ids = writer.encode_prefix(1, [0, 1, 2], form)
    ids += writer.encode_question(question, [0, 1, 2], form, region=1 if form == "together" else None)
    placeholders = {writer._config.image_token_id, *writer._config.crop_token_ids}
    once = [i for i, last in zip(ids, [None, *ids], strict=False) if not (i == last and i in placeholders)]
    whole = writer._tokenizer.decode(once, clean_up_tokenization_spaces=False)
    assert writer._tokenizer(whole, add_special_tokens=False)["input_ids"] == once


@pytest.mark.parametrize("form", ["describe", "ask", "together"])
def test_every_region_has_one_run_of_placeholders(writer, form):
    regions = [1] if form == "describe" else [0, 1, 2]
    ids = writer.encode_prefix(TILES, regions, form)
    ids += writer.encode_question("Is it red?", regions, form, region=1 if form == "together" else None)
    config = writer._config
    assert ids.count(config.image_token_id) == TILES * config.tokens_per_tile
    for k, crop_id in enumerate(config.crop_token_ids):
        marked = k == 1 or (form == "ask" and k in regions)
        assert ids.count(crop_id) == marked * config.replay_size**2


def test_together_the_prefix_names_all_regions_and_each_question_marks_its_own(released, released_tokenizer):
    prefix = released.encode_prefix(TILES, [0, 1], "together")
    assert released_tokenizer.decode(prefix).endswith("curious about: <Prompt0>; <Prompt1>; \n")
    question = released.encode_question(DESCRIBE, [0, 1], "together", region=1)
    conversation = [ChatTurn(DESCRIBE, "Red.", 1)]
    ids, labels = released.encode_conversation(TILES, conversation, [0, 1])
    assert ids == prefix + question + released.encode_answer("Red.")
    assert labels == [IGNORED] * len(prefix + question) + released.encode_answer("Red.")


def test_only_answers_and_their_ends_are_trained(writer):
    turns = [ChatTurn("Is <Prompt0> red?", "Yes."), ChatTurn("And <Prompt1>?", "No.")]
    ids, labels = writer.encode_conversation(TILES, turns, [0, 1])
    assert [i for i in labels if i != IGNORED] == writer.encode_answer("Yes.") + writer.encode_answer("No.")
    assert all(label in (IGNORED, i) for i, label in zip(ids, labels, strict=True))
    first = ask(writer, "Is <Prompt0> red?", [0, 1])
    assert ids[: len(first)] == first


def test_notes_stand_between_two_tokens_of_the_layout_before_the_answer(nano, nano_tokenizer, released):
    begin, *inner, end = notes = nano.encode_notes("<Prompt1> red")
    assert nano_tokenizer.convert_ids_to_tokens([begin, end]) == ["<|bos|>", "<|answer|>"]
    assert nano_tokenizer.decode(inner).strip() == "<Prompt1> red" and nano.encode_notes("") == []
    answer = nano.encode_answer("yes")
    assert nano.after_notes(notes + answer) == nano.after_notes(answer) == answer
    assert nano.after_notes(notes[:-1]) == nano.after_notes([]) == []
    assert released.encode_notes("<Prompt1> red") == []
    with pytest.raises(ValueError, match=r"the notes holds? <\|answer\|>"):
        nano.encode_notes("a <|answer|> b")


def test_a_question_without_regions_is_about_the_picture(released, released_tokenizer):
    ids = ask(released, "What?", [])
    assert released_tokenizer.decode(ids).endswith(
        "<|image|>What?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_an_answer_ends_with_the_token_that_stops_generation(writer):
    assert writer.encode_answer(" red ") == [*writer.encode_answer("red", end=False), writer.end_id]


@pytest.mark.parametrize(
    ("question", "regions", "message"),
    [
        ("Is <Prompt2> red?", [0, 1], "names <Prompt2>, but the given regions are: <Prompt0>, <Prompt1>"),
        ("Is <Prompt0> red?", [], "names <Prompt0>, but the given regions are: none"),
        ("  \n", [0], "the question is empty"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(writer, question, regions, message):
    with pytest.raises(ValueError, match=message):
        writer.encode_question(question, regions)


@pytest.mark.parametrize("token", ["<|image|>", "<|eot_id|>", "<|reserved_special_token_2|>"])
def test_nobody_writes_layout_or_placeholders_in_a_text(released, token):
    with pytest.raises(ValueError, match="which is reserved for the layout"):
        released.encode_question(f"a {token} b", [0])
    with pytest.raises(ValueError, match="the answer holds"):
        released.encode_answer(token)


def test_more_regions_than_prompts_are_refused_with_the_way_out(released):
    with pytest.raises(
        ValueError, match=r"6 regions at once.*prompts for 5.*in one request \(`predictor.describe` groups"
    ):
        released.encode_prefix(TILES, range(6))


@pytest.mark.parametrize("regions", [[0, 0], [5], [-1]])
def test_prompt_numbers_are_different_and_exist(released, regions):
    with pytest.raises(ValueError, match="expected different ones from 0 to 4"):
        released.encode_prefix(TILES, regions)


def test_each_form_says_what_it_needs(released):
    with pytest.raises(ValueError, match="2 regions to describe: one at a time"):
        released.encode_prefix(TILES, [0, 1], "describe")
    with pytest.raises(ValueError, match=r"region is 2, expected one of \[0, 1\]"):
        released.encode_question("What?", [0, 1], "together", region=2)
    with pytest.raises(ValueError, match=r"region_order \(0, 2\) does not list the regions \[0, 1\]"):
        released.encode_prefix(TILES, [0, 1], faults=ReleasedFaults(region_order=(0, 2)))
    with pytest.raises(ValueError, match="a conversation without a turn"):
        released.encode_conversation(TILES, [], [0])
    with pytest.raises(ValueError, match=r"the turns mark the regions \[1, 1\]"):
        released.encode_conversation(TILES, [ChatTurn("a", "b", 1)] * 2, [0, 1])


def test_a_tokenizer_of_another_checkpoint_is_refused(released_tokenizer, nano_tokenizer):
    with pytest.raises(ValueError, match="<Prompt0> is token 128256 of the tokenizer, but 0 of the configuration"):
        PromptWriter(released_tokenizer, GARConfig(prompt_token_ids=[0], crop_token_ids=[1]))
    with pytest.raises(ValueError, match=r"the tokenizer has no token <\|begin_of_text\|>"):
        PromptWriter(nano_tokenizer, GARConfig())
