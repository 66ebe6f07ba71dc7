"""Auxiliary heads: what a region is, read off its replayed features; how two regions lie to each other; and what
stands where in the picture, read off its tokens.

They train the vision in minutes, where a language model alone needs hours; the finished model does not keep them.
Knows the facts of rendered scenes (`Sample.meta["things"]`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gar.data.packing import Pack
from gar.inputs.prompt import IGNORED

ATTRIBUTES = ("category", "color", "material", "pattern", "kind")
SIDES = ("left", "front")
LINKS = ("on", "inside", "leaning on", "next to", "reflection of")
PAIRS = (*SIDES, *LINKS)
LEAST_VISIBLE = 0.35  # of a thing's outline, for its attributes to be asked for
LEAST_AREA = {"color": 0.003, "material": 0.016, "kind": 0.0}  # of the picture, for the same; of others OTHER_AREA
OTHER_AREA = 0.008
CELL_AREA = 0.0015  # of the picture, for a cell to speak for a thing
# In the loss; of others 1. Materials are learned the slowest; most cells speak for nothing, and are soon right.
WEIGHT = {"material": 2.0, "cells": 10.0}
IN_CELLS = ("category", "color", "kind")  # what the picture's tokens say of the things in them
# How likely the likeliest word is, at least, for a caption to state it. On scenes that the vision was not trained on it
# is then right in .99 of colors, categories and patterns, and in .98 of materials.
SURE = {"category": 0.85, "color": 0.85, "pattern": 0.85, "material": 0.93}


class RegionHeads(nn.Module):
    """What a region's summary says by itself, and a small network over pairs of summaries.

    An attribute is read off by the language model's own embeddings of its words: summaries that point to the right
    word are in the language that the model speaks, which it then learns much faster.

    Args:
        width: of the summaries and the embeddings, D.
        words: for each attribute its words, and the id of each word's token.
    """

    def __init__(self, width: int, words: dict[str, dict[str, int]]):
        super().__init__()
        self.words = {name: [*ids] for name, ids in words.items()}
        self.ids = {name: [*ids.values()] for name, ids in words.items()}
        self.occupied = nn.Linear(width, 1)
        self.pairs = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, len(PAIRS)))

    def forward(
        self, summaries_RD: Tensor, context_ND: Tensor, packs: Sequence[Pack], embeddings_VD: Tensor
    ) -> tuple[Tensor, dict[str, tuple[int, int]]]:
        """The sum of all losses, and for each attribute and link (right, asked).

        Args:
            summaries_RD: of the packs' regions. context_ND: the picture's tokens, equally many a pack, row-major.
            embeddings_VD: the language model's.
        """
        regions = [(p, p.sample.meta["things"][i]) for p in packs for i in p.things]
        losses, right = [], {}
        for name in (name for name in ATTRIBUTES if name in self.ids):
            target_R = [self._label(name, thing, p) for p, thing in regions]
            self._read(name, "", target_R, summaries_RD, embeddings_VD, losses, right)

        side = int((len(context_ND) / len(packs)) ** 0.5)
        occupied_PC = self.occupied(context_ND).view(len(packs), -1)
        cells = [
            thing
            for p, loudness in zip(packs, occupied_PC.tolist(), strict=True)
            for thing in cells_of(p, side, loudness)
        ]
        device = context_ND.device
        known = torch.tensor([cell is not HARD for cell in cells], device=device)
        there = torch.tensor([isinstance(cell, dict) for cell in cells], device=device)[known]
        logits_N = occupied_PC.flatten()[known]
        losses.append(WEIGHT["cells"] * F.binary_cross_entropy_with_logits(logits_N, there.float()))
        right["cells"] = (int(((logits_N > 0) & there).sum()), int(((logits_N > 0) | there).sum()))
        owners = [p for p in packs for _ in range(side * side)]
        for name in (name for name in IN_CELLS if name in self.ids):
            target_N = [
                self._label(name, cell, p) if isinstance(cell, dict) else IGNORED
                for p, cell in zip(owners, cells, strict=True)
            ]
            self._read(name, " in cell", target_N, context_ND, embeddings_VD, losses, right)

        first, second, target_NP = (values.to(device) for values in _pairs(packs))
        if len(first):
            logits_NP = self.pairs(torch.cat([summaries_RD[first], summaries_RD[second]], 1))
            known = target_NP >= 0
            each_NP = F.binary_cross_entropy_with_logits(logits_NP, target_NP.clamp(min=0), reduction="none")
            for part in (slice(len(SIDES)), slice(len(SIDES), None)):  # links are rare, and would drown the sides
                if known[:, part].any():
                    losses.append(each_NP[:, part][known[:, part]].mean())
            for column, name in enumerate(PAIRS):
                asked = known[:, column]
                hit = (logits_NP[asked, column] > 0) == (target_NP[asked, column] > 0.5)
                right[name] = (int(hit.sum()), int(asked.sum()))
        return sum(losses, summaries_RD.new_zeros(())), right

    def _read(
        self,
        name: str,
        where: str,
        target: list[int],
        vectors_ND: Tensor,
        embeddings_VD: Tensor,
        losses: list[Tensor],
        right: dict[str, tuple[int, int]],
    ) -> None:
        """Add the loss of an attribute's words on vectors, and how many are right."""
        target_N = torch.tensor(target, device=vectors_ND.device)
        known = target_N != IGNORED
        if known.any():
            logits = self._logits(name, vectors_ND[known], embeddings_VD)
            losses.append(WEIGHT.get(name, 1.0) * F.cross_entropy(logits, target_N[known]))
            right[name + where] = (int((logits.argmax(1) == target_N[known]).sum()), int(known.sum()))

    def _logits(self, name: str, vectors_ND: Tensor, embeddings_VD: Tensor) -> Tensor:
        """How well each word of an attribute fits each vector.

        Directions only: both grow in training, and the loss must not grow with them.
        """
        return F.rms_norm(vectors_ND, vectors_ND.shape[1:]) @ F.normalize(embeddings_VD[self.ids[name]]).T

    def unsure(self, summaries_RD: Tensor, embeddings_VD: Tensor) -> list[list[str]]:
        """For each region the attributes of which no word is as likely as `SURE` asks."""
        unsure: list[list[str]] = [[] for _ in summaries_RD]
        for name in (name for name in SURE if self.ids.get(name)):
            likeliest_R = self._logits(name, summaries_RD, embeddings_VD).softmax(1).amax(1)
            for names, likely in zip(unsure, likeliest_R.tolist(), strict=True):
                names += [name] if likely < SURE[name] else []
        return unsure

    def _label(self, name: str, thing: dict[str, Any], packed: Pack) -> int:
        if name != "kind" and thing["visible"] < LEAST_VISIBLE:
            return IGNORED
        x0, y0, x1, y1 = packed.window
        if thing["area"] < LEAST_AREA.get(name, OTHER_AREA) * (x1 - x0) * (y1 - y0):
            return IGNORED
        value = thing.get(name)
        return self.words[name].index(value) if value in self.words[name] else IGNORED


