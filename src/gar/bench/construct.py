"""Candidates for a benchmark, as those of GAR-Bench: multiple choice about regions, made from scene graphs by rules.

A rule says only what the graph says; what its wrong options rule out is ours, so people check them (`gar.bench.check`).
Knows records with a scene graph; knows no model and no renderer.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, permutations
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from gar.bench.check import Row, contents, dealt, write_rows
from gar.bench.flags import PUBLISHED_PROMPTS
from gar.bench.judges import LETTERS
from gar.bench.task import progress
from gar.data.annotated import FILE, name_it
from gar.data.packing import renumber
from gar.data.sample import Sample, Unusable, write_whole
from gar.data.stream import Data
from gar.regions import Box, Region, prompt_name, prompts_named

MIN_AREA = 0.005  # of the picture: smaller regions are not asked about
MATERIAL_AREA = 0.014  # the same for what a thing is made of, which needs more to be seen
MAX_OVERLAP = 0.2  # of the smaller of two regions of an item
SEEN = 0.5  # the share of a thing that must be in view, where that is known; of one that the frame cuts, more:
SEEN_CUT = 0.75


# --- Scene graphs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A region that is large enough and in view. share: of the picture. facts: as `scene_graph` knows them."""

    mask: dict[str, Any]
    box: Box
    share: float
    facts: dict[str, Any]

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


@dataclass(frozen=True)
class Graph:
    """What is known of a picture.

    nodes: the regions that may be asked about, by their number in the record.
    relations: (i, predicate, j): region i is PREDICATE region j, both among the nodes.
    rows: regions that stand in a row, from left to right, all of them, nodes or not.
    """

    size: tuple[int, int]
    nodes: dict[int, Node]
    relations: list[tuple[int, str, int]]
    rows: list[list[int]]

    def of_kind(self, kind: str) -> list[int]:
        return [k for k, node in self.nodes.items() if node.facts.get("kind", "object") == kind]


_RELATION = re.compile(r"<Prompt(\d+)> is (.+) <Prompt(\d+)>\.")


def scene_graph(sample: Sample, min_area: float = MIN_AREA) -> Graph:
    """The scene graph of a record.

    It stands in the record's `meta`: "things", one for each mask ("category", "color", "shape", "material", "pattern",
    "kind": object, reflection or picture, "of": the thing that a reflection shows, "depth", "visible", "clipped"; all
    may be absent), "relations" [[i, predicate, j]] and "rows" [[i, ...]], as of rendered scenes. Else it is read from
    what is said: names, and relations as "<Prompt0> is PREDICATE <Prompt1>.", as of PSG.

    Raises:
        Unusable: there is none, or it is not about the masks.
    """
    try:
        return _read_graph(sample, min_area)
    except Unusable:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # anything may stand in `meta`
        raise Unusable("malformed record", f"its scene graph: {type(error).__name__}: {error}") from error


def _read_graph(sample: Sample, min_area: float) -> Graph:
    things: Any
    things, relations = sample.meta.get("things"), sample.meta.get("relations", [])
    if things is None:
        said = {turn.question: turn.answer for turn in sample.turns if turn.type == "name"}
        things = [{"category": said.get(name_it(k))} for k in range(len(sample.masks))]
        found = [_RELATION.fullmatch(turn.answer) for turn in sample.turns if turn.type == "relation"]
        relations = relations or [(int(one[1]), one[2], int(one[3])) for one in found if one]
        if not said and not relations:
            raise Unusable("no scene graph", 'no "things" in meta, no names and no relations')
    words = [facts.get(key) for facts in things for key in ("category", *(key for key, _ in _ATTRIBUTES.values()))]
    if wrong := [word for word in (*words, *(word for _, word, _ in relations)) if not isinstance(word, str | None)]:
        raise TypeError(f"{wrong[0]!r} is no text")
    numbers = [k for i, _, j in relations for k in (i, j)] + [k for row in sample.meta.get("rows", []) for k in row]
    if len(things) != len(sample.masks) or any(not 0 <= k < len(things) for k in numbers):
        raise Unusable("graph of other regions", f"it has {len(things)} things, the picture {len(sample.masks)} masks")
    width, height = sample.size()
    nodes = {}
    for k, (mask, facts) in enumerate(zip(sample.masks, things, strict=True)):
        found = Region.rle(mask).locate(width, height)
        share = found.area / (width * height)
        if share >= min_area and facts.get("visible", 1) >= (SEEN_CUT if facts.get("clipped") else SEEN):
            nodes[k] = Node(found.rle(), found.box, share, facts)
    there = [(i, _SYNONYMS.get(word, word), j) for i, word, j in relations if {i, j} <= {*nodes} and i != j]
    return Graph((width, height), nodes, there, sample.meta.get("rows", []))


