"""From candidates to a benchmark: a filter by models, a page for people, and what they decide put together.

A file of items is JSON Lines in GAR-Bench's own form, so that `gar bench run` and `score` read it at every step. What
is beyond that form (where an item comes from, what models and people said) stands in its "built". Knows such files and
files of answers; knows no scene graph and no model.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from gar.bench.agreement import kappa
from gar.bench.gar_bench import VQA
from gar.bench.judges import LETTERS
from gar.bench.report import jpeg_url, scored
from gar.bench.statistics import letter_prior
from gar.bench.task import ORDERS, Item, progress, read_json, refuse_names, refuse_overwrite, rotated
from gar.bench.views import points
from gar.data.sample import replacing, write_whole
from gar.regions import Region, load_image
from gar.show import COLORS

Row = dict[str, Any]  # an item in GAR-Bench's form
End = tuple[str | None, str]  # of a check: "reject", or the letter that is right, or None (undecided); and a note

FORM = ("image", "mask_rles", "question", "choices", "answer", "type")
EASY, BROKEN, MISKEYED = "all answer right", "all answer wrong", "all give the same wrong answer"
UNJUDGED = "kept, with answers of under two models"
UNDECIDED, REJECTED, DISPUTED = "not decided", "rejected", "checkers disagree"
MENDED = "kept, with another answer"
REJECT = "reject"
PAGE_SIDE = 1024  # pixels, of a page's pictures


# --- Items ------------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """The items of a file in GAR-Bench's form, each with an "id" (its index, where it has none).

    Raises:
        ValueError: it is of another form, or an item has no name of its own.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and {*FORM} <= {*row} for row in rows):
        raise ValueError(f"{path}: no items in GAR-Bench's form: make some with `gar bench build candidates`")
    named = [{**row, "id": str(row.get("id", index))} for index, row in enumerate(rows)]
    refuse_names(path, [(row["id"], row["type"]) for row in named])
    return named


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write a file of items, in the place of an older one."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def dealt(rows: Sequence[Row]) -> list[Row]:
    """Items with their letters dealt out and named anew: each letter is right as often as any other, to one, among the
    items of a type with as many choices, and where that leaves a choice, in the type and in the file.

    The name is that of the content: an item that changes gets another, and no run on the old one is taken for it.
    """
    seen: Counter[tuple[Any, ...]] = Counter()
    made = []
    for row in rows:
        item, options = _item(row), len(row["choices"])
        kinds = ((item.type, options), (item.type,), ())
        letter = min(LETTERS[:options], key=lambda x: [seen[(*kind, x)] for kind in kinds])
        seen.update((*kind, letter) for kind in kinds)
        item = rotated(item, (ord(letter) - ord(item.truth)) % options)
        content = [row["image"], row["mask_rles"], row["question"], item.choices]
        name = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        made.append({**row, "choices": [*item.choices], "answer": item.truth, "id": name})
    return made


def contents(rows: Sequence[Row]) -> dict[str, Any]:
    """How many items, by type, number of regions and right letter; "guess": always each type's most frequent letter."""
    prior = letter_prior([row["answer"] for row in rows], [row["type"] for row in rows])
    types = {}
    for kind in sorted(prior):
        some = [row for row in rows if row["type"] == kind]
        types[kind] = {
            "items": len(some),
            "regions": dict(sorted(Counter(len(row["mask_rles"]) for row in some).items())),
            "letters": dict(sorted(Counter(row["answer"] for row in some).items())),
        }
    guess = sum(count for _, count in prior.values()) / len(rows) if rows else 0.0
    return {"items": len(rows), "guess": round(guess, 6), "types": types}


def table(found: dict[str, Any]) -> Table:
    """What a step made, for people: items by type, and how many of them the step says something of, by reason."""
    reasons = found.get("reasons", {})
    shown = Table("", "items", "regions: items", "letters", *reasons, title=f"{found['items']} items")
    for kind in sorted({*found["types"], *(kind for some in reasons.values() for kind in some)}):
        row = found["types"].get(kind, {"items": 0, "regions": {}, "letters": {}})
        cells = [", ".join(f"{key}: {n}" for key, n in row[part].items()) for part in ("regions", "letters")]
        shown.add_row(kind, str(row["items"]), *cells, *(str(some.get(kind, "")) for some in reasons.values()))
    if reasons:
        shown.add_row("all", str(found["items"]), "", "", *(str(sum(some.values())) for some in reasons.values()))
    return shown


def _item(row: Row) -> Item:
    return VQA()._item(row.get("id", ""), row)


