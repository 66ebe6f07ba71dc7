"""Benchmarks: figures of published files, parsers against the published ones, and the same code on small benchmarks."""

from __future__ import annotations

import http.server
import io
import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import small_benchmarks as small
from PIL import Image
from rich.console import Console

from gar.bench import naming
from gar.bench.catalog import BENCHMARKS, benchmark
from gar.bench.check import read_rows
from gar.bench.dlc import parse_choice
from gar.bench.ferret import parse_ratings, postprocess
from gar.bench.flags import kinds, overlay, splits
from gar.bench.judges import Fixed, Reply
from gar.bench.mdvp import MDVP, published_pairing
from gar.bench.report import compare, read_scored, scored, table, write_json, write_page
from gar.bench.statistics import letter_prior, mcnemar, mean, proportion, ratio
from gar.bench.task import Benchmark, Item, Score, evaluate, in_every_order, load, ordered, read_answers
from gar.cli import main
from gar.regions import Region

pytest.importorskip("scipy", reason="intervals need the extra bench")

OVERLAY = Path(__file__).parents[1] / "src" / "gar" / "assets" / "gar_bench_vqa.json"


def figures(found: dict[str, Any]) -> dict[str, float]:
    return {name: round(row["value"], 4) for name, row in found["scores"].items()}


def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("gar: error: ")
    return err


# --- published files --------------------------------------------------------------------------------------------------


def test_published_multiple_choice_gives_203_of_424_and_every_published_type(shared: Path):
    found = scored(benchmark("vqa"), shared / "benchmarks/gar-bench/model_outputs/gar_1b_vqa.json")
    assert found["n"] == 424 and found["scores"]["accuracy"]["value"] == round(203 / 424, 6)
    assert found["scores"]["accuracy"]["ci95"] == pytest.approx([0.432, 0.526], abs=5e-4)
    assert found["as_published"] == {
        "accuracy": 47.9, "color": 49.3, "texture/pattern": 58.6, "mirror": 59.0, "ordering": 20.3, "material": 38.9,
        "shape": 50.0, "relation": 56.4,
    }  # fmt: skip
    assert found["guess"]["accuracy"] == round(157 / 424, 6) and found["guess"]["ordering"] == round(33 / 64, 6)


@pytest.mark.parametrize("part, accuracy", [("simple", 0.5567), ("detailed", 0.6636)])
def test_published_verdicts_on_captions_give_the_published_accuracy(shared: Path, part: str, accuracy: float):
    outputs = shared / "benchmarks/gar-bench/model_outputs"
    found = scored(benchmark(part), outputs / f"gar_1b_{part}.json", verdicts=outputs / f"gar_1b_{part}_eval.json")
    assert found["as_published"] == {"accuracy": accuracy} and figures(found)["accuracy"] == accuracy
    assert found["unscored"] == {}


@pytest.mark.parametrize(
    "judge, expected",
    [("gar_1b_eval", (0.489, 0.870, 0.679)), ("gar_1b_eval_gpt", (0.658, 0.876, 0.767))],
)
def test_published_verdicts_on_dlc_give_the_caches_figures_region_by_region(
    shared: Path, judge: str, expected: tuple[float, float, float]
):
    outputs = shared / "benchmarks/dlc-bench/model_outputs"
    found = scored(benchmark("dlc"), outputs / "gar_1b.json", verdicts=outputs / f"{judge}.json")
    rounded = found["as_published"]
    assert (rounded["positive"], rounded["negative"], rounded["average"]) == expected
    assert figures(found)["average"] == pytest.approx(expected[2], abs=5e-4)
    regions = json.loads((shared / "golden/scoring/dlc_cached_scores.json").read_text())[judge]["regions"]
    assert len(regions) == len(found["items"]) == 100
    for row in found["items"]:
        positive, negative, score, recognised = regions[row["id"]]
        assert row["parts"]["positive"] == pytest.approx(positive) and row["value"] == pytest.approx(score)
        assert row["parts"]["negative"] == pytest.approx(negative) and row["parts"]["recognised"] == recognised


def test_published_reviews_of_ferret_give_56(shared: Path):
    folder = shared / "benchmarks/ferret-bench"
    reviews = folder / "gpt4_result/gar_1b/review_refer_desc.jsonl"
    for predictions in ("model_outputs/gar_1b.json", "gpt4_result/gar_1b/refer_desc/ferret_answer.jsonl"):
        found = scored(benchmark("ferret"), folder / predictions, verdicts=reviews)
        assert found["as_published"] == {"score": 56.0} and found["unscored"] == {}
        assert figures(found) == {"score": 55.9859, "rating": 3.975, "reference rating": 7.1}


def test_choices_are_read_as_the_published_parser_reads_them_and_where_it_crashes_there_is_none(shared: Path):
    cases = json.loads((shared / "golden/scoring/dlc_parse_pred.json").read_text())
    assert {case["gpt_script"] for case in cases} >= {None, "IndexError"}
    for case in cases:
        crashed = case["gpt_script"] == "IndexError"
        assert parse_choice(case["pred"], case["choices"]) == (None if crashed else case["gpt_script"]), case["pred"]


def test_ratings_and_texts_are_read_as_the_published_script_reads_them(shared: Path):
    for case in json.loads((shared / "golden/scoring/ferret_parse_score.json").read_text()):
        if case["score"] == [-1, -1]:
            with pytest.raises(ValueError):
                parse_ratings(case["review"])
        else:
            assert list(parse_ratings(case["review"])) == case["score"]
    for case in json.loads((shared / "golden/scoring/ferret_postprocess.json").read_text()):
        assert postprocess(case["text"]) == case["out"]


def test_by_the_published_pairing_one_question_in_sixty_is_judged_on_its_own_picture(shared: Path):
    items, _ = load(MDVP(), shared / "benchmarks/mdvp-bench")
    assert len(items) == 60 and sum(len(item.masks) for item in items) == 364
    assert published_pairing(items) == (1, 60)