# --- Rules: from a graph to questions ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Draft:
    """A question whose `<PromptN>` is still region N of the record; it names every region of its options.

    asks: the value that is right, which is kept even over the file.
    """

    type: str
    rule: str
    question: str
    right: str
    wrong: Sequence[str]
    asks: str = ""


_ATTRIBUTES = {
    "color": ("color", "What is the color of {}?"),
    "shape": ("shape", "What is the shape of {}?"),
    "texture/pattern": ("pattern", "What is the texture/pattern of {}?"),
    "material": ("material", "What is the material of {}?"),
}
_WORDS = {  # wrong options, where the picture itself shows too few other values
    "color": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "gray", "white", "black"),
    "shape": ("sphere", "cube", "cylinder", "cone", "torus", "pyramid"),
    "texture/pattern": ("plain", "striped", "checkered", "dotted", "floral", "zigzag"),
    "material": ("metal", "plastic", "glass", "wood", "fabric", "stone"),
}


def attributes(graph: Graph, rng: Random) -> Iterator[Draft]:
    """Color, shape, texture/pattern, material of one region; wrong are first the values of others in the picture."""
    for kind, (key, question) in _ATTRIBUTES.items():
        values = {k: node.facts[key] for k, node in graph.nodes.items() if node.facts.get(key)}
        for k, value in values.items():
            if kind == "material" and graph.nodes[k].share < MATERIAL_AREA:
                continue
            others = [*_shuffled(sorted({*values.values()}), rng), *_shuffled(_WORDS[kind], rng)]
            wrong = [word for word in dict.fromkeys(others) if not _may_both(word, value)]
            right, *texts = (_sentence(word) for word in (value, *wrong[:3]))
            yield Draft(kind, f"{key} of a region", question.format(prompt_name(k)), right, texts, value)


def _may_both(one: str, other: str) -> bool:
    """Whether two values share a word, or its stem: "blue" and "light blue", "wood" and "wooden"."""
    return any(a.startswith(b) or b.startswith(a) for a in one.split() for b in other.split())


_KINDS = {
    "object": "A real object.",
    "reflection": "A reflection in a mirror.",
    "picture": "Part of a picture.",
}
_ONLY = {"reflection": "Which one among {} is in the mirror?", "picture": "Which one among {} is in a picture?"}


def non_entities(graph: Graph, rng: Random) -> Iterator[Draft]:
    """What is only a reflection (type "mirror") or only a picture, and what a reflection shows."""
    real = graph.of_kind("object")
    for kind, question in _ONLY.items():
        name = "mirror" if kind == "reflection" else kind
        there = graph.of_kind(kind)
        for k in there if real else ():
            facts = graph.nodes[k].facts
            source = [facts["of"]] if facts.get("of") in real else []
            others = (source + [other for other in _shuffled(real, rng) if other not in source])[:3]
            yield _which(name, f"the only {kind}", question, k, others, rng)
            unlike = [other for other in real if source and not _alike(graph, other, source[0])]
            if unlike:
                asked = f"Which one among {{}} is seen in the mirror as {prompt_name(k)}?"
                yield _which(name, "the source of a reflection", asked, source[0], _shuffled(unlike, rng)[:3], rng)
        for k in [*there, *(real if there else ())]:
            text = _KINDS[graph.nodes[k].facts.get("kind", "object")]
            wrong = [other for other in _KINDS.values() if other != text]
            yield Draft(name, "the kind of a region", f"What does {prompt_name(k)} mark?", text, wrong, text)


