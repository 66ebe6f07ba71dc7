"""Recipes: a training run is a list of stages, and a function returns them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stretch of training with one set of settings.

    steps: optimiser steps. batch: pictures a step. turns, regions: at most so many a picture.
    language: whether the language model reads the turns; without, only the auxiliary heads train.
    train_tower: whether gradients reach the vision tower and the mask embedding.
    frozen_blocks: so many of a convolutional tower's first blocks, its stem and the mask embedding stay as they are;
        they learn little, and take a quarter of the time.
    rate: peak learning rate, after `warmup` steps, then a cosine down to `floor` times it. tower_rate, vision_rate: the
        tower's, and that of the mask embedding and of everything between tower and language model, as factors of it.
    heads: weight of the auxiliary heads' loss; 0 leaves them out.
    ranking: weight of the loss that tells the right option of a multiple-choice question from the wrong ones.
    balance: how far a long answer is kept from outweighing a short one, see `answer_loss`.
    """

    name: str
    steps: int
    batch: int
    turns: int
    regions: int
    language: bool = True
    train_tower: bool = True
    frozen_blocks: int = 0
    rate: float = 1e-3
    tower_rate: float = 0.3
    vision_rate: float = 1.0
    warmup: int = 50
    floor: float = 0.0
    weight_decay: float = 0.01
    heads: float = 1.0
    ranking: float = 1.0
    balance: float = 0.0


def nano() -> list[Stage]:
    """The built-in model: vision with heads, then the language model on frozen vision, then everything together.

    Whether training both at once is better or worse has not been settled (docs/log.md).
    """
    return [
        Stage(
            "vision", steps=1000, batch=16, turns=1, regions=8, language=False, tower_rate=0.5, warmup=40, floor=0.05,
        ),
        Stage(
            "language", steps=2000, batch=4, turns=16, regions=8, train_tower=False, rate=1.5e-3, heads=0.2,
            balance=0.5, warmup=80, floor=1.0,
        ),
        Stage(
            "joint", steps=7500, batch=4, turns=16, regions=8, frozen_blocks=2, rate=1.5e-3, tower_rate=0.2,
            vision_rate=0.3, balance=0.5,
        ),
    ]  # fmt: skip
