"""Building a benchmark: candidates that the scene graph bears out, the filter by models, the page, and its outcome."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_benchmarks import FakePredictor

from gar.bench.catalog import benchmark
from gar.bench.construct import _EXCLUDED, _false_clause, scene_graph
from gar.bench.task import load, read_answers, run
from gar.cli import main
from gar.data.folder import write_jsonl
from gar.data.formats import open_data
from gar.data.sample import Sample, Turn, Unusable
from gar.regions import Region

pytest.importorskip("scipy", reason="scores need the extra bench")

WIDTH, HEIGHT, SIDE = 120, 80, 18
TYPES = ["color", "material", "mirror", "ordering", "picture", "position", "relation", "shape", "texture/pattern"]


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3))
    Image.fromarray(noise.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def square(k: int, side: int = SIDE) -> tuple[dict[str, Any], list[int]]:
    """Thing k: four in the upper half of the picture, four in the lower."""
    x, y = 4 + 30 * (k % 4), 5 + 40 * (k // 4)
    return Region.box(x, y, x + side, y + side).locate(WIDTH, HEIGHT).rle(), [x, y, x + side, y + side]


def scene(seed: int) -> Sample:
    """A rendered scene's record, without the renderer: six objects, a reflection of the first, and a picture."""
    rng = Random(seed)
    things = []
    for k in range(8):
        things.append(
            {
                "category": rng.choice(("cube", "mug", "cone")),
                "shape": rng.choice(("cube", "cone", "sphere", None)),
                "color": rng.choice(("red", "blue", "green", "white")),
                "material": rng.choice(("metal", "glass", "plastic")),
                "pattern": rng.choice(("plain", "striped", "dotted")),
                "kind": {6: "reflection", 7: "picture"}.get(k, "object"),
                "of": 0 if k == 6 else None,
                "visible": 0.9,
                "clipped": False,
                "depth": 5.0 + k,
                "radius": 0.2,
            }
        )
    facts = {
        "size": [WIDTH, HEIGHT],
        "things": things,
        "relations": [[0, "on", 1], [2, "inside", 3], [4, "next to", 5], [1, "leaning on", 2]],
        "rows": [[0, 1, 2, 3]],
        "mirror": None,
    }
    masks = [square(k)[0] for k in range(8)]
    return Sample(encoded(seed), masks, [Turn("What is it?", "A test.", "x")], "scenes", "Apache-2.0", facts)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Candidates from forty scenes."""
    folder = tmp_path_factory.mktemp("built")
    write_jsonl(map(scene, range(40)), folder / "scenes" / "scenes.jsonl")
    assert main(["bench", "build", "candidates", str(folder / "scenes"), "--out", str(folder / "items.jsonl")]) == 0
    return folder / "items.jsonl"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(row: dict[str, Any]) -> tuple[str, list[str]]:
    """The right option of an item and its wrong ones, with the region numbers of the record."""
    ids = row["built"]["regions"]
    named = [re.sub(r"<Prompt(\d+)>", lambda m: f"<{ids[int(m[1])]}>", choice[3:]) for choice in row["choices"]]
    right = named.pop(ord(row["answer"]) - ord("A"))
    return right, named


def fails(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("gar: error: ")
    return err


def write_run(path: Path, rows: list[dict[str, Any]], answers: dict[str, str]) -> Path:
    facts = {"benchmark": "gar-bench-vqa", "model": path.stem, "order": "as-is"}
    lines = [{"run": facts}, *({"id": row["id"], "answer": answers[row["id"]]} for row in rows if row["id"] in answers)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# --- candidates -------------------------------------------------------------------------------------------------------


def test_candidates_are_items_that_run_and_score_read_at_once(built: Path, tmp_path: Path):
    items, folder = load(benchmark("vqa"), built)
    assert len(items) == 80 and {item.id for item in items} == {row["id"] for row in rows_of(built)}
    predictor: Any = FakePredictor()
    assert not run(benchmark("vqa"), items, folder, predictor, tmp_path / "run.jsonl")  # nothing left out
    command = ["bench", "score", "vqa", "--predictions", str(tmp_path / "run.jsonl"), "--data", str(built)]
    assert main([*command, "--out", str(tmp_path / "scored.json"), "--json"]) == 0
    assert json.loads((tmp_path / "scored.json").read_text())["unscored"] == {}


def test_predictions_in_the_published_form_are_told_apart_where_items_share_a_picture(built: Path, tmp_path: Path):
    rows = [row | {"model_output": row["answer"]} for row in rows_of(built)]
    assert len({row["image"] for row in rows}) < len(rows)
    (tmp_path / "predictions.json").write_text(json.dumps(rows))
    items, _ = load(benchmark("vqa"), built)
    answers = read_answers(benchmark("vqa"), tmp_path / "predictions.json", items)
    assert answers == {item.id: item.truth for item in items}


def test_types_answers_and_letters_are_even(built: Path):
    rows = rows_of(built)
    types = Counter(row["type"] for row in rows)
    assert sorted(types) == TYPES and max(types.values()) - min(types.values()) <= 1
    letters: dict[Any, Counter[str]] = defaultdict(Counter)
    for row in rows:
        letters[row["type"], len(row["choices"])].update(row["answer"])
        letters[row["type"], len(row["choices"])].update({choice[0]: 0 for choice in row["choices"]})
    assert all(max(counts.values()) - min(counts.values()) <= 1 for counts in letters.values())
    assert max(Counter(row["image"] for row in rows).values()) == 2


def test_the_right_option_is_what_the_graph_says_and_the_wrong_ones_are_not(built: Path):
    keys = {"color": "color", "shape": "shape", "material": "material", "texture/pattern": "pattern"}
    boxes = [square(k)[1] for k in range(8)]
    checked = Counter()
    for row in rows_of(built):
        facts = scene(int(row["built"]["record"].split()[-1])).meta
        right, wrong = texts(row)
        rule, ids = row["built"]["rule"], row["built"]["regions"]
        question = re.sub(r"<Prompt(\d+)>", lambda m, ids=ids: f"<{ids[int(m[1])]}>", row["question"])
        if row["type"] in keys:
            value = facts["things"][ids[0]][keys[row["type"]]]
            assert right == f"{value.capitalize()}." and right not in wrong and len(wrong) == 3
        elif rule in ("the only reflection", "the only picture"):
            assert right == ("<6>" if row["type"] == "mirror" else "<7>") and not {"<6>", "<7>"} & {*wrong}
        elif rule == "the source of a reflection":
            assert right == "<0>" and "<6>" not in wrong
        elif rule == "the kind of a region":
            assert ("reflection" in right, "picture" in right) == (ids == [6], ids == [7])
        elif rule == "the nearest region":
            assert right == f"<{min(ids)}>"  # depths grow with the number
        elif rule == "the side of another region":
            (one, other), word = [boxes[k] for k in ids], right.split(" <")[0].lower()
            axis, before = {"to the left of": (0, True), "to the right of": (0, False), "above": (1, True)}.get(
                word, (1, False)
            )
            assert (one[axis + 2] <= other[axis]) if before else (other[axis + 2] <= one[axis])
            assert one[1 - axis] == other[1 - axis] and len(wrong) == 3
        elif rule == "the order of regions":
            xs = [[boxes[int(k)][0] for k in re.findall(r"\d+", text)] for text in (right, *wrong)]
            assert xs[0] == sorted(xs[0]) and all(x != sorted(x) for x in xs[1:])
        elif rule == "a place among regions":
            counted, asked = question.split(" from left")[0], int(re.findall(r"<(\d+)>", question)[-1])
            order = sorted((int(k) for k in re.findall(r"<(\d+)>", counted)), key=lambda k: boxes[k][0])
            assert right == f"The {('first', 'second', 'third', 'fourth', 'fifth')[order.index(asked)]}."
        elif rule == "a place in a row":
            names = [f"The {word} one counting from the left." for word in ("first", "second", "third", "fourth")]
            mirrored = [f"The {word} one counting from the right." for word in ("fourth", "third", "second", "first")]
            true = {names[ids[0]], mirrored[ids[0]]}
            assert right in true and not true & {*wrong}
        else:
            held = {f"<{i}> is {word} <{j}>" for i, word, j in facts["relations"]}
            held = {text.replace("inside", "in").replace("next to", "beside") for text in held}
            assert "<5> is beside <4>" not in (right, *wrong), "as true as the other way round"
            assert {*right.removesuffix(".").split(", and ")} <= held
            assert all(not {*text.removesuffix(".").split(", and ")} <= held for text in wrong)
        assert len({choice[3:] for choice in row["choices"]}) == len(row["choices"])
        assert (row["built"]["source"], row["built"]["licence"]) == ("scenes", "Apache-2.0")
        checked[rule] += 1
    assert len(checked) == 16, checked


def test_a_statement_about_three_regions_or_more_cannot_be_found_by_comparing_the_options(built: Path):
    statements = [row for row in rows_of(built) if row["built"]["rule"] in ("2 relations", "3 relations")]
    assert len(statements) > 3 and all(3 <= len(row["mask_rles"]) <= 5 for row in statements)
    for row in statements:
        clauses = [choice[3:].removesuffix(".").split(", and ") for choice in row["choices"]]
        for part in zip(*clauses, strict=True):
            assert sorted(Counter(part).values()) == [2, 2]


def test_the_same_seed_gives_the_same_file_and_another_one_another(built: Path, tmp_path: Path):
    for name, seed in (("same", "0"), ("other", "1")):
        command = ["bench", "build", "candidates", str(built.parent / "scenes"), "--out", str(tmp_path / name)]
        assert main([*command, "--seed", seed]) == 0
    assert (tmp_path / "same").read_bytes() == built.read_bytes() != (tmp_path / "other").read_bytes()


def test_regions_that_are_small_hidden_or_lie_on_each_other_are_not_asked_about(tmp_path: Path):
    sample = scene(0)
    small, hidden, covered = 0, 1, 2
    sample.masks[small] = square(small, 5)[0]
    sample.meta["things"][hidden]["visible"] = 0.3
    sample.masks[covered] = sample.masks[3]
    write_jsonl([sample], tmp_path / "data" / "scenes.jsonl")
    command = ["bench", "build", "candidates", str(tmp_path / "data"), "--out", str(tmp_path / "items.jsonl")]
    assert main([*command, "--per-picture", "9"]) == 0
    rows = rows_of(tmp_path / "items.jsonl")
    regions = [{*row["built"]["regions"]} for row in rows]
    assert len(rows) >= 7 and not any({small, hidden} & ids or {covered, 3} <= ids for ids in regions)
    assert main([*command, "--num", "1"]) == 0  # one item alone is a file of items as well
    assert len(load(benchmark("vqa"), tmp_path / "items.jsonl")[0]) == 1


def test_scene_graphs_of_psg_give_relations_and_positions(tmp_path: Path):
    ids = np.zeros((HEIGHT, WIDTH), np.int64)
    for k in range(4):
        _, (x0, y0, x1, y1) = square(k)
        ids[y0:y1, x0:x1] = k + 1
    ids[60:] = 9  # the ground
    channels = np.stack([ids, 0 * ids, 0 * ids], -1).astype(np.uint8)
    Image.fromarray(channels).save(tmp_path / "seg.png")
    (tmp_path / "a.png").write_bytes(encoded(1))
    segments = [{"id": k, "category_id": 0 if k < 9 else 1} for k in (1, 2, 3, 4, 9)]
    triples = [[0, 1, 0], [1, 4, 1], [2, 4, 1], [0, 3, 2], [3, 2, 3]]
    row = {"file_name": "a.png", "pan_seg_file_name": "seg.png", "segments_info": segments, "relations": triples}
    names = {"thing_classes": ["person"], "stuff_classes": ["grass"]}
    predicates = ["holding", "standing on", "looking at", "in front of"]
    (tmp_path / "psg.json").write_text(json.dumps({"data": [row], "predicate_classes": predicates} | names))
    command = ["bench", "build", "candidates", str(tmp_path / "psg.json"), "--out", str(tmp_path / "out/items.jsonl")]
    assert main([*command, "--per-picture", "5"]) == 0
    rows = {row["type"]: row for row in rows_of(tmp_path / "out" / "items.jsonl")}
    assert sorted(rows) == ["ordering", "position", "relation"] and rows["relation"]["image_path"] == "a.png"
    held = {f"<{i}> is {predicates[word]} <{j}>" for i, j, word in triples}
    right, wrong = texts(rows["relation"])
    assert {*right.removesuffix(".").split(", and ")} <= held
    assert all(not {*text.removesuffix(".").split(", and ")} <= held for text in wrong)
    assert 4 not in rows["position"]["built"]["regions"], "the ground is no place"


def test_words_that_exclude_each_other_do_so_both_ways_round():
    assert all(word in _EXCLUDED[other] for word in _EXCLUDED for other in _EXCLUDED[word] if word != "driving")


def test_a_false_clause_is_none_that_the_graph_holds():
    sample = scene(0)
    sample.meta["relations"] = [[0, "holding", 1], [2, "holding", 1], [0, "on", 3], [3, "beside", 0]]
    graph = scene_graph(sample)
    rng = Random(0)
    for clause in graph.relations:
        made = {_false_clause(graph, clause, [0, 1, 2, 3], rng) for _ in range(60)}
        assert len(made) >= 2 and None not in made and not made & {*graph.relations}
        assert (0, "beside", 3) not in made


def test_what_has_no_scene_graph_is_refused_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plain = Sample(encoded(0), [square(0)[0]], [Turn("Describe <Prompt0> in detail.", "Noise.", "detailed")])
    write_jsonl([plain], tmp_path / "data" / "plain.jsonl")
    said = fails(capsys, "bench", "build", "candidates", tmp_path / "data", "--out", tmp_path / "items.jsonl")
    assert "no candidate: 1 no scene graph" in said and not (tmp_path / "items.jsonl").exists()
    things: list[Any] = [{}] * 8
    for wrong in (
        {"things": [{}]},
        {"things": 3},
        {"things": [*things[1:], {"color": 3}]},
        {"things": things, "relations": [[0, "on", 8]]},
        {"things": things, "relations": [["on", 0, 1]]},
    ):
        with pytest.raises(Unusable, match="graph of other regions|malformed record"):
            scene_graph(Sample(encoded(0), scene(0).masks, [], meta=wrong))


def test_records_are_named_by_their_file_and_row(built: Path):
    names = [name for name, _ in open_data(built.parent / "scenes").records()]
    assert names[3].endswith("scenes.jsonl row 3") and len(names) == 40


# --- the filter -------------------------------------------------------------------------------------------------------


def test_items_that_all_models_answer_right_or_all_wrong_are_dropped_with_the_reason(built: Path, tmp_path: Path):
    rows = [row for row in rows_of(built) if len(row["choices"]) == 4][:5]
    easy, broken, miskeyed, mixed, lone = rows
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def wrong(row: dict[str, Any], k: int) -> str:
        return [choice[0] for choice in row["choices"] if choice[0] != row["answer"]][k]

    answers = [
        {row["id"]: row["answer"] for row in (easy, mixed, lone)} | {r["id"]: wrong(r, 0) for r in (broken, miskeyed)},
        {easy["id"]: easy["answer"], broken["id"]: wrong(broken, 1)}
        | {r["id"]: wrong(r, 0) for r in (miskeyed, mixed)},
    ]
    runs = [write_run(tmp_path / f"model{k}.jsonl", rows, mine) for k, mine in enumerate(answers)]
    out = tmp_path / "kept.jsonl"
    assert main(["bench", "build", "filter", str(tmp_path / "items.jsonl"), *map(str, runs), "--out", str(out)]) == 0
    assert [row["id"] for row in rows_of(out)] == [mixed["id"], lone["id"]]
    assert rows_of(out)[0]["built"]["answers"] == {"model0": mixed["answer"], "model1": wrong(mixed, 0)}
    dropped = {row["id"]: row["dropped"] for row in rows_of(tmp_path / "kept.dropped.jsonl")}
    assert dropped == {
        easy["id"]: "all answer right",
        broken["id"]: "all answer wrong",
        miskeyed["id"]: "all give the same wrong answer",
    }


def test_what_the_filter_does_is_told_by_type_and_reason(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = rows_of(built)
    right = {row["id"]: row["answer"] for row in rows}
    some = {row["id"]: row["answer"] for row in rows if row["type"] != "color"}
    runs = [write_run(tmp_path / "a.jsonl", rows, right), write_run(tmp_path / "b.jsonl", rows, some)]
    command = ["bench", "build", "filter", built, *runs, "--out", tmp_path / "kept.jsonl"]
    assert main([*map(str, command), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    colors = sum(row["type"] == "color" for row in rows)
    assert found["items"] == colors and found["dropped"] == len(rows) - colors
    assert found["reasons"]["kept, with answers of under two models"] == {"color": colors}
    assert "color" not in found["reasons"]["all answer right"]
    assert "give those of two models" in fails(capsys, *command[:5], "--out", tmp_path / "x.jsonl")
    dropped = tmp_path / "kept.dropped.jsonl"
    over = [*command[:3], dropped, *runs, "--out", tmp_path / "kept.jsonl"]
    assert (
        "is read here and would be lost: give another name" in fails(capsys, *over)
        and len(rows_of(dropped)) == found["dropped"]
    )
    turned = runs[1].read_text().replace('"as-is"', '"balanced"')
    runs[1].write_text(turned)
    assert "asked with --order balanced" in fails(capsys, *command)
    other = write_run(tmp_path / "c.jsonl", [{"id": "7"}], {"7": "A"})
    assert "no answer to any item" in fails(capsys, *command[:5], other, "--out", tmp_path / "x.jsonl")


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(built: Path) -> str:
    """A page of four items, one of which tries to be a script."""
    rows = rows_of(built)[:4]
    rows[1]["question"] += "</script><script>bad()</script><!--"
    (built.parent / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = built.parent / "page.html"
    assert main(["bench", "build", "page", str(built.parent / "few.jsonl"), "--out", str(out)]) == 0
    return out.read_text()


def test_the_page_needs_no_other_file_and_holds_the_items(page: str, built: Path):
    assert page.count("</script>") == 2 and "<!--" not in page
    addresses = {*re.findall(r"https?://[^\"'\s]+", page)}
    assert addresses == {"http://www.w3.org/2000/svg"}, "a name, which nothing is fetched from"
    assert not re.search(r"(?:src|href)=\"(?!data:)", page) and "import" not in page and "fetch(" not in page
    content = json.loads(page.split('id="data">')[1].split("</script>")[0])
    rows = rows_of(built.parent / "few.jsonl")
    assert [item["id"] for item in content["items"]] == [row["id"] for row in rows]
    assert [len(item["regions"]) for item in content["items"]] == [len(row["mask_rles"]) for row in rows]
    assert {*content["pictures"]} == {row["image"] for row in rows}
    outline = content["items"][0]["regions"][0]
    corners = [tuple(float(x) for x in pair.split(",")) for pair in outline["path"][1:-1].split()]
    x0, y0, x1, y1 = Region.rle(rows[0]["mask_rles"][0]).locate(WIDTH, HEIGHT).box
    assert {(x, y) for x in (x0 + 0.5, x1 - 0.5) for y in (y0 + 0.5, y1 - 0.5)} == {*corners}
    assert x0 < outline["x"] < x1 and y0 < outline["y"] < y1


BROWSER = """
const listeners = {}, kept = JSON.parse(process.argv[2] || "{}"), files = [];
const make = id => ({ id, style: {}, tagName: "DIV", value: "", children: [], listeners: {}, attributes: {},
  addEventListener(kind, act) { this.listeners[kind] = act; },
  setAttribute(key, value) { this.attributes[key] = value; },
  replaceChildren(...children) { this.children = children; }, focus() {}, blur() {}, click() { files.push(this); } });
