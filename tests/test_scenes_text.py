"""What is said about rendered scenes is true, certain, well spread and can be read back. Needs no renderer."""

import re
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gar.data.sample import Turn
from gar.scenes.grammar import NUMBERS, ORDINALS, RELATIONS, SAY, WORDS, Facts, a, phrase, plural, relations
from gar.scenes.text import ATTRIBUTES, CATEGORIES, check_caption, drill, normalise, talk

CAPTIONS = ("caption", "detailed", "relational")
COUNTED = ("color", "material", "pattern")
TYPES = {
    *("color", "shape", "pattern", "material", "category", "size", "relation", "contact", "mirror", "picture"),
    *("ordering", "counting", "absent", "same", *CAPTIONS),
}


def make_thing(rng: Random, x: float, depth: float, kind: str = "object") -> dict:
    category = rng.choice(CATEGORIES[:5] if rng.random() < 0.5 else CATEGORIES)
    radius = rng.uniform(0.15, 0.7)
    half, y = 150 * radius / depth, rng.uniform(60, 200)
    return {
        "category": category,
        "shape": category if category in ATTRIBUTES["shape"] else None,
        "color": rng.choice(ATTRIBUTES["color"]),
        "material": rng.choice(ATTRIBUTES["material"]),
        "pattern": rng.choice(ATTRIBUTES["pattern"]),
        "size": "small" if radius < 0.3 else "large" if radius > 0.5 else None,
        "kind": kind,
        "of": None,
        "visible": rng.choice((1.0, 1.0, 1.0, 1.0, 0.8, 0.45, 0.2)),
        "clipped": rng.random() < 0.05,
        "area": int(3 * half * half),
        "box": [int(x - half), int(y - half), int(x + half), int(y + half)],
        "xyz": [x, y, depth],
        "depth": depth,
        "radius": radius,
    }


def make_scene(seed: int) -> Facts:
    """Facts as a renderer would give them: things strewn or in a row, some touching, some mirrored or in a picture."""
    rng = Random(seed)
    number = rng.randint(2, 7)
    lined = rng.random() < 0.5
    things = [
        make_thing(rng, 20 + 215 * (i / (number - 1) if lined else rng.random()), rng.uniform(2, 6))
        for i in range(number)
    ]
    links = []
    if rng.random() < 0.5:
        word = rng.choice(("on", "inside", "leaning on", "next to"))
        links = [[0, word, 1]] + ([[1, word, 0]] if word == "next to" else [])
    for i in range(number if rng.random() < 0.5 else 0):
        if rng.random() < 0.5:
            copy = things[i] | {"kind": "reflection", "of": i, "visible": 0.9, "depth": things[i]["depth"] + 4}
            copy["box"] = [copy["box"][0] // 2, copy["box"][1], copy["box"][2] // 2, copy["box"][3]]
            things.append(copy)
    for _ in range(rng.choice((0, 0, 1, 2))):
        things.append(make_thing(rng, rng.uniform(20, 235), 7, "picture"))
    return {
        "seed": seed,
        "size": [256, 256],
        "things": things,
        "relations": links,
        "rows": [list(range(number))] if lined else [],
    }


def named(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"<Prompt(\d+)>", text)]


@pytest.fixture(scope="module")
def turns() -> list[tuple[Facts, Turn]]:
    scenes = [make_scene(seed) for seed in range(400)]
    return [(facts, turn) for facts in scenes for turn in talk(facts, Random(facts["seed"]))]


scenes = st.integers(0, 10**6).map(make_scene)


@settings(max_examples=150, deadline=None)
@given(scenes, st.integers(0, 10**6))
def test_every_caption_is_true_in_every_statement(facts, seed):
    for turn in talk(facts, Random(seed)):
        if turn.type in CAPTIONS:
            true, false = check_caption(turn.answer, facts, named(turn.question)[0])
            assert true and not false, turn


