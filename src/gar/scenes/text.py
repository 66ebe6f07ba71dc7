"""Questions, options, answers and captions about a rendered scene, from its facts alone.

Says only what is certain: things clearly seen, sides and depths with a margin, counts where nothing is half hidden.
Knows no pixel and no model. `<PromptN>` always names `facts["things"][N]`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import permutations
from random import Random
from typing import Any

from gar.data.sample import Turn
from gar.scenes import questions as ask
from gar.scenes.grammar import (
    ATTRIBUTES,
    CATEGORIES,
    CATEGORY_WORDS,
    INVERSE,
    NUMBERS,
    ORDINALS,
    RELATIONS,
    SAY,
    WORDS,
    Facts,
    Thing,
    a,
    centre,
    check_caption,
    normalise,
    phrase,
    plural,
    relations,
)

__all__ = ["ATTRIBUTES", "CATEGORIES", "check_caption", "drill", "normalise", "talk"]

MIN_AREA = 0.0012  # of the picture, below which nothing is said of a thing
COLOR_AREA = 0.003  # of the picture, below which nobody is asked for a color
FORM_AREA = 0.008  # of the picture, below which nothing is said of form or pattern
MATERIAL_AREA = 0.016  # of the picture, below which one cannot see what a thing is made of

# Contact words that a viewer could also use for another one: never offered against it.
CLASH = {
    "on": {"leaning on", "contains"},
    "under": {"contains"},
    "inside": {"on", "next to"},
    "contains": {"under", "next to"},
    "leaning on": {"on", "next to"},
    "next to": {"leaning on"},
}
CONTACTS = tuple(CLASH)
NOTHING = "none"  # noted down where no thing fits
# The second color of a pattern is one of these, or a darker shade of the first.
NEUTRAL = ("white", "black", "gray")
# Where an order along an axis may be counted from: its own end first.
ENDS = {"left": ("left", "right"), "front": ("front", "back")}
# What makes things one group to count.
GROUPS = (("category",), ("color",), ("material",), ("pattern",), ("color", "category"), ("material", "category"))


def talk(facts: Facts, rng: Random, num_turns: int = 40) -> list[Turn]:
    """Independent questions and answers about one scene, relations twice as often as other types.

    Half of the questions that can be are multiple choice; some are written carelessly (case, spaces, question mark).
    A scene that gives little to say gives fewer turns. Captions are silent about what `facts["unsure"]` names, if it is
    there: for each thing, attributes that the one who is to learn from it could only guess at.
    """
    turns: list[Turn] = []
    seen = set()
    writers: list[Callable[[Facts, Random], Turn | None]] = []
    for _ in range(4 * num_turns):
        if len(turns) == num_turns:
            break
        writers = writers or rng.sample(WRITERS, len(WRITERS))
        writer = writers.pop()
        turn = next(filter(None, (writer(facts, rng) for _ in range(6))), None)
        if turn and (turn.question, turn.choices) not in seen:
            seen.add((turn.question, turn.choices))
            turns.append(replace(turn, question=_careless(turn.question, rng)))
    return turns


def drill(facts: Facts, rng: Random, num_turns: int = 144) -> list[Turn]:
    """Short open questions, most of which compare regions, one wording a type.

    A small model that hears many ways to say it, and much else between, takes very long to compare anything at all.
    """
    turns = (DRILLS[k % len(DRILLS)](facts, rng) for k in range(num_turns))
    return [*dict.fromkeys(turn for turn in turns if turn)]


def _careless(question: str, rng: Random) -> str:
    """The question as somebody in a hurry might type it."""
    if rng.random() < 0.15:
        question = question.lower().replace("<prompt", "<Prompt")
    if rng.random() < 0.15:
        question = question.rstrip("?.")
    if rng.random() < 0.08:
        question = question.replace(" <Prompt", "<Prompt")
    if rng.random() < 0.08:
        question = re.sub(r"(<Prompt\d+>)", r" \1 ", question)
    if rng.random() < 0.05:
        question = re.sub(r"\?$", " ?", question)
    return f"Question: {question}" if rng.random() < 0.08 else question


# What is certain


def _clear(facts: Facts, *kinds: str, seen: float = 0.35, share: float = MIN_AREA) -> list[int]:
    """The things (of some kinds) of which at least `seen` is seen, on at least `share` of the picture."""
    least = share * facts["size"][0] * facts["size"][1]
    return [
        i
        for i, thing in enumerate(facts["things"])
        if thing["visible"] >= seen and thing["area"] >= least and (not kinds or thing["kind"] in kinds)
    ]


def _whole(facts: Facts, *kinds: str) -> list[int]:
    """The things seen well enough to say what they are; of those cut by the frame, most must be inside."""
    ids = _clear(facts, *kinds, seen=0.5, share=FORM_AREA)
    return [i for i in ids if not facts["things"][i]["clipped"] or facts["things"][i]["visible"] >= 0.75]


def _telling(facts: Facts, ids: Iterable[int], name: str) -> list[int]:
    """Those of the things that are large enough to show this attribute: what a thing is made of needs the most."""
    least = MATERIAL_AREA * facts["size"][0] * facts["size"][1] if name == "material" else 0
    return [i for i in ids if facts["things"][i]["area"] >= least]


def _phrase(facts: Facts, i: int, *left_out: str) -> str:
    """Thing i in words, but without these attributes, those that `talk` is to leave out, and a material that cannot be
    seen."""
    unsure = facts["unsure"][i] if "unsure" in facts else ()
    unseen = () if _telling(facts, [i], "material") else ("material",)
    return phrase(facts["things"][i] | dict.fromkeys((*left_out, *unsure, *unseen)))


def _brief(facts: Facts, i: int) -> str:
    """Thing i in as few words as tell it from most others, for where something else is described."""
    return _phrase(facts, i, "material", "pattern")


def _sized(facts: Facts) -> bool:
    """Whether something small and something large can be seen, so that the words mean something."""
    return {"small", "large"} <= {facts["things"][i]["size"] for i in _whole(facts, "object")}


def _countable(facts: Facts) -> list[int]:
    """The real objects in the picture, or none if one is half hidden so that people would count differently."""
    clear = _clear(facts)
    if facts.get("hidden") or any(thing["area"] > 0 and i not in clear for i, thing in enumerate(facts["things"])):
        return []
    return [i for i in clear if facts["things"][i]["kind"] == "object"]


def _to_count(facts: Facts) -> list[int]:
    """`_countable`, or none if one of them is not seen well, or they are too many."""
    countable = _countable(facts)
    return countable if len(countable) < len(NUMBERS) and {*countable} <= {*_whole(facts, "object")} else []


def _line(facts: Facts, ids: Iterable[int], axis: str) -> list[int] | None:
    """The things from the left ("left") or from the front ("front"), or None if any two neighbours are too close."""
    things = facts["things"]
    key = centre if axis == "left" else lambda thing: thing["depth"]
    order = sorted(ids, key=lambda i: key(things[i]))
    certain = all(axis in relations(facts, i, j) for i, j in zip(order, order[1:], strict=False))
    return order if certain else None


def _counted(
    facts: Facts, rng: Random, ids: Iterable[int], axis: str, least: int = 3
) -> tuple[list[int], str, int] | None:
    """The things from one of the two ends, that end, and a place among them; None for fewer than `least`, for more than
    can be counted, or where any two neighbours are too close."""
    order = _line(facts, ids, axis)
    if not order or not least <= len(order) <= len(ORDINALS):
        return None
    end = rng.choice(ENDS[axis])
    return order if end == axis else order[::-1], end, rng.randrange(len(order))


def _surely_not(thing: Thing, name: str, value: str) -> bool:
    """Whether nobody would say this value of the thing."""
    second = name == "color" and value in NEUTRAL and thing["pattern"] != "plain"
    return thing[name] not in (value, None) and not second


def _spread(facts: Facts, ids: Sequence[int], name: str, rng: Random) -> int | None:
    """A thing whose value of the attribute is drawn first, so that rare values are asked about as often."""
    values = sorted({facts["things"][i][name] for i in ids} - {None})
    if not values:
        return None
    value = rng.choice(values)
    return rng.choice([i for i in ids if facts["things"][i][name] == value])


# How it is asked


def _name(i: int) -> str:
    return f"<Prompt{i}>"


def _list(ids: Sequence[int], rng: Random, last: str = "or") -> str:
    names = [_name(i) for i in ids]
    separator = rng.choice((f" {last} ", f" {last} ", f", {last} ", ", ")) if len(ids) > 2 else f" {last} "
    return ", ".join(names[:-1]) + separator + names[-1]


def _ask(rng: Random, kind: str, question: str, answer: str, right: str = "", wrong: Sequence[str] = ()) -> Turn:
    """An open turn, or as often one with options: the right text among some of the wrong ones."""
    if not wrong or rng.random() < 0.5:
        return Turn(question, answer, kind)
    return _choose(rng, kind, question, right, wrong)


def _choose(rng: Random, kind: str, question: str, right: str, wrong: Sequence[str]) -> Turn:
    options = [right, *rng.sample(wrong, min(len(wrong), rng.choice((1, 2, 3, 3, 3, 3))))]
    if rng.random() < 0.5:
        options = [option[:1].upper() + option[1:] for option in options]
    if rng.random() < 0.25:
        options = [f"{option}." for option in options]
    right = options[0]
    rng.shuffle(options)
    return Turn(question, right, kind, tuple(options))


def _yes_no(rng: Random, kind: str, question: str, holds: bool) -> Turn:
    forms = rng.choice((("yes", "no"), ("yes", "no"), ("yes, that is right", "no, that is wrong")))
    return _ask(rng, kind, question, ("no", "yes")[holds], forms[not holds], [forms[holds]])


def _which(rng: Random, kind: str, question: str, right: int, ids: Sequence[int]) -> Turn:
    """A question whose answer is one of the regions `ids`, all of which it names."""
    frame = rng.choice(("{}", "{}", "{}", "it is {}", "the object in {}", "only {}"))
    wrong = [frame.format(_name(i)) for i in ids if i != right]
    return _ask(rng, kind, question, _name(right), frame.format(_name(right)), wrong)


def _forms(name: str, value: str, right: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the value may be called where `right` is the right one, or any may be: (labels, predicates)."""
    if name == "category":
        return (value, *CATEGORY_WORDS[value]), (a(value), *map(a, CATEGORY_WORDS[value]))
    labels, predicates = WORDS[name][value]
    if value == "sphere" and right != "sphere":  # a cylinder is round, too
        labels, predicates = ([w for w in words if "round" not in w] for words in (labels, predicates))
    return tuple(labels), tuple(predicates)


