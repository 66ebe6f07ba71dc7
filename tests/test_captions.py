"""Caption metrics against the packages that define them, where those are installed, and against sums done by hand."""

from __future__ import annotations

import math
import random
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from gar.bench.captions import bleu, bleu_counts, cider, figures_beside, meteor, rouge_l, words

WORDS = ["a", "the", "red", "blue", "cup", "dog", "left", "of", "on", "table", "small", "standing", "next", "to", "and"]


def texts(count: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Captions that share words with their references, some of them empty or of one word."""
    rng = random.Random(seed)
    references = [[" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(rng.randint(1, 4))]
                  for _ in range(count)]  # fmt: skip
    captions = [" ".join(rng.sample(words := some[0].split(), rng.randint(0, len(words)))) for some in references]
    captions[::3] = [some[-1] for some in references[::3]]
    return captions, references


def test_words_are_lower_case_and_bare():
    assert words('A "well-known" dog,\n it\'s 3.') == "a well-known dog it's 3"


def whole_bleu(captions: list[str], references: list[list[str]]) -> float:
    counts = [bleu_counts(caption, texts) for caption, texts in zip(captions, references, strict=True)]
    return float(bleu(np.array(counts, float).sum(0, keepdims=True))[0])


def test_words_are_those_of_any_script():
    assert words("Красная чашка, café!") == "красная чашка café" and words("红色的杯子。在桌上") == "红色的杯子 在桌上"


def test_bleu_of_a_sum_done_by_hand():
    # Of 4 words 3 are in the reference, of 3 pairs 2, of 2 triples 1; of one quadruple none, which counts as a half.
    expected = 100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
    assert whole_bleu(["a red cup there"], [["a red cup here", "on it"]]) == pytest.approx(expected)
    assert whole_bleu(["a red cup there"], [["a red cup here now"]]) == pytest.approx(expected * math.exp(1 - 5 / 4))
    assert whole_bleu(["x y z w"], [["a b c d"]]) == whole_bleu([""], [["a b c d"]]) == whole_bleu(["a"], [["a"]]) == 0


def test_rouge_l_is_the_longest_common_subsequence_beside_the_nearest_reference():
    assert rouge_l("a cup on the table", ["dogs", "a red cup on table"]) == pytest.approx(4 / 5)
    assert rouge_l("", ["a"]) == rouge_l("a", [""]) == 0


def test_figures_of_texts_as_they_are_have_intervals_and_count_their_texts():
    pytest.importorskip("scipy", reason="intervals need scipy")
    captions, references = texts(40, 3)
    found = figures_beside([caption.upper() + "." for caption in captions], references, [k // 2 for k in range(40)])
    assert found["bleu"].value == pytest.approx(whole_bleu(captions, references))
    assert found["cider"].value == pytest.approx(sum(cider(captions, references)) / 40)
    assert all(one.low < one.value < one.high and one.n == 40 for one in found.values()) and len(found) == 3


def test_cider_of_a_sum_done_by_hand():
    # "red" and "cup" are in one item of two each: weight log 2. Lengths by bigrams: 1 and 0.
    found = cider(["red cup", "dog"], [["red"], ["cup"]])
    assert found == pytest.approx([10 * math.exp(-1 / 72) / math.sqrt(2) / 4, 0])
    assert cider(["a b c d e", "x"], [["a b c d e"], ["y"]])[0] == pytest.approx(10)


def test_saying_it_more_often_gains_nothing():
    once, often = (cider([text, "x"], [["red cup on table"], ["y"]])[0] for text in ("red cup", "red cup red cup"))
    assert often < once


def test_one_item_alone_has_no_cider():
    assert cider(["red cup"], [["red cup"]]) == [0]


@pytest.mark.parametrize("seed", range(3))
def test_cider_is_that_of_pycocoevalcap(seed: int):
    package = pytest.importorskip("pycocoevalcap.cider.cider", reason="pycocoevalcap is not installed")
    captions, references = texts(40, seed)
    mean, each = package.Cider().compute_score(dict(enumerate(references)), {k: [c] for k, c in enumerate(captions)})
    found = cider(captions, references)
    assert found == pytest.approx(list(each), abs=1e-6) and sum(found) / 40 == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [1, 2, 40])
def test_bleu_is_that_of_sacrebleu(count: int, seed: int):
    package = pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
    captions, references = texts(count, seed)
    # It wants as many references of each caption; None where one has fewer.
    most = max(map(len, references))
    streams = [[some[k] if k < len(some) else None for some in references] for k in range(most)]
    expected = package.corpus_bleu(captions, streams, tokenize="none", force=True).score
    assert whole_bleu(captions, references) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_rouge_l_is_that_of_rouge_score(seed: int):
    package = pytest.importorskip("rouge_score.rouge_scorer", reason="rouge-score is not installed")
    scorer = package.RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=str.split))
    for caption, some in zip(*texts(40, seed), strict=True):
        assert rouge_l(caption, some) == pytest.approx(scorer.score_multi(some, caption)["rougeL"].fmeasure, abs=1e-6)


def test_meteor_is_one_for_the_same_words_and_less_for_others():
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    if shutil.which("java") is None:
        pytest.skip("no java")
    same, other = meteor(["a red cup on the table", "a dog"], [["a red cup on the table"], ["the white cat", "cats"]])
    assert same == pytest.approx(1) and other < 0.3