@settings(max_examples=150, deadline=None)
@given(scenes, st.integers(0, 10**6))
def test_a_choice_has_one_right_option_and_it_is_the_answer(facts, seed):
    for turn in talk(facts, Random(seed)):
        if turn.choices:
            assert 2 <= len(turn.choices) <= 4
            assert turn.choices.count(turn.answer) == 1
            meanings = [normalise(choice) for choice in turn.choices]
            assert meanings.count(normalise(turn.answer)) == 1, turn


@settings(max_examples=150, deadline=None)
@given(scenes, st.integers(0, 10**6))
def test_what_is_said_of_one_region_is_in_the_facts(facts, seed):
    for turn in talk(facts, Random(seed)):
        if turn.type not in ("color", "shape", "pattern", "material", "category", "size"):
            continue
        ids = set(named(turn.question))
        answer = normalise(turn.answer)
        if len(ids) == 1 and answer not in ("yes", "no"):
            assert answer == facts["things"][ids.pop()][turn.type], turn


@settings(max_examples=150, deadline=None)
@given(scenes, st.integers(0, 10**6))
def test_sides_and_depths_and_contacts_hold(facts, seed):
    for turn in talk(facts, Random(seed)):
        if turn.type not in ("relation", "contact") or len(named(turn.question)) != 2:
            continue
        i, j = named(turn.question)
        if re.match(r"(question: )?(on which side|which side|relative to|compared to)", turn.question.lower()):
            i, j = j, i  # the other one is named first
        answer = normalise(turn.answer).split()
        if len(answer) > 2 and answer[0].startswith("prompt"):  # a sentence about both
            i, j = int(answer[0][len("prompt") :]), int(answer[-1][len("prompt") :])
            answer = answer[1:-1]
        elif len(answer) > 1 and answer[-1].startswith("prompt"):  # "left of <Prompt1>"
            answer = answer[:-1]
        if " ".join(answer) in RELATIONS:
            assert " ".join(answer) in relations(facts, i, j), turn


@settings(max_examples=100, deadline=None)
@given(scenes, st.integers(0, 10**6))
def test_hidden_and_tiny_things_are_not_asked_about_and_every_name_exists(facts, seed):
    for turn in talk(facts, Random(seed)):
        for i in named(" ".join((turn.question, turn.answer, *turn.choices))):
            assert facts["things"][i]["visible"] >= 0.35
            assert facts["things"][i]["area"] >= 0.001 * 256 * 256


@settings(max_examples=60, deadline=None)
@given(scenes, st.integers(0, 10**6))
def test_no_option_is_wrong_that_some_would_call_right(facts, seed):
    for turn in [*talk(facts, Random(seed), 80), *drill(facts, Random(seed))]:
        wrong = [option.lower().rstrip(".") for option in turn.choices if option != turn.answer]
        asked_no = turn.question if not turn.choices and turn.answer == "no" else ""
        assert not any(re.search(r"\bbelow\b", text) for text in [*wrong, asked_no.lower()]), turn
        if turn.type == "color" and len(ids := named(turn.question)) == 1:
            thing = facts["things"][ids[0]]
            if thing["pattern"] != "plain":  # whose second color is often one of these
                assert not any(
                    re.search(r"\b(white|black|gray|grey)\b", text) for text in [*wrong, asked_no.lower()]
                ), turn


def test_what_hardly_shows_is_neither_counted_nor_said_to_be_absent():
    for seed in range(40):
        facts = make_scene(seed)
        absent = [word for word in CATEGORIES if word not in {thing["category"] for thing in facts["things"]}]
        facts["hidden"] = [make_thing(Random(0), 20, 3) | {"category": word} for word in absent]
        for turn in talk(facts, Random(seed), 200):
            assert turn.type != "absent" or turn.answer != "no" or not re.search("|".join(absent), turn.question), turn
            assert turn.type != "counting" or named(turn.question), turn


