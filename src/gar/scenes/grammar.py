"""The words for rendered scenes, and what they mean: vocabulary, normal form, the noun phrase, the check of a caption.

Knows the facts of a scene (plain dicts) and which statements hold in them. Knows no pixel, no model and no question.
Axes are the viewer's: left and right as seen in the picture, in front = nearer to the camera.
"""

from __future__ import annotations

import re
from typing import Any

Facts = dict[str, Any]  # of one scene: "size", "things", "relations", "rows", ...
Thing = dict[str, Any]  # one of facts["things"]

# Attribute -> canonical word -> (words that stand alone as an answer, predicates that also fit "It is ...").
WORDS: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "color": {
        **{
            color: ((f"{color} color", f"{color} in color", f"the color {color}"), (color, f"{color} colored"))
            for color in ("red", "orange", "yellow", "green", "blue", "pink", "brown", "white", "black")
        },
        "purple": (("purple color", "violet color"), ("purple", "violet", "purple colored")),
        "gray": (("gray color", "grey color"), ("gray", "grey", "gray colored", "grey colored")),
    },
    "shape": {
        "sphere": (("sphere", "ball", "ball shape", "round shape"), ("a sphere", "spherical", "a ball", "round")),
        "cube": (
            ("cube", "box", "box shape", "square box"),
            ("a cube", "cubic", "box-shaped", "cube-shaped", "a box", "a cubic block"),
        ),
        "cylinder": (("cylinder", "cylinder shape"), ("a cylinder", "cylindrical", "cylinder-shaped")),
        "cone": (("cone", "cone shape"), ("a cone", "conical", "cone-shaped")),
        "torus": (
            ("torus", "ring", "donut", "doughnut shape"),
            ("a torus", "ring-shaped", "a ring", "donut-shaped", "doughnut-shaped", "toroidal"),
        ),
    },
    "material": {
        "metal": (
            ("metal", "smooth metal", "shiny metal", "polished metal", "metal material"),
            ("metal", "metallic", "made of metal", "made of polished metal", "of shiny metal"),
        ),
        "matte": (
            ("matte", "rubber", "matte rubber", "dull rubber", "matte material", "rough rubber"),
            ("matte", "dull", "made of rubber", "made of a matte material", "not shiny", "rubbery"),
        ),
        "plastic": (
            ("plastic", "shiny plastic", "smooth plastic", "glossy plastic", "plastic material"),
            ("plastic", "made of plastic", "of glossy plastic", "made of hard plastic"),
        ),
        "glass": (
            ("glass", "clear glass", "transparent glass", "glass material"),
            ("glass", "made of glass", "transparent", "of see-through glass", "see-through"),
        ),
    },
    "pattern": {
        "plain": (
            ("no pattern", "solid color", "a single color", "uniform color", "plain surface", "no texture"),
            ("plain", "solid", "of one color", "uniform", "without a pattern", "plain, without a pattern"),
        ),
        "checkered": (
            ("checkerboard", "checkers", "checkerboard pattern", "a checkered pattern", "checks", "chessboard pattern"),
            ("checkered", "checked", "chequered"),
        ),
        "striped": (
            ("stripes", "stripe pattern", "a striped pattern", "bands"),
            ("striped", "stripy", "with stripes", "banded"),
        ),
        "dotted": (
            ("dots", "polka dots", "a dotted pattern", "polka dot pattern", "spots"),
            ("dotted", "spotted", "with dots", "polka-dotted"),
        ),
    },
    "size": {
        "small": (("small size",), ("small", "little", "tiny", "small in size")),
        "large": (("large size",), ("large", "big", "large in size", "huge")),
    },
    "kind": {
        "object": (("real object", "a physical thing"), ("real", "a real object", "a real thing", "an actual object")),
        "reflection": (
            ("reflection", "mirror image", "in the mirror"),
            ("a reflection", "a mirror image", "a reflection in the mirror", "in the mirror", "reflected in a mirror"),
        ),
        "picture": (
            ("framed picture", "painting"),
            ("in a framed picture", "in a picture on the wall", "inside a picture frame", "part of a framed picture"),
        ),
    },
}

# Every category that `gar.scenes.things` can make, and what else it may be called. Wrong options are drawn from here.
CATEGORY_WORDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(WORDS["shape"], ()),
    **dict.fromkeys(("bed", "bell", "bottle", "bowl", "chair", "crate", "hat", "heart", "hourglass", "house"), ()),
    **dict.fromkeys(("key", "ladder", "lamp", "mushroom", "pot", "shelf", "snowman", "star", "table", "tree"), ()),
    **dict.fromkeys(("trophy", "umbrella", "vase"), ()),
    "boat": ("ship",),
    "book": ("closed book",),
    "car": ("automobile", "toy car"),
    "dumbbell": ("barbell",),
    "gear": ("cogwheel", "cog"),
    "mug": ("cup",),
    "plate": ("dish",),
}
CATEGORIES: tuple[str, ...] = tuple(CATEGORY_WORDS)

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    **{name: tuple(WORDS[name]) for name in ("color", "shape", "material", "pattern", "size")},
    "category": CATEGORIES,
}

