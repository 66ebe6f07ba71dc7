"""What a caption is worth beside reference texts, without a judge: BLEU, ROUGE-L, CIDEr, all written out here, and
METEOR of pycocoevalcap (which runs Java). Knows texts only.

Tokens are what spaces separate: pass texts through `words` first.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from gar.bench.statistics import Estimate, mean, resampled

ORDERS = (1, 2, 3, 4)  # lengths of the n-grams that count
SIGMA = 6.0  # words of difference in length that a caption is forgiven

Grams = tuple[str, ...]


def words(text: str) -> str:
    """Lower-case words with single spaces between them, without punctuation.

    Close to what the COCO captions' tokenizer (of Java) leaves of a text, but it does not split "it's". Letters are
    those of any script; a script that puts no spaces between words, as Chinese, is left as one word from one
    punctuation mark to the next, so that only whole clauses can be shared.
    """
    return " ".join(re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower()))


def figures_beside(
    captions: Sequence[str], references: Sequence[Sequence[str]], pictures: Sequence[Hashable]
) -> dict[str, Estimate]:
    """All figures that need neither judge nor other programs, of texts as they are; resampled by pictures."""
    said = [words(text) for text in captions]
    meant = [[words(text) for text in texts] for texts in references]
    pairs = list(zip(said, meant, strict=True))
    return {
        "bleu": resampled(np.array([bleu_counts(*pair) for pair in pairs], float), pictures, bleu),
        "rouge-l": mean([rouge_l(*pair) for pair in pairs], pictures),
        "cider": mean(cider(said, meant), pictures),
    }


def bleu_counts(caption: str, references: Sequence[str]) -> list[int]:
    """What BLEU adds up over a data set: a caption's words, those of the reference nearest in length, and for each of
    `ORDERS` the caption's n-grams; then, for each again, how many of these a reference has as well."""
    mine, theirs = _grams(caption), Counter[Grams]()
    for text in references:
        theirs |= _grams(text)
    length = len(caption.split())
    nearest = min((len(text.split()) for text in references), key=lambda other: (abs(other - length), other))
    counted = [[sum(some[gram] for gram in some if len(gram) == n) for n in ORDERS] for some in (mine, mine & theirs)]
    return [length, nearest, *counted[0], *counted[1]]


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU (Papineni et al. 2002), 0..100, of sums (draws, 10) of `bleu_counts`.

    As sacrebleu has it by default: where no n-gram of a length is in a reference, half of one is, then a quarter, ...
    """
    length, nearest = sums[:, :1], sums[:, 1:2]
    there, shared = np.split(sums[:, 2:], 2, axis=1)
    halvings = np.cumsum(shared == 0, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(shared > 0, shared, 0.5**halvings) / there
        brevity = np.exp(np.minimum(1 - nearest / length, 0))[:, 0]
        values = 100 * brevity * np.exp(np.log(shares).mean(1))
    return np.where(shared.any(1) & there.all(1), values, 0)


def rouge_l(caption: str, references: Sequence[str]) -> float:
    """ROUGE-L (Lin 2004), 0..1: F-measure of the longest common subsequence with the reference that it fits best.

    As rouge-score has it, without stemming.
    """
    said = caption.split()

    def likeness(meant: list[str]) -> float:
        longest = [0] * (len(meant) + 1)
        for word in said:
            before = longest
            longest = [0]
            for k, other in enumerate(meant):
                longest.append(before[k] + 1 if word == other else max(before[k + 1], longest[k]))
        return 2 * longest[-1] / (len(said) + len(meant)) if said and meant else 0.0

    return max(likeness(text.split()) for text in references)


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption, 0..10; that of a data set is their mean (Vedantam et al. 2015, section 5).

    N-grams weigh the more the fewer items have them among their references, so a value belongs to its data set; all
    are 0 where there is but one item.
    """
    there = [[_grams(text) for text in texts] for texts in references]
    items_with = Counter(gram for texts in there for gram in set().union(*texts))

    def weighed(grams: Counter[Grams]) -> list[dict[Grams, float]]:
        vectors: list[dict[Grams, float]] = [{} for _ in ORDERS]
        for gram, count in grams.items():
            vectors[len(gram) - 1][gram] = count * math.log(len(there) / max(items_with[gram], 1))
        return vectors

    def likeness(caption: Counter[Grams], reference: Counter[Grams]) -> float:
        pairs = list(zip(weighed(caption), weighed(reference), strict=True))
        apart = _length(caption) - _length(reference)
        return math.exp(-(apart**2) / (2 * SIGMA**2)) * sum(_clipped_cosine(*pair) for pair in pairs) / len(ORDERS)

    values = []
    for caption, texts in zip(captions, there, strict=True):
        values.append(10 * sum(likeness(_grams(caption), text) for text in texts) / len(texts))
    return values


def _grams(text: str) -> Counter[Grams]:
    tokens = text.split()
    return Counter(tuple(tokens[i : i + n]) for n in ORDERS for i in range(len(tokens) - n + 1))


def _length(grams: Counter[Grams]) -> int:
    """A text's number of bigrams, by which the reference implementation compares lengths."""
    return sum(count for gram, count in grams.items() if len(gram) == 2)


def _clipped_cosine(caption: dict[Grams, float], reference: dict[Grams, float]) -> float:
    """The cosine of two vectors, with nothing gained by saying a thing more often than the reference does."""
    norms = math.hypot(*caption.values()) * math.hypot(*reference.values())
    shared = sum(min(weight, reference.get(gram, 0)) * reference.get(gram, 0) for gram, weight in caption.items())
    return shared / norms if norms else 0.0


def meteor(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """METEOR 1.5 of each caption, 0..1.

    Raises:
        ValueError: the package (100 MB, in no extra of ours) or Java is missing.
    """
    import shutil

    try:
        from pycocoevalcap.meteor.meteor import Meteor  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ValueError(f"METEOR needs {error.name}: pip install pycocoevalcap") from error
    if shutil.which("java") is None:
        raise ValueError("METEOR is a Java program, and there is no java: install a Java runtime")
    known = {k: list(texts) for k, texts in enumerate(references)}
    _, values = Meteor().compute_score(known, {k: [caption] for k, caption in enumerate(captions)})
    return [float(value) for value in values]