def test_two_colors_of_a_pattern_are_counted_as_neither():
    facts = make_scene(3)
    plain = facts["things"][0] | {"visible": 1.0, "area": 2000, "clipped": False, "kind": "object", "pattern": "plain"}
    plain |= {"color": "white", "of": None}
    facts |= {"things": [plain, plain | {"color": "purple", "pattern": "checkered"}], "relations": [], "rows": []}
    turns = [t for seed in range(40) for t in (*talk(facts, Random(seed), 60), *drill(facts, Random(seed)))]
    assert any(turn.type == "counting" for turn in turns)
    assert not any("white" in turn.question for turn in turns if turn.type == "counting")


def test_what_stands_on_top_of_a_pile_is_not_in_front_of_its_foot():
    facts = make_scene(3)
    foot = facts["things"][0] | {"kind": "object", "depth": 9.0}
    facts |= {"things": [foot, foot | {"depth": 8.0}, foot | {"depth": 5.0}], "relations": []}
    assert relations(facts, 2, 0) == {"front"}
    facts["relations"] = [[1, "on", 0], [2, "on", 1]]
    assert relations(facts, 2, 0) == relations(facts, 0, 2) == set()
    assert relations(facts, 2, 1) == {"on"}


@settings(max_examples=60, deadline=None)
@given(scenes, st.integers(0, 10**6))
def test_drills_count_and_order_rightly(facts, seed):
    things = facts["things"]
    for turn in drill(facts, Random(seed)):
        ids = named(turn.question)
        if counted := re.fullmatch(r"How many of .* are (\w+)\?", turn.question):
            words = [{plural(things[i]["category"]), *(things[i][name] for name in COUNTED)} for i in ids]
            assert turn.answer == NUMBERS[sum(counted[1] in of_one for of_one in words)], turn
        elif ranked := re.fullmatch(rf"Which one of .* is the ({'|'.join(ORDINALS)}) from the (\w+)\?", turn.question):
            across = {i: sum(things[i]["box"][::2]) / 2 for i in ids}
            key = across if ranked[2] in ("left", "right") else {i: things[i]["depth"] for i in ids}
            order = sorted(ids, key=key.__getitem__, reverse=ranked[2] in ("right", "back"))
            assert turn.answer == f"<Prompt{order[ORDINALS.index(ranked[1])]}>", turn


@settings(max_examples=100, deadline=None)
@given(scenes, st.integers(0, 10**6))
def test_the_answer_can_be_read_off_the_notes(facts, seed):
    open_turns = (turn for turn in (*talk(facts, Random(seed)), *drill(facts, Random(seed))) if not turn.choices)
    for turn in open_turns:
        names, words = named(turn.notes), turn.notes.split()
        points = re.sub(r"<Prompt\d+>|none", "", turn.notes).replace(" ", "")
        if turn.type == "counting" and names:
            asked = re.findall(r"\w+", turn.question)
            values = [of_one.split() for of_one in re.split(r"<Prompt\d+>", turn.notes)[1:]]
            fitting = [all(word in asked or plural(word) in asked for word in of_one) for of_one in values]
            assert names == named(turn.question) and turn.answer == NUMBERS[sum(fitting)], turn
        elif turn.type == "counting":
            assert turn.notes and turn.answer == NUMBERS[len(points)], turn
            assert (turn.notes == "none") == (turn.answer == NUMBERS[0])
        elif turn.type == "same":
            values = dict(zip(names, words[1::2], strict=True))
            assert all(value in facts["things"][i].values() for i, value in values.items())
            shared = [i for i in names[1:] if values[i] == values[names[0]]]
            assert shared == named(turn.answer) if named(turn.answer) else (turn.answer == "yes") == bool(shared), turn
        elif turn.type == "ordering" and len(names) > 1:
            (place,) = [
                k for k, word in enumerate(ORDINALS) if word in re.findall(r"\w+", f"{turn.question} {turn.answer}")
            ]
            assert names[place] == (named(turn.answer) or named(turn.question))[-1], turn
        elif turn.type == "ordering" and turn.notes:
            assert turn.answer == ORDINALS[len(points)] and names == named(turn.question), turn
        elif turn.type == "absent":
            assert turn.notes and (turn.notes != "none" or turn.answer == "no"), turn


