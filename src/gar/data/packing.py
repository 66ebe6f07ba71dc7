"""Many turns about one picture in one sequence: the picture is encoded and read once, each turn sees it and itself.

A pack is a prefix (picture and regions) and turns. A turn's tokens attend to the prefix and to their own turn, and
their positions go on from the prefix's end, so the loss is that of as many separate sequences.

Shapes: B packs, S sequence, T tiles of all packs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from pycocotools import mask as coco
from torch import Tensor

from gar.data.sample import Sample, Turn
from gar.inputs.processor import CutImage, GARProcessor
from gar.inputs.prompt import DESCRIBE, IGNORED, PromptWriter
from gar.inputs.tiling import normalise
from gar.regions import Located

_NAME = re.compile(r"<Prompt(\d+)>")


@dataclass(frozen=True)
class Pack:
    """One picture and turns about it, ready to be collated.

    things: for each region, in prompt order of `boxes`, its index in `Sample.masks`.
    """

    input_ids: list[int]
    labels: list[int]
    positions: list[int]
    segments: list[int]  # 0 for the prefix, then 1, 2, ... by turn
    cut: CutImage
    mask_tiles: Tensor
    boxes: dict[int, tuple[float, float, float, float]]
    things: list[int]
    sample: Sample
    turns: list[Turn]


def named(turn: Turn) -> set[int]:
    """The regions, as places in `Sample.masks`, that a turn names."""
    texts = (turn.question, turn.answer, *turn.choices)
    return {int(k) for text in texts for k in _NAME.findall(text)}


def renumber(text: str, numbers: dict[int, int]) -> str:
    """`<PromptN>` -> `<Promptnumbers[N]>`."""
    return _NAME.sub(lambda m: f"<Prompt{numbers[int(m[1])]}>", text)


def pack(
    sample: Sample,
    processor: GARProcessor,
    rng: random.Random,
    *,
    num_turns: int,
    max_regions: int,
    augment: Callable[[Image.Image, random.Random], Image.Image] | None = None,
) -> Pack | None:
    """Choose some regions and turns of a sample and write them as one sequence. None when no turn fits.

    Regions get random prompt numbers, so that a model learns to read the number and not to know it. Which and how
    many are marked is random too: any subset may be marked at inference.

    Args:
        num_turns: at most so many turns.
        max_regions: at most so many marked regions.
        augment: a change of the picture's pixels that moves nothing.
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
    cut = processor.cut(augment(picture, rng) if augment else picture)
    located = [Located.from_mask(coco.decode(sample.masks[i]).astype(bool)) for i in chosen]

    writer = processor.prompts
    ids = writer.encode_prefix(len(cut.tiles), list(numbers.values()))
    labels, segments, positions = [IGNORED] * len(ids), [0] * len(ids), list(range(len(ids)))
    start = len(ids)
    for segment, turn in enumerate(turns, start=1):
        question = _question(turn, numbers, writer, rng)
        answer = writer.encode_answer(renumber(turn.answer, numbers))
        length = len(question) + len(answer)
        ids += question + answer
        labels += [IGNORED] * len(question) + answer
        segments += [segment] * length
        positions += range(start, start + length)
    return Pack(
        input_ids=ids,
        labels=labels,
        positions=positions,
        segments=segments,
        cut=cut,
        mask_tiles=processor.mark(cut, located),
        boxes={k: processor.rel_box(cut, region) for k, region in zip(numbers.values(), located, strict=True)},
        things=chosen,
        sample=sample,
        turns=turns,
    )


def collate(packs: Sequence[Pack], pad_id: int) -> dict[str, object]:
    """Packs -> the model's arguments, padded on the right, with a (B, 1, S, S) attention mask."""
    length = max(len(p.input_ids) for p in packs)

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([row + [value] * (length - len(row)) for row in rows])

    segments_BS = padded([p.segments for p in packs], -1)
    return {
        "input_ids": padded([p.input_ids for p in packs], pad_id),
        "labels": padded([p.labels for p in packs], IGNORED),
        "position_ids": padded([p.positions for p in packs], 0),
        "attention_mask": packed_attention(segments_BS)[:, None],
        "pixel_values": normalise(torch.cat([p.cut.tiles for p in packs])),
        "mask_values": torch.cat([p.mask_tiles for p in packs]).float(),
        "tile_grids": torch.tensor([p.cut.grid for p in packs]),
        "region_boxes": [p.boxes for p in packs],
    }


def packed_attention(segments_BS: Tensor) -> Tensor:
    """Who may look at whom: (B, S) segments, -1 for padding -> (B, S, S) bool, True where row attends to column."""
    length = segments_BS.shape[1]
    causal_SS = torch.ones(length, length, dtype=torch.bool).tril()
    rows, columns = segments_BS[:, :, None], segments_BS[:, None, :]
    allowed = causal_SS & ((columns == rows) | (columns == 0))
    return allowed | torch.eye(length, dtype=torch.bool)  # a padded row must attend to something


def _question(turn: Turn, numbers: dict[int, int], writer: PromptWriter, rng: random.Random) -> list[int]:
    """The question as written; of detailed descriptions, half as `Predictor.describe` asks for them."""
    if turn.type == "detailed" and rng.random() < 0.5:
        (region,) = named(turn)
        return writer.encode_question(DESCRIBE, list(numbers.values()), "together", numbers[region])
    return writer.encode_question(renumber(turn.question, numbers), list(numbers.values()))


def _choose_regions(sample: Sample, rng: random.Random, most: int) -> list[int]:
    """Some regions, grown around one turn's own, so that turns that compare several stay possible."""
    everything = range(len(sample.masks))
    seed = sorted(named(rng.choice(sample.turns))) if sample.turns else []
    if len(seed) > most:
        return sorted(rng.sample(everything, most))
    others = [i for i in everything if i not in seed]
    count = rng.randint(0, min(most - len(seed), len(others)))
    return sorted(seed + rng.sample(others, count))

