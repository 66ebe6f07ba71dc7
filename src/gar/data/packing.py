"""Many turns about one picture in one sequence: the picture is encoded and read once, each turn sees it and itself.

A pack is a tree: a prefix (picture and regions), questions that grow from it, answers that grow from a question: the
right one and, of a multiple-choice question, the wrong ones beside it. Tokens attend to their own branch back to the
root, and positions count along it, so logits are those of as many separate sequences.

Shapes: B packs, S sequence, T tiles of all packs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gar.data.sample import Sample, Turn
from gar.data.wording import ask_for, not_there
from gar.inputs.processor import CutImage, GARProcessor
from gar.inputs.prompt import DESCRIBE, IGNORED, prompt_name, prompts_named
from gar.inputs.tiling import normalise
from gar.regions import Located, Region

VARIED = 0.5  # of the descriptions are asked for in other words than those that a predictor asks in
NOT_THERE = 0.05  # for each description beyond the first: how often a region is asked for that is not there
NEGATIVE = "not there"  # the type of such a turn
HIDDEN = -2  # the branch of a prefix that no turn may look at
_NAME = re.compile(r"<Prompt(\d+)>")


@dataclass(frozen=True)
class Pack:
    """One picture and turns about it, ready to be collated.

    segments: the branch of each token: 0 for the prefix (or `HIDDEN`), then counted on. parents: the branch that it
        grows from.
    answers: for each turn, where its answers stand, as (start, end) in the sequence: the right one first, directly
        after its question, then the wrong ones.
    things: for each region of `boxes`, its index in `Sample.masks`.
    turns: as asked here; regions are named by their index in `Sample.masks`, but one that is not there by its number.
    """

    input_ids: list[int]
    labels: list[int]
    positions: list[int]
    segments: list[int]
    parents: list[int]
    answers: list[list[tuple[int, int]]]
    cut: CutImage
    mask_tiles: Tensor
    boxes: dict[int, tuple[float, float, float, float]]
    things: list[int]
    sample: Sample
    turns: list[Turn]


def named(turn: Turn) -> set[int]:
    """The regions, as places in `Sample.masks`, that a turn names."""
    texts = (turn.question, turn.answer, *turn.choices)
    return {k for text in texts for k in prompts_named(text)}


def renumber(text: str, numbers: dict[int, int]) -> str:
    """`<PromptN>` -> `<Promptnumbers[N]>`."""
    return _NAME.sub(lambda m: prompt_name(numbers[int(m[1])]), text)


def pack(
    sample: Sample,
    processor: GARProcessor,
    rng: random.Random,
    *,
    num_turns: int,
    max_regions: int,
    augment: Callable[[Image.Image, random.Random], Image.Image] | None = None,
    hidden: float = 0.0,
) -> Pack | None:
    """Choose some regions and turns of a sample and write them as one sequence. None when no turn fits.

    Regions get random prompt numbers, so that a model learns to read the number and not to know it. Which and how
    many are marked is random too: any subset may be marked at inference.

    Args:
        num_turns: at most so many turns.
        max_regions: at most so many marked regions.
        augment: a change of the picture's pixels that moves nothing.
        hidden: how often the turns do not see the prefix, but only the regions' summaries where they are named.
    """
    config = processor.config
    chosen = _choose_regions(sample, rng, min(max_regions, config.max_prompts))
    highest = config.max_prompts if rng.random() < 0.3 else len(chosen)
    numbers = dict(zip(chosen, rng.sample(range(highest), len(chosen)), strict=True))
    usable = [turn for turn in sample.turns if named(turn) <= set(chosen)]
    turns = rng.sample(usable, min(num_turns, len(usable)))
    if not turns:
        return None

    picture = sample.picture()
    cut = processor.cut(augment(picture, rng) if augment else picture, exact=False)
    located = [_as_drawn(Region.rle(sample.masks[i]).locate(*picture.size), rng) for i in chosen]

    writer = processor.prompts
    # As published: where regions are only described, each description marks its own.
    marking = config.prompt_style == "released" and all(turn.type == "detailed" for turn in turns)
    ids = writer.encode_prefix(len(cut.tiles), list(numbers.values()), "together" if marking else "ask")
    prefix = HIDDEN if hidden and rng.random() < hidden else 0
    made = {"labels": [IGNORED] * len(ids), "positions": [*range(len(ids))], "segments": [prefix] * len(ids)}
    made["parents"] = [0] * len(ids)
    root, segment, answers = len(ids), 0, []

    def grow(tokens: list[int], start: int, parent: int, trained: bool) -> tuple[int, int]:
        nonlocal segment
        segment += 1
        ids.extend(tokens)
        made["labels"] += tokens if trained else [IGNORED] * len(tokens)
        made["positions"] += range(start, start + len(tokens))
        made["segments"] += [segment] * len(tokens)
        made["parents"] += [parent] * len(tokens)
        return len(ids) - len(tokens), len(ids)

    if marking:
        turns += _negative(len(turns), {*range(config.max_prompts)} - {*numbers.values()}, rng)
    for place, turn in enumerate(turns):
        if turn.type == NEGATIVE:
            question = writer.encode_question(turn.question, range(config.max_prompts), "together")
        elif marking or config.prompt_style == "nano" and turn.type == "detailed" and rng.random() < 0.5:
            (region,) = named(turn)  # in the released form, right after the region
            text = ask_for(turn.answer, rng) if marking and rng.random() < VARIED else DESCRIBE
            question = writer.encode_question(text, list(numbers.values()), "together", numbers[region])
            turns[place] = replace(turn, question=f"{prompt_name(region)}: {text}")
        else:
            question = writer.encode_question(renumber(turn.question, numbers), list(numbers.values()))
        grow(question, root, 0, trained=False)
        parent, leaves = segment, [turn.answer, *(choice for choice in turn.choices if choice != turn.answer)]
        if turn.type != NEGATIVE:
            leaves = [renumber(leaf, numbers) for leaf in leaves]
        answers.append(
            [
                grow(writer.encode_answer(leaf), root + len(question), parent, trained=i == 0)
                for i, leaf in enumerate(leaves)
            ]
        )
    return Pack(
        input_ids=ids,
        **made,
        answers=answers,
        cut=cut,
        mask_tiles=processor.mark(cut, located),
        boxes={k: processor.rel_box(cut, region) for k, region in zip(numbers.values(), located, strict=True)},
        things=chosen,
        sample=sample,
        turns=turns,
    )


def collate(packs: Sequence[Pack], pad_id: int) -> dict[str, Any]:
    """Packs -> the model's arguments, padded on the right, with a (B, 1, S, S) attention mask."""
    length = max(len(p.input_ids) for p in packs)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])

    segments_BS, parents_BS = padded([p.segments for p in packs], -1), padded([p.parents for p in packs], -1)
    return {
        "input_ids": padded([p.input_ids for p in packs], pad_id),
        "labels": padded([p.labels for p in packs], IGNORED),
        "position_ids": padded([p.positions for p in packs], 0),
        "attention_mask": packed_attention(segments_BS, parents_BS)[:, None],
        "pixel_values": normalise(torch.cat([p.cut.tiles for p in packs])),
        "mask_values": torch.cat([p.mask_tiles for p in packs]).float(),
        "tile_grids": torch.tensor([p.cut.grid for p in packs]),
        "region_boxes": [p.boxes for p in packs],
    }