# Canonical relation of a first thing to a second -> (with its object: "... of <Prompt1>", without).
RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "left": (
        ("to the left of", "left of", "on the left side of", "on the left of"),
        ("to the left", "left", "on the left", "on the left side", "to the left of", "left of"),
    ),
    "right": (
        ("to the right of", "right of", "on the right side of", "on the right of"),
        ("to the right", "right", "on the right", "on the right side", "to the right of", "right of"),
    ),
    "front": (
        ("in front of", "closer to the camera than", "nearer to the camera than", "nearer than", "closer than"),
        (
            "in front",
            "front",
            "in front of",
            "nearer to the camera",
            "closer to the camera",
            "closer",
            "nearer to the viewer",
        ),
    ),
    "behind": (
        ("behind", "farther from the camera than", "further away than", "farther than", "at the back of"),
        ("behind", "farther from the camera", "further away", "farther away", "further from the viewer", "at the back"),
    ),
    "on": (
        ("on", "on top of", "standing on", "resting on", "sitting on", "placed on"),
        ("on top", "on", "on top of it", "standing on it"),
    ),
    "under": (("under", "underneath", "beneath", "below"), ("under", "underneath", "beneath it", "below")),
    "inside": (("inside", "in", "within", "inside of"), ("inside", "inside it", "within it", "in it")),
    "contains": (("containing", "holding", "around"), ("containing it", "holding it", "around it")),
    "leaning on": (
        ("leaning on", "leaning against", "propped against", "tilted against"),
        ("leaning on it", "leaning against it", "leaning", "propped against it"),
    ),
    "next to": (
        ("next to", "beside", "adjacent to", "right beside", "side by side with"),
        ("next to it", "beside it", "beside", "side by side", "adjacent"),
    ),
}
INVERSE = {
    "left": "right",
    "right": "left",
    "front": "behind",
    "behind": "front",
    "on": "under",
    "under": "on",
    "inside": "contains",
    "contains": "inside",
    "next to": "next to",
}
# The one way captions and open answers say a relation; the answer leaves out what follows " of".
SAY = {
    "left": "to the left of",
    "right": "to the right of",
    "front": "in front of",
    "contains": "around",
    **{word: word for word in ("behind", "on", "under", "inside", "leaning on", "next to")},
}
SIDES = {"left": (0.0, 0.4), "middle": (0.36, 0.64), "right": (0.6, 1.0)}  # of the picture's width, where a centre lies

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def a(words: str) -> str:
    """The words with their indefinite article."""
    return f"an {words}" if re.match(r"[aeio]|um|hour", words) else f"a {words}"


def plural(noun: str) -> str:
    """The plural of a noun of the vocabulary."""
    irregular = {"torus": "tori", "snowman": "snowmen", "shelf": "shelves", "trophy": "trophies"}
    if noun in irregular:
        return irregular[noun]
    return noun + ("es" if re.search(r"(s|x|ch|sh)$", noun) else "s")


def phrase(thing: Thing) -> str:
    """A thing in words: "a red checkered metal sphere", "the reflection of a green mug in the mirror". Without what is
    None of it: "a red thing"."""
    pattern = thing["pattern"] if thing["pattern"] != "plain" else None
    words = [thing["color"], pattern, thing["material"], thing["category"] or "thing"]
    noun = a(" ".join(word for word in words if word))
    if thing["kind"] == "reflection":
        return f"the reflection of {noun} in the mirror"
    return f"a framed picture of {noun}" if thing["kind"] == "picture" else noun


def centre(thing: Thing) -> float:
    """The middle of a thing's box along x, in pixels."""
    return (thing["box"][0] + thing["box"][2]) / 2