def test_the_overlay_is_that_of_the_published_items(shared: Path):
    items, _ = load(benchmark("vqa"), shared / "benchmarks/gar-bench")
    images = json.loads((shared / "benchmarks/dlc-bench/annotations.json").read_text())["images"]
    assert json.loads(OVERLAY.read_text())["items"] == overlay(items, {image["file_name"] for image in images})


def test_splits_of_gar_bench_follow_the_flags_of_its_items(shared: Path, tmp_path: Path):
    predictions = shared / "benchmarks/gar-bench/model_outputs/gar_1b_vqa.json"
    found = scored(benchmark("vqa"), predictions, max_regions=7, with_splits=True)
    flags = {key: item["flags"] for key, item in json.loads(OVERLAY.read_text())["items"].items()}
    for flag in ("the type's most frequent letter is right", "picture of DLC-Bench"):
        for kind, row in found["splits"][flag].items():
            values = [item["value"] for item in found["items"] if (flag in flags[item["id"]]) == (kind == "yes")]
            assert (row["n"], row["value"]) == (len(values), round(sum(values) / len(values), 6))
    assert "regions overlap" not in found["splits"] and "overlap" in found["splits"]
    write_page([found | {"items": []}], tmp_path / "page.html")
    assert "picture of DLC-Bench: yes" in (tmp_path / "page.html").read_text()


def test_the_overlay_names_items_by_index_and_holds_no_text_of_them():
    content = json.loads(OVERLAY.read_text())
    assert list(content["items"]) == [str(index) for index in range(424)]
    assert all(set(item) == {"content", "regions", "flags", "rotate"} for item in content["items"].values())
    assert sum(item["regions"] > 5 for item in content["items"].values()) == 10


# --- parsers, on cases of our own -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply, place",
    [
        ("A", 0), (" b. ", 1), ("C. blue sky", 2), ("it is red", 0), ("red, no: blue sky", 2), ("blue", 2),
        ("B\nsure", 1), ("D. beyond", 3), ("e", None), ("", None), (None, None), ("purple", None), ("?", None),
    ],
)  # fmt: skip
def test_a_choice_is_read_by_text_letter_or_both(reply: str | None, place: int | None):
    assert parse_choice(reply, ["red", "green", "blue sky"]) == place


@pytest.mark.parametrize("reply", ["7, 4", "7  4", " 7 4", "7", "", "Scores: 7 4", "nan 4"])
def test_ratings_of_another_form_are_refused(reply: str):
    with pytest.raises(ValueError):
        parse_ratings(reply)


# --- small benchmarks in the published layouts ------------------------------------------------------------------------


def test_multiple_choice_counts_the_right_letter_in_either_case_and_nothing_else(tmp_path: Path):
    rows = small.gar_vqa(tmp_path / "gar")
    said = ["a", "B", "c.", "D. none of these", "", "A"]
    path = small.write(
        tmp_path / "gar/out/p.json", [row | {"model_output": text} for row, text in zip(rows, said, strict=True)]
    )
    found = scored(benchmark("vqa"), path, with_splits=True)
    assert figures(found) == {"accuracy": 0.5, "color": 0.6667, "relation": 0.3333}
    assert found["guess"] == {"accuracy": 0.333333, "color": 0.333333, "relation": 0.333333}
    assert found["splits"]["regions"]["7"] == {"value": 1.0, "ci95": [0.206549, 1.0], "n": 1}
    assert set(found["splits"]) == {"regions", "size", "overlap"}
    assert figures(scored(benchmark("vqa"), path, max_regions=5)) == {"accuracy": 0.4, "color": 0.6667, "relation": 0}


def test_published_predictions_are_found_their_annotations_or_stand_for_them(tmp_path: Path):
    rows = [row | {"model_output": "A"} for row in small.gar_vqa(tmp_path / "gar")]
    alone = small.write(tmp_path / "elsewhere/deep/er/p.json", rows)
    beside = small.write(tmp_path / "gar/model_outputs/p.json", rows[:2])
    assert scored(benchmark("vqa"), alone)["n"] == 6
    assert scored(benchmark("vqa"), beside)["unscored"] == {"no answer": 4}
    for data in (tmp_path, tmp_path / "gar", tmp_path / "gar/GAR-Bench-VQA.json"):
        assert scored(benchmark("vqa"), alone, data=data)["n"] == 6


def test_a_caption_without_a_clear_verdict_is_unscored_and_counted(tmp_path: Path):
    rows = [
        {"image": f"images/{k}.png", "mask_rles": [small.rle(0, 0, 9, 9)] * 2, "question": "?", "answer": "on"}
        for k in range(5)
    ]
    predictions = [row | {"model_output": f"text {k}"} for k, row in enumerate(rows[:4])]
    said = ["True", "false.", "maybe", "True"]
    verdicts = [row | {"eval_result": word} for row, word in zip(predictions, said, strict=True)]
    verdicts[3] |= {"model_output": "something else"}
    path = small.write(tmp_path / "GAR-Bench-Caption-Simple.json", rows).with_name("p.json")
    small.write(path, predictions)
    found = scored(benchmark("simple"), path, verdicts=small.write(tmp_path / "v.json", verdicts))
    assert found["scores"]["accuracy"]["value"] == 0.5 and found["scores"]["accuracy"]["n"] == 2
    assert found["unscored"] == {
        "the judge's reply cannot be parsed": 1, "the verdict is about another answer": 1, "no answer": 1,
    }  # fmt: skip
    assert found["as_published"] == {"accuracy": 0.3333}
    stored = small.write(tmp_path / "v.json", [row | {"eval_result": None} for row in verdicts[:2]] + verdicts[:1])
    with pytest.raises(ValueError, match="two rows about images/0.png"):
        scored(benchmark("simple"), path, verdicts=stored)
    silent = scored(benchmark("simple"), path, verdicts=small.write(stored, json.loads(stored.read_text())[:2]))
    assert silent["as_published"] == {} and silent["unscored"]["the judge did not reply"] == 2


