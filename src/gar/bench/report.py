"""Scored runs: made, kept as JSON, compared, and shown to people as tables and as a page.

A scored run is the JSON of `gar bench score` with "data", the folder of its pictures, "items", every item's score, and
"digest", which tells other items apart.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from PIL.Image import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gar.bench.catalog import benchmark
from gar.bench.flags import splits
from gar.bench.judges import Judge
from gar.bench.statistics import mcnemar, mean, proportion
from gar.bench.task import (
    MANY,
    ORDERS,
    Benchmark,
    Item,
    asked_how,
    average,
    digest,
    evaluate,
    in_every_order,
    load,
    ordered,
    read_answers,
    read_json,
    refuse_judge,
    refuse_manner,
    refuse_overwrite,
    result,
    run,
)
from gar.bench.views import FEATURE_VIEWS, HIDING
from gar.data.sample import write_whole
from gar.regions import load_image

if TYPE_CHECKING:
    from gar.bench.rivals import Rival
    from gar.predictor import Predictor

PICTURE_SIDE = 320  # pixels, of a page's pictures


def scored(
    benchmark: Benchmark,
    predictions: Path,
    *,
    data: Path | None = None,
    verdicts: Path | None = None,
    judge: Judge | None = None,
    text_only: bool = False,
    wording: str | None = None,
    repeat: int = 0,
    max_regions: int | None = None,
    with_splits: bool = False,
) -> dict[str, Any]:
    """Score a file of answers; see `gar bench score`.

    Raises:
        ValueError: a file is missing, or is not of this benchmark; nothing can be said without a judge.
    """
    everything, folder = load(benchmark, data, predictions)
    how = asked_how(predictions, everything)
    # Ordered first: what balances the letters depends on all items.
    items, asked = (
        [item for item in some if max_regions is None or len(item.masks) <= max_regions]
        for some in (everything, ordered(everything, how.order))
    )
    answers = read_answers(benchmark, predictions, asked)
    pictures = None if text_only else folder
    scores = evaluate(
        benchmark, asked, answers, verdicts=verdicts, judge=judge, folder=pictures, wording=wording, repeat=repeat
    )
    if how.order == "circular":
        scores, asked = in_every_order(items, scores), items
    found = result(benchmark, asked, scores)
    if how.order == "circular":
        found |= {"as_published": {}, "guess": {}}  # of answers in one order
        there = [None if score.value is None else score.parts["orders"] for score in scores]
        found["scores"]["mean over orders"] = average(asked, there).json()
        found["notes"].append("right means: right in every rotated order of the choices")
    found |= {"model": how.model, "order": how.order, "digest": digest(everything)}
    if how.unchanged:
        found["unchanged"] = how.unchanged
        found["notes"].append(f"the view changed nothing on {how.unchanged} items")
    if how.cut:
        found["notes"].append(
            f"{how.cut} items have more regions than the model could mark: of those, the first ones were"
        )
    if len(items) < len(everything):
        found["left_out"] = {f"more than {max_regions} regions": len(everything) - len(items)}
        found["notes"].append(f"{len(everything) - len(items)} items left out: more than {max_regions} regions")
    if judge is not None:
        asked_in = wording or benchmark.wording
        found["judge"] = {
            "name": judge.name,
            "wording": asked_in.split("\n")[0],
            "digest": hashlib.sha256((asked_in + benchmark.recognition).encode()).hexdigest()[:8],
            "text_only": text_only,
            "repeat": repeat,
        }
    elif verdicts is not None:
        found["judge"] = _judge_of(verdicts)
    elif benchmark.judged:
        found["notes"].append("no judge: its figures need --judge URL --judge-model ID, or --verdicts FILE")
    if with_splits:
        found["splits"] = splits(benchmark, asked, scores)
    rows = [
        {
            "id": item.id,
            "type": item.type,
            "image": item.image,
            "picture": item.picture,
            "masks": item.masks,
            "question": item.question,
            "choices": item.choices,
            "truth": item.truth,
            **vars(score),
        }
        for item, score in zip(asked, scores, strict=True)
    ]
    return found | {"predictions": str(predictions), "data": str(folder.absolute()), "items": rows}


def _judge_of(verdicts: Path) -> dict[str, Any]:
    """Who gave stored replies: what our own file says, or a published one itself."""
    content = read_json(verdicts)
    kept = content.get("judge") if isinstance(content, dict) else None
    return kept or {"name": str(verdicts), "wording": "as published", "published": True, "repeat": 0}


def write_json(content: Any, path: Path) -> None:
    """Write a file whole, in the place of an older one."""
    write_whole(path, json.dumps(content).encode())


def read_scored(path: Path) -> dict[str, Any]:
    """A file of `gar bench score --out`. Raises ValueError where it is anything else."""
    found = read_json(path)
    if not isinstance(found, dict) or not {"benchmark", "scores", "items"} <= set(found):
        raise ValueError(f"{path}: not a scored run: make one with `gar bench score ... --out FILE`")
    return found


def compare(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two scored runs on the items that both have scores for, over all and by type.

    "difference" is the second's mean value minus the first's, resampled by pictures; "same_answer" counts items. Where
    every value is right or wrong, "mcnemar_p" is the exact chance of so uneven a split of the items that only one has
    right.

    Raises:
        ValueError: two benchmarks, or orders of choices, or sets of items; no item in common.
    """
    if first["benchmark"] != second["benchmark"]:
        raise ValueError(f"runs of {first['benchmark']} and of {second['benchmark']}: compare two of one benchmark")
    _refuse_unlike([first, second])
    others = {row["id"]: row for row in second["items"] if row["value"] is not None}
    pairs = [(row, others[row["id"]]) for row in first["items"] if row["value"] is not None and row["id"] in others]
    if not pairs:
        raise ValueError("no item is scored in both runs")
    types = sorted({row["type"] for row, _ in pairs} - {"", "all"})
    groups = {"all": pairs, **{kind: [pair for pair in pairs if pair[0]["type"] == kind] for kind in types}}
    return {"benchmark": first["benchmark"], "runs": {name: _difference(some) for name, some in groups.items()}}