def position(graph: Graph, rng: Random) -> Iterator[Draft]:
    """On which side of another region one is, in the picture; and which one is nearest, where depths are known."""
    ids = _compact(graph)
    for i, j in permutations(ids, 2):
        if side := _side(graph.nodes[i].box, graph.nodes[j].box):
            texts = {word: _sentence(f"{word} {prompt_name(j)}") for word in _SIDES}
            wrong = [text for word, text in texts.items() if word != side]
            question = f"Where in the picture is {prompt_name(i)}, compared to {prompt_name(j)}?"
            yield Draft("position", "the side of another region", question, texts[side], wrong, side)
    deep = [k for k in graph.of_kind("object") if "depth" in graph.nodes[k].facts]
    for _ in range(2 if len(deep) >= 3 else 0):
        some = rng.sample(deep, min(len(deep), rng.choice((3, 4))))
        first, second, *_ = sorted(some, key=lambda k: graph.nodes[k].facts["depth"])
        depths = [graph.nodes[k].facts["depth"] for k in (first, second)]
        apart = [graph.nodes[k].facts.get("radius", 0) / 2 for k in (first, second)]
        if depths[1] - depths[0] > max(sum(apart), 0.05 * depths[0]):
            others = [k for k in some if k != first]
            question = "Which one among {} is the closest to the camera?"
            yield _which("position", "the nearest region", question, first, others, rng)


_SIDES = ("to the left of", "to the right of", "above", "below")


def _side(one: Box, other: Box) -> str | None:
    """The one of `_SIDES` that no viewer doubts: apart along one axis, and level along the other."""
    for axis, words in ((0, _SIDES[:2]), (1, _SIDES[2:])):
        across = 1 - axis
        middles = [(box[across] + box[across + 2]) / 2 for box in (one, other)]
        level = other[across] <= middles[0] <= other[across + 2] and one[across] <= middles[1] <= one[across + 2]
        if level and one[axis + 2] <= other[axis]:
            return words[0]
        if level and other[axis + 2] <= one[axis]:
            return words[1]
    return None


_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def ordering(graph: Graph, rng: Random) -> Iterator[Draft]:
    """Places from the left: of one among three to five, of all of them, and of one in its row, from either end."""
    compact = [k for k in _compact(graph) if k in graph.of_kind("object")]
    names = Counter(graph.nodes[k].facts.get("category") for k in compact)
    groups = [
        [k for k in compact if graph.nodes[k].facts.get("category") == name] for name, n in names.items() if n > 2
    ]
    for group in groups or [compact]:  # among things of one name a question is hardest
        some = rng.sample(group, min(len(group), rng.choice((3, 4, 5))))
        order = sorted(some, key=lambda k: graph.nodes[k].centre)
        if len(order) < 3 or not all(_left(graph, i, j) for i, j in zip(order, order[1:], strict=False)):
            continue
        listed = _list(_shuffled(order, rng), "and")
        place = rng.randrange(len(order))
        texts = [f"The {word}." for word in _ORDINALS[: len(order)]]
        question = f"Counting {listed} from left to right, which position does {prompt_name(order[place])} have?"
        wrong = _shuffled([text for text in texts if text != texts[place]], rng)[:3]
        yield Draft("ordering", "a place among regions", question, texts[place], wrong, texts[place])
        right, *texts = [", ".join(map(prompt_name, ids)) for ids in (order, order[::-1])]
        more = [", ".join(map(prompt_name, ids)) for ids in permutations(order)]
        texts += _shuffled([text for text in more if text not in (right, *texts)], rng)[:2]
        yield Draft(
            "ordering", "the order of regions", f"In which order are {listed}, from left to right?", right, texts
        )
    for row in graph.rows:
        for k in row:
            if k in graph.nodes and 3 <= len(row) <= len(_ORDINALS):
                place = row.index(k)
                right, *wrong = _row_places(place, len(row), rng)
                question = f"Which position does {prompt_name(k)} have in the row that it is part of?"
                yield Draft("ordering", "a place in a row", question, right, wrong, _ORDINALS[place])


