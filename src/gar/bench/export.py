"""Our benchmarks and runs in the formats of other evaluators: lmms-eval's tasks, inspect_ai's logs.

Both are written without those packages. Knows items and scored runs; knows no model.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gar.bench.report import write_json
from gar.bench.task import Benchmark, Item, digest, progress
from gar.bench.views import numbered
from gar.regions import load_image

_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {items}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pictures
doc_to_text: !function utils.question
doc_to_target: truth
generation_kwargs:
  max_new_tokens: {length}
  do_sample: false
process_results: !function utils.results
metric_list:
{metrics}
metadata:
  - version: 1.0
"""

_METRIC = """\
  - metric: {name}
    aggregation: !function utils.{aggregation}
    higher_is_better: true"""

_UTILS = '''\
"""What lmms-eval calls for the task in this folder. Needs nothing but Pillow."""

import json
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parent
RUN = {run}


def pictures(item):
    return [Image.open(FOLDER / item["shown"]).convert("RGB")]


def question(item, lmms_eval_specific_kwargs=None):
    return item["prompt"]


def results(item, said):
    answer = said[0].strip()
    right = float(answer.lower() == item["truth"].lower())
    return {{"accuracy": right, "predictions": {{"id": item["id"], "answer": answer}}}}


def mean(values):
    return sum(values) / len(values)


def write_predictions(rows):
    """Write what `gar bench score` reads; give the number of answers."""
    lines = [json.dumps(row) for row in [{{"run": RUN}}, *rows]]
    (FOLDER / "predictions.jsonl").write_text("\\n".join(lines) + "\\n")
    return len(rows)
'''


def lmms_task(benchmark: Benchmark, items: Sequence[Item], folder: Path, out: Path) -> int:
    """Write a benchmark as a task of lmms-eval: `lmms_eval --include_path OUT --tasks TASK`.

    Models there take no masks. So each region is a numbered box drawn on the picture, and the question names the box. A
    multiple choice has its accuracy; every task writes OUT/predictions.jsonl, for `gar bench score --predictions`.
    The files name their folder, so it has to stay where it is. OUT is made new; what was there is lost only once the
    new one is complete.

    Args:
        folder: of the pictures. Items without theirs, with a damaged or another one, or without a region, are left out.

    Returns:
        How many items were written.

    Raises:
        ValueError: no picture is there; `out` holds something else, such as the answers of a run.
    """
    there = [item for item in items if not item.why_not(folder) and _opens(item, folder)]
    if not there:
        raise ValueError(f"{folder}: none of the {len(items)} pictures of {benchmark.name} is there")
    task = re.sub(r"\W", "_", benchmark.name)
    _refuse_foreign(out, f"{task}.yaml")
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as made:
        unfinished = Path(made) / "task"
        run = {"benchmark": benchmark.name, "model": "lmms-eval", "view": "drawn", "items": digest(items)}
        _write_task(run, task, there, folder, unfinished, out)
        shutil.rmtree(out, ignore_errors=True)
        unfinished.rename(out)
    return len(there)


def _opens(item: Item, folder: Path) -> bool:
    try:
        item.located(load_image(folder / item.image))
    except ValueError:
        return False
    return True


def _refuse_foreign(out: Path, yaml: str) -> None:
    """Raise ValueError where a folder holds anything but an exported task, which a new one may replace."""
    if not out.exists():
        return
    ours = {yaml, "items.jsonl", "utils.py", "pictures"}
    found = {path.name for path in out.iterdir()} - {"__pycache__"} if out.is_dir() else set()
    if not ours <= found:
        raise ValueError(f"{out} is there and is no exported task: give another folder")
    foreign = list(found - ours)
    foreign += [path.name for path in (out / "pictures").iterdir() if not re.fullmatch(r"\d+\.png", path.name)]
    if foreign:
        raise ValueError(f"{out} holds {min(foreign)} too, which would be lost: move it away, or give another folder")


