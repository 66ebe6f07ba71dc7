"""How training asks for descriptions: in many words, at times for so many of them, at times of what is not there.

Knows texts, and nothing of samples or models.
"""

from __future__ import annotations

import random
import re

from gar.regions import prompt_name

# Ways to ask for a description; those of the first list can be followed by how long it shall be.
_OPEN = (
    "Describe the marked region",
    "Tell what the marked region shows",
    "Say what can be seen in this region",
    "Put the marked region into words",
    "Write a caption for the masked region",
    "Characterize what lies in the masked region",
    "Report on the content of this masked region",
    "What is in the marked region? Answer",
)
_CLOSED = (
    "What makes up the marked region, and what does it look like?",
    "Go through everything worth noting about the masked region.",
    "Which properties of the marked region stand out?",
    "Look closely at the masked region: what do you see?",
    "How would you explain this region to someone who cannot see it?",
    "Give all visible facts about the masked region.",
)
_ONE_SENTENCE = ("in a sentence", "in one sentence", "in 1 sentence")


def ask_for(answer: str, rng: random.Random) -> str:
    """A question to which this description is a fitting answer: three in five leave its length open, the others say it.

    Lengths as in the published data: a fifth of the questions name the words, a fifth the sentences. Without an answer
    nothing is said about its length.
    """
    drawn = rng.random()
    if drawn < 0.6 or not answer:
        stem = rng.choice([*_OPEN, *_CLOSED])
        return f"{stem} in detail." if stem in _OPEN else stem
    return f"{rng.choice(_OPEN)} {in_words(answer) if drawn > 0.8 else in_sentences(answer, rng)}."


def in_words(answer: str) -> str:
    """How many words an answer has, as one would ask for them: exactly if few, in tens if many."""
    number = len(answer.split())
    if number < 10:
        return f"in {number} word{'s' * (number != 1)}"
    return "in more than 200 words" if number > 200 else f"in about {round(number / 10) * 10} words"


def in_sentences(answer: str, rng: random.Random) -> str:
    """How many sentences an answer has, as one would ask for them."""
    number = sum(bool(part.strip()) for part in re.split(r"[.!?]", answer))
    return rng.choice(_ONE_SENTENCE) if number <= 1 else f"in {number} sentences"


def not_there(number: int, rng: random.Random) -> tuple[str, str]:
    """A question about a region that is not marked, and its answer."""
    name = prompt_name(number)
    return f"{name}: {ask_for('', rng)}", f"{name} is not in the image."
