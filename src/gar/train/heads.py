"""Auxiliary heads: what a region is, read off its replayed features, and how two regions lie to each other.

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

ATTRIBUTES = ("category", "color", "material", "pattern", "kind")
SIDES = ("left", "front")
LINKS = ("on", "inside", "leaning on", "next to", "reflection of")
PAIRS = (*SIDES, *LINKS)
LEAST_VISIBLE = 0.35  # of a thing's outline, for its attributes to be asked for
LEAST_AREA = {"color": 0.0012, "material": 0.014, "kind": 0.0}  # of the picture, for the same; of others OTHER_AREA
OTHER_AREA = 0.006


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
        self, summaries_RD: Tensor, packs: Sequence[Pack], embeddings_VD: Tensor
    ) -> tuple[Tensor, dict[str, tuple[int, int]]]:
        """The sum of all losses, and for each attribute and link (right, asked)."""
        things = [(p.sample.meta["things"][i], p.sample.meta["size"]) for p in packs for i in p.things]
        losses, right = [], {}
        for name, ids in self.ids.items():
            target_R = torch.tensor([self._label(name, thing, size) for thing, size in things])
            known = target_R != IGNORED
            if known.any():
                # Directions only: both grow in training, and the loss must not grow with them.
                pointing = F.rms_norm(summaries_RD[known], summaries_RD.shape[1:])
                logits = pointing @ F.normalize(embeddings_VD[ids]).T
                losses.append(F.cross_entropy(logits, target_R[known]))
                right[name] = (int((logits.argmax(1) == target_R[known]).sum()), int(known.sum()))
        first, second, target_NP = _pairs(packs)
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

    def _label(self, name: str, thing: dict[str, Any], size: list[int]) -> int:
        if name != "kind" and thing["visible"] < LEAST_VISIBLE:
            return IGNORED
        if thing["area"] < LEAST_AREA.get(name, OTHER_AREA) * size[0] * size[1]:
            return IGNORED
        return self.words[name].index(thing[name]) if thing.get(name) in self.words[name] else IGNORED


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
