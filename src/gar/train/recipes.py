"""Recipes: a training run is a list of stages, and a function returns them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stretch of training with one set of settings.

    steps: optimiser steps. batch: pictures a step. turns, regions: at most so many a picture.
    language: whether the language model reads the turns; without, only the auxiliary heads train.
    train_tower: whether gradients reach the vision tower and the mask embedding.
    rate: peak learning rate, after `warmup` steps, then cosine to zero. tower_rate: the tower's, as a factor of it.
    heads: weight of the auxiliary heads' loss; 0 leaves them out.
    ranking: weight of the loss that tells the right option of a multiple-choice question from the wrong ones.
    """

    name: str
    steps: int
    batch: int
    turns: int
    regions: int
    language: bool = True
    train_tower: bool = True
    rate: float = 1e-3
    tower_rate: float = 0.3
    warmup: int = 50
    weight_decay: float = 0.01
    heads: float = 1.0
    ranking: float = 1.0


def nano() -> list[Stage]:
    """The built-in model: vision with heads, then the language model on it, with vision frozen.

    Whether training both at once is better or worse has not been settled (docs/log.md).
    """
    return [
        Stage("vision", steps=650, batch=16, turns=1, regions=8, language=False, warmup=40),
        Stage(
            "language", steps=2650, batch=4, turns=14, regions=6, train_tower=False, rate=1.5e-3, heads=0.2, warmup=80
        ),
    ]