class _Sorting:
    """Items of a file that are kept and dropped, and why.

    Raises ValueError where `out`, or the file of the dropped ones, would overwrite the file or one of the `others`.
    """

    def __init__(self, path: Path, out: Path, others: Sequence[Path]) -> None:
        self.beside = out.with_suffix(".dropped.jsonl")
        for made in (out, self.beside):
            refuse_overwrite(made, path, *others)
        self.path, self.out = path, out
        self.kept: list[Row] = []
        self.dropped: list[Row] = []
        self.reasons: Counter[tuple[str, str]] = Counter()

    def keep(self, row: Row, remark: str = "") -> None:
        self.kept.append(row)
        self.reasons.update([(remark, row["type"])] if remark else [])

    def drop(self, row: Row, reason: str) -> None:
        self.dropped.append(row | {"dropped": reason})
        self.reasons[reason, row["type"]] += 1

    def write(self) -> dict[str, Any]:
        """Write what is kept, beside it what is not, and pictures that are not there; gives the account of both."""
        write_rows(self.kept, self.out)
        write_rows(self.dropped, self.beside)
        for row in (*self.kept, *self.dropped):
            here, there = (file.parent / row["image"] for file in (self.path, self.out))
            if here.is_file() and not there.exists() and there.resolve().is_relative_to(self.out.parent.resolve()):
                with replacing(there) as temporary:
                    shutil.copyfile(here, temporary)
        by_reason: dict[str, dict[str, int]] = {}
        for (reason, kind), count in sorted(self.reasons.items()):
            by_reason.setdefault(reason, {})[kind] = count
        return {"dropped": len(self.dropped), "reasons": by_reason, **contents(self.kept)}


# --- Models -----------------------------------------------------------------------------------------------------------


def filtered(path: Path, runs: Sequence[Path], out: Path) -> dict[str, Any]:
    """Keep the items on which models differ. Those that all answer right, or all wrong, go to OUT.dropped.jsonl.

    Args:
        path: of the candidates.
        runs: files of `gar bench run` on them, one for each model. A model that left an item out has no say on it; an
            item with fewer than two answers is kept, and counted.
        out: of the items that are kept. What each model answered stands in "built".

    Returns:
        The contents of the file, and what was dropped or not judged, by reason and type.

    Raises:
        ValueError: under two runs, a run of something else or with choices in another order, or `out` is read as well.
    """
    if len(runs) < 2 or len({run.stem for run in runs}) < len(runs):
        raise ValueError(f"{len(runs)} run(s): give those of two models or more, in files of different names")
    rows = read_rows(path)
    marks = {}
    for run in runs:
        found = scored(VQA(), run, data=path)
        if found["order"] != ORDERS[0]:
            raise ValueError(
                f"{run}: asked with --order {found['order']}, where a letter means another choice: leave it away"
            )
        marks[run.stem] = {one["id"]: one for one in found["items"]}
    sorting = _Sorting(path, out, runs)
    for row in rows:
        mine = {name: found[row["id"]] for name, found in marks.items() if found[row["id"]]["value"] is not None}
        answers = {name: one["answer"] for name, one in mine.items()}
        row = row | {"built": row.get("built", {}) | {"answers": answers}}
        right = sum(one["value"] == 1 for one in mine.values())
        if len(mine) < 2:
            sorting.keep(row, UNJUDGED)
        elif right == len(mine):
            sorting.drop(row, EASY)
        elif not right:
            sorting.drop(row, MISKEYED if len({*answers.values()}) == 1 else BROKEN)
        else:
            sorting.keep(row)
    return sorting.write()


# --- People -----------------------------------------------------------------------------------------------------------