def relations(facts: Facts, i: int, j: int, margin: float = 1.0) -> set[str]:
    """The canonical relations of thing i to thing j that hold.

    margin: 1 keeps what any viewer would agree to; 0 takes every difference at its word.
    """
    one, other = facts["things"][i], facts["things"][j]
    found = {word for a_, word, b_ in facts["relations"] if (a_, b_) == (i, j)}
    found |= {INVERSE[word] for a_, word, b_ in facts["relations"] if (a_, b_) == (j, i) and word in INVERSE}
    if margin and (_stands(facts, i, j) or _stands(facts, j, i)):
        return found  # stacked: any offset to the side is too small to speak of, and what is higher is no nearer
    step = margin * 0.06 * facts["size"][0]
    for word, first, second in (("left", one, other), ("right", other, one)):
        if centre(second) - centre(first) > step:
            ordered = all(first["box"][k] < second["box"][k] for k in (0, 2))
            found |= {word} if ordered or not margin else set()
    if one["kind"] == other["kind"] == "object":
        step = margin * max(0.5 * (one["radius"] + other["radius"]), 0.04 * (one["depth"] + other["depth"]) / 2)
        if abs(one["depth"] - other["depth"]) > step:
            found.add("front" if one["depth"] < other["depth"] else "behind")
    return found


def _stands(facts: Facts, i: int, j: int) -> bool:
    """Whether thing i is on or inside thing j, or on or inside one that is."""
    below = {one: other for one, word, other in facts["relations"] if word in ("on", "inside")}
    while i in below:
        i = below[i]
        if i == j:
            return True
    return False


def _synonyms() -> dict[str, str]:
    """Every phrase of the vocabulary -> its canonical word."""
    table = {}
    for values in WORDS.values():
        for canonical, (labels, predicates) in values.items():
            table |= {_plain(form): canonical for form in (canonical, *labels, *predicates)}
    for canonical, (linked, alone) in RELATIONS.items():
        table |= {_plain(form): canonical for form in (canonical, *linked, *alone)}
    for canonical, forms in CATEGORY_WORDS.items():
        table |= {_plain(form): canonical for form in forms}
        table |= {plural(canonical): canonical}
    for n, (number, ordinal) in enumerate(zip(NUMBERS[1:], ORDINALS, strict=True), 1):
        suffix = {1: "st", 2: "nd", 3: "rd"}.get(n, "th")
        table |= {str(n): number, f"{n}{suffix}": ordinal, f"position {n}": ordinal, f"position {number}": ordinal}
    table |= {"0": "zero", "picture": "picture", "photo": "picture", "real": "object", "object": "object"}
    return table | dict.fromkeys(_EMPTY, "")


# Said around an answer without changing it.
_EMPTY = (
    *("in color", "color of", "colored", "from left", "from right", "from front", "from back", "in row", "position"),
    *(
        "object in",
        "masked object",
        "only",
        "exactly",
        "made of",
        "made from",
        "in shape",
        "in total",
        "material is",
        "pattern is",
        "shape is",
        "color is",
        "size is",
    ),
)
_ARTICLES = {"a", "an", "s", "the", "it", "is", "are", "they", "there", "of", "than", "looks", "like", "be"}


def _plain(text: str) -> str:
    """Lower case, words only, without articles."""
    text = re.sub(r"<\s*prompt\s*(\d+)\s*>", r" prompt\1 ", text.lower())
    return " ".join(word for word in re.findall(r"[a-z0-9]+", text) if word not in _ARTICLES)


_SYNONYMS = _synonyms()
_SYNONYM = re.compile(r"\b(" + "|".join(sorted(map(re.escape, _SYNONYMS), key=len, reverse=True)) + r")\b")


def normalise(text: str) -> str:
    """The canonical form of an answer, to compare answers by.

    Lower case; no punctuation, no articles; synonyms by their canonical word ("a ball" -> "sphere", "2nd from the left"
    -> "second"). A sentence about one region loses its subject ("<Prompt0> is red" -> "red"); one about two keeps both,
    the smaller number first ("<Prompt1> is behind <Prompt0>" -> "prompt0 front prompt1").
    """
    words = _SYNONYM.sub(lambda match: _SYNONYMS[match[0]], _plain(text)).split()
    if words and words[0] in ("yes", "no"):
        return words[0]
    names = [word for word in words if re.fullmatch(r"prompt\d+", word)]
    if len(words) > 1 and words[0] in ([*names, "object"] if len(names) < 2 else []):
        words = words[1:]
    if len(names) == 2 and [words[0], words[-1]] == names and names[0] > names[1]:
        relation = " ".join(words[1:-1])
        words = [names[1], INVERSE[relation], names[0]] if relation in INVERSE else words
    return " ".join(words)


_SAID = {said: word for word, said in SAY.items()}
_RELATION = "(?:" + "|".join(sorted(_SAID, key=len, reverse=True)) + ")"
_NAMED = re.compile(r"(?P<subject>it|<prompt\d+>) is (?P<rest>.+)")
_RELATED = re.compile(rf"(?P<words>{_RELATION}(?: and {_RELATION})*) (?P<other>.+)")
_TARGET = re.compile(r"<prompt(?P<number>\d+)>(?:, (?P<what>[^<>]+))?")
_SIDE = re.compile(r"(?:on|in) the (?P<side>left|middle|right)(?: side)? of the picture")
_EXTREME = re.compile(r"the (?P<end>nearest|farthest) thing(?: to the camera| from the camera)?")