def _row_places(place: int, length: int, rng: Random) -> list[str]:
    """A place in a row, counted from either end, and three others that are none of its names."""
    from_left = [f"The {_ORDINALS[k]} one counting from the left." for k in range(length)]
    from_right = [f"The {_ORDINALS[length - 1 - k]} one counting from the right." for k in range(length)]
    near = _shuffled([k for k in range(length) if abs(k - place) <= 2 and k != place], rng)
    wrong = [rng.choice((from_left, from_right))[k] for k in near[:3]]
    if len(wrong) < 3:  # only two places are near: one of them, from the other end
        wrong.append({from_left[near[0]], from_right[near[0]]}.difference(wrong).pop())
    return [rng.choice((from_left, from_right))[place], *wrong]


# Words for how one region is to another, by what excludes what. A word makes a wrong option only where the right one
# rules it out, either way round; people differ on the rest (is it "on" the bowl or "in" it?), and annotators name one
# relation of many. Two words exclude each other: were only one of them ever wrong beside the other, it would be known.
_SYNONYMS = {"inside": "in", "next to": "beside"}
_POSTURES = (
    *("standing on", "sitting on", "lying on", "walking on", "running on", "climbing", "jumping over", "flying over"),
    *("parked on", "driving on", "falling off"),
)
_MOVES = ("entering", "exiting", "crossing", "going down", "jumping from")
_DEEDS = ("wearing", "riding", "chasing", "kicking", "pulling", "eating", "cleaning")
_PLACES = (
    *(("on", "beside"), ("on", "in front of"), ("on", "behind"), ("on back of", "beside"), ("over", "beside")),
    *(("in", "leaning on"), ("in", "hanging from"), ("in", "in front of"), ("in", "behind"), ("in", "over")),
    *(("under", "beside"), ("under", "in"), ("under", "leaning on"), ("over", "leaning on"), ("enclosing", "beside")),
    *(("hanging from", "beside"), ("hanging from", "leaning on"), ("painted on", "leaning on"), ("enclosing", "over")),
    *(("attached to", "leaning on"), ("attached to", "over"), ("painted on", "hanging from")),
)
_EXCLUDED: dict[str, list[str]] = {}
for _one, _other in chain(_PLACES, *(combinations(group, 2) for group in (_POSTURES, _MOVES, _DEEDS))):
    _EXCLUDED.setdefault(_one, []).append(_other)
    _EXCLUDED.setdefault(_other, []).append(_one)
_EXCLUDED["driving"] = ["wearing", "chasing"]
_OTHER_DEEDS = ["wearing", "riding", "chasing"]  # hardly true together with any deed that is not listed
_EITHER_WAY = {"beside", "attached to", "kissing", "talking to", "playing with", "touching", "looking at"}


def relations(graph: Graph, rng: Random) -> Iterator[Draft]:
    """One relation of two regions; and which statement of two or three relations, of three regions or more, is right.

    The options of a statement hold each of its parts as often as what is false in that part's place: the commonest part
    is not the right one.
    """
    for clause in graph.relations:
        i, word, j = clause
        wrong = _wrong_clauses(graph, clause, rng)
        if len(wrong) >= 2:
            question = f"What is the relation between {_list(_shuffled((i, j), rng), 'and')}?"
            texts = [_sentence(_say(one)) for one in (clause, *wrong)]
            yield Draft("relation", "one relation", question, texts[0], texts[1:], word)
    for number, kept in ((2, ((0, 1), (1, 0), (0, 0))), (3, ((1, 0, 0), (0, 1, 0), (0, 0, 1)))):
        some = rng.sample(graph.relations, min(len(graph.relations), 20))
        sets = [clauses for clauses in combinations(some, number) if _fit_together(clauses)]
        for clauses in rng.sample(sets, min(len(sets), 6)):
            ids = list(dict.fromkeys(k for i, _, j in clauses for k in (i, j)))
            false = [_false_clause(graph, clause, ids, rng) for clause in clauses]
            if None in false or len({*false}) < number:
                continue
            options = [clauses, *([(f, c)[k] for k, c, f in zip(row, clauses, false, strict=True)] for row in kept)]
            texts = [_sentence(", and ".join(map(_say, one))) for one in options]
            question = f"Which statement about {_list(_shuffled(ids, rng), 'and')} is right?"
            asks = ", ".join(sorted(word for _, word, _ in clauses))
            yield Draft("relation", f"{number} relations", question, texts[0], texts[1:], asks)