def write_page(path: Path, out: Path) -> int:
    """One HTML page on which a person keeps, rejects or mends each item. It needs no other file and no network.

    Returns:
        The number of items.

    Raises:
        ValueError: a picture is missing; `out` is `path`.
    """
    from jinja2 import Environment

    refuse_overwrite(out, path)
    rows = read_rows(path)
    pictures: dict[str, str] = {}
    items = []
    for row in progress(rows, "building"):
        picture = load_image(path.parent / row["image"])
        item = {key: row[key] for key in ("id", "type", "question", "choices", "answer", "image")}
        items.append(item | {"size": picture.size, "regions": _outlines(picture, _item(row).regions())})
        if row["image"] not in pictures:
            small = picture.copy()
            small.thumbnail((PAGE_SIDE, PAGE_SIDE))
            pictures[row["image"]] = jpeg_url(small)
    names = json.dumps([row["id"] for row in rows])
    content = {"file": hashlib.sha256(names.encode()).hexdigest()[:12], "items": items, "pictures": pictures}
    template = (files("gar") / "assets" / "check.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True).from_string(template).render(title=path.name, content=content)
    write_whole(out, page.encode(errors="replace"))
    return len(rows)


def _outlines(picture: Image.Image, regions: Sequence[Region]) -> list[dict[str, Any]]:
    """Each region's outline as an SVG path, the place of its number, and its color, in pixels of the picture."""
    import cv2

    _, places = points(picture, regions)
    drawn = []
    for number, (region, place) in enumerate(zip(regions, places, strict=True)):
        mask = region.locate(*picture.size).mask.astype(np.uint8)
        lines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        path = "".join(f"M{' '.join(f'{x + 0.5:g},{y + 0.5:g}' for x, y in line[:, 0].tolist())}Z" for line in lines)
        ((x, y),) = place.coordinates
        drawn.append({"path": path, "x": x, "y": y, "color": "rgb({},{},{})".format(*COLORS[number % len(COLORS)])})
    return drawn


def collect(path: Path, decisions: Sequence[Path], out: Path) -> dict[str, Any]:
    """The final benchmark: the items that more than half of their checkers keep, with the answer that these give.

    What is rejected, undecided, or on which checkers disagree goes to OUT.dropped.jsonl. Letters are dealt out anew,
    since what was dropped may have left more of one; so items are named anew as well.

    Args:
        path: of the items that the page showed.
        decisions: the pages' downloads, one for each checker.

    Returns:
        The contents of the file, what was dropped or mended by reason and type, and "agreement": for each pair of
        checkers, Cohen's kappa on keeping, rejecting and each other answer.

    Raises:
        ValueError: a file is no page's download, of other items, or a second one of the same checker; `out` is read.
    """
    rows = read_rows(path)
    checkers = _read_decisions(decisions, {row["id"]: row for row in rows})
    sorting = _Sorting(path, out, decisions)
    for row in rows:
        said = {name: ends[row["id"]] for name, ends in checkers.items() if row["id"] in ends}
        votes = Counter(end for end, _ in said.values() if end)
        checked = {name: {"decision": end, "note": note} for name, (end, note) in said.items()}
        row = row | {"built": row.get("built", {}) | {"candidate": row["id"], "checked": checked}}
        end, most = votes.most_common(1)[0] if votes else ("", 0)
        if not votes:
            sorting.drop(row, UNDECIDED)
        elif 2 * most <= votes.total():
            sorting.drop(row, DISPUTED)
        elif end == REJECT:
            sorting.drop(row, REJECTED)
        else:
            sorting.keep(row | {"answer": end}, MENDED if end != row["answer"] else "")
    sorting.kept = dealt(sorting.kept)
    found = sorting.write()
    pictures = [_item(row).picture for row in rows]
    agreement = {}
    for first, second in combinations(checkers, 2):
        one, other = ([_verdict(checkers[name], row) for row in rows] for name in (first, second))
        agreement[f"{first} and {second}"] = kappa(one, other, pictures).json()
    return found | {"agreement": agreement}


def _verdict(ends: dict[str, End], row: Row) -> str | None:
    """What a checker decided on an item, in words that two can agree on: "keep", "reject", or another letter."""
    end, _ = ends.get(row["id"], (None, ""))
    return "keep" if end == row["answer"] else end


def _read_decisions(paths: Sequence[Path], rows: dict[str, Row]) -> dict[str, dict[str, End]]:
    """The ends of the items by checker."""
    checkers: dict[str, dict[str, End]] = {}
    for path in paths:
        content = read_json(path)
        name = content.get("checker") if isinstance(content, dict) else None
        if not isinstance(name, str) or not name or not isinstance(content.get("decisions"), dict):
            raise ValueError(f'{path}: no "checker" and "decisions": expected what the page of `build page` downloads')
        if name in checkers:
            raise ValueError(f"{path}: a second file of the checker {name!r}: give one for each")
        ends = checkers.setdefault(name, {})
        for item, said in content["decisions"].items():
            if item not in rows:
                raise ValueError(f"{path}: decides on {item}, which is not among the items: is it of another page?")
            ends[item] = _end(said, rows[item], f"{path}: {item}")
    return checkers


def _end(said: Any, row: Row, where: str) -> End:
    """{"decision": "keep", "reject", "fix" or null, "answer": letter, "note": text} -> how it ends, and the note."""
    said = said if isinstance(said, dict) else {}
    letters = [choice[0] for choice in row["choices"]]
    match said.get("decision", ""):
        case None:
            end = None
        case "keep":
            end = row["answer"]
        case "reject":
            end = REJECT
        case "fix" if said.get("answer") in letters:
            end = said["answer"]
        case _:
            known = f'"keep", "reject", or "fix" with an answer among {", ".join(letters)}'
            raise ValueError(f"{where} is decided as {json.dumps(said)[:80]}: expected {known}")
    return end, str(said.get("note", ""))