def check_caption(text: str, facts: Facts, index: int) -> tuple[list[str], list[str]]:
    """Check every fact that a caption of region `index` states against the scene.

    Returns (true statements, false statements). Reads the captions of `gar.scenes.text`, and sizes, neighbours and the
    nearest thing, of which those say nothing. What it cannot read is false, as "unparsed: ...", and so is a size where
    the facts are certain of none.
    """
    true: list[str] = []
    false: list[str] = []

    sentences = [sentence.strip() for sentence in text.lower().split(".") if sentence.strip()]
    for sentence in sentences or [""]:
        subject, rest = index, sentence
        if named := _NAMED.fullmatch(sentence):
            subject = index if named["subject"] == "it" else int(named["subject"][len("<prompt") : -1])
            rest = named["rest"]
        if not 0 <= subject < len(facts["things"]):
            false.append(f"unparsed: {sentence}")
            continue
        for statement, holds in _claims(rest, facts, subject):
            (true if holds else false).append(statement)
    return true, false


def _claims(text: str, facts: Facts, i: int) -> list[tuple[str, bool]]:
    """What a predicate ("on the left side of the picture", "a red cube") states of thing i, and whether it holds."""
    things = facts["things"]
    if side := _SIDE.fullmatch(text):
        low, high = SIDES[side["side"]]
        return [(text, low <= centre(things[i]) / facts["size"][0] <= high)]
    if end := _EXTREME.fullmatch(text):
        depths = [thing["depth"] for thing in things if thing["kind"] == "object" and thing["area"] > 0]
        best = (min if end["end"] == "nearest" else max)(depths, default=None)
        return [(text, things[i]["kind"] == "object" and things[i]["depth"] == best)]
    if related := _RELATED.fullmatch(text):
        words = [_SAID[said] for said in related["words"].split(" and ")]
        others, claims = _others(related["other"], facts, i)
        held = [relations(facts, i, j, margin=0) for j in others]
        best = max(held, key=lambda h: len(h & {*words}), default=set())  # all of it has to be meant of one thing
        return claims + [(f"{SAY[word]} {related['other']}", word in best) for word in words]
    return _noun_claims(text, facts, i)


def _others(text: str, facts: Facts, i: int) -> tuple[list[int], list[tuple[str, bool]]]:
    """The things that "<Prompt1>, a red cube" or "a red cube" may mean, and what that states by itself."""
    if target := _TARGET.fullmatch(text):
        j = int(target["number"])
        if not 0 <= j < len(facts["things"]) or j == i:
            return [], [(f"unparsed: {text}", False)]
        return [j], _noun_claims(target["what"], facts, j) if target["what"] else []
    matching = [j for j in range(len(facts["things"])) if j != i and all(ok for _, ok in _noun_claims(text, facts, j))]
    return matching, []


def _noun_claims(text: str, facts: Facts, i: int) -> list[tuple[str, bool]]:
    """What a noun phrase ("a red metal sphere", "the reflection of <Prompt1> in the mirror") states of thing i."""
    thing = facts["things"][i]
    kind = "object"
    claims = []
    if reflection := re.fullmatch(r"the reflection of (.+?),? in the mirror", text):
        kind, text = "reflection", reflection[1]
    elif picture := re.fullmatch(r"a framed picture of (.+)", text):
        kind, text = "picture", picture[1]
    if kind == "reflection" and (source := _TARGET.fullmatch(text)):
        j = int(source["number"])
        claims = [(f"the reflection of <Prompt{j}>", thing["of"] == j)]
        if not source["what"] or not 0 <= j < len(facts["things"]):
            return [("kind: reflection", thing["kind"] == kind), *claims]
        text = source["what"]
    words = text.split()
    if len(words) < 2 or words[0] not in ("a", "an"):
        return [(f"unparsed: {text}", False)]
    claims.append((f"kind: {kind}", thing["kind"] == kind))
    words = words[1:]
    for name in ("size", "color", "pattern", "material"):
        if words and words[0] in ATTRIBUTES[name]:
            claims.append((f"{name}: {words[0]}", thing[name] == words.pop(0)))
    noun = " ".join(words)
    if noun == "thing":
        return claims
    if noun != thing["category"] and noun not in CATEGORIES:
        return [*claims, (f"unparsed: {noun}", False)]
    return [*claims, (f"category: {noun}", thing["category"] == noun)]
