"""Many turns about one picture in one sequence: the picture is encoded and read once, each turn sees it and itself.

A pack is a tree: a prefix (picture and regions), questions that grow from it, answers that grow from a question: the
right one and, of a multiple-choice question, the wrong ones beside it. Tokens attend to their own branch back to the
root, and positions count along it, so logits are those of as many separate sequences.

Shapes: B packs, S sequence, T tiles of all packs.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gar.data.sample import Sample, Turn, Unusable
from gar.data.wording import ask_for, not_there
from gar.inputs.processor import CutImage, GARProcessor
from gar.inputs.prompt import DESCRIBE, IGNORED, prompt_name, prompts_named
from gar.inputs.tiling import normalise
from gar.regions import Located, Region

VARIED = 0.5  # of the descriptions are asked for in other words than those that a predictor asks in
NOT_THERE = 0.05  # for each description beyond the first: how often a region is asked for that is not there
NEGATIVE = "not there"  # the type of such a turn
# Types of questions that a region answers by itself, whatever else the picture shows.
ABOUT_ONE = {"color", "shape", "pattern", "material", "category", "size", "mirror", "picture", "caption", "detailed"}
ROW = 192  # tokens, about: turns that see no prefix need not stand in one sequence, and short ones attend faster
Window = tuple[int, int, int, int]
_NAME = re.compile(r"<Prompt(\d+)>")


@dataclass(frozen=True)
class Pack:
    """One picture and turns about it, ready to be collated.

    segments: the branch of each token: 0 for the prefix, then counted on. parents: the branch that it grows from.
    hidden: there is no prefix; the turns see nothing but themselves and the regions' summaries where they are named.
    window: what the picture was cropped to, (x0, y0, x1, y1) in pixels of `Sample.picture`.
    answers: for each turn, where its answers stand, as (start, end) in the sequence: the right one first, directly
        after its question and notes, then the wrong ones.
    notes: for each turn, where its notes stand; they end where its answers begin, and may be empty.
    things: for each region of `boxes`, its index in `Sample.masks`.
    turns: as asked here; regions are named by their index in `Sample.masks`, but one that is not there by its number.
    """

    input_ids: list[int]
    labels: list[int]
    positions: list[int]
    segments: list[int]
    parents: list[int]
    answers: list[list[tuple[int, int]]]
    notes: list[tuple[int, int]]
    cut: CutImage
    mask_tiles: Tensor
    boxes: dict[int, tuple[float, float, float, float]]
    things: list[int]
    sample: Sample
    turns: list[Turn]
    hidden: bool
    window: Window


def named(turn: Turn) -> set[int]:
    """The regions, as places in `Sample.masks`, that a turn names."""
    texts = (turn.question, turn.answer, *turn.choices, turn.notes)
    return {k for text in texts for k in prompts_named(text)}


def about_one(turn: Turn, kind: str) -> bool:
    """Whether a turn is of this type and names one region alone; a description may name another one beside its own."""
    return turn.type == kind and len(named(turn)) == 1


def needs_picture(turn: Turn) -> bool:
    """Whether a turn asks for more than the regions that it names can tell by themselves."""
    return len(named(turn)) <= (turn.type not in ABOUT_ONE)


def too_many(sample: Sample, most: int) -> Unusable:
    """What is wrong with a sample whose turns are all about more regions than can be marked."""
    masks = len(sample.masks)
    return Unusable("too many regions", f"no question is about {most} regions or fewer, of {masks} masks")


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
    few: float = 0.0,
    zoomed: float = 0.0,
) -> Pack | None:
    """Choose some regions and turns of a sample and write them as one sequence. None when no turn fits.

    Regions get random prompt numbers, so that a model learns to read the number and not to know it. Which and how
    many are marked is random too: any subset may be marked at inference.

    Args:
        num_turns: at most so many turns.
        max_regions: at most so many marked regions.
        augment: a change of the picture's pixels that moves nothing.
        hidden: how often there is no prefix, and the turns see only the regions' summaries where they are named; such
            a pack asks nothing that needs more. Of the others' turns up to two thirds then are of those that do.
        few: of the others, how often at most two regions are marked, as where a question comes with its own alone; what
            else it is about then has to be seen in the picture.
        zoomed: how often the picture is cropped to a part with all marked regions, for stages that read no turns.

    Raises:
        Unusable: each turn names too many regions; as `Sample.picture`.
    """
    config = processor.config
    alone = rng.random() < hidden
    most = min(2, max_regions) if not alone and rng.random() < few else max_regions
    chosen = _choose_regions(sample, rng, min(most, config.max_prompts))
    highest = config.max_prompts if rng.random() < 0.3 else len(chosen)
    numbers = dict(zip(chosen, rng.sample(range(highest), len(chosen)), strict=True))
    usable = [turn for turn in sample.turns if named(turn) <= set(chosen)]
    turns: list[Turn] = []
    if hidden:
        parted: dict[bool, list[Turn]] = {True: [], False: []}
        for turn in usable:
            parted[needs_picture(turn)].append(turn)
        looking, usable = parted[True], parted[False]
        if not alone:  # it can be asked here only, so it comes first
            turns = rng.sample(looking, min(2 * num_turns // 3, len(looking)))
    turns += rng.sample(usable, min(num_turns - len(turns), len(usable)))
    if not turns:
        return None

    picture = sample.picture()
    masks = [Region.rle(sample.masks[i]).locate(*picture.size) for i in chosen]
    window = _zoom(picture.size, masks, rng) if masks and rng.random() < zoomed else (0, 0, *picture.size)
    x0, y0, x1, y1 = window
    picture = picture.crop(window)
    located = [_as_drawn(Located.from_mask(mask.mask[y0:y1, x0:x1]), rng) for mask in masks]
    cut = processor.cut(augment(picture, rng) if augment else picture, exact=False)

    writer = processor.prompts
    # As published: where regions are only described, each description marks its own.
    marking = config.prompt_style == "released" and all(about_one(turn, "detailed") for turn in turns)
    ids = writer.encode_prefix(len(cut.tiles), list(numbers.values()), "together" if marking else "ask")
    root, segment, answers, notes = len(ids), 0, [], []
    if alone:
        ids = []
    made = {"labels": [IGNORED] * len(ids), "positions": [*range(len(ids))], "segments": [0] * len(ids)}
    made["parents"] = [0] * len(ids)

    def grow(tokens: list[int], start: int, parent: int, trained: int) -> tuple[int, int]:
        """A branch, of which so many tokens at its end are trained."""
        nonlocal segment
        segment += 1
        ids.extend(tokens)
        given = len(tokens) - trained
        made["labels"] += [IGNORED] * given + tokens[given:]
        made["positions"] += range(start, start + len(tokens))
        made["segments"] += [segment] * len(tokens)
        made["parents"] += [parent] * len(tokens)
        return len(ids) - len(tokens), len(ids)

    if marking:
        turns += _negative(len(turns), {*range(config.max_prompts)} - {*numbers.values()}, rng)
    for place, turn in enumerate(turns):
        if turn.type == NEGATIVE:
            question = writer.encode_question(turn.question, range(config.max_prompts), "together")
        elif marking or config.prompt_style == "nano" and about_one(turn, "detailed") and rng.random() < 0.5:
            (region,) = named(turn)  # in the released form, right after the region
            text = ask_for(turn.answer, rng) if marking and rng.random() < VARIED else DESCRIBE
            question = writer.encode_question(text, list(numbers.values()), "together", numbers[region])
            turns[place] = replace(turn, question=f"{prompt_name(region)}: {text}")
        else:
            question = writer.encode_question(renumber(turn.question, numbers), list(numbers.values()))
        noted = writer.encode_notes(renumber(turn.notes, numbers))
        _, end = grow(question + noted, root, 0, trained=len(noted))
        notes.append((end - len(noted), end))
        parent, leaves = segment, [turn.answer, *(choice for choice in turn.choices if choice != turn.answer)]
        if turn.type != NEGATIVE:
            leaves = [renumber(leaf, numbers) for leaf in leaves]
        answers.append(
            [
                grow(leaf, root + len(question + noted), parent, trained=0 if i else len(leaf))
                for i, leaf in enumerate(map(writer.encode_answer, leaves))
            ]
        )
    return Pack(
        input_ids=ids,
        **made,
        answers=answers,
        notes=notes,
        cut=cut,
        mask_tiles=processor.mark(cut, located),
        boxes={k: processor.rel_box(cut, region) for k, region in zip(numbers.values(), located, strict=True)},
        things=chosen,
        sample=sample,
        turns=turns,
        hidden=alone,
        window=window,
    )


def collate(packs: Sequence[Pack]) -> dict[str, Any]:
    """What the vision tower needs of some packs, pack after pack; for their texts see `Reading`."""
    return {
        "pixel_values": normalise(torch.cat([p.cut.tiles for p in packs])),
        "mask_values": torch.cat([p.mask_tiles for p in packs]).float(),
        "tile_grids": torch.tensor([p.cut.grid for p in packs]),
        "region_boxes": [p.boxes for p in packs],
    }


@dataclass(frozen=True)
class Reading:
    """The texts of some packs as the language model reads them, in rows padded on the right: R rows, S sequence.

    A pack with a prefix is one row. One without is as many as it takes for each to have about `ROW` tokens.

    rows: of each row its pack, and its first and last + 1 token there.
    """

    rows: list[tuple[int, int, int]]
    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    attention_mask: Tensor  # (R, 1, S, S)

    @classmethod
    def of(cls, packs: Sequence[Pack], pad_id: int, device: torch.device | None = None) -> Reading:
        rows = [(i, *span) for i, p in enumerate(packs) for span in _rows(p)]
        length = max(end - start for _, start, end in rows)

        def padded(name: str, value: int) -> Tensor:
            each = (getattr(packs[i], name)[start:end] for i, start, end in rows)
            return torch.tensor([row + [value] * (length - len(row)) for row in each]).to(device)

        return cls(
            rows,
            padded("input_ids", pad_id),
            padded("labels", IGNORED),
            padded("positions", 0),
            packed_attention(padded("segments", -1), padded("parents", -1))[:, None],
        )


def _rows(packed: Pack) -> list[tuple[int, int]]:
    """Where the sequence of a pack can be cut."""
    if not packed.hidden:
        return [(0, len(packed.input_ids))]
    ends = [spans[-1][1] for spans in packed.answers]
    cuts = [0]
    for end, following in zip(ends, [*ends[1:], math.inf], strict=True):
        if following - cuts[-1] > ROW:
            cuts.append(end)
    return [*pairwise(cuts)]


def packed_attention(segments_BS: Tensor, parents_BS: Tensor) -> Tensor:
    """Who may look at whom: branches and their parents (B, S), -1 for padding -> (B, S, S) bool, row sees column."""
    length = segments_BS.shape[1]
    causal_SS = torch.ones(length, length, dtype=torch.bool, device=segments_BS.device).tril()
    rows, columns = segments_BS[:, :, None], segments_BS[:, None, :]
    allowed = causal_SS & ((columns == rows) | (columns == parents_BS[:, :, None]) | (columns == 0))
    return allowed | torch.eye(length, dtype=torch.bool, device=allowed.device)  # padding must attend to something


@dataclass(frozen=True)
class Spoken:
    """Every token of all notes and answers of some packs, wrong options too, turn after turn: N tokens.

    Only these need logits: with a vocabulary of 128k words, those of a whole sequence are gigabytes.

    ids: (N,) the tokens. logits: (N, V) what a model says in their place. turns: for each turn of each pack its answers
        as ranges of tokens, the right one first. notes: for each turn its notes.
    """

    ids: Tensor
    logits: Tensor
    turns: list[list[range]]
    notes: list[range]

    @classmethod
    def of(cls, packs: Sequence[Pack], reading: Reading, speak: Callable[[list[int], list[int]], Tensor]) -> Spoken:
        """What is said, turn after turn.

        Args:
            speak: rows and places of N tokens -> (N, V), what comes behind these tokens.
        """
        rows, places, ids, turns, notes = [], [], [], [], []
        for row, (i, first, last) in enumerate(reading.rows):
            for noted, spans in zip(packs[i].notes, packs[i].answers, strict=True):
                if not first <= spans[0][0] < last:
                    continue
                said = []
                for start, end in (noted, *spans):
                    said.append(range(len(ids), len(ids) + end - start))
                    rows += [row] * (end - start)
                    # What stands before the first option speaks the first token of every option.
                    anchor = min(start, spans[0][0]) - 1
                    places += [place - first for place in (anchor, *range(start, end - 1))][: end - start]
                    ids += packs[i].input_ids[start:end]
                notes.append(said[0])
                turns.append(said[1:])
        logits_NV = speak(rows, places)
        return cls(torch.tensor(ids, device=logits_NV.device), logits_NV, turns, notes)

    @classmethod
    def joined(cls, parts: Sequence[Spoken]) -> Spoken:
        """All that several have, in turn."""
        turns, notes, offset = [], [], 0
        for part in parts:
            turns += [[_moved(r, offset) for r in answers] for answers in part.turns]
            notes += [_moved(r, offset) for r in part.notes]
            offset += len(part.ids)
        return cls(torch.cat([p.ids for p in parts]), torch.cat([p.logits for p in parts]), turns, notes)

    def only(self, chosen: Sequence[bool]) -> Spoken:
        """The same tokens, of which only these turns' count."""
        turns = [turn for turn, one in zip(self.turns, chosen, strict=True) if one]
        return replace(self, turns=turns, notes=[noted for noted, one in zip(self.notes, chosen, strict=True) if one])

    def drift(self, before: Spoken) -> Tensor:
        """How far what is said has gone from what a model said of the same tokens before: the mean divergence (KL)."""
        tokens = [n for texts in (self.notes, *self.turns) for text in texts for n in text]
        mine, theirs = (said.logits[tokens].float().log_softmax(-1) for said in (self, before))
        each_N = F.kl_div(mine, theirs, log_target=True, reduction="none").sum(-1)
        return each_N.sum() / max(1, len(tokens))

    @cached_property
    def losses(self) -> Tensor:
        """(N,), minus the log-probability of each token."""
        return F.cross_entropy(self.logits.float(), self.ids, reduction="none")

    def answer_loss(self, balance: float = 0.0) -> Tensor:
        """The mean over the tokens of the right answers and of all notes; zero without any.

        Args:
            balance: a token of an answer, or of notes, of n tokens counts n ** -balance. 0 counts all alike, so that
                captions drown answers of one word; 1 counts all answers alike.
        """
        texts = [right for right, *_ in self.turns] + [noted for noted in self.notes if noted]
        chosen = [n for text in texts for n in text]
        weight = self.losses.new_tensor([len(text) ** -balance for text in texts for _ in text])
        return (self.losses[chosen] * weight).sum() / weight.sum().clamp(min=1e-9)

    def ranking_loss(self) -> tuple[Tensor, int, int]:
        """How well the right option is told from the wrong ones, by the mean log-probability of an option's tokens.

        That is how `Predictor` ranks texts, so this trains the very confidence that it reports.

        Returns:
            The mean cross-entropy over multiple-choice turns (zero without any), how many were right, how many asked.
        """
        asked = [options for options in self.turns if len(options) > 1]
        if not asked:
            return self.losses.new_zeros(()), 0, 0
        most = max(map(len, asked))
        # All options of all turns at once: on a GPU a loop over them would take longer than everything else.
        owners = [
            (turn * most + k, n)
            for turn, options in enumerate(asked)
            for k, tokens in enumerate(options)
            for n in tokens
        ]
        option_N, token_N = torch.tensor(owners, device=self.losses.device).T
        sums_O = self.losses.new_zeros(len(asked) * most).index_add(0, option_N, self.losses[token_N])
        counts_O = option_N.bincount(minlength=len(sums_O))
        mean_TO = (sums_O / counts_O.clamp(min=1)).masked_fill(counts_O == 0, math.inf).view(len(asked), most)
        shares_TO = (-mean_TO).log_softmax(1)
        return -shares_TO[:, 0].mean(), int((shares_TO.argmax(1) == 0).sum()), len(asked)

    def word_for_word(self) -> list[bool]:
        """For each turn, whether greedy decoding gives the right notes and answer to the token."""
        hits = (self.logits.argmax(-1) == self.ids).tolist()
        return [
            all(hits[n] for n in (*noted, *right)) for noted, (right, *_) in zip(self.notes, self.turns, strict=True)
        ]