def test_dlc_leaves_out_unclear_replies_and_caps_an_unrecognised_region(tmp_path: Path):
    small.dlc(tmp_path)
    texts = {"11": "a cup", "12": "a tram", "13": "a thing"}
    replies = {
        "11": ["A. Yes", "B", "what?", "A. it is not mentioned"],
        "12": ["No", "B", "C", "A"],
        "13": ["A. Yes", "B", "D. beyond", ""],
    }
    verdicts = {key: {"pred": texts[key], "response": some} for key, some in replies.items()}
    predictions = small.write(tmp_path / "p.json", texts)
    found = scored(benchmark("dlc"), predictions, verdicts=small.write(tmp_path / "v.json", verdicts | {"avg_pos": 0}))
    positive, negative = (1 - 0.5 + 1) / 3, (1 + 0) / 2
    assert figures(found) == {
        "average": round((positive + negative) / 2, 4), "positive": 0.5, "negative": 0.5, "recognised": 0.6667,
    }  # fmt: skip
    assert found["as_published"] == {"average": 0.25, "positive": 0.167, "negative": 0.333}
    assert found["notes"] == ["3 questions without a clear reply: left out, but 0 as published"]
    write_json(found, tmp_path / "scored.json")  # kept, they are still read as the published script reads them
    again = scored(benchmark("dlc"), predictions, verdicts=tmp_path / "scored.json")
    assert [again[part] for part in ("scores", "as_published", "notes")] == [
        found[part] for part in ("scores", "as_published", "notes")
    ]
    small.gar_vqa(tmp_path)
    other = small.write(tmp_path / "simple.json", [{"image": "images/vqa_0.png", "model_output": "a"}])
    with pytest.raises(ValueError, match="no verdict on any item of gar-bench-caption-simple"):
        scored(benchmark("simple"), other, data=_simple(tmp_path), verdicts=tmp_path / "scored.json")


def test_where_nothing_is_asked_of_one_side_dlc_is_the_other_side_alone(tmp_path: Path):
    small.dlc(tmp_path)
    questions = json.loads((tmp_path / "qa.json").read_text())
    small.write(tmp_path / "qa.json", {key: some[:2] for key, some in questions.items()})
    predictions = small.write(tmp_path / "p.json", {"11": "a cup"})
    positive = "The object"
    judge = Fixed("B")
    judge.ask = lambda question, *_: Reply("A" if positive in question else "B")  # type: ignore
    found = scored(benchmark("dlc"), predictions, judge=judge)
    assert found["scores"]["average"] == found["scores"]["positive"] and found["scores"]["average"]["value"] == 1
    silent = scored(benchmark("dlc"), predictions, judge=Fixed({}))
    assert silent["as_published"] == {} and silent["unscored"] == {"the judge did not reply": 1, "no answer": 2}


def test_items_without_a_name_of_their_own_are_refused(tmp_path: Path):
    rows = small.gar_vqa(tmp_path)
    path = tmp_path / "GAR-Bench-VQA.json"
    for names, said in ((["a@b"], "id 'a@b'"), (["a", "a"], "id 'a'"), ([7, "7"], "id '7'")):
        small.write(path, [row | {"id": name} for row, name in zip(rows, names, strict=False)])
        for read in (lambda: load(benchmark("vqa"), path), lambda: read_rows(path)):
            with pytest.raises(ValueError, match=f"{said}: expected a text without @ that no other item has"):
                read()
    small.write(path, [rows[0] | {"type": None}])
    with pytest.raises(ValueError, match="the type of item 0 is None"):
        load(benchmark("vqa"), path)
    small.write(path, [])
    with pytest.raises(ValueError, match="there is no item"):
        load(benchmark("vqa"), path)
    # Without names, items are told apart by their pictures.
    two = [row | {"image": "images/vqa_0.png", "model_output": "A"} for row in rows[:2]]
    small.write(path, two)
    with pytest.raises(ValueError, match="two rows about images/vqa_0.png"):
        scored(benchmark("vqa"), small.write(tmp_path / "p.json", two), data=path)


def _simple(folder: Path) -> Path:
    """A caption of one of `small.gar_vqa`'s pictures."""
    row = {"image": "images/vqa_0.png", "mask_rles": [small.rle(0, 2, 6, 20)], "question": "?", "answer": "It is red."}
    return small.write(folder / "GAR-Bench-Caption-Simple.json", [row])