def _fit_together(clauses: Sequence[tuple[int, str, int]]) -> bool:
    """Three to five regions, and no two clauses of the same two."""
    pairs = [{i, j} for i, _, j in clauses]
    several = 3 <= len(set().union(*pairs)) <= PUBLISHED_PROMPTS
    return several and all(one != other for one, other in combinations(pairs, 2))


def _wrong_clauses(graph: Graph, clause: tuple[int, str, int], rng: Random) -> list[tuple[int, str, int]]:
    """The other clauses of the same two regions with the right word or one that it excludes, both ways round: the same
    options as if another of them were right."""
    i, word, j = clause
    others = [other for other in _EXCLUDED.get(word, _OTHER_DEEDS) if not _held(graph, i, other, j)]
    if word in _EITHER_WAY:
        others = [other for other in others if other not in _EITHER_WAY]
    made = [] if word in _EITHER_WAY or (j, word, i) in graph.relations else [(j, word, i)]
    if others:
        other = rng.choice(others)
        ways = _shuffled([(i, other, j), (j, other, i)], rng)
        made += ways[:1] if other in _EITHER_WAY else ways
    return made


def _held(graph: Graph, i: int, word: str, j: int) -> bool:
    return (i, word, j) in graph.relations or (j, word, i) in graph.relations


def _false_clause(
    graph: Graph, clause: tuple[int, str, int], ids: Sequence[int], rng: Random
) -> tuple[int, str, int] | None:
    """A clause in the place of another that is false of these regions; deeds may be given to another doer."""
    i, word, j = clause
    made = _wrong_clauses(graph, clause, rng)
    if word not in _EXCLUDED or word in _DEEDS:
        made += [(k, word, j) for k in ids if k not in (i, j) and not _held(graph, k, word, j)]
    return rng.choice(made) if made else None


def _say(clause: tuple[int, str, int]) -> str:
    i, word, j = clause
    return f"{prompt_name(i)} is {word} {prompt_name(j)}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _list(ids: Sequence[int], last: str) -> str:
    names = [prompt_name(k) for k in ids]
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def _shuffled(some: Iterable[Any], rng: Random) -> list[Any]:
    some = list(some)
    return rng.sample(some, len(some))


def _which(kind: str, rule: str, question: str, right: int, others: Sequence[int], rng: Random) -> Draft:
    """A question with the regions themselves as options; "{}" is where it lists them."""
    ids = _shuffled([right, *others], rng)
    return Draft(kind, rule, question.format(_list(ids, "or")), prompt_name(right), [prompt_name(k) for k in others])


def _alike(graph: Graph, one: int, other: int) -> bool:
    """Two things that nothing known tells apart."""
    keys = ("category", "color", "shape", "material", "pattern")
    return all(graph.nodes[one].facts.get(key) == graph.nodes[other].facts.get(key) for key in keys)


def _compact(graph: Graph) -> list[int]:
    """The regions that stand in one place, unlike sky or grass."""
    area = graph.size[0] * graph.size[1]
    boxes = {k: (x1 - x0) * (y1 - y0) / area for k, node in graph.nodes.items() for x0, y0, x1, y1 in [node.box]}
    return [k for k, node in graph.nodes.items() if boxes[k] <= 0.5 and node.share >= 0.3 * boxes[k]]


def _left(graph: Graph, i: int, j: int) -> bool:
    """Whether region i is to the left of region j for every viewer."""
    one, other = graph.nodes[i], graph.nodes[j]
    apart = other.centre[0] - one.centre[0] > 0.06 * graph.size[0]
    return apart and one.box[0] < other.box[0] and one.box[2] < other.box[2]


RULES: tuple[Callable[[Graph, Random], Iterator[Draft]], ...] = (
    attributes,
    non_entities,
    position,
    ordering,
    relations,
)


# --- Candidates -------------------------------------------------------------------------------------------------------