def _refuse_unlike(runs: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError where runs of one benchmark are about several sets of items, or were asked in several orders: an
    id means another item then, and a letter another choice."""
    orders: dict[str, str] = {}
    digests: dict[str, str] = {}
    for one in runs:
        if digests.setdefault(one["benchmark"], one.get("digest", "")) != one.get("digest", ""):
            raise ValueError(f"{one['predictions']}: a run of {one['benchmark']} about other items than those before")
        order = one.get("order", "as-is")
        if orders.setdefault(one["benchmark"], order) != order:
            both = f"{orders[one['benchmark']]} and {order}"
            raise ValueError(f"runs of {one['benchmark']} with choices {both}: put together those of one --order")


def _difference(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    a, b = ([row["value"] for row in side] for side in zip(*pairs, strict=True))
    apart = mean([y - x for x, y in zip(a, b, strict=True)], [row["picture"] for row, _ in pairs])
    found: dict[str, Any] = {"first": sum(a) / len(a), "second": sum(b) / len(b), "difference": apart.json()}
    found["same_answer"] = sum(x["answer"] == y["answer"] for x, y in pairs)
    if {*a, *b} <= {0.0, 1.0}:
        found["only_first"] = sum(x > y for x, y in zip(a, b, strict=True))
        found["only_second"] = sum(y > x for x, y in zip(a, b, strict=True))
        found["mcnemar_p"] = mcnemar([x == 1 for x in a], [y == 1 for y in b])
    return found


def by_view(
    benchmark: Benchmark,
    views: Sequence[str],
    out: Path,
    data: Path | None,
    load_predictor: Callable[[], Predictor | Rival],
    judge: Judge | None = None,
    judging: Mapping[str, Any] = MappingProxyType({}),
    **how: Any,
) -> dict[str, Any]:
    """Run a benchmark under each view, score it, and compare it with the first view. A judge sees the true picture.
    `judging` goes to `scored`, `how` to `gar.bench.task.run`.

    Writes VIEW.jsonl and VIEW.json for each view to the folder `out`, and items.json: each item's type and values by
    view, and where the outside was hidden and answers are right or wrong whether it "needs_context". Of that, the
    result and the first view's JSON have the share by type. A view under which the model can be asked nothing has only
    its "left_out", by reason; others also have "unchanged", the number of items on which the view changed nothing.

    Raises:
        ValueError: the benchmark needs a judge, and none is given; or it takes none; a manner of asking that there is
            not; a file would take the place of the items.
    """
    if judge is not None:
        refuse_judge(benchmark)
    elif benchmark.judged:
        raise ValueError(f"{benchmark.name} needs a judge: give --judge URL --judge-model ID")
    from gar.bench.rivals import Rival

    items, folder = load(benchmark, data)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("items", *views):
        refuse_overwrite(out / f"{name}.json", data, folder / benchmark.annotations)
    refuse_manner(out / "items.json", views[0], how.get("many_regions", MANY[0]), how.get("order", ORDERS[0]))
    predictor = load_predictor()
    found: dict[str, Any] = {"benchmark": benchmark.name, "model": predictor.name, "views": {}}
    runs: dict[str, dict[str, Any]] = {}
    for view in views:
        if view in FEATURE_VIEWS and isinstance(predictor, Rival):
            found["views"][view] = {"left_out": {"an endpoint gives no features to change": len(items)}}
            continue
        left_out = run(benchmark, items, folder, predictor, out / f"{view}.jsonl", view=view, **how)
        found["views"][view] = {"left_out": left_out}
        if runs and not any("answer" in row for row in read_json(out / f"{view}.jsonl")):
            continue
        runs[view] = scored(benchmark, out / f"{view}.jsonl", data=data, judge=judge, **judging)
        write_json(runs[view], out / f"{view}.json")
        found["views"][view]["unchanged"] = runs[view].get("unchanged", 0)
        found["views"][view] |= {"scores": runs[view]["scores"]} | compare(runs[views[0]], runs[view])
    rows = {row["id"]: {"type": row["type"], "values": {}} for row in runs[views[0]]["items"]}
    for view, one in runs.items():
        for row in one["items"]:
            rows[row["id"]]["values"][view] = row["value"]
    if needed := _mark_needing_context(rows):
        plain = runs[views[0]]
        for row in plain["items"]:
            row["needs_context"] = rows[row["id"]]["needs_context"]
        found["needs_context"] = plain["needs_context"] = needed
        write_json(plain, out / f"{views[0]}.json")
    write_json(rows, out / "items.json")
    return found


def _mark_needing_context(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Mark the items that are right as they are, and wrong under every view that hides what is outside the regions.

    Returns:
        Their share of the scored items, of all and by type; nothing where no view hides it, or values are no right and
        wrong.
    """
    known = [row for row in rows.values() if row["values"]["as-is"] is not None]
    hiding = [view for view in HIDING if any(view in row["values"] for row in known)]
    if not hiding or not {value for row in known for value in row["values"].values()} <= {0, 1, None}:
        return {}
    for row in rows.values():
        values = row["values"]
        row["needs_context"] = values["as-is"] == 1 and all(values[view] == 0 for view in hiding)
    types = sorted({row["type"] for row in known} - {"", "all"})
    groups = {"all": known, **{kind: [row for row in known if row["type"] == kind] for kind in types}}
    return {
        name: proportion(sum(row["needs_context"] for row in some), len(some)).json() for name, some in groups.items()
    }


def table(found: dict[str, Any]) -> Table:
    """A scored run for people."""
    columns = ("", "value", "95 %", "n", "as published", "guess")
    shown = _narrow(*columns, title=f"{found['benchmark']}, {found['n']} items")
    shown.columns[0].no_wrap = False  # a flag's name is long
    for name, row in found["scores"].items():
        published, guess = found["as_published"].get(name), found["guess"].get(name)
        shown.add_row(
            name, *_cells(row), "" if published is None else f"{published:g}", "" if guess is None else _number(guess)
        )
    for split, kinds in further(found).items():
        for kind, row in kinds.items():
            shown.add_row(f"{split}: {kind}", *_cells(row))
    return shown


def further(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A scored run's figures beside its scores: without a judge, of splits, of a context run."""
    more = {"no judge": found.get("without_judge", {}), "needs context": found.get("needs_context", {})}
    return more | found.get("splits", {})


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    value, low, high = (_number(x) for x in (row["value"], *row["ci95"]))
    return value, f"{low} to {high}", str(row["n"])


def _number(x: float | None) -> str:
    return "?" if x is None else f"{x:.4f}" if abs(x) < 2 else f"{x:.2f}"


def comparison_table(found: dict[str, Any]) -> Table:
    """`compare` for people."""
    columns = ("", "A", "B", "B - A, 95 %", "n", "only A", "only B", "p")
    shown = _narrow(*columns, title=f"{found['benchmark']} (p: McNemar's test)")
    for name, row in found["runs"].items():
        apart, p = row["difference"], row.get("mcnemar_p")
        cells = [_short(row["first"]), _short(row["second"]), _within(apart), str(apart["n"])]
        cells += [str(row.get("only_first", "")), str(row.get("only_second", ""))]
        shown.add_row(name, *cells, "" if p is None else "<.001" if p < 0.001 else _short(p))
    return shown


def agreement_tables(found: dict[str, Any]) -> list[Table]:
    """`gar.bench.agreement.agreement` for people: the judges, and every two of them."""
    judges = _narrow("", "judge", "asked", "agrees with itself", "n", "length bias", "n")
    judges.columns[1].overflow, judges.columns[1].no_wrap = "fold", False
    judges.title = f"{found['benchmark']}, {found['n']} answers"
    for number, row in enumerate(found["judges"]):
        same, bias = row.get("consistency"), row["length_bias"]
        cells = (_within(same), str(same["n"])) if same else ("", "")
        who = f"{row['name']}, {row['wording']}{', text only' if row['text_only'] else ''}"
        judges.add_row(f"{number}", who, str(row["repeats"]), *cells, _within(bias), str(bias["n"]))
    pairs = _narrow("judges", "kappa", "n", "length bias of the difference", "n")
    for row in found["pairs"]:
        cells = (cell for one in (row["kappa"], row["length_bias"]) for cell in (_within(one), str(one["n"])))
        pairs.add_row(" and ".join(map(str, row["judges"])), *cells)
    return [judges, pairs] if found["pairs"] else [judges]


def views_table(found: dict[str, Any]) -> Table:
    """`by_view` for people: under each view the share of answers that are the first view's, and each type's score, with
    a star where it differs from the first (p < .05); last, the share of items that need context."""
    first = next(iter(found["views"].values()))["runs"]
    shown = _narrow("", "same", *(kind.replace("/", "/ ") for kind in first))
    shown.title = f"{found['benchmark']}, {found['model']}, {first['all']['difference']['n']} items"
    for column in shown.columns[2:]:
        column.no_wrap = False  # so that the eight types of GAR-Bench fit into 80 letters
    for name, view in found["views"].items():
        runs = view.get("runs")
        if runs is None:
            shown.add_row(name)
            continue
        cells = [_short(runs["all"]["same_answer"] / runs["all"]["difference"]["n"], 2)]
        for row in map(runs.get, first):
            star = "*" if row and row.get("mcnemar_p", 1) < 0.05 else ""
            cells.append(_short(row["second"], 2) + star if row else "")
        shown.add_row(name, *cells)
    if needed := found.get("needs_context"):
        shown.add_row("needs context", "", *(_short(needed[kind]["value"], 2) for kind in first))
    return shown


def _narrow(*columns: str, title: str = "") -> Table:
    """A table that wastes no letter of a terminal's 80, and whose figures are never cut."""
    shown = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title)
    for name in columns:
        shown.add_column(name, no_wrap=True)
    return shown


def _within(row: dict[str, Any]) -> str:
    """A figure with its interval."""
    low, high = map(_short, row["ci95"])
    return f"{_short(row['value'])} [{low}, {high}]"


def _short(x: float | None, places: int = 3) -> str:
    return "?" if x is None else f"{x:.{places}f}".replace("0.", ".", 1) if abs(x) < 1 else f"{x:.2f}"


def write_page(runs: Sequence[dict[str, Any]], out: Path) -> None:
    """One HTML page about scored runs, with every picture in it that is still where it was.

    Raises:
        ValueError: runs of one benchmark differ in their items, or in the order of choices.
    """
    from jinja2 import Environment

    _refuse_unlike(runs)
    shown: dict[tuple[str, str], dict[str, Any]] = {}
    for number, one in enumerate(runs):
        for row in one["items"]:
            entry = shown.setdefault((one["benchmark"], row["id"]), {"item": row, "answers": {}, "data": one["data"]})
            entry["answers"][number] = row
    pictures = {key: _thumbnail(Path(entry["data"]), entry["item"]) for key, entry in shown.items()}
    named = {one["benchmark"]: benchmark(one["benchmark"]) for one in runs}

    def full(name: str, figure: str) -> float:
        """Where a figure's bar ends: at its bound, or else at the highest end of an interval on the page."""
        rows = [one["scores"][figure] for one in runs if one["benchmark"] == name and figure in one["scores"]]
        ends = [end for row in rows for end in (row["value"], row["ci95"][1]) if end is not None]
        return named[name].highest(figure) or max([*ends, 1e-9])

    right_or_wrong = {
        one["benchmark"] for one in runs if named[one["benchmark"]].highest(next(iter(one["scores"]), "")) == 1
    }
    template = (files("gar") / "assets" / "report.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(template)
    functions = {"number": _number, "further": further, "full": full}
    text = page.render(runs=runs, items=shown, pictures=pictures, right_or_wrong=right_or_wrong, **functions)
    write_whole(out, text.encode(errors="replace"))


def _thumbnail(folder: Path, row: dict[str, Any]) -> str | None:
    """A picture with its regions, small, as a data URL; None where it is missing or damaged, or they are of another."""
    from gar.show import draw

    if not row["image"] or not (folder / row["image"]).is_file():
        return None
    try:
        picture = load_image(folder / row["image"])
        regions = Item("", "", tuple(row["masks"])).located(picture)
    except ValueError:
        return None
    small = draw(picture, regions, [""] * len(regions))
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return jpeg_url(small)


def jpeg_url(picture: Image) -> str:
    """A picture as a data URL, for a page that needs no other file."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