def test_a_judge_is_asked_about_the_others_where_a_picture_is_damaged(tmp_path: Path):
    small.dlc(tmp_path)
    (tmp_path / "images" / "0.jpg").write_text("no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    predictions = small.write(tmp_path / "p.json", {"11": "a red cup", "12": "a bus", "13": "glasses"})
    found = scored(benchmark("dlc"), predictions, judge=Fixed("A"))
    assert found["unscored"] == {"the picture is damaged": 2} and found["scores"]["average"]["n"] == 1
    write_page([found], tmp_path / "page.html")
    assert "a red cup" in (tmp_path / "page.html").read_text()
    (tmp_path / "other.png").rename(tmp_path / "images" / "0.jpg")  # whose size is not that of the masks
    found = scored(benchmark("dlc"), predictions, judge=Fixed("A"))
    assert found["unscored"] == {"picture, regions or question are refused": 2}
    write_page([found], tmp_path / "page.html")
    (tmp_path / "class_names.json").unlink()
    with pytest.raises(ValueError, match="no class_names.json with 13 beside qa.json"):
        scored(benchmark("dlc"), small.write(tmp_path / "q.json", {"13": "glasses"}), judge=Fixed("A"))


def test_ferret_is_the_ratio_of_mean_ratings_and_unreadable_ones_count_only_as_published(tmp_path: Path):
    small.ferret(tmp_path)
    predictions = [
        {"image_path": f"coco/val2017{k:03}.jpg", "annotation": {}, "caption": f"text {k} [0.1, 0.2]"} for k in range(4)
    ]
    content = ["8 4\nfine", "8,6", "7, 4", "6 6  \nwhy"]
    reviews = [{"question_id": k, "content": said, "answer2": f"text {k}"} for k, said in enumerate(content)]
    path = small.write(tmp_path / "model_outputs/p.json", predictions)
    found = scored(benchmark("ferret"), path, verdicts=small.write(tmp_path / "v.jsonl", reviews))
    assert figures(found)["score"] == round(100 * 16 / 22, 4) and found["unscored"] != {}
    assert found["as_published"] == {"score": round(100 * 3.75 / 5.25, 1)}


def test_mdvp_judges_the_texts_of_a_picture_on_that_picture(tmp_path: Path):
    rows = small.mdvp(tmp_path)
    made = [
        {"image_path": f"data/{row['image_path']}", "caption": row["caption"], "gt": row["caption"]} for row in rows
    ]
    judge = Fixed("5 4")
    found = scored(benchmark("mdvp"), small.write(tmp_path / "p.json", made), judge=judge)
    assert figures(found) == {"score": 80.0, "android": 80.0, "web": 80.0, "screenshot": 80.0}
    assert found["as_published"] == {"android": 80.0, "web": 80.0, "screenshot": 80.0}
    assert len(judge.asked) == 4 and "by the published pairing 1 of 4" in found["notes"][0]
    for question in judge.asked:
        kind = "android" if "a phone" in question.text else "web"
        assert question.text.count(f"<Region 2>: {kind}") == 2 and len(question.pictures) == 1


def test_a_judge_is_asked_about_each_answer_and_its_words_are_kept(tmp_path: Path):
    small.dlc(tmp_path)
    predictions = small.write(tmp_path / "p.json", {"11": "a red cup", "12": "a bus"})
    judge = Fixed("A")
    found = scored(benchmark("dlc"), predictions, judge=judge)
    assert len(judge.asked) == 8 and all(len(question.pictures) == 2 for question in judge.asked)
    asked = judge.asked[0].text
    assert "a red cup" in asked and "The object is: cup." in asked and "A. Yes\nB. No" in asked and "$" not in asked
    assert found["unscored"] == {"no answer": 1} and found["judge"]["wording"] == "[dlc-bench, wording 1]"
    write_json(found, tmp_path / "scored.json")
    again = scored(benchmark("dlc"), predictions, verdicts=tmp_path / "scored.json")
    assert again["scores"] == found["scores"]
    assert not any(question.pictures for question in _asked(tmp_path, predictions, text_only=True))
    own = _asked(tmp_path, predictions, wording="Mine: $description? $choices")
    assert own[0].text == "Mine: a red cup? A. Yes\nB. No"


@pytest.mark.parametrize(
    "wording, said",
    [
        ("Is $descripton right?", r"has \$descripton, expected some of \$choices, \$description, \$question"),
        ("Is it right? $question", r"has no \$description: the judge would not see"),
        ("", r"has no \$description"),
        ("$description for 5 $ only", r"a \$ that begins no field: write \$\$"),
    ],
)
def test_a_wording_that_would_not_show_the_answer_is_refused_before_anything_is_asked(
    tmp_path: Path, wording: str, said: str
):
    small.dlc(tmp_path)
    judge = Fixed("A")
    with pytest.raises(ValueError, match=said):
        scored(benchmark("dlc"), small.write(tmp_path / "p.json", {"11": "a"}), judge=judge, wording=wording)
    assert judge.asked == []


@pytest.mark.parametrize("one", [one for one in BENCHMARKS if one.wording], ids=lambda one: one.name)
def test_our_own_wordings_show_the_answer_and_only_known_fields(one: Benchmark):
    evaluate(one, [], {}, judge=Fixed(""), wording=one.wording)


def test_a_benchmark_without_a_judge_takes_none(tmp_path: Path):
    rows = [row | {"model_output": "A"} for row in small.gar_vqa(tmp_path)]
    with pytest.raises(ValueError, match="gar-bench-vqa is scored without a judge: leave --judge away"):
        scored(benchmark("vqa"), small.write(tmp_path / "p.json", rows), judge=Fixed("A"))


def _asked(tmp_path: Path, predictions: Path, **how: Any) -> list[Any]:
    judge = Fixed("A")
    scored(benchmark("dlc"), predictions, judge=judge, **how)
    return judge.asked


def test_without_its_picture_an_item_is_not_judged_unless_by_words_alone(tmp_path: Path):
    small.dlc(tmp_path)
    small.mdvp(tmp_path / "mdvp")
    rows = [
        {"image": f"images/{k}.jpg", "mask_rles": [small.rle(0, 0, 9, 9)] * 2, "question": "?", "answer": "on"}
        for k in range(2)
    ]
    small.write(tmp_path / "GAR-Bench-Caption-Simple.json", rows)
    made = [row | {"model_output": "on"} for row in rows]
    (tmp_path / "images/0.jpg").unlink()
    (tmp_path / "mdvp/android_detailed_caption/images/0.png").unlink()
    texts = json.loads((tmp_path / "mdvp/mdvp_caption_mask.json").read_text())
    texts = [row | {"gt": row["caption"]} for row in texts]
    for name, said, verdict, missing, there in (
        ("dlc", dict.fromkeys(("11", "12", "13"), "a cup"), "A", 2, 1),
        ("simple", made, "True", 1, 1),
        ("mdvp", texts, "5 5", 1, 3),
    ):
        path = small.write(tmp_path / name / "p.json", said)
        found = scored(benchmark(name), path, judge=Fixed(verdict))
        assert found["unscored"] == {"the picture is missing": missing}
        assert sum(row["value"] is not None for row in found["items"]) == there
        unseen = next(row for row in found["items"] if row["value"] is None)
        assert "--text-only to judge by the words alone" in unseen["explanation"]
        assert scored(benchmark(name), path, judge=Fixed(verdict), text_only=True)["unscored"] == {}


def test_a_live_judge_is_read_strictly_and_a_silent_one_leaves_an_item_unscored(tmp_path: Path):
    small.ferret(tmp_path)
    path = small.write(tmp_path / "p.json", [{"image": f"00{k}.jpg", "text": "a"} for k in range(4)])
    data = tmp_path / "annotations"

    def by(judge: Fixed) -> dict[str, Any]:
        return scored(benchmark("ferret"), path, data=data, judge=judge)

    assert by(Fixed("7, 4\nwell"))["scores"]["score"]["value"] == 57.142857
    assert by(Fixed("11 4"))["unscored"] == {"the judge's reply cannot be parsed": 4}
    assert by(Fixed({}))["unscored"] == {"the judge did not reply": 4}
    small.dlc(tmp_path)
    many = small.write(tmp_path / "many.json", dict.fromkeys(("11", "12", "13"), "a cup"))
    with pytest.raises(ValueError, match="no reply to 8 questions, the last: there is no fixed reply"):
        scored(benchmark("dlc"), many, judge=Fixed({}))


def test_without_a_judge_answers_are_measured_beside_the_references_that_there_are(tmp_path: Path, capsys):
    small.ferret(tmp_path)
    path = small.write(tmp_path / "p.json", [{"image": f"00{k}.jpg", "text": f"Answer {k}."} for k in range(3)])
    command = ["bench", "score", "ferret", "--predictions", str(path), "--data", str(tmp_path / "annotations")]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"] == {} and found["unscored"] == {"no verdict": 3, "no answer": 1}
    assert found["without_judge"]["rouge-l"] == {"value": 1, "ci95": [1, 1], "n": 3}
    assert "--judge URL" in found["notes"][0]
    assert {*found["without_judge"]} == {"bleu", "rouge-l", "cider"}
    assert main(command) == 0 and "no judge: rouge-l" in capsys.readouterr().out
    small.dlc(tmp_path / "dlc")
    found = scored(benchmark("dlc"), small.write(tmp_path / "dlc/p.json", {"11": "a cup"}), judge=Fixed("A"))
    assert found["without_judge"] == {} and found["notes"] == []


# --- rotated choices, flags, statistics -------------------------------------------------------------------------------


def test_rotated_choices_put_the_right_one_at_every_letter_once(tmp_path: Path):
    small.gar_vqa(tmp_path)
    items, _ = load(benchmark("vqa"), tmp_path)
    for item in items:
        right = {choice[0]: choice[3:] for choice in item.choices}[item.truth]
        turned = ordered([item], "circular")
        assert sorted(one.truth for one in turned) == [choice[0] for choice in item.choices]
        assert all({c[0]: c[3:] for c in one.choices}[one.truth] == right for one in turned)
        assert turned[0].choices == item.choices


def test_an_item_is_right_in_circles_only_where_it_is_right_in_every_order(tmp_path: Path):
    small.gar_vqa(tmp_path)
    items = load(benchmark("vqa"), tmp_path)[0][:2]
    turned = ordered(items, "circular")
    letters = {one.id: one.truth for one in turned}
    letters[turned[-1].id] = "X"
    found = in_every_order(items, evaluate(benchmark("vqa"), turned, letters))
    assert [score.value for score in found] == [1, 0] and found[1].parts["orders"] == 0.75
    described, rated = Item("d", "", ()), Score(1, "a", parts={"recognised": 1})  # without choices there is one order
    assert in_every_order([described], [rated])[0].parts == {"recognised": 1, "orders": 1}
    assert ordered([described], "circular") == [described]
    assert [(score.answer, score.explanation) for score in found] == [
        (items[0].truth, ""),
        ("B, B, B, X", "right in 3 of 4 orders"),
    ]
    del letters[turned[0].id]
    assert in_every_order(items, evaluate(benchmark("vqa"), turned, letters))[0].value is None


def test_the_overlay_balances_right_letters_within_a_type(tmp_path: Path):
    small.gar_vqa(tmp_path)
    items, _ = load(benchmark("vqa"), tmp_path)
    found = overlay(items, {"same.jpg"})
    assert [found[i]["regions"] for i in "012345"] == [1, 2, 1, 2, 1, 7]
    assert "picture of DLC-Bench" in found["0"]["flags"] and "picture of DLC-Bench" not in found["1"]["flags"]
    assert "regions overlap" in found["1"]["flags"] and "regions overlap" not in found["0"]["flags"]
    turned = ordered(items, "balanced")
    assert [item.truth for item in turned[:3]] == ["A", "B", "C"]
    pairs = list(zip(items, turned, strict=True))
    assert all(_text(before) == _text(after) for before, after in pairs)
    places = [(ord(after.truth) - ord(before.truth)) % len(before.choices) for before, after in pairs]
    assert places == [found[item.id]["rotate"] for item in items]


def _text(item: Item) -> str:
    return {choice[0]: choice[3:] for choice in item.choices}[item.truth]


def test_intervals_are_wilsons_for_shares_and_of_pictures_for_means():
    assert (proportion(203, 424).low, proportion(203, 424).high) == pytest.approx((0.4316, 0.5263), abs=1e-4)
    values = [0.0, 1.0] * 40
    apart, together = mean(values, range(80)), mean(values, [k // 2 for k in range(80)])
    assert apart.value == together.value == 0.5 and together.low == together.high == 0.5
    assert apart.high - apart.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(80), rel=0.1)
    assert ratio([1, 2], [2, 2], ["a", "b"], scale=100).value == 75
    assert math.isnan(mean([1.0], ["a"]).low) and mean([1.0], ["a"]).json()["ci95"] == [None, None]
    assert proportion(0, 0).json()["value"] is None


def test_mcnemar_asks_only_the_items_on_which_two_runs_part():
    first, second = [True] * 10 + [False] * 90, [False] * 10 + [False] * 90
    assert mcnemar(first, second) == pytest.approx(2 / 2**10)
    assert mcnemar(first, first) == 1


def test_the_letter_prior_is_the_most_frequent_right_letter_of_each_type():
    assert letter_prior("AAB" + "C", ["x", "x", "x", "y"]) == {"x": ("A", 2), "y": ("C", 1)}


def test_two_runs_are_compared_on_the_items_that_both_have(tmp_path: Path, capsys):
    rows = small.gar_vqa(tmp_path)
    files = []
    for number, said in enumerate(["ABCDBA", "ABCABB"]):
        made = [row | {"model_output": letter} for row, letter in zip(rows, said, strict=True)][: 6 - number]
        files.append(tmp_path / f"scored{number}.json")
        write_json(scored(benchmark("vqa"), small.write(tmp_path / f"{number}.json", made)), files[-1])
    found = compare(read_scored(files[0]), read_scored(files[1]))["runs"]
    assert found["all"]["difference"]["n"] == 5 and found["all"]["difference"]["value"] == -0.2
    assert (found["all"]["only_first"], found["all"]["only_second"], found["all"]["mcnemar_p"]) == (1, 0, 1.0)
    assert found["all"]["same_answer"] == 4
    assert found["color"]["difference"]["value"] == 0 and found["relation"]["difference"]["value"] == -0.5
    assert main(["bench", "compare", *map(str, files), "--json"]) == 0
    capsys.readouterr()
    page = tmp_path / "report.html"
    write_page([read_scored(file) for file in files], page)
    for command in (("report", *files, "--out", files[0]), ("score", "vqa", "--predictions", tmp_path / "0.json",
                    "--out", tmp_path / "0.json"), ("score", "vqa", "--predictions", tmp_path / "0.json",
                    "--out", tmp_path / "GAR-Bench-VQA.json")):  # fmt: skip
        before = command[-1].read_bytes()
        assert "would be lost: give another name" in fails(capsys, "bench", *command)
        assert command[-1].read_bytes() == before
    small.write(tmp_path / "GAR-Bench-VQA.json", [row | {"question": "Which?"} for row in rows])
    other = [{"run": {"benchmark": "gar-bench-vqa"}}, {"id": "0", "answer": "A"}]
    others = [scored(benchmark("vqa"), small.write(tmp_path / "other.jsonl", other)), read_scored(files[0])]
    for together in (lambda: compare(*others), lambda: write_page(others, page)):
        with pytest.raises(ValueError, match="0.json: a run of gar-bench-vqa about other items than those before"):
            together()
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 6 and "What is the color of &lt;Prompt0&gt;?" in text
    assert "http://" not in text and "https://" not in text


def test_a_page_shows_what_judges_said_and_what_an_answer_is_measured_by(tmp_path: Path):
    small.dlc(tmp_path)
    judge = Fixed("A. <it is not mentioned>")
    found = scored(benchmark("dlc"), small.write(tmp_path / "p.json", {"11": "a cup"}), judge=judge)
    write_page([found], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<li>A. &lt;it is not mentioned&gt;</li>") == 4 and "<li>name: cup</li>" in page
    assert "it is mentioned, and right" in page and page.count("What the judge said") == 1


@pytest.mark.parametrize(
    "name, figure, best, value",
    [("videorefer-d", "average", 5, 4), ("ferret", "rating", 10, 4), ("ferret", "score", None, 80), ("vqa", "x", 1, 1)],
)
def test_a_bar_ends_at_the_best_value_that_there_can_be(
    tmp_path: Path, name: str, figure: str, best: float | None, value: float
):
    row = {"value": value, "ci95": [value / 2, value], "n": 9}
    found = {"benchmark": benchmark(name).name, "scores": {figure: row}, "items": [], "predictions": "p"}
    other = {**found, "scores": {figure: {**row, "ci95": [0, 160]}}}
    assert benchmark(name).highest(figure) == best
    runs = [one | {"as_published": {}, "guess": {}, "notes": [], "unscored": {}} for one in (found, other)]
    write_page(runs, tmp_path / "page.html")
    # Without a bound, the bars of both runs end at the highest end of an interval.
    ends = f"left: {value / 2 / (best or 160) * 100}%; right: {(1 - value / (best or 160)) * 100}%"
    assert ends in (tmp_path / "page.html").read_text()


def test_ratings_are_no_right_and_wrong(tmp_path: Path):
    small.ferret(tmp_path)
    path = small.write(tmp_path / "p.json", [{"image": f"00{k}.jpg", "text": "a"} for k in range(4)])
    found = scored(benchmark("ferret"), path, data=tmp_path / "annotations", judge=Fixed("7 1\nbecause"))
    write_page([found], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert '"answer right"' not in page and '"answer wrong"' not in page and "reference 7.00" in page


def test_no_figure_of_a_table_is_cut_in_eighty_letters(tmp_path: Path):
    rows = [row | {"model_output": row["answer"]} for row in small.gar_vqa(tmp_path)]
    found = scored(benchmark("vqa"), small.write(tmp_path / "p.json", rows), with_splits=True)
    found["splits"]["the type's most frequent letter is right, in very many words"] = {
        "no": found["scores"]["accuracy"]
    }
    written = io.StringIO()
    Console(file=written, width=80).print(table(found | {"guess": {"accuracy": 0.0}}))
    assert "…" not in written.getvalue() and "0.6097 to 1.0000" in written.getvalue() and "0.0000" in written.getvalue()


# --- commands ---------------------------------------------------------------------------------------------------------


def test_score_writes_the_json_of_the_contract(tmp_path: Path, capsys):
    rows = [row | {"model_output": row["answer"]} for row in small.gar_vqa(tmp_path)]
    path = small.write(tmp_path / "p.json", rows)
    assert main(["bench", "score", "gar-bench-vqa", "--predictions", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["benchmark"] == "gar-bench-vqa" and found["n"] == 6
    assert found["scores"]["accuracy"] == {"value": 1.0, "ci95": [0.609666, 1.0], "n": 6}
    assert main(["bench", "score", "vqa", "--predictions", str(path)]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_score_asks_a_judge_at_an_endpoint_and_never_twice(tmp_path: Path, capsys):
    pytest.importorskip("openai", reason="asking an endpoint needs the extra bench")
    asked: list[dict[str, Any]] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            message = {"role": "assistant", "content": "A"}
            reply = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
            reply |= {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            body = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    small.dlc(tmp_path)
    texts = small.write(tmp_path / "p.json", {"11": "a cup", "12": "a bus"})
    judge = ["--judge", f"http://127.0.0.1:{server.server_port}/v1", "--judge-model", "m"]
    command = ["bench", "score", "dlc", "--predictions", str(texts), *judge, "--json"]
    for _ in range(2):
        assert main([*command, "--judge-cache", str(tmp_path / "cache.sqlite")]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["scores"]["negative"]["value"] == 1 and found["scores"]["positive"]["value"] == 0
    server.shutdown()
    # Two regions, each asked for its class, once the same positive question twice, and a negative one.
    assert len(asked) == 6 and len(asked[0]["messages"][0]["content"]) == 3


def test_list_names_every_benchmark(capsys):
    assert main(["bench", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [one.name for one in BENCHMARKS]


def test_a_name_may_be_shortened_while_it_is_clear():
    assert benchmark("DLC").name == "dlc-bench" and benchmark("caption_simple").name == "gar-bench-caption-simple"
    assert benchmark("garbench-vqa").name == "gar-bench-vqa"
    for name in ("caption", "nothing", ""):
        with pytest.raises(ValueError, match="gar-bench-caption-simple"):
            benchmark(name)


def test_a_mistake_is_one_line_that_says_what_to_do(tmp_path: Path, capsys):
    rows = [row | {"model_output": "A"} for row in small.gar_vqa(tmp_path)]
    path = small.write(tmp_path / "p.json", rows)
    small.dlc(tmp_path / "dlc")
    texts = small.write(tmp_path / "dlc/p.json", {"11": "a cup"})
    broken = small.write(tmp_path / "broken.json", [])
    broken.write_text("{]")
    score = ("bench", "score")
    assert "expected one of" in fails(capsys, *score, "nothing", "--predictions", path)
    assert "No such file" in fails(capsys, *score, "vqa", "--predictions", tmp_path / "none.json", "--data", tmp_path)
    assert "neither JSON" in fails(capsys, *score, "vqa", "--predictions", broken, "--data", tmp_path)
    assert "--judge URL" in fails(capsys, *score, "dlc", "--predictions", texts)
    assert "--data DIR" in fails(capsys, *score, "ferret", "--predictions", path)
    assert "not a predictions file" in fails(capsys, *score, "dlc", "--predictions", path, "--data", tmp_path / "dlc")
    assert "not verdicts" in fails(capsys, *score, "dlc", "--predictions", texts, "--verdicts", path)
    wrong = small.write(tmp_path / "wrong.json", [row | {"model_output": 7} for row in rows])
    assert "expected a text" in fails(capsys, *score, "vqa", "--predictions", wrong)
    small.write(wrong, {"11": {"pred": "a cup", "response": [1, 2, 3, 4]}})
    assert "expected a text" in fails(capsys, *score, "dlc", "--predictions", texts, "--verdicts", wrong)
    assert "go together" in fails(capsys, *score, "dlc", "--predictions", texts, "--judge", "http://x")
    verdicts = ("--verdicts", small.write(tmp_path / "v.json", {}))
    for option, more in (("--wording", (path,)), ("--repeat", (1,)), ("--text-only", ()), ("--token-limit", (9,))):
        for judged in ((), verdicts):
            said = fails(capsys, *score, "dlc", "--predictions", texts, *judged, option, *more)
            assert f"{option}: of no use without --judge URL" in said
    broken.write_bytes("\ufeff[]".encode("utf-16"))
    assert "broken.json: not UTF-8" in fails(capsys, *score, "vqa", "--predictions", broken, "--data", tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte order mark, as Windows writes it
    assert main(["bench", "score", "vqa", "--predictions", str(path), "--json"]) == 0
    capsys.readouterr()
    assert "not a scored run" in fails(capsys, "bench", "compare", path, path)


def test_scores_may_be_unscored_which_is_not_nought():
    assert Score(None, "").value is None and Score(0.0, "").value == 0
    assert splits(benchmark("vqa"), [], []) == {}


def test_splits_count_up_and_masks_of_two_pictures_have_no_size():
    masks = [small.rle(0, 0, 9, 9), Region.box(0, 0, 2, 2).locate(4, 4).rle()]
    items = [Item(str(k), "", tuple(masks[:1] * k), truth="A") for k in (10, 9, 2)]
    found = splits(benchmark("vqa"), items, [Score(1, "A")] * 3)
    assert [*found["regions"]] == ["2", "9", "10"]
    assert kinds(Item("two", "", tuple(masks))) == {"regions": "2"}


def test_answers_of_another_benchmark_are_refused(tmp_path: Path):
    small.gar_vqa(tmp_path)
    items, _ = load(benchmark("vqa"), tmp_path)
    path = small.write(tmp_path / "run.jsonl", [{"run": {"benchmark": "dlc-bench"}}, {"id": "0", "answer": "A"}])
    with pytest.raises(ValueError, match="a run of dlc-bench"):
        read_answers(benchmark("vqa"), path, items)


# --- video, names, short captions -------------------------------------------------------------------------------------


def test_videorefer_q_reads_letters_as_published_and_asks_about_one_frame(tmp_path: Path):
    rows = [
        {
            "id": k, "video": f"DAVIS/{k // 2}", "Question": "Is <object3><region> beside <object1><region>?",
            "options": ["(A) Yes", "(B) No"], "Answer": "(B) No", "type": "Basic Questions", "frame_idx": "57",
            "annotation": [{"57": {"segmentation": small.rle(0, 0, 9, 9)}}] * 2,
        }
        for k in range(4)
    ]  # fmt: skip
    small.write(tmp_path / "VideoRefer-Bench-Q.json", rows)
    items, _ = load(benchmark("videorefer-q"), tmp_path)
    assert items[0].question == "Is <Prompt0> beside <Prompt1>?" and items[0].choices == ("A. Yes", "B. No")
    assert items[0].image == "DAVIS/0/00057.jpg" and len(items[0].masks) == 2
    said = ["I think (B) No", "B) No", "B.", "A"]
    made = [{"id": k, "pred": text} for k, text in enumerate(said)]
    found = scored(benchmark("videorefer-q"), small.write(tmp_path / "p.jsonl", made))
    assert figures(found) == {"accuracy": 0.75, "Basic Questions": 0.75}
    small.write(tmp_path / "VideoRefer-Bench-Q.json", [row | {"id": 0} for row in rows])  # of a video, say
    again = small.write(tmp_path / "p.jsonl", [row | {"id": 0} for row in made])
    assert figures(scored(benchmark("videorefer-q"), again)) == figures(found)


def test_videorefer_d_is_rated_on_four_aspects(tmp_path: Path):
    rows = [
        {
            "id": k, "video": f"{k}.mp4", "caption": f"thing {k}", "frame_idx": "2",
            "annotation": [{"2": {"segmentation": small.rle(k, 0, 9, 9)}, "7": {"segmentation": None}}],
        }
        for k in range(3)
    ]  # fmt: skip
    small.write(tmp_path / "VideoRefer-Bench-D.json", rows)
    path = small.write(tmp_path / "p.json", [{"id": k, "pred": "a thing"} for k in range(3)])
    aspects = ["Subject Correspondence", "Appearance Description", "Temporal Description", "Hallucination Detection"]
    judge = Fixed(json.dumps(dict(zip(aspects, [5, 4, 3, 2], strict=True))))
    found = scored(benchmark("videorefer-d"), path, judge=judge)
    assert figures(found) == {"average": 3.5, **dict(zip(aspects, [5, 4, 3, 2], strict=True))}
    assert "thing 2" in judge.asked[2].text
    verdicts = [
        {"id": 0, **dict.fromkeys(aspects, 5)},
        {"id": 1, aspects[0]: 5},
        {"id": 2, **dict.fromkeys(aspects, 6)},
        {"id": 0, "pred": "another thing", **dict.fromkeys(aspects, 1)},
    ]
    other = scored(benchmark("videorefer-d"), path, verdicts=small.write(tmp_path / "v.json", verdicts[3:]))
    assert other["unscored"] == {"the verdict is about another answer": 1, "no verdict": 2}
    verdicts.pop()
    found = scored(benchmark("videorefer-d"), path, verdicts=small.write(tmp_path / "v.json", verdicts))
    assert figures(found)["average"] == 5 and sum(found["unscored"].values()) == 2


def test_names_are_measured_by_the_words_they_share(tmp_path: Path, monkeypatch):
    rows = [
        {
            "file_name": "000.jpg", "height": 48, "width": 64, "categories": ["coffee_cup", "lid:cup"],
            "annotations": [{"segmentation": [[1, 1, 20, 1, 20, 20]]}, {"segmentation": small.rle(0, 0, 9, 9)}],
        }
    ]  # fmt: skip
    small.write(tmp_path / "lvis_val_1k_category.json", rows)
    monkeypatch.setattr("gar.bench.naming.encoder", lambda: None)
    items, _ = load(benchmark("lvis"), tmp_path)
    assert [item.truth for item in items] == ["coffee cup", "lid cup"]
    assert items[0].regions()[0].locate(64, 48).area == pytest.approx(180, abs=15)
    found = scored(benchmark("lvis"), small.write(tmp_path / "p.json", {"0.0": "It is: a coffee cup.", "0.1": "door"}))
    assert figures(found) == {"semantic iou": 0.3333} and "no semantic similarity" in found["notes"][0]
    monkeypatch.setattr("gar.bench.naming.encoder", lambda: object())
    monkeypatch.setattr("gar.bench.naming.similarity", lambda first, second: float(first == second))
    found = scored(benchmark("lvis"), small.write(tmp_path / "p.json", {"0.0": "coffee cup.", "0.1": "door"}))
    assert figures(found) == {"semantic iou": 0.5, "semantic similarity": 0.5} and found["notes"] == []


def test_without_the_encoder_on_disk_there_is_none(tmp_path: Path):
    assert naming.encoder(tmp_path) is None


def test_short_captions_are_measured_beside_all_others(tmp_path: Path):
    texts = ["a red cup on the table", "the dog at the door", "two green chairs by a wall"]
    content = {
        "images": [
            {"id": k, "file_name": f"COCO_train2014_00{k}.jpg", "height": 48, "width": 64, "caption": text}
            for k, text in enumerate(texts)
        ],
        "annotations": [{"id": 10 + k, "image_id": k, "segmentation": small.rle(0, 0, 9, 9)} for k in range(3)],
    }
    small.write(tmp_path / "finetune_refcocog_val_with_mask.json", content)
    made = [{"image_id": "10", "caption": texts[0]}, {"image_id": 11, "caption": "nothing alike"}]
    found = scored(benchmark("refcocog"), small.write(tmp_path / "p.json", made))
    assert [row["image"] for row in found["items"]] == ["000.jpg", "001.jpg", "002.jpg"]
    assert found["items"][0]["value"] == pytest.approx(10) and found["items"][1]["value"] == 0
    assert found["scores"]["cider"]["n"] == 2 and found["unscored"] == {"no answer": 1}