def test_drills_count_groups_in_the_picture_and_places_in_a_row():
    turns = [t for seed in range(120) for t in drill(make_scene(seed), Random(seed))]
    asked = {turn.question for turn in turns if not named(turn.question)}
    assert "How many objects are in the picture?" in asked
    assert any(re.fullmatch(r"How many \w+ objects are in the picture\?", question) for question in asked)
    assert any("objects in its row" in turn.question for turn in turns if turn.type == "ordering")


def test_drills_find_the_only_thing_of_its_kind_and_list_all_in_turn():
    found = listed = 0
    for seed in range(60):
        facts = make_scene(seed)
        things = facts["things"]
        for turn in drill(facts, Random(seed)):
            if turn.type == "find":
                words = turn.question.rstrip("?").split()[6:]
                (thing,) = [t for t in things if t["category"] == words[-1] and words[0] in (t["color"], words[-1])]
                across = sum(thing["box"][::2]) / 2 / facts["size"][0]
                assert turn.answer == ("left", "middle", "right")[(across > 0.4) + (across > 0.6)], turn
                assert abs(int(turn.notes) / 10 + 0.05 - across) < 0.051
                found += 1
            elif turn.type == "list":
                said = turn.answer.split(", ")
                ids = next((row for row in facts["rows"] if {*named(turn.question)} & {*row}), None)
                ids = ids or [i for i, thing in enumerate(things) if thing["kind"] == "object"]
                order = sorted(ids, key=lambda i: sum(things[i]["box"][::2]), reverse="right" in turn.question)
                assert said == [a(f"{things[i]['color']} {things[i]['category']}") for i in order], turn
                listed += 1
    assert found > 50 and listed > 5


def test_drills_call_no_neighbours_apart():
    facts = make_scene(3)
    near = facts["things"][0] | {"visible": 1.0, "area": 2000, "clipped": False, "box": [100, 90, 140, 130]}
    facts |= {"things": [near, near | {"box": [130, 90, 170, 130]}], "relations": [[0, "leaning on", 1]], "rows": []}
    contacts = [t for seed in range(60) for t in drill(facts, Random(seed)) if t.type == "contact"]
    assert contacts and not any("next to" in turn.question for turn in contacts)


def test_a_talk_follows_from_its_seed_and_has_the_wanted_length():
    facts = make_scene(3)
    assert talk(facts, Random(5)) == talk(facts, Random(5)) != talk(facts, Random(6))
    assert len(talk(facts, Random(5), num_turns=12)) == 12


def test_a_scene_in_which_nothing_can_be_seen_says_nothing():
    facts = make_scene(3)
    facts["things"] = [thing | {"visible": 0.1} for thing in facts["things"]]
    assert talk(facts, Random(0)) == []


def test_all_types_come_and_only_relations_come_often(turns):
    counts = Counter(turn.type for _, turn in turns)
    assert set(counts) == TYPES
    assert counts.pop("relation") < 0.3 * len(turns)
    assert max(counts.values()) < 0.12 * len(turns)
    assert min(counts.values()) > 0.01 * len(turns)


def test_the_right_option_may_stand_anywhere(turns):
    for number in (2, 3, 4):
        places = Counter(t.choices.index(t.answer) for _, t in turns if len(t.choices) == number)
        for place in range(number):
            assert places[place] / places.total() == pytest.approx(1 / number, abs=0.04)


@pytest.mark.parametrize("kind", sorted(TYPES - set(CAPTIONS)))
def test_no_answer_is_right_too_often(turns, kind):
    answers = Counter(normalise(turn.answer) for _, turn in turns if turn.type == kind)
    assert answers.most_common(1)[0][1] / answers.total() < 0.55, answers.most_common(4)


def test_yes_and_no_are_as_frequent(turns):
    for kind in ("color", "material", "relation", "contact", "absent", "same"):
        answers = Counter(normalise(turn.answer) for _, turn in turns if turn.type == kind)
        assert 0.35 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.65, kind