HARD = "hard to see"


def cells_of(packed: Pack, side: int, loudness: Sequence[float]) -> list[dict[str, Any] | str | None]:
    """For each cell of a grid over the picture: the thing that it is to speak for, None, or `HARD`.

    Of the four cells nearest to the middle of a thing one speaks for it, that which already does so the loudest: a
    middle at a border is as near to both, and two that each half say it are not to be counted.

    Args:
        loudness: how much each cell says that it speaks for a thing, row-major.
    """
    cells: list[Any] = [None] * side**2
    x0, y0, x1, y1 = packed.window
    least = CELL_AREA * (x1 - x0) * (y1 - y0)

    def clear(thing: dict[str, Any]) -> bool:
        return thing["visible"] >= LEAST_VISIBLE and thing["area"] >= least

    for thing in sorted(packed.sample.meta["things"], key=lambda thing: (not clear(thing), -thing["area"])):
        left, top, right, bottom = thing["box"]
        x, y = ((left + right) / 2 - x0) / (x1 - x0), ((top + bottom) / 2 - y0) / (y1 - y0)
        if not (0 <= x < 1 and 0 <= y < 1):
            continue
        near = [row * side + column for row in _nearest(y * side, side) for column in _nearest(x * side, side)]
        free = [cell for cell in near if cells[cell] is None]
        if not clear(thing):
            for cell in free:
                cells[cell] = HARD
        elif free:
            cells[max(free, key=loudness.__getitem__)] = thing
    return cells


def _nearest(at: float, side: int) -> list[int]:
    """The two of a row of cells whose middles are nearest to a place; at the ends it may be one."""
    low = math.floor(at - 0.5)
    return [cell for cell in (low, low + 1) if 0 <= cell < side]


def _pairs(packs: Sequence[Pack]) -> tuple[Tensor, Tensor, Tensor]:
    """Ordered pairs of regions of one picture, and for each of `PAIRS` whether it holds; -1 for a close call."""
    first, second, target = [], [], []
    offset = 0
    for p in packs:
        meta = p.sample.meta
        width = meta["size"][0]
        touching = {tuple(relation) for relation in meta["relations"]}
        for place, i in enumerate(p.things):
            for other, j in enumerate(p.things):
                if i == j:
                    continue
                a, b = meta["things"][i], meta["things"][j]
                dx = (b["box"][0] + b["box"][2] - a["box"][0] - a["box"][2]) / 2 / width
                left = float(dx > 0) if abs(dx) > 0.05 else -1.0
                real = a["kind"] == b["kind"] == "object"
                dz = b["depth"] - a["depth"]
                front = float(dz > 0) if real and abs(dz) > 0.1 * min(a["depth"], b["depth"]) else -1.0
                links = [float((i, word, j) in touching) if real else -1.0 for word in LINKS[:-1]]
                first.append(offset + place)
                second.append(offset + other)
                target.append([left, front, *links, float(a["of"] == j)])
        offset += len(p.things)
    return torch.tensor(first, dtype=torch.long), torch.tensor(second, dtype=torch.long), torch.tensor(target)
