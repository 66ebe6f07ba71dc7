"""Running benchmarks: what a model is shown and asked, files that survive being killed, views, and downloads."""

from __future__ import annotations

import hashlib
import http.server
import json
import math
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import small_benchmarks as small
import torch
from PIL import Image
from test_bench import fails

import gar.cli
from gar.bench import statistics
from gar.bench.catalog import BENCHMARKS, benchmark
from gar.bench.fetch import fetch
from gar.bench.judges import Fixed, Reply, Stopped
from gar.bench.report import by_view, compare, scored, write_page
from gar.bench.rivals import Rival
from gar.bench.task import Benchmark, Item, load, run, unmarked
from gar.bench.videorefer import ASPECTS
from gar.bench.views import CONTEXT, ROBUSTNESS, VIEWS, focal_crop, mean_outside, unchanged
from gar.cli import main
from gar.regions import Region, load_image

pytest.importorskip("scipy", reason="intervals need the extra bench")

Task = tuple[Benchmark, list[Item], Path]
Shown = tuple[Image.Image, list[Region]]


@pytest.fixture
def vqa(tmp_path: Path) -> Task:
    small.gar_vqa(tmp_path)
    return benchmark("vqa"), *load(benchmark("vqa"), tmp_path)


@pytest.fixture
def dlc(tmp_path: Path) -> Task:
    small.dlc(tmp_path)
    return benchmark("dlc"), *load(benchmark("dlc"), tmp_path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- run --------------------------------------------------------------------------------------------------------------


def test_a_picture_is_encoded_once_for_all_questions_about_the_same_regions(vqa: Task, tmp_path: Path):
    fake: Any = small.FakePredictor(prompts=16)
    assert run(*vqa, fake, tmp_path / "out.jsonl") == {}
    assert len(fake.opened) == 5 and len(fake.asked) == 6
    header, *answers = lines(tmp_path / "out.jsonl")
    assert header["run"]["benchmark"] == "gar-bench-vqa" and header["run"]["model"] == "fake"
    assert [row["id"] for row in answers] == ["0", "2", "1", "3", "4", "5"]
    assert all(row["answer"] in "ABCD" and row["confidence"] == 0.5 for row in answers)
    found = scored(vqa[0], tmp_path / "out.jsonl")
    assert found["n"] == found["scores"]["accuracy"]["n"] == 6


def test_regions_of_several_pictures_are_described_in_common_batches(dlc: Task, tmp_path: Path):
    fake: Any = small.FakePredictor()
    run(*dlc, fake, tmp_path / "out.jsonl", batch_size=2)
    rows = {row["id"]: row["answer"] for row in lines(tmp_path / "out.jsonl")[1:]}
    assert rows == {"11": "at (0, 5, 9, 30)", "12": "at (5, 5, 14, 30)", "13": "at (10, 5, 19, 30)"}


def test_open_questions_about_several_pictures_are_answered_in_common_batches(vqa: Task, tmp_path: Path):
    batches: list[list[str]] = []

    class Counting(small.FakePredictor):
        def ask_batch(self, images: list[Any], questions: list[str], *more: Any, **generation: Any) -> list[Any]:
            batches.append(questions)
            return super().ask_batch(images, questions, *more, **generation)

    open_ones = [replace(item, choices=()) for item in vqa[1]]
    fake: Any = Counting(prompts=5)
    reason = "more than the 5 regions that the model can mark"
    assert run(vqa[0], open_ones, vqa[2], fake, tmp_path / "out.jsonl", batch_size=2) == {reason: 1}
    rows = {row["id"]: row for row in lines(tmp_path / "out.jsonl")[1:]}
    assert [len(batch) for batch in batches] == [2, 2, 1] and rows["5"] == {"id": "5", "skipped": reason}
    assert all(rows[item.id]["answer"].startswith(str(item.question)) for item in open_ones[:5])


def test_the_texts_of_several_regions_of_an_item_are_one_answer(tmp_path: Path):
    small.mdvp(tmp_path)
    fake: Any = small.FakePredictor()
    run(benchmark("mdvp"), *load(benchmark("mdvp"), tmp_path), fake, tmp_path / "out.jsonl")
    answers = [row["answer"] for row in lines(tmp_path / "out.jsonl")[1:]]
    assert answers == ["<Region 1>: at (0, 4, 8, 30)\n<Region 2>: at (10, 4, 18, 30)"] * 4


def test_objects_of_films_are_described_in_the_frame_that_has_their_masks(tmp_path: Path):
    rows = [
        {
            "id": k, "video": f"{k}.mp4", "caption": "a cup", "frame_idx": "12",
            "annotation": [{"3": {"segmentation": None}, "12": {"segmentation": small.rle(k, 0, 9, 9)}}],
        }
        for k in range(3)
    ]  # fmt: skip
    small.write(tmp_path / "VideoRefer-Bench-D.json", rows)
    for film in "01":
        small.picture(tmp_path / film / "00012.jpg")
    fake: Any = small.FakePredictor()
    chosen = benchmark("videorefer-d")
    assert run(chosen, *load(chosen, tmp_path), fake, tmp_path / "out.jsonl") == {"the picture is missing": 1}
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")[1:]] == ["at (0, 0, 9, 9)", "at (1, 0, 9, 9)"]
    judge = Fixed(json.dumps(dict.fromkeys(ASPECTS, 4)))
    found = scored(chosen, tmp_path / "out.jsonl", judge=judge)
    assert found["scores"]["average"]["value"] == 4 and found["scores"]["average"]["n"] == 2


def test_a_region_without_a_mask_in_the_frame_gives_its_name_to_no_other(tmp_path: Path):
    seen, gone = {"5": {"segmentation": small.rle(0, 0, 9, 9)}}, {"4": {"segmentation": small.rle(0, 0, 9, 9)}}
    empty = {"5": {"segmentation": None}}
    asked = "Is <object0><region> beside <object1><region>?"
    rows = [
        {
            "id": k, "video": "film", "Question": asked if k else "Is <region> a cup?", "Answer": "(B) No",
            "options": ["(A) Yes", "(B) No"], "type": "Basic", "frame_idx": 5, "annotation": some,
        }
        for k, some in enumerate([[seen, gone], [seen, seen], [gone, seen], [seen, empty], [seen]])
    ]  # fmt: skip
    small.write(tmp_path / "VideoRefer-Bench-Q.json", rows)
    small.picture(tmp_path / "film/00005.jpg")
    chosen = benchmark("videorefer-q")
    items, folder = load(chosen, tmp_path)
    fake: Any = small.FakePredictor()
    reason = "a region that is asked about has no mask in the frame"
    assert run(chosen, items, folder, fake, tmp_path / "out.jsonl") == {reason: 3}
    assert [row["id"] for row in lines(tmp_path / "out.jsonl")[1:]] == ["0", "1"]
    assert [len(regions) for regions in fake.opened] == [1, 2]
    made = small.write(tmp_path / "p.jsonl", [{"id": k, "pred": "B"} for k in range(5)])
    assert scored(chosen, made)["scores"]["accuracy"]["n"] == 5  # whoever saw the film can answer


def test_two_frames_of_a_film_are_two_pictures(vqa: Task, tmp_path: Path):
    film = replace(vqa[1][0], picture="film")
    two = [replace(film, id=str(k), image=vqa[1][k].image, frame=str(k)) for k in (0, 1)]
    fake: Any = small.FakePredictor()
    run(vqa[0], two, vqa[2], fake, tmp_path / "out.jsonl")
    assert len(fake.opened) == 2


@pytest.mark.parametrize("which", ["vqa", "dlc"])
def test_a_run_that_dies_at_any_moment_ends_as_one_that_did_not(which: str, tmp_path: Path, request):
    whole, torn = tmp_path / "whole.jsonl", tmp_path / "torn.jsonl"
    chosen, items, folder = request.getfixturevalue(which)
    never: Any = small.FakePredictor(prompts=16)
    run(chosen, items, folder, never, whole, batch_size=1)
    for attempt in range(20):
        dying: Any = small.FakePredictor(prompts=16, stop_after=attempt % 2)
        try:
            run(chosen, items, folder, dying, torn, batch_size=1)
        except KeyboardInterrupt:
            with torn.open("a") as file:  # as if it had been killed while it wrote
                file.write('{"id": "9", "ans'[: attempt * 3])
    assert torn.read_bytes() == whole.read_bytes()


class Mortal(small.FakePredictor):
    """Gives so many answers, says that it gives its last one, and then keeps everyone waiting."""

    def __init__(self, answers: float, last: Any = None):
        super().__init__(prompts=16)
        self.answers, self.last = answers, last

    def _count(self) -> None:
        self.answers -= 1
        if self.answers <= 0:
            self.last.set()
        if self.answers < 0:
            time.sleep(600)


def run_many(folder: Path, out: Path, answers: float, last: Any = None) -> None:
    """What is killed: 12 descriptions and 12 open questions in batches of three, and 48 with choices one by one."""
    described = [Item(f"d{k}", f"images/vqa_{k % 6}.png", (small.rle(k, 2, k + 9, 20),)) for k in range(12)]
    choices = ("A. red", "B. green", "C. blue")
    asked = [
        Item(f"q{k}", f"images/vqa_{k % 6}.png", (small.rle(k % 7, 2, 20, 20),), f"Is <Prompt0> {k}?", choices)
        for k in range(48)
    ]
    opened = [replace(item, id=f"o{k}", choices=()) for k, item in enumerate(asked[:12])]
    mortal: Any = Mortal(answers, last)
    run(benchmark("vqa"), [*described, *opened, *asked], folder, mortal, out, batch_size=3)


@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(times: int, processes: Any, tmp_path: Path):
    rng = random.Random(0)
    small.gar_vqa(tmp_path)
    run_many(tmp_path, tmp_path / "whole.jsonl", math.inf)
    out, sizes = tmp_path / "out.jsonl", set()
    for _ in range(times):
        # Each life gives 0 to 2 answers; death comes at any moment around the line of the last one.
        last = processes.Event()
        process = processes.Process(target=run_many, args=(tmp_path, out, rng.randint(0, 2), last))
        process.start()
        assert last.wait(120)
        time.sleep(rng.choice([0, 0.0001, 0.001, 0.01]) * rng.random())
        assert process.is_alive()
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        sizes.add(out.stat().st_size)
    assert len(sizes) > 1
    run_many(tmp_path, out, math.inf)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_file_of_another_run_is_not_gone_on_with(vqa: Task, tmp_path: Path):
    fake: Any = small.FakePredictor()
    run(*vqa, fake, tmp_path / "out.jsonl")
    with pytest.raises(ValueError, match="holds something else"):
        run(*vqa, fake, tmp_path / "out.jsonl", view="gray")
    other = [replace(item, question=f"{item.question}?") for item in vqa[1]]
    with pytest.raises(ValueError, match="holds something else"):
        run(vqa[0], other, vqa[2], fake, tmp_path / "out.jsonl")
    (tmp_path / "torn.jsonl").write_text('{"run": {"benchma')
    run(*vqa, fake, tmp_path / "torn.jsonl")
    assert (tmp_path / "torn.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


@pytest.mark.parametrize("content", ['{"benchmark": "gar-bench-vqa", "scores": {}}', "notes\nof mine\n", "\xff"])
def test_a_file_of_something_else_is_never_written_to(vqa: Task, tmp_path: Path, content: str):
    out = tmp_path / "scored.json"
    out.write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match="scored.json: holds something else"):
        run(*vqa, cast(Any, small.FakePredictor()), out)
    assert out.read_text(encoding="latin-1") == content


def test_items_with_too_many_regions_are_left_out_and_counted_or_marked_in_part(vqa: Task, tmp_path: Path):
    fake: Any = small.FakePredictor(prompts=5)
    reason = "more than the 5 regions that the model can mark"
    assert run(*vqa, fake, tmp_path / "out.jsonl") == {reason: 1}
    assert run(*vqa, fake, tmp_path / "out.jsonl") == {reason: 1}
    assert scored(vqa[0], tmp_path / "out.jsonl")["unscored"] == {"no answer": 1}
    fake = small.FakePredictor(prompts=5)
    assert run(*vqa, fake, tmp_path / "published.jsonl", many_regions="as-published") == {}
    assert len(fake.opened[-1]) == 5 and fake.asked[-1][0] == "Is <Prompt0> on Prompt6?"
    assert unmarked("<Prompt4> <Prompt5> <Prompt12>", 5) == "<Prompt4> Prompt5 Prompt12"


def test_a_picture_that_is_refused_is_left_out_with_its_reason_and_the_run_goes_on(
    vqa: Task, dlc: Task, tmp_path: Path
):
    (tmp_path / "images/vqa_1.png").write_text("no picture")
    (tmp_path / "images/0.jpg").write_text("no picture")
    for task, kept in ((vqa, 5), (dlc, 1)):
        for number, asked in enumerate((small.FakePredictor(prompts=16), Rival(Fixed("B")))):
            out, model = tmp_path / f"{task[0].name}-{number}.jsonl", cast(Any, asked)
            left_out = {"picture, regions or question are refused": len(task[1]) - kept}
            assert run(*task, model, out) == run(*task, model, out) == left_out
            said = [row["skipped"] for row in lines(out)[1:] if "skipped" in row]
            assert len(lines(out)) == 1 + len(task[1]) and all("not a picture" in text for text in said)


def test_regions_of_which_a_view_can_make_nothing_are_left_out_with_the_reason(vqa: Task, tmp_path: Path, monkeypatch):
    def refuse(picture: Image.Image, regions: Any) -> Shown:
        if len(regions) == 7:
            raise ValueError("grabcut finds no object at Region.box(1, 2, 3, 4)")
        return picture, list(regions)

    monkeypatch.setitem(VIEWS, "segmented", refuse)
    fake: Any = small.FakePredictor(prompts=16)
    out = tmp_path / "out.jsonl"
    assert run(*vqa, fake, out, view="segmented") == {"picture, regions or question are refused": 1}
    assert "finds no object" in lines(out)[-1]["skipped"]


def test_missing_pictures_are_counted_and_without_any_there_is_nothing_to_run(vqa: Task, tmp_path: Path):
    fake: Any = small.FakePredictor(prompts=16)
    for name in range(5):
        (tmp_path / f"images/vqa_{name}.png").unlink()
    assert run(*vqa, fake, tmp_path / "out.jsonl") == {"the picture is missing": 5}
    (tmp_path / "images/vqa_5.png").unlink()
    with pytest.raises(ValueError, match="can be asked: the picture is missing"):
        run(*vqa, fake, tmp_path / "other.jsonl")


def test_items_of_which_nothing_can_be_asked_are_told(vqa: Task, tmp_path: Path):
    fake: Any = small.FakePredictor(prompts=16)
    nowhere = replace(vqa[1][0], id="nowhere", masks=(), question=None, choices=())
    open_one = replace(vqa[1][0], id="open", masks=(), choices=())
    for view in ("as-is", "gray", "distractors", "2-regions"):
        out = tmp_path / f"{view}.jsonl"
        assert run(vqa[0], [nowhere, open_one], vqa[2], fake, out, view=view) == {"there is no region to describe": 1}
        assert [row["id"] for row in lines(out)[1:]] == ["open"]
    for items, reason in (([], "there is none"), ([nowhere], "there is no region to describe")):
        with pytest.raises(ValueError, match=reason):
            run(vqa[0], items, vqa[2], fake, tmp_path / "none.jsonl")


def test_a_file_is_written_by_one_run_at_a_time(vqa: Task, tmp_path: Path):
    fcntl = pytest.importorskip("fcntl", reason="there are no such locks")
    run(*vqa, cast(Any, small.FakePredictor()), tmp_path / "out.jsonl")
    before = (tmp_path / "out.jsonl").read_bytes()
    with (tmp_path / "out.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another run is writing it"):
            run(*vqa, cast(Any, small.FakePredictor()), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_in_circles_each_question_is_asked_in_every_order_on_one_encoding(vqa: Task, tmp_path: Path):
    fake: Any = small.FakePredictor(prompts=16)
    run(*vqa, fake, tmp_path / "out.jsonl", order="circular")
    assert len(fake.opened) == 5 and len(fake.asked) == 5 * 4 + 2
    found = scored(vqa[0], tmp_path / "out.jsonl")
    # The fake says one letter whatever the order: right in one order of each item, so never in all.
    assert found["scores"]["accuracy"]["value"] == 0 and found["n"] == 6
    assert found["scores"]["mean over orders"]["value"] == pytest.approx((5 / 4 + 1 / 2) / 6, abs=1e-6)
    # So it means each choice once, of which the item's own order has another letter.
    rows = {row["id"]: row for row in found["items"]}
    assert sorted(rows["0"]["answer"].split(", ")) == [*"ABCD"] and rows["0"]["truth"] == "A"
    assert {row["explanation"] for row in rows.values()} == {"right in 1 of 4 orders", "right in 1 of 2 orders"}


@pytest.mark.parametrize(
    "marks, pictures, told",
    [("drawn", [1] * 6, "number 0"), ("text", [1] * 6, "0, 2, 6, 20"), ("crops", [3, 3, 3, 5, 5, 15], "mask")],
)
def test_a_model_behind_an_endpoint_is_told_of_regions_and_read_strictly(
    vqa: Task, tmp_path: Path, marks: str, pictures: list[int], told: str
):
    judge = Fixed("B.")
    assert run(*vqa, Rival(judge, marks), tmp_path / "out.jsonl") == {}
    assert sorted(len(asked.pictures) for asked in judge.asked) == pictures  # several threads ask, in any order
    assert all(told in asked.text for asked in judge.asked)
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")[1:]] == ["B"] * 6
    assert run(*vqa, Rival(Fixed("It is B"), marks), tmp_path / "unclear.jsonl") == {}
    assert lines(tmp_path / "unclear.jsonl")[1]["answer"] == "It is B"


class Moody:
    """A judge that says B until its plan, by number of question, has something else to say or to raise."""

    name = "moody"

    def __init__(self, plan: dict[int, Reply | Exception]):
        self.asked, self.plan, self.lock = 0, plan, threading.Lock()

    def ask(self, question: str, pictures: Any = (), repeat: int = 0) -> Reply:
        with self.lock:
            self.asked += 1
            said = self.plan.get(self.asked, Reply("B"))
        if isinstance(said, Exception):
            raise said
        return said


BUSY = Reply(None, "no reply in 8 tries", passing=True)


def test_an_endpoint_that_answers_nothing_more_ends_the_run_and_leaves_no_line(vqa: Task, dlc: Task, tmp_path: Path):
    for task, asked in ((vqa, 6), (dlc, 3)):
        out = tmp_path / f"{task[0].name}.jsonl"
        with pytest.raises(Stopped, match="wrong key"):
            run(*task, Rival(Moody({2: Stopped("wrong key")})), out)
        kept = len(lines(out)) - 1
        assert kept < asked
        again = Moody({})
        assert run(*task, Rival(again), out) == {} and again.asked == asked - kept
        assert len(lines(out)) == 1 + asked and all("answer" in row for row in lines(out)[1:])


def test_an_item_without_a_reply_is_counted_and_asked_again(vqa: Task, dlc: Task, tmp_path: Path):
    for task in (vqa, dlc):
        out, items = tmp_path / f"{task[0].name}.jsonl", len(task[1])
        assert run(*task, Rival(Moody({1: BUSY, 3: BUSY})), out) == {"no reply for now: run again to ask": 2}
        assert len(lines(out)) == 1 + items - 2
        again = Moody({})
        assert run(*task, Rival(again), out) == {} and again.asked == 2
        assert {row["id"] for row in lines(out)[1:]} == {item.id for item in task[1]}


def test_an_endpoint_that_replies_to_nothing_is_not_asked_about_everything(vqa: Task, tmp_path: Path):
    many = [replace(vqa[1][0], id=str(k)) for k in range(400)]
    silent = Moody(dict.fromkeys(range(1, 999), BUSY))
    with pytest.raises(Stopped, match="no answer to 8 items, the last: no reply in 8 tries"):
        run(vqa[0], many, vqa[2], Rival(silent), tmp_path / "out.jsonl")
    assert silent.asked < 200  # more than eight are under way when the eighth is read
    late = Moody(dict.fromkeys(range(2, 999), BUSY))  # one that has answered may be slow for a while
    assert run(vqa[0], many[:40], vqa[2], Rival(late), tmp_path / "late.jsonl").total() == 39


def test_an_endpoint_that_refuses_everything_spoils_no_file_and_one_that_refuses_some_goes_on(
    vqa: Task, tmp_path: Path
):
    out, refused = tmp_path / "out.json", Reply(None, "max_tokens is not supported")
    with pytest.raises(Stopped, match="no answer to 6 items, the last: .*max_tokens is not supported; run again"):
        run(*vqa, Rival(Moody(dict.fromkeys(range(1, 99), refused))), out)
    assert len(lines(out)) == 1
    reason = "picture, regions or question are refused"
    assert run(*vqa, Rival(Moody({1: refused, 2: refused})), out) == {reason: 2}
    assert sum("skipped" in row for row in lines(out)[1:]) == 2 and len(lines(out)) == 7
    many = [replace(vqa[1][0], id=str(k)) for k in range(400)]
    never = Moody(dict.fromkeys(range(1, 999), refused))
    with pytest.raises(Stopped, match="no answer to 8 items"):
        run(vqa[0], many, vqa[2], Rival(never), tmp_path / "many.jsonl")
    assert never.asked < 200  # more than eight are under way when the eighth is read


def test_items_without_a_reply_are_counted_whatever_the_file_is_called(vqa: Task, tmp_path: Path):
    busy = Moody(dict.fromkeys(range(1, 99), BUSY))
    out = tmp_path / "a.json"
    assert run(*vqa, Rival(busy), out) == {"no reply for now: run again to ask": 6} and len(lines(out)) == 1


def test_answers_are_scored_on_the_items_that_were_asked_and_no_others(vqa: Task, tmp_path: Path, capsys):
    fake: Any = small.FakePredictor(prompts=16)
    out = tmp_path / "out.jsonl"
    run(*vqa, fake, out)
    assert scored(vqa[0], out)["n"] == 6
    annotations = tmp_path / vqa[0].annotations
    rows = json.loads(annotations.read_text())
    own = tmp_path / "predictions.json"
    own.write_text(json.dumps([row | {"model_output": "A"} for row in rows]))
    assert scored(vqa[0], own)["n"] == 6
    rows[0]["question"] = "Is it another one?"
    annotations.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="answers about other items than these: give the folder"):
        scored(vqa[0], out)
    with pytest.raises(ValueError, match="item 0 is another question there"):
        scored(vqa[0], own)


def test_choices_and_answers_that_are_none_are_told_with_their_item(vqa: Task, tmp_path: Path):
    rows = json.loads((tmp_path / vqa[0].annotations).read_text())
    for change, said in (
        ({"answer": None}, "item 1: the answer is None, expected the letter of a choice"),
        ({"answer": ""}, "item 1: the answer is ''"),
        ({"answer": "Z"}, "item 1: the answer is 'Z'"),
        ({"choices": ["A) red", "B) blue"]}, "item 1: the choices begin with"),
    ):
        own = tmp_path / "own.json"
        own.write_text(json.dumps([rows[0], rows[1] | change, *rows[2:]]))
        with pytest.raises(ValueError, match=said):
            load(vqa[0], own)


def test_items_left_out_are_counted_once_in_every_order_of_their_choices(vqa: Task, tmp_path: Path):
    fake: Any = small.FakePredictor(prompts=5)
    out = tmp_path / "out.jsonl"
    assert run(*vqa, fake, out, order="circular") == {"more than the 5 regions that the model can mark": 1}
    found = scored(vqa[0], out)
    assert found["guess"] == found["as_published"] == {}  # a guesser says one letter, which is right in one order
    cut = tmp_path / "cut.jsonl"
    assert run(*vqa, fake, cut, order="circular", many_regions="as-published", view="gray") == {}
    assert {row["cut"] for row in lines(cut)[1:] if "cut" in row} == {2}
    assert "1 items have more regions than the model could mark" in " ".join(scored(vqa[0], cut)["notes"])


def test_an_endpoint_is_asked_several_at_once_and_the_file_is_that_of_one_by_one(vqa: Task, tmp_path: Path):
    together = threading.Barrier(6, timeout=30)

    class Slow(Moody):
        def ask(self, question: str, pictures: Any = (), repeat: int = 0) -> Reply:
            together.wait()  # passes only when all six are asked at once
            time.sleep(0.05 * random.random())
            return super().ask(question)

    slow = Slow({})
    assert run(*vqa, Rival(slow), tmp_path / "out.jsonl") == {} and slow.asked == 6
    run(*vqa, Rival(Moody({})), tmp_path / "plain.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()


def test_a_model_behind_an_endpoint_describes_each_region_by_itself(dlc: Task, tmp_path: Path):
    judge = Fixed("A cup.")
    run(*dlc, Rival(judge), tmp_path / "out.jsonl")
    assert [row["answer"] for row in lines(tmp_path / "out.jsonl")[1:]] == ["A cup."] * 3
    assert len(judge.asked) == 3 and judge.asked[0].text.endswith("Describe <Prompt0> in detail, and nothing else.")
    with pytest.raises(ValueError, match="expected one of drawn"):
        Rival(judge, "smell")


def test_balanced_choices_are_asked_once_and_scored_as_they_were_asked(vqa: Task, tmp_path: Path):
    judge = Fixed("A")
    run(*vqa, Rival(judge), tmp_path / "out.jsonl", order="balanced")
    assert len(judge.asked) == 6
    found = scored(vqa[0], tmp_path / "out.jsonl")
    # Two types; among the second's, one has two choices: so A is right in three of them.
    assert [row["truth"] for row in found["items"]] == ["A", "B", "C", "A", "A", "B"]
    assert found["scores"]["accuracy"]["value"] == 0.5
    with pytest.raises(ValueError, match="expected one of as-is"):
        run(*vqa, Rival(judge), tmp_path / "other.jsonl", order="upside-down")


def test_runs_in_several_orders_of_choices_are_neither_compared_nor_shown_together(vqa: Task, tmp_path: Path):
    runs = {}
    for order in ("as-is", "balanced", "circular"):
        run(*vqa, Rival(Fixed("A")), tmp_path / f"{order}.jsonl", order=order)
        runs[order] = scored(vqa[0], tmp_path / f"{order}.jsonl")
    compare(runs["balanced"], runs["balanced"])
    for other in ("as-is", "circular"):
        with pytest.raises(ValueError, match=f"with choices {other} and balanced: put together those of one --order"):
            compare(runs[other], runs["balanced"])
        with pytest.raises(ValueError, match="put together those of one --order"):
            write_page([runs[other], runs["balanced"]], tmp_path / "page.html")


# --- views ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shown() -> Shown:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3)).astype(np.uint8)
    return load_image(noise), [Region.box(10, 10, 30, 30), Region.polygon([(40, 5), (60, 5), (50, 40)])]


def masks(picture: Image.Image, regions: list[Region]) -> list[np.ndarray]:
    return [region.locate(*picture.size).mask for region in regions]


@pytest.mark.parametrize("name", ["gray", "blur", "flipped"])
def test_hiding_the_world_leaves_the_regions_alone(name: str, shown: Shown):
    picture, regions = VIEWS[name](*shown)
    inside = np.logical_or.reduce(masks(*shown))
    before, after = np.asarray(shown[0]), np.asarray(picture)
    assert (before[inside] == after[inside]).all() and (before[~inside] != after[~inside]).any(1).mean() > 0.9
    assert regions == shown[1]


def test_outside_of_the_regions_features_are_replaced_by_the_mean_of_their_tile():
    features = torch.randn(2, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    marks = torch.zeros(2, 8, 8)
    marks[0, 1, 1] = marks[0, 7, 4:7] = 1
    changed = mean_outside(features, marks)
    reached = torch.zeros(2, 4, 4, dtype=torch.bool)
    reached[0, 0, 0] = reached[0, 3, 2:] = True
    assert torch.equal(changed[reached], features[reached])
    for tile in range(2):
        mean = features[tile].mean((0, 1))
        assert torch.allclose(changed[tile][~reached[tile]], mean.expand(int((~reached[tile]).sum()), 3))


def test_a_view_of_features_changes_them_for_its_run_only_and_needs_a_model(vqa: Task, tmp_path: Path):
    fake: Any = small.FakePredictor(prompts=16)
    run(*vqa, fake, tmp_path / "mean.jsonl", view="mean-feature")
    run(*vqa, fake, tmp_path / "plain.jsonl")
    assert fake.changes == [mean_outside] * 5 + [None] * 5
    with pytest.raises(ValueError, match="which no endpoint gives: take gray or blur"):
        run(*vqa, Rival(Fixed("B")), tmp_path / "rival.jsonl", view="mean-feature")


def test_blind_shows_neither_picture_nor_region_and_unmarked_no_region(shown: Shown):
    picture, regions = VIEWS["blind"](*shown)
    assert np.unique(np.asarray(picture)).tolist() == [128] and all(mask.all() for mask in masks(picture, regions))
    picture, regions = VIEWS["unmarked"](*shown)
    assert picture is shown[0] and all(mask.all() for mask in masks(picture, regions))


def test_masks_shrink_grow_move_and_become_boxes_or_points(shown: Shown):
    found = {name: masks(*VIEWS[name](*shown)) for name in ("eroded", "dilated", "shifted", "box")}
    for k, mask in enumerate(masks(*shown)):
        assert not (found["eroded"][k] & ~mask).any() and found["eroded"][k].sum() < mask.sum()
        assert not (mask & ~found["dilated"][k]).any() and found["dilated"][k].sum() > mask.sum()
        assert found["box"][k].sum() == np.prod(_sides(mask))
        down, right = (round(0.1 * side) for side in _sides(mask))
        assert (found["shifted"][k][down:, right:] == mask[:-down, :-right]).all()
        x, y = VIEWS["point"](*shown)[1][k].coordinates[0]
        assert mask[int(y), int(x)]
    assert all(mask.any() for mask in masks(*VIEWS["segmented"](*shown)))
    drawn, regions = VIEWS["drawn"](*shown)
    assert (np.asarray(drawn) == (0, 255, 0)).all(2).any() and (np.asarray(shown[0]) != np.asarray(drawn)).any()
    assert all(mask.all() for mask in masks(drawn, regions))


def _sides(mask: np.ndarray) -> tuple[int, int]:
    return int(mask.any(1).sum()), int(mask.any(0).sum())


def test_further_regions_stand_behind_those_that_are_asked_about(shown: Shown):
    picture, regions = VIEWS["10-regions"](*shown)
    assert picture is shown[0] and regions[:2] == shown[1] and len(regions) == 10
    asked = np.logical_or.reduce(masks(*shown))
    assert all((mask & ~asked).any() and mask.sum() < 0.05 * mask.size for mask in masks(picture, regions)[2:])
    fewer = VIEWS["5-regions"](*shown)[1]
    assert [one.coordinates for one in fewer[2:]] == [one.coordinates for one in regions[2:5]]
    assert VIEWS["2-regions"](*shown)[1] == shown[1]
    assert len(VIEWS["100-regions"](shown[0], [Region.box(0, 0, 64, 48)])[1]) == 100


def test_distractors_are_objects_outside_of_the_regions():
    pixels, rng = np.full((240, 320, 3), 128, np.uint8), np.random.default_rng(0)
    places = (20, 20), (250, 30), (30, 180), (200, 160)
    things = np.zeros((240, 320), bool)
    for x, y in places:
        things[y : y + 40, x : x + 50] = True
    pixels[things] = np.array([200, 40, 0]) - rng.integers(0, 40, (things.sum(), 1))
    asked = [Region.box(120, 80, 180, 140)]
    picture, regions = VIEWS["distractors"](Image.fromarray(pixels), asked)
    assert regions[:1] == asked and len(regions) == 5
    first, *found = masks(picture, regions)
    for mask in found:
        assert mask.sum() > 100 and not (first & mask).any() and (mask & things).sum() > 0.8 * mask.sum()
    two = [*asked, Region.box(0, 0, 10, 10)]
    assert len(VIEWS["distractors"](picture, two)[1]) == 6
    on_all = [Region.box(0, 0, 320, 240)]
    assert VIEWS["distractors"](picture, on_all)[1] == on_all


def test_a_view_that_changes_nothing_says_so_and_is_counted(vqa: Task, dlc: Task, tmp_path: Path, capsys, monkeypatch):
    picture, all_of_it, corner = Image.new("RGB", (64, 48)), Region.box(0, 0, 64, 48), Region.box(63, 47, 64, 48)
    nothing = {view: [all_of_it] for view in ("gray", "blur", "flipped", "box", "distractors", "dilated")}
    nothing |= {"eroded": [corner], "shifted": [corner], "2-regions": [all_of_it, corner], "mean-feature": [all_of_it]}
    for view, regions in nothing.items():
        assert unchanged(view, (picture, regions), VIEWS[view](picture, regions)), view
    for view in VIEWS:
        changed = unchanged(view, (picture, [corner]), VIEWS[view](picture, [corner])) is False
        assert changed or view in ("eroded", "shifted", "box", "segmented", "distractors"), view
    fake: Any = small.FakePredictor(prompts=16)
    run(*vqa, fake, tmp_path / "out.jsonl", view="2-regions")
    assert [row["id"] for row in lines(tmp_path / "out.jsonl") if "unchanged" in row] == ["1", "3", "5"]
    found = scored(vqa[0], tmp_path / "out.jsonl")
    assert found["unchanged"] == 3 and "the view changed nothing on 3 items" in found["notes"]
    run(*dlc, fake, tmp_path / "dlc.jsonl", view="box")  # its masks are boxes
    assert [row.get("unchanged") for row in lines(tmp_path / "dlc.jsonl")] == [None, True, True, True]
    monkeypatch.setattr(gar.cli, "_load", lambda *how: small.FakePredictor(prompts=16))
    monkeypatch.setattr(statistics, "RESAMPLES", 99)
    assert main(["bench", "robustness", "vqa", "--data", str(tmp_path), "--out", str(tmp_path / "views")]) == 0
    assert "changes nothing on 3 items: 2-regions" in capsys.readouterr().out


def test_regions_beyond_the_model_s_prompts_share_its_last_one(vqa: Task, tmp_path: Path):
    fake: Any = small.FakePredictor(prompts=5)
    reason = "more than the 5 regions that the model can mark"
    assert run(*vqa, fake, tmp_path / "20.jsonl", view="20-regions") == {reason: 1}  # it asks about seven
    assert {len(regions) for regions in fake.opened} == {5}
    picture = load_image(vqa[2] / vqa[1][0].image)
    alone = masks(*VIEWS["20-regions"](picture, vqa[1][0].regions()))
    marked = masks(picture, fake.opened[0])
    assert all((mask == one).all() for mask, one in zip(marked[:4], alone, strict=False))
    assert (marked[4] == np.logical_or.reduce(alone[4:])).all()
    assert run(*vqa, Rival(Fixed("B")), tmp_path / "100.jsonl", view="100-regions") == {}


def test_among_others_a_region_is_described_by_its_name(dlc: Task, tmp_path: Path):
    fake: Any = small.FakePredictor(prompts=5)
    assert run(*dlc, fake, tmp_path / "dlc.jsonl", view="10-regions") == {}
    assert fake.asked == [("Describe <Prompt0> in detail.", None)] * 3
    assert all(len(regions) == 5 for regions in fake.opened)


def test_marks_that_are_drawn_or_written_are_told_of_and_nothing_else_is_marked(vqa: Task, dlc: Task, tmp_path: Path):
    for view, told in (("drawn", "<Prompt0> in the box with number 0"), ("text", "<Prompt0>: 0, 2, 6, 20")):
        fake: Any = small.FakePredictor(prompts=16)
        run(*vqa, fake, tmp_path / f"{view}.jsonl", view=view)
        question, _ = fake.asked[0]
        assert told in question and question.endswith("What is the color of <Prompt0>?")
        assert all(region.normalized for regions in fake.opened for region in regions)
        run(*dlc, fake, tmp_path / f"{view}-dlc.jsonl", view=view)
        assert fake.asked[-1][0].endswith("Describe <Prompt0> in detail.")
        judge = Fixed("B")
        run(*vqa, Rival(judge, "crops"), tmp_path / f"{view}-rival.jsonl", view=view)
        assert told in judge.asked[0].text and len(judge.asked[0].pictures) == 1
    run(*vqa, Rival(judge, "crops"), tmp_path / "click.jsonl", view="point")
    assert len(judge.asked[-1].pictures) == 15  # of seven regions, each found by GrabCut from a click


def test_a_mask_of_which_nothing_would_be_left_stays(shown: Shown):
    tiny = [Region.box(0, 0, 1, 1), Region.box(63, 47, 64, 48)]
    for name in ("eroded", "shifted"):
        assert [mask.sum() for mask in masks(*VIEWS[name](shown[0], tiny))] == [1, 1]


def test_a_focal_crop_is_three_times_the_box_and_ends_with_the_picture():
    picture = Image.new("RGB", (400, 300))
    crop, mask = focal_crop(picture, Region.box(150, 100, 250, 180).locate(400, 300))
    assert crop.size == mask.size == (300, 240) and mask.getbbox() == (100, 80, 200, 160)
    crop, mask = focal_crop(picture, Region.box(0, 0, 10, 10).locate(400, 300))
    # 56 pixels at least: from 5 - 28 = -23, twice 56 to the right.
    assert crop.size == (89, 89) and mask.getbbox() == (0, 0, 10, 10)


def test_context_and_robustness_compare_every_view_with_the_plain_one(tmp_path: Path, monkeypatch, capsys):
    small.gar_vqa(tmp_path / "gar")
    monkeypatch.setattr(gar.cli, "_load", lambda *how: small.FakePredictor(prompts=16))
    monkeypatch.setattr(statistics, "RESAMPLES", 99)
    for command, views in (("context", CONTEXT), ("robustness", ROBUSTNESS)):
        arguments = ["bench", command, "vqa", "--data", str(tmp_path / "gar"), "--out", str(tmp_path / command)]
        assert main([*arguments, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert tuple(found["views"]) == views
        plain = found["views"]["as-is"]["runs"]["all"]
        assert plain["difference"]["value"] == 0 and plain["same_answer"] == plain["difference"]["n"] == 6
        for view, row in found["views"].items():
            assert row["left_out"] == {} and row["runs"]["all"]["difference"]["n"] == 6, view
        assert sorted(path.stem for path in (tmp_path / command).glob("*.json")) == sorted([*views, "items"])
        by_item = json.loads((tmp_path / command / "items.json").read_text())
        assert list(by_item) == list("012345") and by_item["3"]["type"] == "relation"
        assert all(tuple(row["values"]) == views for row in by_item.values())
        assert all(("needs_context" in row) == (command == "context") for row in by_item.values())
        assert main(arguments) == 0 and "left out" not in capsys.readouterr().out


def test_items_that_are_right_only_with_the_world_around_are_marked_and_counted(tmp_path: Path, monkeypatch, capsys):
    small.gar_vqa(tmp_path / "gar")  # right: A, B, C, D, B, A
    answers = {
        "as-is": "ABXDBX", "gray": "XXXXBX", "blur": "XXXDXX", "mean-feature": "XXXXXX", "flipped": "ABCDBA",
    }  # fmt: skip

    def answer(
        benchmark: Any, items: list[Item], folder: Path, predictor: Any, out: Path, *, view: str, **_: Any
    ) -> Any:
        said = [{"id": str(k), "answer": letter} for k, letter in enumerate(answers[view])]
        small.write(out, [{"run": {"benchmark": "gar-bench-vqa"}}, *said])
        return Counter()

    monkeypatch.setattr("gar.bench.report.run", answer)
    monkeypatch.setattr(statistics, "RESAMPLES", 99)
    monkeypatch.setattr("gar.bench.views.CONTEXT", tuple(answers))
    monkeypatch.setattr(gar.cli, "_load", lambda *how: small.FakePredictor())
    out = tmp_path / "out"
    command = ["bench", "context", "vqa", "--data", str(tmp_path / "gar"), "--out", str(out)]
    assert main([*command, "--json"]) == 0
    needed = json.loads(capsys.readouterr().out)["needs_context"]
    # 0 and 1 are right as they are alone; 3 is right when blurred, 4 when gray.
    assert {kind: (row["value"], row["n"]) for kind, row in needed.items()} == {
        "all": (0.333333, 6), "color": (0.666667, 3), "relation": (0, 3),
    }  # fmt: skip
    by_item = json.loads((out / "items.json").read_text())
    assert [row["needs_context"] for row in by_item.values()] == [True, True, False, False, False, False]
    assert main(command) == 0 and "needs context" in capsys.readouterr().out
    assert main(["bench", "report", str(out / "as-is.json"), "--out", str(out / "page.html")]) == 0
    page = (out / "page.html").read_text()
    assert page.count("<small>needs context</small>") == 2 and "needs context: color" in page


def test_context_and_robustness_ask_as_they_are_told_to(tmp_path: Path, monkeypatch, capsys):
    small.gar_vqa(tmp_path / "gar")
    loaded: list[Any] = []
    monkeypatch.setattr(gar.cli, "_load", lambda *how: loaded.append(how) or small.FakePredictor(prompts=5))
    monkeypatch.setattr(statistics, "RESAMPLES", 99)
    for command in ("context", "robustness"):
        out = tmp_path / command
        how = ["--device", "cpu", "--dtype", "float32", "--batch-size", "3", "--max-new-tokens", "7"]
        how += ["--many-regions", "as-published", "--order", "circular", "--data", str(tmp_path / "gar")]
        assert main(["bench", command, "vqa", *how, "--out", str(out)]) == 0
        facts = lines(out / "as-is.jsonl")[0]["run"]
        assert (facts["batch_size"], facts["max_new_tokens"], facts["order"]) == (3, 7, "circular")
        assert facts["many_regions"] == "as-published"
    assert loaded == [("nano", "cpu", "float32", None)] * 2
    capsys.readouterr()
    assert "--marks: of no use without" in fails(
        capsys, "bench", "run", "vqa", "--data", tmp_path / "gar", "--out", tmp_path / "a", "--marks", "text"
    )
    refused = "--request-limit: of no use without --endpoint"
    assert refused in fails(capsys, "bench", "context", "vqa", "--out", tmp_path, "--request-limit", "3")
    assert refused in fails(capsys, "bench", "run", "vqa", "--out", tmp_path / "a", "--request-limit", "3")


def test_an_endpoint_is_asked_no_more_than_the_limit_says(tmp_path: Path, monkeypatch, capsys):
    pytest.importorskip("openai", reason="asking an endpoint needs the extra bench")
    small.gar_vqa(tmp_path / "gar")
    given: list[dict[str, Any]] = []

    class Limited(Moody):
        def __init__(self, url: str, model: str, *, cache: Path, **limits: Any):
            given.append(limits)
            super().__init__({k: Stopped("2 requests reach the limit of 2; run again") for k in range(3, 99)})

    monkeypatch.setattr("gar.bench.judges.Endpoint", Limited)
    out = tmp_path / "a.jsonl"
    command = (
        "bench",
        "run",
        "vqa",
        "--endpoint",
        "http://x",
        "--model",
        "m",
        "--data",
        tmp_path / "gar",
        "--out",
        out,
    )
    assert "reach the limit of 2" in fails(capsys, *command, "--request-limit", 2, "--rate-limit", 60)
    limits = {"rate_limit": 60.0, "request_limit": 2, "token_limit": None}
    assert given == [limits | {"sampling": {"temperature": 0, "max_tokens": 256}}] and len(lines(out)) <= 3


def test_what_is_left_out_is_told_once_for_all_views(tmp_path: Path, monkeypatch, capsys):
    small.gar_vqa(tmp_path / "gar")
    (tmp_path / "gar/images/vqa_3.png").unlink()
    monkeypatch.setattr(gar.cli, "_load", lambda *how: small.FakePredictor(prompts=5))
    monkeypatch.setattr(statistics, "RESAMPLES", 99)
    assert main(["bench", "context", "vqa", "--data", str(tmp_path / "gar"), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.count("left out: 1 items (the picture is missing) in every view") == 1


def test_context_of_a_benchmark_with_a_judge_needs_one_and_of_a_model_behind_an_endpoint_no_features(tmp_path: Path):
    small.dlc(tmp_path / "dlc")
    with pytest.raises(ValueError, match="give --judge URL"):
        by_view(benchmark("dlc"), CONTEXT, tmp_path, tmp_path / "dlc", small.FakePredictor)  # type: ignore
    with pytest.raises(ValueError, match="without a judge"):
        by_view(benchmark("vqa"), CONTEXT, tmp_path, None, small.FakePredictor, Fixed("A"))  # type: ignore
    for name in ("items.json", "as-is.json"):
        items = small.write(tmp_path / "own" / name, [])
        small.gar_vqa(tmp_path / "own")
        (tmp_path / "own/GAR-Bench-VQA.json").rename(items)
        with pytest.raises(ValueError, match=f"{name} is read here and would be lost"):
            by_view(benchmark("vqa"), CONTEXT, items.parent, items, small.FakePredictor)  # type: ignore
    judge, rival = Fixed("A"), Rival(Fixed("A cup."))
    found = by_view(benchmark("dlc"), CONTEXT, tmp_path, tmp_path / "dlc", lambda: rival, judge)
    assert found["views"].pop("mean-feature") == {"left_out": {"an endpoint gives no features to change": 3}}
    assert {*CONTEXT} - {*found["views"]} == {"mean-feature"}
    for row in found["views"].values():
        assert row["scores"]["recognised"]["value"] == 1 and row["runs"]["all"]["difference"]["value"] == 0
    asked, plain = len(judge.asked), CONTEXT[:1]
    by_view(benchmark("dlc"), plain, tmp_path, tmp_path / "dlc", lambda: rival, judge, {"text_only": True, "repeat": 1})
    assert all(question.repeat == 1 and not question.pictures for question in judge.asked[asked:])


# --- commands ---------------------------------------------------------------------------------------------------------


def test_run_then_score_then_report(tmp_path: Path, monkeypatch, capsys):
    small.gar_vqa(tmp_path / "gar")
    monkeypatch.setattr(gar.cli, "_load", lambda *how: small.FakePredictor())
    answers, out, page = (str(tmp_path / name) for name in ("a.jsonl", "scored.json", "page.html"))
    data = ["--data", str(tmp_path / "gar")]
    assert main(["bench", "run", "vqa", "--model", "fake", "--out", answers, *data]) == 0
    assert "1 of 6 items left out: more than the 5" in capsys.readouterr().err
    assert main(["bench", "score", "vqa", "--predictions", answers, "--out", out, "--splits", *data]) == 0
    assert "unscored: 1 (no answer)" in capsys.readouterr().out
    assert main(["bench", "report", out, "--out", page]) == 0
    assert "gar-bench-vqa" in Path(page).read_text()


def test_mistakes_of_a_run_are_one_line(tmp_path: Path, monkeypatch, capsys):
    small.gar_vqa(tmp_path)
    monkeypatch.setattr(gar.cli, "_load", lambda *how: small.FakePredictor())
    command = ("bench", "run", "vqa", "--out", tmp_path / "a.jsonl")
    assert "--data DIR" in fails(capsys, *command)
    assert "no such folder" in fails(capsys, *command, "--data", tmp_path / "nowhere")
    assert "expected one of as-is" in fails(capsys, *command, "--data", tmp_path, "--view", "upside-down")
    monkeypatch.setattr(gar.cli, "_load", lambda *how: pytest.fail("the mistake is told before a model is loaded"))
    nowhere = (*command[:-1], tmp_path / "nowhere/a.jsonl", "--data", tmp_path)
    assert "no such folder" in fails(capsys, *nowhere)
    assert "expected one of left-out" in fails(capsys, *command, "--data", tmp_path, "--many-regions", "all")


# --- fetch ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """Serves folders; gives their addresses."""
    servers = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()


class Served(Benchmark):
    name, annotations, judged = "served", "a.json", False
    files = {"a.json": hashlib.sha256(b"[1]").hexdigest(), "deep/b.json": hashlib.sha256(b"[2]").hexdigest()}


def test_files_are_downloaded_checked_and_kept(tmp_path: Path, serve: Callable[[Path], str]):
    there = tmp_path / "server"
    small.write(there / "a.json", [1])
    small.write(there / "deep/b.json", [2])
    to = tmp_path / "here"
    address = serve(there)
    assert fetch(Served(), to, address) == to
    assert (to / "a.json").read_text() == "[1]" and (to / "deep/b.json").read_text() == "[2]"
    (there / "a.json").unlink()
    (to / "deep/b.json").write_text("damaged")
    fetch(Served(), to, address)  # a.json is right already, and is not asked for
    assert (to / "deep/b.json").read_text() == "[2]"


def test_a_file_that_is_missing_or_another_is_refused_and_not_kept(tmp_path: Path, serve: Callable[[Path], str]):
    small.write(tmp_path / "server/a.json", [7])
    with pytest.raises(ValueError, match="a.json: SHA-256 is .* expected"):
        fetch(Served(), tmp_path / "here", serve(tmp_path / "server"))
    assert list(tmp_path.glob("here/**/*")) == []
    with pytest.raises(ValueError, match="a.json: .*not found"):
        fetch(Served(), tmp_path / "here", serve(tmp_path / "here"))
    with pytest.raises(ValueError, match="Connection refused"):
        fetch(Served(), tmp_path / "here", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="no address"):
        fetch(Served(), tmp_path / "here")


class OfDataset(Benchmark):
    name, annotations, judged, dataset = "hub", "a.json", False, "some/data-set"


@pytest.mark.parametrize("large", [True, False])
def test_a_file_of_a_data_set_is_checked_by_what_the_hub_lists(
    tmp_path: Path, serve: Callable[[Path], str], large: bool
):
    there, to = tmp_path / "server", tmp_path / "here"
    file = small.write(there / "datasets/some/data-set/resolve/main/deep/a.json", [1])
    oid = hashlib.sha1(b"blob 3\0[1]").hexdigest()
    row: dict[str, Any] = {"type": "file", "path": "deep/a.json", "oid": oid}
    if large:
        row |= {"oid": "of the pointer", "lfs": {"oid": hashlib.sha256(b"[1]").hexdigest(), "size": 3}}
    listing = there / "api/datasets/some/data-set/tree/main"
    small.write(listing, [{"type": "directory", "path": "a.json"}, row])
    address = serve(there)
    assert fetch(OfDataset(), to, address) == to and (to / "a.json").read_text() == "[1]"
    file.write_text("[2]")
    fetch(OfDataset(), to, address)  # what is here is right, so nothing is downloaded
    (to / "a.json").write_text("damaged")
    with pytest.raises(ValueError, match="is .*, expected .*: nothing of it was kept"):
        fetch(OfDataset(), to, address)
    assert (to / "a.json").read_text() == "damaged" and len(list(to.iterdir())) == 1
    for content, said in (
        ([row | {"path": "b.json"}], "there is no a.json in this data set"),
        ({}, "no list of files"),
    ):
        small.write(listing, content if content else {"error": "gated"})
        with pytest.raises(ValueError, match=said):
            fetch(OfDataset(), to, address)


def test_a_list_of_many_pages_is_read_to_its_end(tmp_path: Path):
    row = {"type": "file", "path": "deep/a.json", "oid": hashlib.sha1(b"blob 3\0[1]").hexdigest()}

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listing, last = "/tree/" in self.path, "cursor" in self.path
            self.send_response(200)
            if listing and not last:
                self.send_header("Link", f'<{self.path}&cursor=2>; rel="next"')
            self.end_headers()
            self.wfile.write(json.dumps([row] if last else [] if listing else [1]).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fetch(OfDataset(), tmp_path, f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    assert (tmp_path / "a.json").read_text() == "[1]"


def test_every_benchmark_has_an_address():
    assert all(one.dataset or (one.source and one.files) for one in BENCHMARKS)


def test_a_download_that_is_cut_off_is_one_clear_line_and_not_kept(tmp_path: Path):
    class Cut(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"[1")

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cut)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.raises(
        ValueError, match=r"a.json: IncompleteRead\(2 bytes read, 98 more expected\): try again, or another"
    ):
        fetch(Served(), tmp_path / "here", f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    assert list(tmp_path.glob("here/**/*")) == []


def test_the_published_checksums_are_those_of_the_files_here(shared: Path):
    for folder, name in (("gar-bench", "vqa"), ("gar-bench", "simple"), ("gar-bench", "detailed"), ("dlc-bench", "dlc"),
                         ("ferret-bench", "ferret"), ("mdvp-bench", "mdvp")):  # fmt: skip
        for file, digest in benchmark(name).files.items():
            assert hashlib.sha256((shared / "benchmarks" / folder / file).read_bytes()).hexdigest() == digest