def _worded(rng: Random, name: str, values: Sequence[str], p: str) -> list[str]:
    """The values as option texts of one style; the first value is the right one."""
    style = rng.choice(("canonical", "label", "any", "frame"))
    frame = rng.choice(ask.FRAMES)
    texts = []
    for value in values:
        labels, predicates = _forms(name, value, values[0]) if value in ATTRIBUTES[name] else ((value,), (value,))
        if style == "canonical":
            texts.append(value)
        elif style == "frame":
            texts.append(frame.format(x=rng.choice(predicates), p=p))
        else:
            texts.append(rng.choice(labels if style == "label" else labels + predicates))
    return texts


# What is worked out before the answer. A model that sees every region by itself and writes down one after the other
# has at the end only to read.


def _names(ids: Iterable[int]) -> str:
    return " ".join(map(_name, ids))


def _points(facts: Facts, ids: Iterable[int]) -> str:
    """Things that have no name, each by the tenth of the picture's width in which its middle is."""
    tenths = (int(10 * centre(facts["things"][i]) / facts["size"][0]) for i in ids)
    return "".join(str(min(max(tenth, 0), 9)) for tenth in tenths) or NOTHING


def _from_left(facts: Facts, ids: Iterable[int]) -> list[int]:
    return sorted(ids, key=lambda i: centre(facts["things"][i]))


