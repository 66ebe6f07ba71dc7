"""A sample as a chat for training: which regions are marked, their numbers, and what is asked and answered.

What the published data set does, with its random draws in its order, where `vary` and `new_numbers` are off and `most`
is 4: ids, labels and boxes are then equal (docs/data.md lists what is not repeated). Questions are in our own words.
Knows samples and the processor; knows no file and no model.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

from gar.data.packing import NEGATIVE, Pack, about_one, named, renumber, too_many
from gar.data.sample import Sample, Turn
from gar.data.wording import ask_for, not_there
from gar.inputs.processor import GARProcessor, Request
from gar.inputs.prompt import DESCRIBE, IGNORED, ChatTurn
from gar.regions import Region, prompt_name


@dataclass(frozen=True)
class Conversation:
    """What is said about a picture, once its regions have numbers.

    regions: the places in `Sample.masks` of those that are marked. numbers: their prompt numbers, as they are listed.
    turns: as they are asked. asked: the same as in `Pack.turns`.
    """

    regions: list[int]
    numbers: list[int]
    turns: list[ChatTurn]
    asked: list[Turn] = field(default_factory=list)


def training_request(sample: Sample, processor: GARProcessor, rng: random.Random) -> Request:
    """A sample as one training example with labels. Raises Unusable as `converse` and `Sample.picture`."""
    conversation = converse(sample, rng, processor.config.max_prompts)
    return request_of(sample, processor, conversation)


def chat_pack(sample: Sample, processor: GARProcessor, rng: random.Random, most: int) -> Pack:
    """A sample as one chat, in which later answers see the earlier ones: a pack that is a trunk without branches.

    Args:
        most: at most so many marked regions.

    Raises:
        Unusable: as `converse` and `Sample.picture`.
    """
    conversation = converse(sample, rng, processor.config.max_prompts, most=most)
    return as_pack(request_of(sample, processor, conversation, exact=False), sample, conversation)


def as_pack(request: Request, sample: Sample, conversation: Conversation) -> Pack:
    """The same for a conversation that is chosen already, and the request that was made of it."""
    length, labels = len(request.input_ids), request.labels or []
    runs = [(trained, len([*run])) for trained, run in groupby(labels, lambda label: label != IGNORED)]
    ends = [*accumulate(size for _, size in runs)]
    return Pack(
        input_ids=request.input_ids,
        labels=labels,
        positions=[*range(length)],
        segments=[0] * length,
        parents=[0] * length,
        answers=[[(end - size, end)] for (trained, size), end in zip(runs, ends, strict=True) if trained],
        notes=[(end - size, end - size) for (trained, size), end in zip(runs, ends, strict=True) if trained],
        cut=request.picture,
        mask_tiles=request.mask_tiles,
        boxes=request.region_boxes,
        things=conversation.regions,
        sample=sample,
        turns=conversation.asked,
        hidden=False,
        window=(0, 0, request.picture.width, request.picture.height),
    )


def request_of(sample: Sample, processor: GARProcessor, conversation: Conversation, exact: bool = True) -> Request:
    """A conversation about a sample's picture with tiles (`exact` as in `cut_image`), boxes, token ids and labels."""
    picture = processor.cut(sample.picture(), exact)
    located = [Region.rle(sample.masks[k]).locate(picture.width, picture.height) for k in conversation.regions]
    return processor.train(picture, located, conversation.turns, conversation.numbers)


def converse(
    sample: Sample,
    rng: random.Random,
    max_prompts: int,
    *,
    most: int | None = None,
    negatives: float = 0.05,
    vary: bool = True,
    new_numbers: bool = True,
    order: Sequence[int] | None = None,
) -> Conversation:
    """Number the regions of a sample and write its turns.

    Descriptions of regions become one turn each, in which the region is marked. Other questions are asked with the
    regions marked that they name (where they name none: with all, or with none where all are too many), in the order
    of their numbers; those that name more than fit are left out, chosen at random.

    Args:
        max_prompts: how many numbers the checkpoint has.
        most: at most so many marked regions; as many as there are numbers without.
        negatives: how probable it is, before each description but the first until it has happened, that a region is
            asked for that is not there.
        vary: ask for descriptions in many words, some of which say how long the answer is; else always in the same.
        new_numbers: give random numbers in questions too, so that a model reads the number and does not know it;
            without, mask k is `<Promptk>`.
        order: in which the marked regions of questions are listed (published: that of a Python set).

    Raises:
        Unusable: no question fits.
    """
    most = max_prompts if most is None else most
    shuffled = list(range(max_prompts))
    rng.shuffle(shuffled)
    everything = list(range(len(sample.masks)))
    alone = [turn for turn in sample.turns if about_one(turn, "detailed")]
    described = {region: turn.answer for turn in alone for region in named(turn)}
    if sample.turns and len(described) == len(sample.turns):
        regions = [k for k in everything if k in described]
        if len(regions) > most:
            regions = sorted(rng.sample(regions, most))
        numbers = shuffled[: len(regions)]
        turns: list[ChatTurn] = []
        asked: list[Turn] = []
        absent = shuffled[len(regions)] if len(regions) < max_prompts else None
        for i, (region, number) in enumerate(zip(regions, numbers, strict=True)):
            if i and absent is not None and rng.random() < negatives:
                refused = not_there(absent, rng)
                turns.append(ChatTurn(*refused))
                asked.append(Turn(*refused, NEGATIVE))
                absent = None
            answer = renumber(described[region], {region: number})
            question = ask_for(answer, rng) if vary else DESCRIBE
            turns.append(ChatTurn(question, answer, number))
            asked.append(Turn(f"{prompt_name(region)}: {question}", described[region], "detailed"))
        return Conversation(regions, numbers, turns, asked)

    chosen, places = [], []
    about_all = everything if len(everything) <= most else []
    ways = list(enumerate(sample.turns))
    if new_numbers:  # not always the same turns of a picture that has more than fit
        rng.shuffle(ways)
    for place, turn in ways:
        together = sorted({*chosen, *(named(turn) or about_all)})
        if len(together) <= most and (new_numbers or max(together, default=0) < max_prompts):
            chosen, places = together, [*places, place]
    if not places:
        raise too_many(sample, most)
    asked = [sample.turns[place] for place in sorted(places)]
    numbers = shuffled[: len(chosen)] if new_numbers else chosen
    listed = sorted(zip(numbers, chosen, strict=True))
    if order is not None:
        listed.sort(key=lambda pair: list(order).index(pair[0]))
    names = dict(zip(chosen, numbers, strict=True))
    turns = [ChatTurn(renumber(turn.question, names), renumber(turn.answer, names)) for turn in asked]
    return Conversation([region for _, region in listed], [number for number, _ in listed], turns, asked)