def _write_task(run: dict[str, str], task: str, there: Sequence[Item], folder: Path, to: Path, out: Path) -> None:
    """Write the files of a task to a folder that will be renamed to `out`."""
    (to / "pictures").mkdir(parents=True)
    with (to / "items.jsonl").open("w", encoding="utf-8") as file:
        for number, item in enumerate(progress(there, "drawing regions")):
            shown = f"pictures/{number}.png"
            picture = load_image(folder / item.image)
            numbered(picture, item.located(picture)).save(to / shown)
            truth = item.truth if item.choices else ""
            row = {"id": item.id, "type": item.type, "shown": shown, "prompt": _prompt(item), "truth": truth}
            file.write(json.dumps(row) + "\n")
    letters = bool(there[0].choices)
    metrics = [("accuracy", "mean")] if letters else []
    listed = [_METRIC.format(name=n, aggregation=a) for n, a in [*metrics, ("predictions", "write_predictions")]]
    length = 16 if letters else 1024
    items_file = json.dumps(str(out.absolute() / "items.jsonl"))
    yaml = _YAML.format(task=task, items=items_file, length=length, metrics="\n".join(listed))
    (to / f"{task}.yaml").write_text(yaml, encoding="utf-8")
    (to / "utils.py").write_text(_UTILS.format(run=json.dumps(run)), encoding="utf-8")


def _prompt(item: Item) -> str:
    """The question of an item whose regions are drawn."""
    if item.question is None:
        boxes = "box 0" if len(item.masks) == 1 else "each box"
        asked = f"Describe what is in {boxes} in detail."
    elif item.choices:
        options = "\n".join(item.choices)
        asked = f"Question: {item.question}\nOptions:\n{options}\nAnswer with the correct option's letter directly."
    else:
        asked = item.question
    named = re.sub(r"<Prompt(\d+)>", r"box \1", asked)
    return f"The objects asked about are marked with numbered boxes.\n{named}"


def inspect_log(scored: dict[str, Any], out: Path) -> Path:
    """Write a scored run as a log of inspect_ai, for `inspect view` and `inspect_ai.log.read_eval_log`.

    Each item is a sample with its answer and score. An unscored one has no score there, and its reason in its metadata.

    Args:
        scored: from `gar.bench.report.scored` or `read_scored`.
        out: a folder of logs, in which `inspect view` lists only what begins with a time, so the log is named in that
            way; or a file that ends in .json, by which inspect_ai knows the format.

    Returns:
        The file.

    Raises:
        ValueError: `out` is neither.
    """
    benchmark, model, now = scored["benchmark"], scored.get("model", "unknown"), datetime.now(UTC).isoformat()
    if out.is_dir():
        content = hashlib.sha256(json.dumps(scored).encode()).hexdigest()[:8]
        out /= f"{now[:19].replace(':', '-')}+00-00_{benchmark}_{content}.json"
    elif out.suffix != ".json":
        raise ValueError(f"{out}: name a folder that is there, or a file that ends in .json")
    samples = [_sample(row, benchmark, model) for row in scored["items"]]
    metrics = {name: {"name": name, "value": figure["value"]} for name, figure in scored["scores"].items()}
    results = {
        "total_samples": len(samples),
        "completed_samples": sum(row["value"] is not None for row in scored["items"]),
        "scores": [{"name": benchmark, "scorer": benchmark, "metrics": metrics}],
    }
    log = {
        "version": 2,
        "status": "success",
        "eval": {
            "run_id": model,
            "created": now,
            "task": benchmark,
            "task_id": benchmark,
            "dataset": {
                "name": benchmark,
                "location": scored["data"],
                "samples": len(samples),
                "sample_ids": [sample["id"] for sample in samples],
            },
            "model": model,
            "config": {},
            "metadata": {"scores": scored["scores"], "judge": scored.get("judge")},
        },
        "plan": {},
        "results": results,
        "stats": {"started_at": now, "completed_at": now},
        "samples": samples,
    }
    write_json(log, out)
    return out


def _sample(row: dict[str, Any], benchmark: str, model: str) -> dict[str, Any]:
    question = row["question"] or "Describe the region in detail."
    said = {"role": "assistant", "content": row["answer"]}
    score = {"value": row["value"], "answer": row["answer"], "explanation": row["explanation"]}
    metadata = {name: row[name] for name in ("type", "image", "masks", "explanation", "parts", "replies")}
    return {
        "id": row["id"],
        "epoch": 1,
        "input": question,
        "choices": list(row["choices"]) or None,
        "target": row["truth"] if isinstance(row["truth"], str) else json.dumps(row["truth"]),
        "messages": [{"role": "user", "content": question}, said],
        "output": {"model": model, "choices": [{"message": said, "stop_reason": "stop"}]},
        "scores": {} if row["value"] is None else {benchmark: score},
        "metadata": metadata,
    }