def _values(facts: Facts, ids: Iterable[int], *names: str) -> str:
    return " ".join(" ".join((_name(i), *(facts["things"][i][name] or NOTHING for name in names))) for i in ids)


def _up_to(facts: Facts, order: Sequence[int], place: int) -> str:
    """The things before the one at this place, which have no name, and its name."""
    return (_points(facts, order[:place]) if place else "") + _name(order[place])


# One function per type


def _attribute(name: str) -> Callable[[Facts, Random], Turn | None]:
    """The writer of questions about one attribute of one region."""

    def write(facts: Facts, rng: Random) -> Turn | None:
        if name == "color":
            ids = _clear(facts, share=COLOR_AREA)
        else:
            ids = _clear(facts, share=FORM_AREA) if name == "pattern" else _whole(facts)
            ids = _telling(facts, ids, name)
        i = _spread(facts, ids, name, rng)
        if i is None:
            return None
        p, value = _name(i), facts["things"][i][name]
        others = [word for word in ATTRIBUTES[name] if _surely_not(facts["things"][i], name, word)]
        wrong = rng.sample(others, min(3, len(others)))
        if name in ask.FOREIGN and rng.random() < 0.4:
            wrong[rng.randrange(len(wrong))] = rng.choice(ask.FOREIGN[name])
        form = rng.random()
        if form < 0.12:
            x = value if rng.random() < 0.5 else rng.choice(others)
            return _yes_no(rng, name, f"Is {p} {rng.choice(_forms(name, x, value)[1])}?", x == value)
        if form < 0.24:
            pair = [rng.choice(_forms(name, x, value)[1]) for x in rng.sample([value, others[0]], 2)]
            return Turn(f"Is {p} {pair[0]} or {pair[1]}?", value, name)
        if form < 0.34 and len(unlike := [j for j in ids if _surely_not(facts["things"][j], name, value)]) > 1:
            ids = [i, *rng.sample(unlike, min(len(unlike), rng.choice((2, 3))))]
            rng.shuffle(ids)
            question = rng.choice(ask.WHICH).format(list=_list(ids, rng), x=rng.choice(_forms(name, value, "")[1]))
            return _which(rng, name, question, i, ids)
        texts = _worded(rng, name, [value, *wrong], p)
        return _ask(rng, name, rng.choice(ask.QUESTIONS[name]).format(p=p), value, texts[0], texts[1:])

    return write


def _size(facts: Facts, rng: Random) -> Turn | None:
    """Small or large; or larger or smaller than another, where the radius and the picture agree."""
    if rng.random() < 0.5:
        return _attribute("size")(facts, rng) if _sized(facts) else None
    pairs = _larger(facts)
    if not pairs:
        return None
    i, j = rng.choice(pairs)
    if rng.random() < 0.3:
        return _which(rng, "size", f"Which one is larger, {_list(rng.sample((i, j), 2), rng)}?", i, (i, j))
    larger = rng.random() < 0.5
    p, q = (i, j) if larger else (j, i)
    right, wrong = ("larger", "smaller") if larger else ("smaller", "larger")
    frame = rng.choice(("{}", "it is {}", f"{_name(p)} is {{}}"))
    question = rng.choice(ask.LARGER).format(p=_name(p), q=_name(q))
    return _ask(rng, "size", question, right, frame.format(right), [frame.format(wrong)])


def _larger(facts: Facts) -> list[tuple[int, int]]:
    """Pairs of things of which the first is clearly larger, in the scene and in the picture."""
    things = facts["things"]
    return [
        (i, j)
        for i, j in permutations(_whole(facts, "object"), 2)
        if things[i]["radius"] > 1.4 * things[j]["radius"] and things[i]["area"] > 1.3 * things[j]["area"]
    ]


def _placed(rng: Random, words: Sequence[str], p: str, q: str) -> list[str]:
    """Relations as option texts of one style; the first one is right."""
    style = rng.choice(("alone", "sentence", "sentence", "object"))
    ways = [_ways(word, right=k == 0) for k, word in enumerate(words)]
    if style == "alone":
        return [rng.choice(alone) for _, alone in ways]
    texts = [f"{rng.choice(linked)} {q}" for linked, _ in ways]
    if style == "object":
        return texts
    subject = rng.choice((p, p, "it"))
    return [f"{subject} is {text}" for text in texts]