def test_left_and_right_and_front_and_behind_are_as_frequent(turns):
    answers = Counter(normalise(turn.answer) for _, turn in turns if turn.type == "relation")
    for one, other in (("left", "right"), ("front", "behind")):
        assert 0.8 < answers[one] / answers[other] < 1.25


def test_options_of_attributes_are_worded_in_many_ways(turns):
    for kind in ("color", "material", "pattern", "shape"):
        wordings = {choice.lower().strip(".") for _, turn in turns if turn.type == kind for choice in turn.choices}
        assert len({re.sub(r"<prompt\d+>", "<prompt>", wording) for wording in wordings}) > 50


def test_a_reflection_is_never_in_front_or_behind():
    facts = make_scene(0)
    facts["things"] = [facts["things"][0], facts["things"][0] | {"kind": "reflection", "of": 0, "depth": 90.0}]
    assert not relations(facts, 0, 1, margin=0) & {"front", "behind"}


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("A ball.", "sphere"),
        ("It is a box", "cube"),
        ("2nd from the left", "second"),
        ("The second", "second"),
        ("Yes, they have the same color.", "yes"),
        ("No pattern", "plain"),
        ("no", "no"),
        ("matte rubber", "matte"),
        ("It is made of metal.", "metal"),
        ("<Prompt0> is grey.", "gray"),
        ("violet", "purple"),
        ("On the left side", "left"),
        ("to the left of", "left"),
        ("nearer to the camera", "front"),
        ("3", "three"),
        (" <Prompt2> ", "prompt2"),
        ("It is < Prompt2 >.", "prompt2"),
        ("<Prompt1> is behind <Prompt0>.", "prompt0 front prompt1"),
        ("<Prompt0> is in front of <Prompt1>.", "prompt0 front prompt1"),
        ("<Prompt0> is leaning against <Prompt1>.", "prompt0 leaning on prompt1"),
        ("a reflection in the mirror", "reflection"),
        ("A real object", "object"),
    ],
)
def test_answers_that_mean_the_same_have_one_normal_form(text, canonical):
    assert normalise(text) == canonical


def test_every_word_of_the_vocabulary_means_one_thing():
    for values in WORDS.values():
        for canonical, (labels, predicates) in values.items():
            for form in (canonical, *labels, *predicates, *(f"It is {p}." for p in predicates)):
                assert normalise(form) == canonical, form
    for canonical, (linked, alone) in RELATIONS.items():
        for form in (*linked, *alone, SAY[canonical], SAY[canonical].removesuffix(" of")):
            assert normalise(form) == canonical, form
    for category in CATEGORIES:
        assert normalise(f"a {category}") == normalise(plural(category)) == category


@pytest.fixture
def pair() -> Facts:
    """A large red checkered metal sphere to the left of and in front of a small blue mug, and the mug's reflection."""
    shared = {"visible": 1.0, "clipped": False, "area": 900, "xyz": [0, 0, 0], "kind": "object", "of": None}
    sphere = {"category": "sphere", "shape": "sphere", "color": "red", "material": "metal", "pattern": "checkered"}
    mug = {"category": "mug", "shape": None, "color": "blue", "material": "plastic", "pattern": "plain"}
    things = [
        shared | sphere | {"size": "large", "box": [10, 50, 60, 100], "depth": 2.0, "radius": 0.5},
        shared | mug | {"size": None, "box": [180, 40, 210, 70], "depth": 5.0, "radius": 0.3},
    ]
    things.append(things[1] | {"kind": "reflection", "of": 1, "box": [100, 10, 120, 30]})
    return {"seed": 0, "size": [256, 256], "things": things, "relations": [], "rows": []}