def candidates(
    data: Data,
    out: Path,
    *,
    num: int | None = None,
    per_picture: int = 2,
    min_area: float = MIN_AREA,
    max_overlap: float = MAX_OVERLAP,
    seed: int = 0,
) -> dict[str, Any]:
    """Ask about every record with a scene graph, and write the questions as JSON Lines, their pictures beside.

    Of what a picture allows, the types, rules and right answers that are rarest so far come first, and one item of a
    type at most; so the file is as even as the data allow. It depends on data, limits and seed alone.

    Args:
        num: of items, at most; without, all records are read.
        per_picture: items of one picture, at most.
        min_area: of a region, as a share of the picture.
        max_overlap: of two regions of an item, as a share of the smaller.

    Returns:
        The contents of the file, how many records were read, and by reason what of them was not used.

    Raises:
        ValueError: no record gives an item.
    """
    rows: list[Row] = []
    unused: Counter[str] = Counter()
    asked: Counter[tuple[str, ...]] = Counter()
    seen = set()
    records = 0
    for record, sample in progress(data.records(), "building", data.num_records()):
        records += 1
        record = record.rpartition("/")[2]
        rng = Random(f"{seed}/{record}")
        try:
            graph = scene_graph(sample, min_area)
        except Unusable as error:
            unused[error.reason] += 1
            continue
        picture = hashlib.sha256(sample.image).hexdigest()[:16]
        if picture in seen:
            unused["the picture of an earlier record"] += 1
            continue
        seen.add(picture)
        drafts = _shuffled((draft for rule in RULES for draft in rule(graph, rng)), rng)
        chosen = []
        while drafts and len(chosen) < per_picture:
            draft = min(drafts, key=lambda d: [asked[key] for key in _keys(d)])
            if _fits(draft, graph, max_overlap):
                asked.update(_keys(draft))
                chosen.append(draft)
                drafts = [other for other in drafts if other.type != draft.type]
            else:
                drafts.remove(draft)
        if not chosen:
            unused["no question within the limits"] += 1
            continue
        name = f"images/{picture}.{(Image.open(io.BytesIO(sample.image)).format or 'png').lower()}"
        write_whole(out.parent / name, sample.image)
        origin = {"record": record, "source": sample.source, "licence": sample.licence}
        for draft in chosen:
            row, ids = _row(draft, graph, rng)
            built = origin | {"regions": ids, "rule": draft.rule, "seed": seed}
            rows.append({"image_path": sample.meta.get(FILE, record), "image": name, **row, "built": built})
        if num and len(rows) >= num:
            rows = rows[:num]
            break
    unused += data.rejects.counts()
    if not rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in unused.most_common())
        raise ValueError(f"no candidate: {reasons or 'no records'} (scene graphs are those of PSG, or in `meta`)")
    rows = dealt(rows)
    write_rows(rows, out)
    return {"records": records, "unused": unused, **contents(rows)}


def _keys(draft: Draft) -> list[tuple[str, ...]]:
    """What is kept even, the most important first."""
    return [(draft.type,), (draft.type, draft.rule), (draft.type, draft.rule, draft.asks)]


def _fits(draft: Draft, graph: Graph, max_overlap: float) -> bool:
    """No more regions than published checkpoints mark, and none that lies on another."""
    from pycocotools import mask as coco

    masks = [graph.nodes[k].mask for k in prompts_named(draft.question)]
    if len(masks) > PUBLISHED_PROMPTS:
        return False
    for pair in combinations(masks, 2):
        both, one, other = (int(coco.area(m)) for m in (coco.merge([*pair], intersect=True), *pair))  # type: ignore
        if both > max_overlap * min(one, other):
            return False
    return True


def _row(draft: Draft, graph: Graph, rng: Random) -> tuple[Row, list[int]]:
    """A draft in GAR-Bench's form, its regions numbered as the question names them; and their numbers in the record."""
    ids = [int(k) for k in dict.fromkeys(re.findall(r"<Prompt(\d+)>", draft.question))]
    assert {*ids} >= {k for text in (draft.right, *draft.wrong) for k in prompts_named(text)}, draft
    numbers = {k: number for number, k in enumerate(ids)}
    texts = _shuffled([draft.right, *draft.wrong], rng)
    assert len({*texts}) == len(texts) > 1, draft
    row = {
        "mask_rles": [graph.nodes[k].mask for k in ids],
        "question": renumber(draft.question, numbers),
        "choices": [f"{letter}. {renumber(text, numbers)}" for letter, text in zip(LETTERS, texts, strict=False)],
        "answer": LETTERS[texts.index(draft.right)],
        "type": draft.type,
    }
    return row, ids
