"""Auxiliary heads: what a region is, read off its replayed features; how two regions lie to each other; and what
stands where in the picture, read off its map.

They train the vision in minutes, where a language model alone needs hours; the finished model does not keep them.
Knows the facts of rendered scenes (`Sample.meta["things"]`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gar.data.packing import Pack
from gar.inputs.prompt import IGNORED
from gar.model.vision import peaks

ATTRIBUTES = ("category", "color", "material", "pattern", "kind")
SIDES = ("left", "front")
LINKS = ("on", "inside", "leaning on", "next to", "reflection of")
PAIRS = (*SIDES, *LINKS)
LEAST_VISIBLE = 0.35  # of a thing's outline, for its attributes to be asked for
LEAST_AREA = {"color": 0.003, "material": 0.016, "kind": 0.0}  # of the picture, for the same; of others OTHER_AREA
OTHER_AREA = 0.008
FOUND_AREA = 0.0015  # of the picture, for a thing to be found where it is not marked
WEIGHT = {"material": 2.0}  # in the loss, since they are learned the slowest; of others 1
IN_CELLS = ("category", "color", "pattern", "kind")  # what the cells around a thing's middle say of it
# How likely the likeliest word is, at least, for a caption to state it. On scenes that the vision was not trained on it
# is then right in .99 of categories, patterns and materials, and in .98 of colors.
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
        self.pairs = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, len(PAIRS)))

    def forward(
        self,
        summaries_RD: Tensor,
        around_PggD: Tensor,
        middles_Pgg: Tensor,
        packs: Sequence[Pack],
        embeddings_VD: Tensor,
    ) -> tuple[Tensor, dict[str, tuple[int, int]]]:
        """The sum of all losses, and for each attribute and link (right, asked).

        Args:
            summaries_RD: of the packs' regions. around_PggD: of each cell of their maps and its neighbours the mean.
            middles_Pgg: the logits of each cell's having the middle of a thing.
            embeddings_VD: the language model's.
        """
        regions = [(p, p.sample.meta["things"][i]) for p in packs for i in p.things]
        losses, right = [], {}
        for name in (name for name in ATTRIBUTES if name in self.ids):
            target_R = [self._label(name, thing, p) for p, thing in regions]
            self._read(name, "", target_R, summaries_RD, embeddings_VD, losses, right)

        heats, things = zip(*(middles(p, middles_Pgg.shape[-1]) for p in packs), strict=True)
        loss, right["middles"] = _middle_loss(middles_Pgg, torch.stack(heats).to(middles_Pgg.device))
        losses.append(loss)
        own = [(k, *cell, thing) for k, of_one in enumerate(things) for cell, thing in of_one.items()]
        own_ND = around_PggD[tuple(torch.tensor([at[:3] for at in own]).view(-1, 3).long().T)]
        for name in (name for name in IN_CELLS if name in self.ids):
            target_N = [self._label(name, thing, packs[k]) for k, _, _, thing in own]
            self._read(name, " in cell", target_N, own_ND, embeddings_VD, losses, right)

        first, second, target_NP = (values.to(summaries_RD.device) for values in _pairs(packs))
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


HARD = -1.0  # on the map of middles: no loss, whatever is said


def middles(packed: Pack, side: int) -> tuple[Tensor, dict[tuple[int, int], dict[str, Any]]]:
    """Where on a map over the picture things have their middle, and which thing each (row, column) has.

    Returns:
        (side, side): 1 at a middle, less the farther from it, `HARD` around those of things that are hard to see.
    """
    heat, hard, own = torch.zeros(side, side), torch.zeros(side, side, dtype=torch.bool), {}
    x0, y0, x1, y1 = packed.window
    width, height = x1 - x0, y1 - y0
    at = (torch.arange(side) + 0.5) / side
    for thing in packed.sample.meta["things"]:
        left, top, right, bottom = thing["box"]
        x, y = ((left + right) / 2 - x0) / width, ((top + bottom) / 2 - y0) / height
        if not (0 <= x < 1 and 0 <= y < 1):
            continue
        spread = 0.5 / side + 0.1 * ((right - left) * (bottom - top) / (width * height)) ** 0.5
        bump = torch.exp(-((at - x) ** 2 + (at[:, None] - y) ** 2) / (2 * spread**2))
        if thing["visible"] >= LEAST_VISIBLE and thing["area"] >= FOUND_AREA * width * height:
            heat = heat.maximum(bump)
            own[int(y * side), int(x * side)] = thing
        else:
            hard |= bump > 0.3
    heat[hard] = HARD
    for cell in own:
        heat[cell] = 1.0
    return heat, own


def _middle_loss(logits_Pgg: Tensor, heat_Pgg: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The focal loss of peaks, for each middle, and of all that are there or found how many are both.

    Near a middle it matters little what a cell says. A peak in a neighbouring cell has found it, too.
    """
    there_Pgg, known_Pgg = heat_Pgg == 1, heat_Pgg != HARD
    likely_Pgg = logits_Pgg.sigmoid()
    missed = (1 - likely_Pgg) ** 2 * F.softplus(-logits_Pgg)
    invented = (1 - heat_Pgg) ** 4 * likely_Pgg**2 * F.softplus(logits_Pgg)
    loss = missed[there_Pgg].sum() + invented[known_Pgg & ~there_Pgg].sum()
    found_Pgg = peaks(logits_Pgg)
    hits = int((_widened(found_Pgg) & there_Pgg).sum())
    false = int((found_Pgg & known_Pgg & ~_widened(there_Pgg)).sum())
    return loss / there_Pgg.sum().clamp(min=1), (hits, int(there_Pgg.sum()) + false)


def _widened(cells_Pgg: Tensor) -> Tensor:
    """These cells and their neighbours."""
    return F.max_pool2d(cells_Pgg.float(), 3, stride=1, padding=1) > 0


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