@pytest.mark.parametrize(
    ("index", "text", "num_true", "false"),
    [
        (0, "A red checkered metal sphere.", 5, []),
        (0, "A green metal cube.", 2, ["color: green", "category: cube"]),
        (0, "A large red sphere. It is on the left side of the picture.", 5, []),
        (0, "A red sphere. It is on the right side of the picture.", 3, ["on the right side of the picture"]),
        (0, "A red sphere. It is to the left of and in front of a blue mug.", 5, []),
        (0, "A red sphere. It is behind a blue mug.", 3, ["behind a blue mug"]),
        (0, "A red sphere. It is in front of a green mug.", 3, ["in front of a green mug"]),
        (0, "A red sphere. It is the nearest thing to the camera.", 4, []),
        (1, "A small blue mug.", 3, ["size: small"]),
        (2, "The reflection of a blue plastic mug in the mirror.", 4, []),
        (1, "The reflection of a blue plastic mug in the mirror.", 3, ["kind: reflection"]),
        (2, "<Prompt2> is the reflection of <Prompt1>, a blue plastic mug, in the mirror.", 5, []),
        (2, "<Prompt2> is the reflection of <Prompt0>, a red sphere, in the mirror.", 1, None),
        (0, "<Prompt0> is a red sphere. It is to the left of <Prompt1>, a blue mug.", 7, []),
        (0, "<Prompt1> is a blue mug. <Prompt0> is a red sphere.", 6, []),
        (0, "A framed picture of a red sphere.", 2, ["kind: picture"]),
        (0, "A red metal thing.", 3, []),
        (0, "<Prompt0> is a thing. It is to the left of <Prompt1>, a blue thing.", 4, []),
        (0, "A red sphere wearing sunglasses.", 2, ["unparsed: sphere wearing sunglasses"]),
        (0, "Nice weather today.", 0, ["unparsed: nice weather today"]),
        (0, "It is to the left of <Prompt9>.", 0, None),
        (0, "<Prompt7> is a red sphere.", 0, ["unparsed: <prompt7> is a red sphere"]),
        (0, "", 0, ["unparsed: "]),
    ],
)
def test_a_caption_is_checked_fact_by_fact(pair, index, text, num_true, false):
    right, wrong = check_caption(text, pair, index)
    assert len(right) == num_true, (right, wrong)
    assert wrong == false if false is not None else wrong


def test_all_that_is_said_of_one_other_thing_is_meant_of_the_same(pair):
    mug = pair["things"][1]
    pair["things"].append(mug | {"box": [5, 40, 15, 70], "depth": 9.0})  # left of the sphere, and behind it
    mug["depth"] = 0.5  # right of it, and in front
    for text, wrong in (("left of and behind", 0), ("right of and in front of", 0), ("left of and in front of", 1)):
        assert len(check_caption(f"It is to the {text} a blue mug.", pair, 0)[1]) == wrong


def test_a_phrase_says_what_a_thing_is_and_where_it_is_seen(pair):
    assert phrase(pair["things"][0]) == "a red checkered metal sphere"
    assert phrase(pair["things"][2]) == "the reflection of a blue plastic mug in the mirror"


def test_captions_are_silent_about_what_the_learner_can_only_guess_at():
    said: dict[str, list[str]] = {"caption": [], "detailed": [], "relational": []}
    for seed in range(60):
        facts = make_scene(seed)
        facts["unsure"] = [["category", "pattern", "material"] for _ in facts["things"]]
        for turn in talk(facts, Random(seed)):
            if turn.type in said:
                said[turn.type].append(turn.answer)
    for answers in said.values():
        words = set(re.findall("[a-z]+", " ".join(answers).lower()))
        assert "thing" in words and words & {*ATTRIBUTES["color"]} and len(answers) > 20
        assert not words & {*CATEGORIES, *ATTRIBUTES["pattern"], *ATTRIBUTES["material"]}


def test_heads_are_asked_of_as_large_things_as_people():
    from gar.scenes import text
    from gar.train import heads

    assert {"color": text.COLOR_AREA, "material": text.MATERIAL_AREA, "kind": 0.0} == heads.LEAST_AREA
    assert text.FORM_AREA == heads.OTHER_AREA


def test_the_vocabulary_names_exactly_the_things_that_can_be_made():
    from gar.scenes.things import EVERYDAY, PRIMITIVES

    assert set(CATEGORIES) == {*PRIMITIVES, *EVERYDAY}
    assert set(ATTRIBUTES["shape"]) == set(PRIMITIVES)