def _moved(tokens: range, offset: int) -> range:
    return range(tokens.start + offset, tokens.stop + offset)


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


def _zoom(size: tuple[int, int], regions: Sequence[Located], rng: random.Random) -> Window:
    """A part of the picture, half as wide and high at least, with all regions in it."""
    sides = []
    for axis, length in enumerate(size):
        low, high = min(r.box[axis] for r in regions), max(r.box[axis + 2] for r in regions)
        part = min(length, max(high - low, round(length * rng.uniform(0.5, 1.0))))
        first = rng.randint(max(0, high - part), min(low, length - part))
        sides.append((first, first + part))
    (x0, x1), (y0, y1) = sides
    return x0, y0, x1, y1


def _choose_regions(sample: Sample, rng: random.Random, most: int) -> list[int]:
    """Half of the time as many regions as may be, else some; grown around one turn's own, so that turns that compare
    several stay possible. Raises Unusable where no turn fits."""
    fitting = [turn for turn in sample.turns if len(named(turn)) <= most]
    if sample.turns and not fitting:
        raise too_many(sample, most)
    seed = sorted(named(rng.choice(fitting))) if fitting else []
    others = [i for i in range(len(sample.masks)) if i not in seed]
    room = min(most - len(seed), len(others))
    return sorted(seed + rng.sample(others, room if rng.random() < 0.5 else rng.randint(0, room)))
