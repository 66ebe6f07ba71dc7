"""What is known of an item beside its question: how many regions, how small, whether they overlap, what a guess gets.

For splits of a score, and for the overlay `assets/gar_bench_vqa.json`, which names items of GAR-Bench by their index
and repeats nothing of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from gar.bench.statistics import letter_prior
from gar.bench.task import Benchmark, Item, Score, balance

SMALL, LARGE = 0.01, 0.1  # of the picture, the smallest region
OVERLAP = "regions overlap"
PUBLISHED_PROMPTS = 5  # of the published checkpoints


def kinds(item: Item) -> dict[str, str]:
    """The item's place in each split: "regions", and where its masks are of one picture "size" (of its smallest region)
    and "overlap" (of any two)."""
    regions = {"regions": str(len(item.masks))}
    if not item.masks or any("box" in mask for mask in item.masks):
        return regions
    try:
        masks = np.stack([np.asarray(region.array) for region in item.regions()])
    except ValueError:
        return regions
    least = masks.mean((1, 2)).min()
    size = f"under {SMALL:.0%}" if least < SMALL else f"{LARGE:.0%} and more" if least >= LARGE else "between"
    return regions | {
        "size": size,
        "overlap": "yes" if (masks.sum(0, dtype=np.uint8) > 1).any() else "no",
    }


def splits(benchmark: Benchmark, items: Sequence[Item], scores: Sequence[Score]) -> dict[str, dict[str, Any]]:
    """The benchmark's first figure over the items of each kind, and of each flag of the overlay."""
    flags = _published_flags(benchmark, items)
    places = [kinds(item) | flags.get(item.id, {}) for item in items]
    found: dict[str, dict[str, Any]] = {}
    for split in dict.fromkeys(name for place in places for name in place):
        there = {place[split] for place in places if split in place}
        for kind in sorted(there, key=lambda kind: (int(kind) if kind.isdecimal() else 0, kind)):
            chosen = [k for k, place in enumerate(places) if place.get(split) == kind]
            figures = benchmark.summary([items[k] for k in chosen], [scores[k] for k in chosen])
            found.setdefault(split, {})[kind] = next(iter(figures.values())).json()
    return found


def _published_flags(benchmark: Benchmark, items: Sequence[Item]) -> dict[str, dict[str, str]]:
    """By item, whether it has each flag of the overlay; nothing where these are not the items that it is about."""
    known = json.loads((files("gar") / "assets" / "gar_bench_vqa.json").read_text(encoding="utf-8"))["items"]
    if benchmark.name != "gar-bench-vqa" or not all(
        item.id in known and known[item.id]["content"] == _content(item) for item in items
    ):
        return {}
    names = sorted({flag for flags in known.values() for flag in flags["flags"]} - {OVERLAP})  # which `kinds` tells
    return {item.id: {name: "yes" if name in known[item.id]["flags"] else "no" for name in names} for item in items}


def overlay(items: Sequence[Item], elsewhere: set[str]) -> dict[str, dict[str, Any]]:
    """Of multiple-choice items by id: a digest to know them by, flags, and a rotation of the choices that balances the
    right letters of a type.

    Args:
        elsewhere: names of the pictures of another benchmark.
    """
    prior = letter_prior([item.truth for item in items], [item.type for item in items])
    found = {}
    for item, places in zip(items, balance(items), strict=True):
        place = kinds(item)
        flags = {
            "the type's most frequent letter is right": item.truth == prior[item.type][0],
            "more regions than published checkpoints mark": len(item.masks) > PUBLISHED_PROMPTS,
            OVERLAP: place["overlap"] == "yes",
            "picture of DLC-Bench": item.picture.rpartition("/")[2] in elsewhere,
        }
        named = [name for name, is_so in flags.items() if is_so]
        found[item.id] = {"content": _content(item), "regions": len(item.masks), "flags": named, "rotate": places}
    return found


def _content(item: Item) -> str:
    """Tells an item from another one with its index, and nothing of what it says."""
    return hashlib.sha256(
        json.dumps([item.question, sorted(choice[3:] for choice in item.choices)]).encode()
    ).hexdigest()[:8]
