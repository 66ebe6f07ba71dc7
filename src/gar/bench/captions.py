"""What a caption is worth beside captions that people wrote, without a judge: CIDEr, written out here, and METEOR of
pycocoevalcap (which runs Java). Knows texts only.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

ORDERS = (1, 2, 3, 4)  # lengths of the n-grams that count
SIGMA = 6.0  # words of difference in length that a caption is forgiven

Grams = tuple[str, ...]


def words(text: str) -> str:
    """Lower-case words with single spaces between them, without punctuation.

    Close to what the COCO captions' tokenizer (of Java) leaves of a text, but it does not split "it's".
    """
    return " ".join(re.findall(r"[a-z0-9]+(?:['-][a-z0-9]+)*", text.lower()))


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption, 0..10; that of a data set is their mean (Vedantam et al. 2015, section 5).

    N-grams weigh the more the fewer items have them among their references, so a value belongs to its data set; all
    are 0 where there is but one item. Tokens are what spaces separate: pass texts through `words` first.
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
    """METEOR 1.5 of each caption, 0..1. Pass texts through `words` first.

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