def _ways(word: str, right: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """How a relation may be said, with its object and without; "below" never where it is to be wrong: it can also mean
    lower in the picture."""
    linked, alone = RELATIONS[word]
    if right:
        return linked, alone
    return tuple(way for way in linked if way != "below"), tuple(way for way in alone if way != "below")


def _short(word: str) -> str:
    return SAY[word].removesuffix(" of")


def _relation(facts: Facts, rng: Random) -> Turn | None:
    """Left or right of, in front of or behind another."""
    axis = rng.choice((("left", "right"), ("front", "behind")))
    clear = _clear(facts)
    pairs = [(i, j) for i, j in permutations(clear, 2) if axis[0] in relations(facts, i, j)]
    if not pairs:
        return None
    (i, j), word = rng.choice(pairs), axis[0]
    if rng.random() < 0.5:
        (i, j), word = (j, i), axis[1]
    p, q = _name(i), _name(j)
    opposite = axis[word == axis[0]]
    form = rng.random()
    if form < 0.12:
        said = rng.choice((word, opposite))
        return _yes_no(rng, "relation", f"Is {p} {rng.choice(RELATIONS[said][0])} {q}?", said == word)
    if form < 0.24:
        end = {"left": "left", "right": "right", "front": "front", "behind": "back"}[word]
        question = rng.choice(ask.EXTREME[end]).format(list=_list(rng.sample((i, j), 2), rng))
        return _which(rng, "relation", question, i, (i, j))
    held = relations(facts, i, j)
    false = [INVERSE[w] for w in sorted(held - {*CONTACTS, word})]
    if form < 0.36:
        right = rng.choice([(p, word, q), (q, opposite, p)])
        wrong = [(p, opposite, q), (q, word, p), *((p, w, q) for w in false)]
        texts = [f"{one} is {rng.choice(RELATIONS[w][0])} {other}" for one, w, other in (right, *wrong)]
        return _choose(rng, "relation", rng.choice(ask.STATEMENT).format(p=p, q=q), texts[0], texts[1:])
    if not held & set(CONTACTS):
        false += rng.sample(("on", "under", "inside"), 2)
    texts = _placed(rng, [word, opposite, *false], p, q)
    if form < 0.6:
        return _choose(rng, "relation", rng.choice(ask.WHERE + ask.BETWEEN).format(p=p, q=q), texts[0], texts[1:])
    question = rng.choice(ask.SIDE if axis[0] == "left" else ask.DEPTH).format(p=p, q=q)
    return _ask(rng, "relation", question, _short(word), texts[0], texts[1:2])


def _contact(facts: Facts, rng: Random) -> Turn | None:
    """On, inside, leaning on, next to; and for things far apart, that it is not so."""
    things, clear = facts["things"], _clear(facts)
    pairs = [(i, j, w) for i, j in permutations(clear, 2) for w in sorted(relations(facts, i, j)) if w in CONTACTS]
    if not pairs:
        return None
    if rng.random() < 0.1:
        far = 0.3 * facts["size"][0]
        apart = [(i, j) for i, j in permutations(clear, 2) if _apart(things[i], things[j]) > far]
        apart = [(i, j) for i, j in apart if not relations(facts, i, j) & set(CONTACTS)]
        if not apart:
            return None
        i, j = rng.choice(apart)
        word = rng.choice(_ways(rng.choice(CONTACTS), right=False)[0])
        return _yes_no(rng, "contact", f"Is {_name(i)} {word} {_name(j)}?", False)
    kept = rng.choice(sorted({w for _, _, w in pairs}))
    i, j, word = rng.choice([pair for pair in pairs if pair[2] == kept])
    p, q = _name(i), _name(j)
    false = [w for w in CONTACTS if w not in CLASH[word] and w not in relations(facts, i, j)]
    form = rng.random()
    if form < 0.3:
        said = word if rng.random() < 0.65 else rng.choice(false)
        way = rng.choice(_ways(said, right=said == word)[0])
        return _yes_no(rng, "contact", f"Is {p} {way} {q}?", said == word)
    texts = _placed(rng, [word, *rng.sample(false, len(false))], p, q)
    if form < 0.5:
        return _choose(rng, "contact", rng.choice(ask.BETWEEN).format(p=p, q=q), texts[0], texts[1:])
    return _ask(rng, "contact", rng.choice(ask.WHERE).format(p=p, q=q), _short(word), texts[0], texts[1:])


def _kind(name: str, kind: str) -> Callable[[Facts, Random], Turn | None]:
    """The writer of questions that tell reflections (or pictures) from real objects."""

    def write(facts: Facts, rng: Random) -> Turn | None:
        there, real = _clear(facts, kind), _clear(facts, "object")
        if not real or (not there and rng.random() < 0.99):
            return None
        form = rng.random()
        if there and form < 0.45:
            return _only(facts, rng, name, kind)
        if kind == "reflection" and form < 0.6:
            return _reflected(facts, rng)
        i = rng.choice(there if there and rng.random() < 0.5 else real)
        p, is_kind = _name(i), facts["things"][i]["kind"] == kind
        if form < 0.75:
            return _yes_no(rng, name, rng.choice(ask.WHETHER_KIND[kind]).format(p=p), is_kind)
        values = [facts["things"][i]["kind"]]
        values += [value for value in ("object", kind) if value != values[0]]
        question = rng.choice(ask.KIND[kind]).format(p=p)
        forms = [WORDS["kind"][value] for value in values]
        frame = rng.choice(("{}", "it is {}", f"{p} is {{}}"))
        texts = [rng.choice(predicates if frame != "{}" else labels + predicates) for labels, predicates in forms]
        short = {"object": "real", "reflection": "reflection", "picture": "picture"}[values[0]]
        return _ask(rng, name, question, short, frame.format(texts[0]), [frame.format(t) for t in texts[1:]])

    return write


def _only(facts: Facts, rng: Random, name: str, kind: str) -> Turn | None:
    """Which one of several is the reflection (or the picture, or the only real object)."""
    odd, rest = _clear(facts, kind), _clear(facts, "object")
    asked = kind
    if len(odd) > 1 and rng.random() < 0.25:
        odd, rest, asked = rest, odd, "object"
    i = rng.choice(odd)
    ids = [i, *rng.sample(rest, min(len(rest), rng.choice((1, 2, 2, 3))))]
    rng.shuffle(ids)
    return _which(rng, name, rng.choice(ask.ONLY[asked]).format(list=_list(ids, rng)), i, ids)


def _reflected(facts: Facts, rng: Random) -> Turn | None:
    """Which reflection belongs to which object, among some that look different."""
    things, clear = facts["things"], _whole(facts)
    pairs = [(things[i]["of"], i) for i in clear if things[i]["kind"] == "reflection" and things[i]["of"] in clear]
    if not pairs:
        return None
    pair = rng.choice(pairs)
    asked, answer = pair if rng.random() < 0.5 else pair[::-1]
    look = ("category", "color")
    others = [
        i
        for i in clear
        if i not in pair
        and things[i]["kind"] == things[answer]["kind"]
        and any(things[i][key] != things[answer][key] for key in look)
    ]
    if not others:
        return None
    ids = [answer, *rng.sample(others, min(len(others), rng.choice((1, 2, 3))))]
    rng.shuffle(ids)
    template = rng.choice(ask.SOURCE if things[answer]["kind"] == "reflection" else ask.MIRRORED)
    return _which(rng, "mirror", template.format(list=_list(ids, rng), p=_name(asked)), answer, ids)


def _real(facts: Facts, noun: str, rng: Random) -> str:
    """The noun, and where it matters that only real things are meant."""
    if all(thing["kind"] == "object" for thing in facts["things"]):
        return noun
    return rng.choice((f"real {noun}", f"{noun} (not reflections or pictures)"))


def _ordering(facts: Facts, rng: Random) -> Turn | None:
    """Positions in a row, among all objects, or among the regions that the question names; from either end."""
    axis = rng.choice(("left", "left", "left", "front"))
    clear = _clear(facts, "object")
    scope = rng.choice(("all", "row", "named"))
    if scope == "all":
        ids, noun = _countable(facts), _real(facts, rng.choice(("objects", "objects", "things")), rng)
    elif scope == "row":
        rows = [row for row in facts["rows"] if axis == "left" and all(i in clear for i in row)]
        ids, noun = (rng.choice(rows) if rows else []), rng.choice(("objects in its row", "things of its row"))
    else:
        ids, noun = rng.sample(clear, min(len(clear), rng.choice((3, 3, 4, 5)))), ""
    counted = _counted(facts, rng, ids, axis)
    if not counted:
        return None
    order, end, place = counted
    i, word, other = order[place], ORDINALS[place], ENDS[axis][end == axis]
    if not noun:
        listed = _list(rng.sample(order, len(order)), rng)
        if place == 0 and rng.random() < 0.5:
            return _which(rng, "ordering", rng.choice(ask.EXTREME[end]).format(list=listed), i, order)
        notes = _names(order)
        if rng.random() < 0.4:
            turn = _which(rng, "ordering", rng.choice(ask.NTH).format(list=listed, x=word, y=end), i, order)
            return replace(turn, notes=notes)
        listed = listed.replace(" or ", " and ")
        question = rng.choice(ask.POSITION_AMONG).format(list=listed, y=end, z=other, p=_name(i))
    else:
        notes = _up_to(facts, order, place)
        question = rng.choice(ask.POSITION).format(x=noun, y=end, z=other, p=_name(i))
    frame = rng.choice(ask.PLACES)
    wrong = [k for k in range(max(4, len(order))) if k != place]
    texts = [frame.format(x=ORDINALS[k], y=end, n=_nth(k), k=k + 1) for k in (place, *rng.sample(wrong, 3))]
    return replace(_ask(rng, "ordering", question, word, texts[0], texts[1:]), notes=notes)


def _nth(k: int) -> str:
    return f"{k + 1}{('st', 'nd', 'rd')[k] if k < 3 else 'th'}"


def _groups(facts: Facts, ids: Sequence[int], rng: Random) -> tuple[dict[str, str], list[int]]:
    """Attributes that make a group of things to count, and those of `ids` that are of it; rare numbers as often."""
    things = facts["things"]
    kinds = [names for names in GROUPS if all(_telling(facts, ids, name) == [*ids] for name in names)]
    groups = [{name: thing[name] for name in names} for names in kinds for thing in things if thing["kind"] == "object"]
    groups = [group for group in groups if "color" not in group or _certain(facts, ids, group["color"])]
    members = [[i for i in ids if all(things[i][name] == group[name] for name in group)] for group in groups]
    return _evenly(rng, [*zip(groups, members, strict=True)])


def _evenly(rng: Random, options: Sequence[tuple[Any, list[int]]]) -> tuple[Any, list[int]]:
    """One of the options and what is of it: rare numbers as often as others."""
    number = rng.choice(sorted({len(members) for _, members in options}))
    return rng.choice([option for option in options if len(option[1]) == number])


def _certain(facts: Facts, ids: Sequence[int], color: str) -> bool:
    """Whether of each of the things everybody would say that it has the color, or that it has not."""
    things = [facts["things"][i] for i in ids]
    return all(thing["color"] == color or _surely_not(thing, "color", color) for thing in things)


def _counting(facts: Facts, rng: Random) -> Turn | None:
    """How many there are in the picture, or among the regions that the question names."""
    if rng.random() < 0.5:
        whole = _whole(facts, "object")
        if len(whole) < 2:
            return None
        ids = rng.sample(whole, min(len(whole), rng.choice((2, 3, 4, 5))))
        group, members = _groups(facts, ids, rng)
        words = [plural(word) if name == "category" else word for name, word in group.items()]
        notes = _values(facts, ids, *group)
        question = rng.choice(ask.HOW_MANY_OF).format(list=_list(ids, rng, "and"), x=" ".join(words))
    elif not (countable := _to_count(facts)):
        return None
    else:
        members, words, noun = countable, [], rng.choice(("things", "objects"))
        if rng.random() < 0.7:
            group, members = _groups(facts, countable, rng)
            noun = plural(group["category"]) if "category" in group else noun
            words = [word for name, word in group.items() if name != "category"]
        question = rng.choice(ask.HOW_MANY).format(x=_real(facts, " ".join([*words, noun]), rng))
        notes = _points(facts, _from_left(facts, members))
    number = len(members)
    wrong = [k for k in range(max(0, number - 3), min(len(NUMBERS), number + 4)) if k != number]
    digits = rng.random() < 0.5
    frame = rng.choice(("{}", "{}", "exactly {}", "{} in total"))
    texts = [frame.format(k if digits else NUMBERS[k]) for k in (number, *rng.sample(wrong, 3))]
    return replace(_ask(rng, "counting", question, NUMBERS[number], texts[0], texts[1:]), notes=notes)


def _everything(facts: Facts) -> list[Thing]:
    return [*facts["things"], *facts.get("hidden", ())]


def _seen_and_absent(facts: Facts) -> tuple[list[str], list[str]]:
    """The categories that anybody sees in the picture, and those of which nothing is there, not even hidden."""
    there = {thing["category"] for thing in _everything(facts)}
    absent = [word for word in CATEGORIES if word not in there and word not in ask.BACKDROP]
    return sorted({facts["things"][i]["category"] for i in _whole(facts, "object")}), absent


def _absent(facts: Facts, rng: Random) -> Turn | None:
    """What is in the picture and what is not."""
    seen, absent = _seen_and_absent(facts)
    if not seen or not absent:
        return None
    form = rng.random()
    if form < 0.5:
        holds = rng.random() < 0.5
        question, word = rng.choice(ask.IS_THERE), rng.choice(seen if holds else absent)
        turn = _yes_no(rng, "absent", question.format(x=a(word)), holds)
        return replace(turn, notes=_points(facts, _of(facts, word)))
    if form < 0.65:
        thing = facts["things"][rng.choice(_whole(facts, "object"))]
        missing = [
            c for c in ATTRIBUTES["color"] if all(_surely_not(other, "color", c) for other in _everything(facts))
        ]
        holds = rng.random() < 0.5 or not missing or thing["category"] in ask.BACKDROP
        words = f"{thing['color'] if holds else rng.choice(missing)} {thing['category']}"
        turn = _yes_no(rng, "absent", rng.choice(ask.IS_THERE).format(x=a(words)), holds)
        alike = _of(facts, thing["category"])
        return replace(turn, notes=" ".join(f"{facts['things'][i]['color']} {_points(facts, [i])}" for i in alike))
    right, wrong, templates = (seen, absent, ask.WHICH_THERE) if form < 0.8 else (absent, seen, ask.WHICH_ABSENT)
    right, wrong = rng.choice(right), rng.sample(wrong, min(3, len(wrong)))
    frame = rng.choice((str, a))
    return _choose(rng, "absent", rng.choice(templates), frame(right), [frame(word) for word in wrong])


def _of(facts: Facts, category: str) -> list[int]:
    """The clear things of a category, of which the picture may show more, from the left."""
    return _from_left(facts, (i for i in _clear(facts) if facts["things"][i]["category"] == category))


def _same(facts: Facts, rng: Random) -> Turn | None:
    """Whether two regions share an attribute, or which of several shares it with one."""
    things, whole = facts["things"], _whole(facts)
    pairs: dict[bool, list[tuple[str, int, int]]] = {True: [], False: []}
    for name in ("color", "shape", "material", "pattern"):
        ids = [i for i in _telling(facts, whole, name) if things[i][name]]
        for i, j in permutations(ids, 2):
            pairs[things[i][name] == things[j][name]].append((name, i, j))
    if not pairs[True] or not pairs[False]:
        return None
    which = rng.random() < 0.2
    holds = which or rng.random() < 0.5
    name, i, j = rng.choice(pairs[holds])
    others = [k for k in whole if things[k][name] not in (things[i][name], None)]
    others = _telling(facts, others, name)
    if which and others:
        ids = [j, *rng.sample(others, min(len(others), rng.choice((1, 2, 3))))]
        rng.shuffle(ids)
        question = rng.choice(ask.SAME_AS).format(list=_list(ids, rng), x=name, p=_name(i))
        return replace(_which(rng, "same", question, j, ids), notes=_values(facts, [i, *ids], name))
    yes, no = rng.choice(
        (("yes", "no"), (f"yes, the same {name}", f"no, a different {name}"), ("yes, they do", "no, they do not"))
    )
    question = rng.choice(ask.SAME).format(p=_name(i), q=_name(j), x=name)
    turn = _ask(rng, "same", question, "yes" if holds else "no", *((yes, [no]) if holds else (no, [yes])))
    return replace(turn, notes=_values(facts, [i, j], name))


# One function per drill


def _drill_pair(facts: Facts, rng: Random) -> Turn | None:
    """One axis of two things: which side, or how far."""
    first, second = rng.choice((("left", "right"), ("front", "behind")))
    pairs = [pair for pair in permutations(_clear(facts), 2) if {first, second} & relations(facts, *pair)]
    if not pairs:
        return None
    i, j = rng.choice(pairs)
    question = (ask.SIDE if first == "left" else ask.DEPTH)[0].format(p=_name(i), q=_name(j))
    return Turn(question, _short(first if first in relations(facts, i, j) else second), "relation")


def _drill_end(facts: Facts, rng: Random) -> Turn | None:
    """The first or last of two to four things."""
    axis, ends = rng.choice([*ENDS.items()])
    clear = _clear(facts, *([] if axis == "left" else ["object"]))
    order = _line(facts, rng.sample(clear, min(len(clear), rng.choice((2, 2, 3, 4)))), axis)
    if not order or len(order) < 2:
        return None
    place = rng.choice((0, -1))
    listed = _list(rng.sample(order, len(order)), rng)
    return Turn(ask.EXTREME[ends[place]][0].format(list=listed), _name(order[place]), "ordering")


def _drill_place(facts: Facts, rng: Random) -> Turn | None:
    """The place of one among three to five, counted from an end."""
    axis, clear = rng.choice([*ENDS]), _clear(facts, "object")
    counted = _counted(facts, rng, rng.sample(clear, min(len(clear), rng.choice((3, 4, 5)))), axis)
    if not counted:
        return None
    order, end, place = counted
    listed = _list(rng.sample(order, len(order)), rng, "and")
    question = ask.POSITION_AMONG[2].format(list=listed, y=end, p=_name(order[place]))
    return Turn(question, ORDINALS[place], "ordering", notes=_names(order))


def _drill_nth(facts: Facts, rng: Random) -> Turn | None:
    """Which one of two to five has a place, counted from an end."""
    axis, clear = rng.choice([*ENDS]), _clear(facts, "object")
    counted = _counted(facts, rng, rng.sample(clear, min(len(clear), rng.choice((2, 3, 4, 5)))), axis, least=2)
    if not counted:
        return None
    order, end, place = counted
    listed = _list(rng.sample(order, len(order)), rng)
    question = ask.NTH[0].format(list=listed, x=ORDINALS[place], y=end)
    return Turn(question, _name(order[place]), "ordering", notes=_names(order))


def _drill_size(facts: Facts, rng: Random) -> Turn | None:
    pairs = _larger(facts)
    if not pairs:
        return None
    (i, j), word = rng.choice(pairs), "larger"
    if rng.random() < 0.5:
        i, j, word = j, i, "smaller"
    return Turn(ask.LARGER[0].format(p=_name(i), q=_name(j)), word, "size")


def _drill_which(facts: Facts, rng: Random) -> Turn | None:
    """Which of two to four is, as the only one of them, of a color, category, material or pattern."""
    name = rng.choice(("color", "category", "material", "pattern"))
    ids, things = _telling(facts, _whole(facts), name), facts["things"]
    i = _spread(facts, ids, name, rng)
    others = [j for j in ids if i is not None and _surely_not(things[j], name, things[i][name])]
    if i is None or not others:
        return None
    ids = [i, *rng.sample(others, min(len(others), rng.choice((1, 2, 3))))]
    value = things[i][name]
    x = a(value) if name == "category" else value
    listed = _list(rng.sample(ids, len(ids)), rng)
    return Turn(ask.WHICH[3].format(list=listed, x=x), _name(i), name)


def _drill_same(facts: Facts, rng: Random) -> Turn | None:
    """Whether two share an attribute: yes as often as no, where a scene has both."""
    name = rng.choice(("color", "color", "category", "pattern", "material"))
    things = facts["things"]
    pairs = [*permutations(_telling(facts, _whole(facts), name), 2)]
    holds = rng.random() < 0.5
    pairs = [(i, j) for i, j in pairs if (things[i][name] == things[j][name]) == holds]
    if not pairs:
        return None
    i, j = rng.choice(pairs)
    question = ask.SAME[0].format(p=_name(i), q=_name(j), x=name)
    return Turn(question, "yes" if holds else "no", "same", notes=_values(facts, [i, j], name))


def _drill_same_as(facts: Facts, rng: Random) -> Turn | None:
    """Which one of two or three shares an attribute with another, as the only one of them."""
    name, things = rng.choice(("color", "color", "category", "pattern", "material")), facts["things"]
    ids = _telling(facts, _whole(facts), name)
    pairs = [(i, j) for i, j in permutations(ids, 2) if things[i][name] and things[i][name] == things[j][name]]
    if not pairs:
        return None
    i, j = rng.choice(pairs)
    others = [k for k in ids if things[k][name] not in (things[i][name], None)]
    if not others:
        return None
    among = [j, *rng.sample(others, min(len(others), rng.choice((1, 2))))]
    rng.shuffle(among)
    question = ask.SAME_AS[0].format(list=_list(among, rng), x=name, p=_name(i))
    return Turn(question, _name(j), "same", notes=_values(facts, [i, *among], name))


def _drill_there(facts: Facts, rng: Random) -> Turn | None:
    """Whether a category is in the picture: yes as often as no."""
    holds, words = rng.random() < 0.5, _seen_and_absent(facts)
    if not all(words):
        return None
    word = rng.choice(words[not holds])
    answer, notes = "yes" if holds else "no", _points(facts, _of(facts, word))
    return Turn(ask.IS_THERE[0].format(x=a(word)), answer, "absent", notes=notes)


def _drill_count(facts: Facts, rng: Random) -> Turn | None:
    """How many of two to five are of a color, category, pattern or material: each number about as often."""
    name, things = rng.choice(("color", "color", "category", "pattern", "material")), facts["things"]
    telling = _telling(facts, _whole(facts, "object"), name)
    if len(telling) < 2:
        return None
    ids = rng.sample(telling, min(len(telling), rng.choice((2, 3, 4, 5))))
    values = sorted({things[i][name] for i in telling} - {None})
    if name == "color":
        values = [value for value in values if _certain(facts, ids, value)]
    if not values:
        return None
    value, members = _evenly(rng, [(value, [i for i in ids if things[i][name] == value]) for value in values])
    question = ask.HOW_MANY_OF[0].format(list=_list(ids, rng, "and"), x=plural(value) if name == "category" else value)
    return Turn(question, NUMBERS[len(members)], "counting", notes=_values(facts, ids, name))


def _drill_attribute(facts: Facts, rng: Random) -> Turn | None:
    name = rng.choice(("color", "category", "material", "pattern"))
    i = _spread(facts, _telling(facts, _whole(facts), name), name, rng)
    if i is None:
        return None
    return Turn(ask.QUESTIONS[name][0].format(p=_name(i)), facts["things"][i][name], name)


def _drill_kind(facts: Facts, rng: Random) -> Turn | None:
    """Which of two to four is in the mirror, or in a framed picture."""
    kind = rng.choice(("reflection", "reflection", "picture"))
    odd, rest = _clear(facts, kind), _clear(facts, "object")
    if not odd or not rest:
        return None
    ids = [rng.choice(odd), *rng.sample(rest, min(len(rest), rng.choice((1, 2, 3))))]
    question = ask.ONLY[kind][0].format(list=_list(rng.sample(ids, len(ids)), rng))
    return Turn(question, _name(ids[0]), {"reflection": "mirror"}.get(kind, kind))


def _drill_contact(facts: Facts, rng: Random) -> Turn | None:
    """Whether two touch as the question says: yes as often as no."""
    clear = _clear(facts, "object")
    word = rng.choice(CONTACTS)
    holds = rng.random() < 0.5
    pairs = [(i, j) for i, j in permutations(clear, 2) if (word in relations(facts, i, j)) == holds]
    if not holds:
        near = {word, *CLASH[word]}
        pairs = [(i, j) for i, j in pairs if not near & (relations(facts, i, j) | relations(facts, j, i))]
        far, things = 0.3 * facts["size"][0], facts["things"]
        pairs = [(i, j) for i, j in pairs if word != "next to" or _apart(things[i], things[j]) > far]
    if not pairs:
        return None
    i, j = rng.choice(pairs)
    question = f"Is {_name(i)} {RELATIONS[word][0][0]} {_name(j)}?"
    return Turn(question, "yes" if holds else "no", "contact")


def _drill_number(facts: Facts, rng: Random) -> Turn | None:
    """How many objects, or of a group, the picture has."""
    countable = _to_count(facts)
    if not countable:
        return None
    group, members = _groups(facts, countable, rng) if rng.random() < 0.75 else ({}, countable)
    noun = plural(group.pop("category")) if "category" in group else "objects"
    words = _real(facts, " ".join([*group.values(), noun]), rng)
    notes = _points(facts, _from_left(facts, members))
    return Turn(ask.HOW_MANY[0].format(x=words), NUMBERS[len(members)], "counting", notes=notes)


def _drill_position(facts: Facts, rng: Random) -> Turn | None:
    """The place of one among all objects of the picture, or those of its row, counted from a side."""
    rows = [row for row in facts["rows"] if {*row} <= {*_clear(facts, "object")}]
    if rows and rng.random() < 0.5:
        ids, noun = rng.choice(rows), "objects in its row"
    else:
        ids, noun = _countable(facts), _real(facts, "objects", rng)
    counted = _counted(facts, rng, ids, "left")
    if not counted:
        return None
    order, end, place = counted
    question = ask.POSITION[2].format(x=noun, y=end, p=_name(order[place]))
    return Turn(question, ORDINALS[place], "ordering", notes=_up_to(facts, order, place))


def _drill_find(facts: Facts, rng: Random) -> Turn | None:
    """On which side of the picture the only thing of its category, or of its color and category, is."""
    ids = _whole(facts, "object")
    if not ids:
        return None
    names = rng.choice((("category",), ("color", "category")))
    i = rng.choice(ids)
    thing = facts["things"][i]
    alike = [other for other in _everything(facts) if all(other[name] in (thing[name], None) for name in names)]
    side = _side(facts, i)
    if len(alike) > 1 or not side:
        return None
    question = f"Where in the picture is the {' '.join(thing[name] for name in names)}?"
    return Turn(question, side, "find", notes=_points(facts, [i]))


def _drill_list(facts: Facts, rng: Random) -> Turn | None:
    """All objects of the picture, or of a row, in turn."""
    countable, whole = _countable(facts), {*_whole(facts, "object")}
    groups = [(row, f"the row of {_name(rng.choice(row))}") for row in facts["rows"]] + [(countable, "the picture")]
    ids, where = rng.choice(groups)
    order = _line(facts, ids, "left")
    if not order or not whole.issuperset(order):
        return None
    end = rng.choice(ENDS["left"])
    order = order if end == "left" else order[::-1]
    question = f"Which objects are in {where}, from the {end}?"
    return Turn(question, ", ".join(_brief(facts, i) for i in order), "list")


# How often each is asked: most of all what takes longest to learn, several regions at once and what is not marked.
_OFTEN = {
    _drill_pair: 1,
    _drill_end: 1,
    _drill_place: 3,
    _drill_nth: 3,
    _drill_count: 6,
    _drill_which: 2,
    _drill_same: 2,
    _drill_same_as: 1,
    _drill_size: 1,
    _drill_attribute: 1,
    _drill_kind: 1,
    _drill_contact: 1,
    _drill_there: 5,
    _drill_find: 6,
    _drill_list: 3,
    _drill_number: 6,
    _drill_position: 5,
}
DRILLS = [one for one, times in _OFTEN.items() for _ in range(times)]


# Captions: the grammar that `check_caption` reads


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _caption(facts: Facts, rng: Random) -> Turn | None:
    """A noun phrase."""
    i = _spread(facts, _whole(facts), "kind", rng)
    if i is None:
        return None
    return Turn(rng.choice(ask.SHORT).format(p=_name(i)), _sentence(_phrase(facts, i)), "caption")


def _said(held: set[str]) -> str:
    """Relations in words: what touches alone, else the side and the depth ("to the left of and behind")."""
    touching = [SAY[word] for word in CONTACTS if word in held]
    beside = [SAY[word] for word in ("left", "right", "front", "behind") if word in held]
    return " and ".join(touching[:1] or beside)


def _detailed(facts: Facts, rng: Random) -> Turn | None:
    """What it is, and where it is in the picture."""
    i = _spread(facts, _whole(facts), "kind", rng)
    if i is None:
        return None
    sentences = [_sentence(_phrase(facts, i))]
    match _side(facts, i):
        case "middle":
            sentences.append("It is in the middle of the picture.")
        case str(side):
            sentences.append(f"It is on the {side} side of the picture.")
    question = rng.choice(ask.DETAILED).format(p=_name(i))
    return Turn(question, " ".join(sentences), "detailed", notes=_points(facts, [i]))


def _side(facts: Facts, i: int) -> str | None:
    """On which side of the picture thing i is, or in its middle; None where people would not agree."""
    across = centre(facts["things"][i]) / facts["size"][0]
    if 0.42 < across < 0.58:
        return "middle"
    return "left" if across < 0.36 else "right" if across > 0.64 else None


def _apart(one: Thing, other: Thing) -> float:
    """How far the middles of two boxes are, in pixels."""
    return sum((sum(one["box"][k::2]) - sum(other["box"][k::2])) ** 2 for k in (0, 1)) ** 0.5 / 2


def _relational(facts: Facts, rng: Random) -> Turn | None:
    """One region, and how it stands to another; or that alone."""
    things, whole = facts["things"], _whole(facts)
    pairs = [(i, j) for i, j in permutations(whole, 2) if relations(facts, i, j) or things[i]["of"] == j]
    telling = [(i, j) for i, j in pairs if relations(facts, i, j) & set(CONTACTS) or things[i]["of"] == j]
    if not pairs:
        return None
    i, j = rng.choice(telling if telling and rng.random() < 0.5 else pairs)
    question = rng.choice(ask.RELATIONAL).format(p=_name(i), q=_name(j))
    one, other = _phrase(facts, i), f"{_name(j)}, {_brief(facts, j)}"
    if things[i]["of"] == j:
        return Turn(question, f"{_name(i)} is the reflection of {other}, in the mirror.", "relational")
    held = _said(relations(facts, i, j))
    if rng.random() < 0.25:
        question = rng.choice(ask.BETWEEN).format(p=_name(i), q=_name(j))
        return Turn(question, f"{_name(i)} is {held} {_name(j)}.", "relational")
    return Turn(question, f"{_name(i)} is {one}. It is {held} {other}.", "relational")


WRITERS: tuple[Callable[[Facts, Random], Turn | None], ...] = (
    *(_attribute(name) for name in ("color", "shape", "pattern", "material", "category")),
    *(_caption, _detailed, _relational, _relation, _relation, _ordering, _contact, _size),
    *(_counting, _absent, _same, _kind("mirror", "reflection"), _kind("picture", "picture")),
)