const elements = {};
globalThis.document = { getElementById: id => elements[id] ??= make(id), createElement: make,
  createElementNS: (_, name) => make(name), addEventListener: (kind, act) => { listeners[kind] = act; } };
globalThis.localStorage = { getItem: key => kept[key] ?? null, setItem: (key, text) => { kept[key] = text; } };
globalThis.Blob = class { constructor(parts) { this.text = parts.join(""); } };
URL.createObjectURL = blob => blob.text;
URL.revokeObjectURL = () => {};
const press = (...keys) => keys.forEach(key => listeners.keydown({ key, target: make(), preventDefault() {} }));
const write = (id, value) => { elements[id].value = value;
  elements[id].listeners.input({ target: elements[id] }); };
elements.data = make("data");
elements.data.textContent = require("fs").readFileSync(0, "utf8");
"""


def drive(page: str, steps: str, kept: str = "{}") -> Any:
    """Run the page's script on a stand-in for a browser, then some steps; gives what these print, as JSON."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node, which runs the page's script")
    data, script = (part.split("</script>")[0] for part in page.split("<script")[1:])
    code = f"{BROWSER}\n{script.removeprefix('>')}\n{steps}"
    command = [node, "-e", code, "--", "x", kept]
    done = subprocess.run(command, input=data.split(">", 1)[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_checker_decides_by_keyboard_and_downloads_it(page: str, built: Path, tmp_path: Path):
    rows = rows_of(built.parent / "few.jsonl")
    other = next(choice[0] for choice in rows[2]["choices"] if choice[0] != rows[2]["answer"])
    steps = f"""
    press("k", "r");
    const third = elements.facts.textContent;
    press("{other.lower()}", "ArrowLeft");
    write("note", "look again");
    elements.download.listeners.click();
    const unnamed = files.length;
    write("checker", "Ann");
    elements.download.listeners.click();
    console.log(JSON.stringify({{ third, unnamed, bar: elements.bar.value, count: elements.count.textContent,
      regions: elements.marks.children.length, file: JSON.parse(files[0].href), kept }}));
    """
    found = drive(page, steps)
    assert found["third"].startswith("3 of 4") and found["unnamed"] == 0 and found["bar"] == 3
    assert found["count"] == "3 of 4 decided: 1 kept, 1 with another answer, 1 rejected"
    assert found["regions"] == 3 * len(rows[2]["mask_rles"])  # an outline in two colors and a number each
    decisions = found["file"]["decisions"]
    assert found["file"]["checker"] == "Ann"
    assert [decisions[row["id"]]["decision"] for row in rows[:3]] == ["keep", "reject", "fix"]
    assert decisions[rows[2]["id"]] == {"decision": "fix", "answer": other, "note": "look again"}
    (tmp_path / "ann.json").write_text(json.dumps(found["file"]))
    out = tmp_path / "final.jsonl"
    few = str(built.parent / "few.jsonl")
    assert main(["bench", "build", "collect", few, str(tmp_path / "ann.json"), "--out", str(out)]) == 0
    assert [row["built"]["candidate"] for row in rows_of(out)] == [rows[0]["id"], rows[2]["id"]]


def test_a_checker_goes_on_where_the_browser_was_closed(page: str):
    kept = drive(page, 'press("k", "r", "Backspace", "k"); console.log(JSON.stringify(kept));')
    show = "console.log(JSON.stringify([elements.facts.textContent, elements.decision.textContent]));"
    place, decision = drive(page, show, json.dumps(kept))
    assert place.startswith("4 of 4") and decision == "Not decided yet"
    undone = drive(page, f'press("ArrowLeft", "Backspace"); {show}', json.dumps(kept))
    assert undone[1] == "Not decided yet"


def test_a_page_without_its_pictures_is_refused(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "items.jsonl").write_text(built.read_text())
    said = fails(capsys, "bench", "build", "page", tmp_path / "items.jsonl", "--out", tmp_path / "page.html")
    assert "no such file" in said and not (tmp_path / "page.html").exists()
    (tmp_path / "other.json").write_text("[{}]")
    said = fails(capsys, "bench", "build", "page", tmp_path / "other.json", "--out", tmp_path / "page.html")
    assert "no items in GAR-Bench's form" in said


# --- what people decide -----------------------------------------------------------------------------------------------


def decisions(path: Path, checker: str, made: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"file": "", "checker": checker, "decisions": made}))
    return path