def packed_attention(segments_BS: Tensor, parents_BS: Tensor) -> Tensor:
    """Who may look at whom: branches and their parents (B, S), -1 for padding -> (B, S, S) bool, row sees column."""
    length = segments_BS.shape[1]
    causal_SS = torch.ones(length, length, dtype=torch.bool).tril()
    rows, columns = segments_BS[:, :, None], segments_BS[:, None, :]
    allowed = causal_SS & ((columns == rows) | (columns == parents_BS[:, :, None]) | (columns == 0))
    return allowed | torch.eye(length, dtype=torch.bool)  # a padded row must attend to something


@dataclass(frozen=True)
class Spoken:
    """Every token of every answer of some packs, wrong options too, answer after answer: N tokens.

    Only these need logits: with a vocabulary of 128k words, those of a whole sequence are gigabytes.

    rows, places: each token's pack, and the place in it that speaks the token: the one before it on its branch.
    ids: (N,) the tokens. turns: for each turn of each pack its answers as ranges of tokens, the right one first.
    """

    rows: list[int]
    places: list[int]
    ids: Tensor
    turns: list[list[range]]

    @classmethod
    def of(cls, packs: Sequence[Pack]) -> Spoken:
        """What the packs say, their rows as `collate` stacks them."""
        rows, places, ids, turns = [], [], [], []
        for row, p in enumerate(packs):
            for spans in p.answers:
                anchor = spans[0][0] - 1  # the end of the question speaks the first token of every option
                turns.append([])
                for start, end in spans:
                    turns[-1].append(range(len(ids), len(ids) + end - start))
                    rows += [row] * (end - start)
                    places += [anchor, *range(start, end - 1)]
                    ids += p.input_ids[start:end]
        return cls(rows, places, torch.tensor(ids), turns)

    def losses(self, logits_NV: Tensor) -> Tensor:
        """(N,), minus the log-probability of each token."""
        return F.cross_entropy(logits_NV.float(), self.ids.to(logits_NV.device), reduction="none")

    def answer_loss(self, losses_N: Tensor, balance: float = 0.0) -> Tensor:
        """The mean over the tokens of the right answers.

        Args:
            balance: a token of an answer of n tokens counts n ** -balance. 0 counts all alike, so that captions drown
                answers of one word; 1 counts all answers alike.
        """
        chosen = [n for right, *_ in self.turns for n in right]
        weight = losses_N.new_tensor([len(right) ** -balance for right, *_ in self.turns for _ in right])
        return (losses_N[chosen] * weight).sum() / weight.sum()

    def ranking_loss(self, losses_N: Tensor) -> tuple[Tensor, int, int]:
        """How well the right option is told from the wrong ones, by the mean log-probability of an option's tokens.

        That is how `Predictor` ranks texts, so this trains the very confidence that it reports.

        Returns:
            The mean cross-entropy over multiple-choice turns (zero without any), how many were right, how many asked.
        """
        shares = [
            torch.stack([-losses_N[option.start : option.stop].mean() for option in options]).log_softmax(0)
            for options in self.turns
            if len(options) > 1
        ]
        if not shares:
            return losses_N.new_zeros(()), 0, 0
        right = sum(int(share.argmax() == 0) for share in shares)
        return -torch.stack([share[0] for share in shares]).mean(), right, len(shares)

    def word_for_word(self, logits_NV: Tensor) -> list[bool]:
        """For each turn, whether greedy decoding gives the right answer to the token."""
        hits = (logits_NV.argmax(-1).cpu() == self.ids).tolist()
        return [all(hits[right.start : right.stop]) for right, *_ in self.turns]


def _negative(described: int, free: set[int], rng: random.Random) -> list[Turn]:
    """At times, beside several descriptions, a turn about a number that no region has."""
    if not free or not any(rng.random() < NOT_THERE for _ in range(1, described)):
        return []
    return [Turn(*not_there(rng.choice(sorted(free)), rng), NEGATIVE)]


def _as_drawn(region: Located, rng: random.Random) -> Located:
    """A region as users give it: most often its exact mask, sometimes its rectangle, or a mask a little too large."""
    drawn = rng.random()
    mask = region.mask.copy()
    if drawn < 0.3:
        x0, y0, x1, y1 = region.box
        mask[y0:y1, x0:x1] = True
    elif drawn < 0.4:
        mask = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    return Located.from_mask(mask)


def _choose_regions(sample: Sample, rng: random.Random, most: int) -> list[int]:
    """Some regions, grown around one turn's own, so that turns that compare several stay possible."""
    everything = range(len(sample.masks))
    seed = sorted(named(rng.choice(sample.turns))) if sample.turns else []
    if len(seed) > most:
        return sorted(rng.sample(everything, most))
    others = [i for i in everything if i not in seed]
    count = rng.randint(0, min(most - len(seed), len(others)))
    return sorted(seed + rng.sample(others, count))
