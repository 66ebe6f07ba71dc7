"""Exports, read back as the other evaluators read them, and by those themselves where they are installed."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import small_benchmarks as small
from PIL import Image
from test_bench import fails

from gar.bench.catalog import benchmark
from gar.bench.export import inspect_log, lmms_task
from gar.bench.report import scored, write_json
from gar.bench.task import load
from gar.cli import main

pytest.importorskip("scipy", reason="intervals need the extra bench")


@pytest.fixture
def task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A small multiple-choice benchmark as a task of lmms-eval; one of its six pictures is missing."""
    small.gar_vqa(tmp_path)
    (tmp_path / "images" / "vqa_3.png").unlink()
    where = ["--data", str(tmp_path), "--out", str(tmp_path / "task")]
    assert main(["bench", "export", "vqa", "--to", "lmms-eval", *where]) == 0
    assert "1 of 6 items left out: picture or region missing, or picture damaged" in capsys.readouterr().err
    return tmp_path / "task"


def functions(task: Path) -> Any:
    spec = importlib.util.spec_from_file_location("exported_utils", task / "utils.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_exported_item_shows_its_regions_and_asks_about_them(task: Path):
    utils, items = functions(task), rows(task / "items.jsonl")
    assert [item["id"] for item in items] == ["0", "1", "2", "4", "5"]
    (shown,) = utils.pictures(items[0])
    assert shown.size == (small.WIDTH, small.HEIGHT)
    assert shown.tobytes() != Image.open(task.parent / "images" / "vqa_0.png").tobytes()
    assert utils.question(items[4]).split("\n")[1:3] == ["Question: Is box 0 on box 6?", "Options:"]


def test_answers_to_an_exported_task_score_as_anywhere_else(task: Path):
    utils, items = functions(task), rows(task / "items.jsonl")
    results = [utils.results(item, [f" {letter}\n"]) for item, letter in zip(items, "abADB", strict=True)]
    assert [result["accuracy"] for result in results] == [1, 1, 0, 0, 0]
    assert utils.write_predictions([result["predictions"] for result in results]) == 5
    found = scored(benchmark("vqa"), task / "predictions.jsonl", data=task.parent)
    assert [row["value"] for row in found["items"]] == [1, 1, 0, None, 0, 0]
    content = json.loads((task.parent / "GAR-Bench-VQA.json").read_text())
    small.write(task.parent / "GAR-Bench-VQA.json", [row | {"question": "Which?"} for row in content])
    with pytest.raises(ValueError, match="answers about other items"):
        scored(benchmark("vqa"), task / "predictions.jsonl", data=task.parent)


def test_an_item_whose_picture_is_damaged_is_left_out_of_a_task(tmp_path: Path):
    small.gar_vqa(tmp_path)
    (tmp_path / "images" / "vqa_4.png").write_text("no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "vqa_5.png")  # its regions are of another one
    items, folder = load(benchmark("vqa"), tmp_path)
    assert lmms_task(benchmark("vqa"), items, folder, tmp_path / "task") == 4
    assert [row["id"] for row in rows(tmp_path / "task" / "items.jsonl")] == ["0", "1", "2", "3"]


def test_a_task_without_choices_only_collects_answers(tmp_path: Path):
    small.dlc(tmp_path)
    items, folder = load(benchmark("dlc"), tmp_path)
    assert lmms_task(benchmark("dlc"), items, folder, tmp_path / "task") == 3
    yaml = (tmp_path / "task" / "dlc_bench.yaml").read_text()
    assert "write_predictions" in yaml and "accuracy" not in yaml
    assert rows(tmp_path / "task" / "items.jsonl")[0]["prompt"].endswith("Describe what is in box 0 in detail.")


def test_an_export_replaces_an_older_one_and_nothing_else(task: Path):
    items, folder = load(benchmark("vqa"), task.parent)
    (task / "__pycache__").mkdir()
    assert lmms_task(benchmark("vqa"), items[:1], folder, task) == 1
    assert sorted(path.name for path in task.iterdir()) == ["gar_bench_vqa.yaml", "items.jsonl", "pictures", "utils.py"]
    assert [path.name for path in (task / "pictures").iterdir()] == ["0.png"]
    for kept in ("predictions.jsonl", "pictures/mine.png"):
        (task / kept).write_text("mine")
        with pytest.raises(ValueError, match="which would be lost: move it away"):
            lmms_task(benchmark("vqa"), items, folder, task)
        assert (task / kept).read_text() == "mine"
        (task / kept).unlink()
    (folder / "utils.py").write_text("mine")
    (task / "items.jsonl").rename(task / "other.jsonl")
    for other in (folder, folder / "utils.py", task):
        with pytest.raises(ValueError, match="is there and is no exported task"):
            lmms_task(benchmark("vqa"), items, folder, other)
    assert (folder / "utils.py").read_text() == "mine"
    with pytest.raises(ValueError, match="none of the 6 pictures"):
        lmms_task(benchmark("vqa"), items, folder / "nowhere", task)


def test_lmms_eval_loads_an_exported_task(task: Path):
    tasks = pytest.importorskip("lmms_eval.tasks", reason="lmms-eval is not installed")
    manager = tasks.TaskManager(include_path=str(task), include_defaults=False)
    (loaded,) = manager.load_task_or_group(["gar_bench_vqa"]).values()
    items = list(loaded.test_docs())
    assert [item["id"] for item in items] == ["0", "1", "2", "4", "5"]
    (shown,) = loaded.doc_to_visual(items[0])
    assert shown.size == (small.WIDTH, small.HEIGHT)
    assert "Question: What is the color of box 0?" in loaded.doc_to_text(items[0])
    results = [loaded.process_results(item, ["A"]) for item in items]
    assert loaded.aggregation()["accuracy"]([result["accuracy"] for result in results]) == pytest.approx(2 / 5)
    assert loaded.aggregation()["predictions"]([result["predictions"] for result in results]) == 5
    found = scored(benchmark("vqa"), task / "predictions.jsonl", data=task.parent)
    assert found["scores"]["accuracy"]["value"] == pytest.approx(2 / 5)


@pytest.fixture
def run(tmp_path: Path) -> dict[str, Any]:
    """A scored run: two answers are right, three wrong, and one is missing."""
    small.gar_vqa(tmp_path)
    answers = [{"id": str(k), "answer": letter} for k, letter in enumerate("ABABB")]
    predictions = small.write(tmp_path / "nano.jsonl", [{"run": {"benchmark": "gar-bench-vqa"}}, *answers])
    return scored(benchmark("vqa"), predictions, data=tmp_path)


def test_a_run_is_a_log_with_a_sample_for_each_item(run: dict[str, Any], tmp_path: Path):
    inspect_log(run, tmp_path / "log.json")
    log = json.loads((tmp_path / "log.json").read_text())
    assert [len(sample["scores"]) for sample in log["samples"]] == [1] * 5 + [0]
    assert log["samples"][5]["metadata"]["explanation"] == "no answer"
    assert log["eval"]["model"] == "nano"
    assert (log["results"]["total_samples"], log["results"]["completed_samples"]) == (6, 5)
    with pytest.raises(ValueError, match="ends in .json"):
        inspect_log(run, tmp_path / "log.eval")


def test_a_log_in_a_folder_has_a_name_by_which_inspect_view_lists_it(run: dict[str, Any], tmp_path: Path):
    (tmp_path / "logs").mkdir()
    made = [inspect_log(one, tmp_path / "logs") for one in (run, run | {"model": "other"})]
    assert sorted(made) == sorted((tmp_path / "logs").iterdir()) and len(made) == 2
    for path in made:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\+00-00_gar-bench-vqa_[0-9a-f]{8}\.json", path.name)


def test_a_log_names_its_samples_ahead_so_that_they_can_be_read_one_by_one(run: dict[str, Any], tmp_path: Path):
    log = json.loads(inspect_log(run, tmp_path / "log.json").read_text())
    assert log["eval"]["dataset"]["sample_ids"] == [row["id"] for row in run["items"]]


def test_the_command_writes_the_same_log_and_names_what_it_can_write(run: dict[str, Any], tmp_path: Path, capsys):
    write_json(run, tmp_path / "scored.json")
    command = ["bench", "export", str(tmp_path / "scored.json"), "--out", str(tmp_path / "log.json"), "--to"]
    assert main([*command, "inspect"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'log.json'}\n"
    inspect_log(run, tmp_path / "same.json")
    log, same = (json.loads((tmp_path / name).read_text()) for name in ("log.json", "same.json"))
    assert (log["samples"], log["results"]) == (same["samples"], same["results"])
    assert "expected lmms-eval or inspect" in fails(capsys, *command, "csv")
    over = ("bench", "export", tmp_path / "scored.json", "--to", "inspect", "--out", tmp_path / "scored.json")
    assert "would be lost" in fails(capsys, *over) and json.loads((tmp_path / "scored.json").read_text())["items"]


def test_inspect_ai_reads_the_log_of_a_run(run: dict[str, Any], tmp_path: Path):
    logs = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed")
    inspect_log(run, tmp_path / "log.json")
    log = logs.read_eval_log(str(tmp_path / "log.json"))
    assert (log.status, log.eval.task, log.eval.model) == ("success", "gar-bench-vqa", "nano")
    assert log.results.scores[0].metrics["accuracy"].value == run["scores"]["accuracy"]["value"]
    for sample, row in zip(log.samples, run["items"], strict=True):
        assert (sample.id, sample.output.completion, sample.target) == (row["id"], row["answer"], row["truth"])
        assert [score.value for score in sample.scores.values()] == ([] if row["value"] is None else [row["value"]])
    assert logs.read_eval_log(str(tmp_path / "log.json"), header_only=True).eval.task == "gar-bench-vqa"
    one_by_one = logs.read_eval_log_samples(str(tmp_path / "log.json"))
    assert [sample.id for sample in one_by_one] == [row["id"] for row in run["items"]]
    (tmp_path / "logs").mkdir()
    listed = logs.list_eval_logs(str(inspect_log(run, tmp_path / "logs").parent))
    assert [one.task for one in listed] == ["gar-bench-vqa"]