def test_most_checkers_decide_and_their_agreement_is_told(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [row for row in rows_of(built) if len(row["choices"]) == 4][:6]
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps(row) + "\n" for row in rows))
    good, bad, mended, disputed, fresh, missing = rows
    other = next(choice[0] for choice in mended["choices"] if choice[0] != mended["answer"])
    keep, reject = {"decision": "keep", "note": "fine"}, {"decision": "reject"}
    fix = {"decision": "fix", "answer": other}
    ann = {good["id"]: keep, bad["id"]: reject, mended["id"]: fix, disputed["id"]: keep, fresh["id"]: keep}
    bob = {good["id"]: keep, bad["id"]: reject, mended["id"]: fix, disputed["id"]: reject}
    bob |= {fresh["id"]: {"decision": None, "note": "later"}}
    files = [decisions(tmp_path / "1.json", "Ann", ann), decisions(tmp_path / "2.json", "Bob", bob)]
    out = tmp_path / "final.jsonl"
    assert main(["bench", "build", "collect", str(items), *map(str, files), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    final = {row["built"]["candidate"]: row for row in rows_of(out)}
    assert [*final] == [good["id"], mended["id"], fresh["id"]] and found["items"] == 3
    right = final[mended["id"]]
    assert right["choices"][ord(right["answer"]) - ord("A")][3:] == mended["choices"][ord(other) - ord("A")][3:]
    assert final[good["id"]]["built"]["checked"] == {
        name: {"decision": good["answer"], "note": "fine"} for name in ("Ann", "Bob")
    }
    dropped = {row["id"]: row["dropped"] for row in rows_of(tmp_path / "final.dropped.jsonl")}
    assert dropped == {bad["id"]: "rejected", disputed["id"]: "checkers disagree", missing["id"]: "not decided"}
    # keep keep, reject reject, B B, keep reject: 3 of 4 alike; by chance 2/4 1/4 + 1/4 2/4 + 1/4 1/4 = 5/16
    row = found["agreement"]["Ann and Bob"]
    assert row["n"] == 4 and row["value"] == pytest.approx((3 / 4 - 5 / 16) / (1 - 5 / 16), abs=1e-6)


def test_letters_of_the_final_file_are_dealt_out_anew(built: Path, tmp_path: Path):
    rows = rows_of(built)
    chosen = [row for row in rows if row["answer"] == "A" and len(row["choices"]) == 4]
    ann = decisions(tmp_path / "1.json", "Ann", {row["id"]: {"decision": "keep"} for row in chosen})
    out = tmp_path / "final.jsonl"
    assert main(["bench", "build", "collect", str(built), str(ann), "--out", str(out)]) == 0
    final = rows_of(out)
    assert (tmp_path / final[0]["image"]).read_bytes() == (built.parent / final[0]["image"]).read_bytes()
    assert len(final) == len(chosen) and len({row["answer"] for row in final}) > 1
    assert all((row["id"] == row["built"]["candidate"]) == (row["answer"] == "A") for row in final)
    for row, before in zip(final, chosen, strict=True):
        assert row["choices"][ord(row["answer"]) - ord("A")][3:] == before["choices"][0][3:]
        assert sorted(c[3:] for c in row["choices"]) == sorted(c[3:] for c in before["choices"])


@pytest.mark.parametrize(
    "content, message",
    [
        ([], 'no "checker" and "decisions"'),
        ({"checker": "", "decisions": {}}, 'no "checker" and "decisions"'),
        ({"checker": "Ann", "decisions": {"nothing": {"decision": "keep"}}}, "is it of another page"),
        ({"checker": "Ann", "decisions": {"FIRST": {"decision": "maybe"}}}, "expected .keep., .reject., or .fix."),
        ({"checker": "Ann", "decisions": {"FIRST": {"decision": "fix", "answer": "Z"}}}, "an answer among A, B"),
        ({"checker": "Ann", "decisions": {"FIRST": 3}}, "expected .keep., .reject., or .fix."),
    ],
)
def test_wrong_decisions_are_refused(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, message: str
):
    text = json.dumps(content).replace("FIRST", rows_of(built)[0]["id"])
    (tmp_path / "1.json").write_text(text)
    said = fails(capsys, "bench", "build", "collect", built, tmp_path / "1.json", "--out", tmp_path / "final.jsonl")
    assert re.search(message, said)


def test_a_checker_counts_once(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    files = [decisions(tmp_path / f"{k}.json", "Ann", {}) for k in range(2)]
    said = fails(capsys, "bench", "build", "collect", built, *files, "--out", tmp_path / "final.jsonl")
    assert "a second file of the checker 'Ann'" in said
    assert "give another name" in fails(capsys, "bench", "build", "collect", built, files[0], "--out", built)
