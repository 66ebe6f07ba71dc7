"""Agreement of judges against figures that are known, and between runs that judges scored."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import small_benchmarks as small
from test_bench import fails

from gar.bench.agreement import agreement, consistency, kappa, length_bias
from gar.bench.catalog import benchmark
from gar.bench.judges import Fixed
from gar.bench.report import read_scored, scored, write_json
from gar.cli import main

stats = pytest.importorskip("scipy.stats", reason="statistics need scipy")


def verdicts(table: list[list[int]]) -> tuple[list[str], list[str]]:
    """Two judges' verdicts from how often they gave each pair of them."""
    pairs = [("abc"[i], "abc"[k]) for i, row in enumerate(table) for k, count in enumerate(row) for _ in range(count)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def test_kappa_is_that_of_the_textbook():
    found = kappa(*verdicts([[20, 5], [10, 15]]), range(50))
    assert found.value == pytest.approx(0.4) and found.n == 50
    # The large-sample interval is 0.4 +- 1.96 * 0.1254.
    assert found.low == pytest.approx(0.154, abs=0.03) and found.high == pytest.approx(0.646, abs=0.03)


def test_kappa_of_three_verdicts_is_that_of_the_formula():
    a, b = verdicts([[10, 2, 1], [3, 12, 4], [0, 5, 13]])
    observed = 35 / 50
    expected = (13 * 13 + 19 * 19 + 18 * 18) / 50**2
    assert kappa(a, b, range(50)).value == pytest.approx((observed - expected) / (1 - expected))


def test_squared_kappa_is_one_less_the_squares_met_over_those_of_all_pairs():
    rng = random.Random(0)
    a = [rng.randint(1, 10) for _ in range(60)]
    b = [min(max(x + rng.randint(-2, 2), 1), 10) for x in a]
    met = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 60
    chance = sum((x - y) ** 2 for x in a for y in b) / 60**2
    found = kappa(a, b, range(60), squared=True)
    assert found.value == pytest.approx(1 - met / chance)
    assert found.low < found.value < found.high < 1


def test_judges_who_agree_have_kappa_one_and_strangers_about_zero():
    rng = random.Random(0)
    a, b = ([rng.random() < 0.5 for _ in range(400)] for _ in range(2))
    same, strange = kappa(a, a, range(400)), kappa(a, b, range(400))
    assert (same.value, same.low, same.high) == (1, 1, 1)
    assert strange.low < 0 < strange.high and strange.high - strange.low < 0.25


def test_kappa_of_one_verdict_for_all_is_none():
    assert math.isnan(kappa([True] * 5, [True] * 5, range(5)).value)
    assert math.isnan(kappa([], [], []).value)


def test_what_is_unscored_is_left_out_and_not_counted():
    a, b = verdicts([[20, 5], [10, 15]])
    found = kappa([*a, None, "a", None], [*b, "b", None, None], range(53))
    assert found == kappa(a, b, range(50)) and found.n == 50
    assert length_bias([1, None, 2, 3], ["a", "b c", "d e f", "g h i j"], range(4)).n == 3
    assert consistency([["a", None], ["a", "b"]], range(2)).n == 1


def test_items_of_one_picture_widen_an_interval():
    a, b = verdicts([[20, 5], [10, 15]])
    alone = kappa(a, b, range(50))
    together = kappa(a * 4, b * 4, [*range(50)] * 4)
    assert (together.value, together.low, together.high, together.n) == (alone.value, alone.low, alone.high, 200)
    assert kappa(a * 4, b * 4, range(200)).low > alone.low


def test_length_bias_is_spearmans_correlation():
    rng = random.Random(0)
    lengths = [rng.randint(1, 60) for _ in range(200)]
    ratings = [min(round(n / 10 + rng.random() * 5), 10) for n in lengths]
    found = length_bias(ratings, ["word " * n for n in lengths], range(200))
    expected: Any = stats.spearmanr(lengths, ratings)
    assert found.value == pytest.approx(expected.statistic)
    assert found.low < found.value < found.high


def test_length_bias_of_equal_answers_is_none():
    assert math.isnan(length_bias([1, 2, 3], ["one word", "two words", "more words"], range(3)).value)


def test_consistency_is_the_share_of_pairs_of_repeats_that_agree():
    found = consistency([["a", "b", "a"], ["a", "b", "b"], ["a", "c", "c"]], range(3))
    assert found.value == pytest.approx((1 + 1 / 3 + 0) / 3) and found.n == 3


# --- scored runs ------------------------------------------------------------------------------------------------------


def judged(folder: Path, name: str, replies: str | dict[str, str], answers: list[str], repeat: int = 0) -> Path:
    """Captions of four pictures, scored by a judge of fixed replies; by an answer's first word where they differ."""
    if not (folder / "GAR-Bench-Caption-Simple.json").exists():
        rows = [
            {"image": f"images/{k}.png", "mask_rles": [small.rle(0, 0, 9, 9)], "question": "?", "answer": "on"}
            for k in range(4)
        ]
        small.write(folder / "GAR-Bench-Caption-Simple.json", rows)
    rows = [{"image": f"images/{k}.png", "model_output": text} for k, text in enumerate(answers)]
    judge = Fixed(replies) if isinstance(replies, str) else Fixed({text: replies[text.split()[0]] for text in answers})
    judge.name = name
    how: dict[str, Any] = {"wording": "$answer", "text_only": True, "repeat": repeat}
    found = scored(benchmark("simple"), small.write(folder / "p.json", rows), judge=judge, **how)
    assert {question.repeat for question in judge.asked} == {repeat}
    write_json(found, folder / f"{name}{repeat}.json")
    return folder / f"{name}{repeat}.json"


def test_judges_of_the_same_answers_are_compared_in_pairs_and_with_themselves(tmp_path: Path, capsys):
    answers = ["a cup", "b cup on it", "c cup on the table", "d cup on the table there"]
    mild = judged(tmp_path, "mild", {"a": "True", "b": "False", "c": "True", "d": "True"}, answers)
    again = judged(tmp_path, "mild", {"a": "True", "b": "True", "c": "True", "d": "who knows"}, answers, repeat=1)
    harsh = judged(tmp_path, "harsh", {"a": "False", "b": "False", "c": "True", "d": "True"}, answers)
    files = [str(path) for path in (mild, again, harsh)]
    assert main(["bench", "agreement", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["benchmark"], found["n"], found["left_out"]) == ("gar-bench-caption-simple", 4, 0)
    first, second = found["judges"]
    assert (first["name"], first["repeats"], second["name"], second["repeats"]) == ("mild", 2, "harsh", 1)
    assert first["consistency"]["value"] == pytest.approx(2 / 3, abs=1e-6) and first["consistency"]["n"] == 3
    assert "consistency" not in second
    (pair,) = found["pairs"]
    assert pair["judges"] == [0, 1] and pair["kappa"]["value"] == pytest.approx(0.5) and pair["kappa"]["n"] == 4
    # The harsh one parts from the other on the shortest answer alone.
    ranks, apart = [1, 2, 3, 4], [-1, 0, 0, 0]
    assert pair["length_bias"]["value"] == pytest.approx(stats.spearmanr(ranks, apart).statistic, abs=1e-6)
    assert main(["bench", "agreement", *files]) == 0
    shown = capsys.readouterr().out
    assert "0 and 1" in shown and ".500" in shown and "left out" not in shown


def test_a_judge_of_whom_no_reply_is_clear_stands_beside_the_others_with_no_verdict(tmp_path: Path, capsys):
    clear, unclear = (judged(tmp_path, name, says, ["a", "b c"]) for name, says in (("one", "True"), ("other", "Hm")))
    assert main(["bench", "agreement", str(clear), str(unclear), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["length_bias"]["n"] for row in found["judges"]] == [2, 0]
    assert found["pairs"][0]["kappa"] == {"value": None, "ci95": [None, None], "n": 0}


def test_answers_that_are_not_the_same_in_all_runs_are_left_out_and_counted(tmp_path: Path, capsys):
    one = judged(tmp_path, "one", "True", ["a", "b", "c", ""])
    other = judged(tmp_path, "other", "False", ["a", "B", "c", ""])
    assert main(["bench", "agreement", str(one), str(other)]) == 0
    assert "left out: 2 items" in capsys.readouterr().out
    strange = judged(tmp_path, "strange", "True", ["w", "x", "y", "z"])
    assert "no answer is the same" in fails(capsys, "bench", "agreement", one, strange)


def test_runs_that_say_nothing_of_a_judge_are_refused(tmp_path: Path, capsys):
    one = judged(tmp_path, "one", "True", ["a", "b"])
    assert "ask again with `--repeat 1`" in fails(capsys, "bench", "agreement", one, one)
    rows = [row | {"model_output": "A"} for row in small.gar_vqa(tmp_path)]
    found = scored(benchmark("vqa"), small.write(tmp_path / "vqa.json", rows))
    write_json(found, tmp_path / "scored.json")
    assert "without a judge" in fails(capsys, "bench", "agreement", tmp_path / "scored.json")
    assert "compared on one benchmark" in fails(capsys, "bench", "agreement", one, tmp_path / "scored.json")


def test_each_verdict_on_an_answer_counts_and_stored_ones_keep_their_judge(tmp_path: Path):
    small.dlc(tmp_path)
    answers = small.write(tmp_path / "p.json", {"11": "a cup", "12": "a bus"})
    judges = [Fixed("A"), Fixed("B")]
    for number, judge in enumerate(judges):
        judge.name = f"judge {number}"
        write_json(scored(benchmark("dlc"), answers, judge=judge, text_only=True), tmp_path / f"{number}.json")
    stored = scored(benchmark("dlc"), answers, verdicts=tmp_path / "1.json")
    assert stored["judge"]["name"] == "judge 1"
    found = agreement([read_scored(tmp_path / "0.json"), stored])
    assert found["n"] == 2 and found["left_out"] == 1 and found["pairs"][0]["kappa"]["n"] == 8
    assert found["pairs"][0]["kappa"]["value"] == 0


def test_a_judge_asked_in_other_words_or_without_pictures_is_another_one(tmp_path: Path, capsys):
    small.dlc(tmp_path)
    answers = small.write(tmp_path / "p.json", {"11": "a cup", "12": "a bus"})
    ways: list[dict[str, Any]] = [{}, {"text_only": True}, {"wording": "[dlc-bench, wording 1]\nMine: $description"}]
    for number, how in enumerate(ways):
        found = scored(benchmark("dlc"), answers, judge=Fixed("A" if number else "B"), **how)
        write_json(found, tmp_path / f"{number}.json")
    assert main(["bench", "agreement", *(str(tmp_path / f"{number}.json") for number in range(3))]) == 0
    shown = capsys.readouterr().out
    assert shown.count("[dlc") == 3 and shown.count("only") == 1 and "1 and 2" in shown


def test_a_wording_that_says_published_is_read_strictly_all_the_same(tmp_path: Path):
    small.dlc(tmp_path)
    answers = small.write(tmp_path / "p.json", {"11": "a cup"})
    wording = "as published\n$description $question $choices"
    found = scored(benchmark("dlc"), answers, judge=Fixed("A. beyond doubt"), wording=wording)
    write_json(found, tmp_path / "scored.json")
    again = scored(benchmark("dlc"), answers, verdicts=tmp_path / "scored.json")
    assert again["unscored"] == found["unscored"] == {"the judge's reply cannot be parsed": 1, "no answer": 2}


def test_the_published_judges_of_dlc_agree_as_far_as_their_stored_verdicts_do(shared: Path):
    outputs = shared / "benchmarks/dlc-bench/model_outputs"
    runs = [
        scored(benchmark("dlc"), outputs / "gar_1b.json", verdicts=outputs / f"{name}.json")
        for name in ("gar_1b_eval", "gar_1b_eval_gpt")
    ]
    found = agreement(runs)
    assert [Path(judge["name"]).stem for judge in found["judges"]] == ["gar_1b_eval", "gar_1b_eval_gpt"]
    assert found["n"] == 100 and found["left_out"] == 0
    assert found["pairs"][0]["kappa"] == {"value": 0.825725, "ci95": [0.785356, 0.862794], "n": 992}
