"""Can nano learn a new word from 200 records, and what does it forget?

In a record a rendered scene has one thing painted anew, in a zigzag that no scene has, and some of the scene's own
questions about the other things; the word for it is "chevron", which nano never met. Every third record is the scene
before it as it was, so that the word is not taken for what else the two have in common. `gar train finetune --lora`
trains on them, and on further scenes as they are, with questions that nano can answer already: so less is forgotten.
Then, on scenes of another folder: how often it says the word where it belongs, how often where it does not, of all
held-out questions how often rightly one or the other, and the exam of all types before and after.

    python benchmarks/lora.py --train DIR --test DIR --out RUN [--records 200] [--scenes 100] [--epochs 6]
        [--old 200] [--rate R] [--adapt PARTS] [--json]
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import gar
from gar.data.packing import named
from gar.data.sample import Sample, Turn, read_shards, write_shard
from gar.predictor import Predictor
from gar.regions import Region
from gar.scenes.exam import CAPTIONS, examine, interval
from gar.scenes.text import talk
from gar.train.finetune import run

WORD = "chevron"
ASKED = ("What is the pattern of {p}?", "What pattern does {p} have?", "Which pattern is on the surface of {p}?")
KNOWN = re.compile(r"pattern|texture|plain|check|stripe|dotted|spotted|zigzag", re.IGNORECASE)
LEAST_AREA = 0.015  # of the picture, for a pattern to be seen
OTHERS = 8  # turns of a record that are about something else


def painted(sample: Sample, seed: int, paint: bool = True) -> Sample | None:
    """The scene with one thing in the new pattern, and what is asked: None without a thing large enough.

    Args:
        paint: without, the thing stays as it is; the rest is the same.
    """
    rng = random.Random(seed)
    things = sample.meta["things"]
    width, height = sample.meta["size"]
    large = [
        i for i, thing in enumerate(things)
        if thing["kind"] == "object" and thing["area"] > LEAST_AREA * width * height and thing["visible"] > 0.7
    ]  # fmt: skip
    if not large:
        return None
    chosen = rng.choice(large)
    pixels = np.asarray(sample.picture()).copy()
    mask = Region.rle(sample.masks[chosen]).locate(width, height).mask
    y, x = np.mgrid[:height, :width]
    period, band = rng.choice((10, 12, 14)), rng.choice((5, 6, 7))
    zigzag = (y + np.abs((x + rng.randrange(period)) % period - period // 2)) // band % 2 == 0
    if paint:
        pixels[mask & zigzag] = (0.3 * pixels[mask & zigzag]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    kept = [
        turn for turn in sample.turns
        if named(turn) and chosen not in named(turn) and not KNOWN.search(f"{turn.question} {turn.answer}")
        and turn.type not in CAPTIONS
    ]  # fmt: skip
    asked = [
        Turn(text.format(p=f"<Prompt{i}>"), WORD if paint and i == chosen else things[i]["pattern"], "pattern")
        for i in large
        for text in ASKED  # as often of things that have another one: what a word means, and what it does not
    ]
    turns = asked + rng.sample(kept, min(OTHERS, len(kept)))
    return replace(sample, image=file.getvalue(), turns=turns, meta={**sample.meta, "painted": chosen, "large": large})


def records(scenes: Iterator[Sample], seed: int) -> Iterator[Sample]:
    """Scenes with a painted thing, and after every second one the same scene as it was."""
    number = 0
    for i, scene in enumerate(scenes):
        if made := painted(scene, seed + i):
            yield made
            number += 1
            if number % 2 == 0 and (before := painted(scene, seed + i, paint=False)):
                yield before


def as_they_are(scenes: Iterator[Sample], seed: int) -> Iterator[Sample]:
    """Scenes with questions as today's talks have them, without captions: nano's are of its own kind, silent about what
    it is not sure of."""
    for i, scene in enumerate(scenes):
        turns = talk(scene.meta, random.Random(f"{seed}/{i}"))
        yield replace(scene, turns=[turn for turn in turns if turn.type not in CAPTIONS])


def says_the_word(predictor: Predictor, samples: Sequence[Sample]) -> dict[str, Any]:
    """Of things in the new pattern, and of others, the share called by its word, with 95 % intervals; "all": of both
    together, the share called by it or not as is right."""
    counts = {True: [0, 0], False: [0, 0]}
    for sample in samples:
        for i in sample.meta["large"]:
            region = Region.rle(sample.masks[i])
            answer = predictor.ask(sample.picture(), ASKED[0].format(p="<Prompt0>"), [region]).text
            counts[i == sample.meta["painted"]][0] += WORD in answer.lower()
            counts[i == sample.meta["painted"]][1] += 1
    (called, new), (wrongly, others) = counts[True], counts[False]
    rows = (("painted", called, new), ("others", wrongly, others), ("all", called + others - wrongly, new + others))
    return {name: {"share": round(hits / max(n, 1), 4), "ci95": interval(hits, n), "n": n} for name, hits, n in rows}


def exam(predictor: Predictor, samples: Sequence[Sample]) -> float:
    marks = examine(predictor, samples)
    return round(sum(mark.right for mark in marks) / len(marks), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name in ("--train", "--test", "--out"):
        parser.add_argument(name, type=Path, required=True)
    for name, default in (("--records", 200), ("--scenes", 100), ("--epochs", 6), ("--old", 200), ("--seed", 0)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--adapt", default="language", help="as for gar train finetune")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if (given.out / "run").exists():
        parser.error(f"{given.out / 'run'} is there: name another --out")

    training = read_shards(given.train)
    write_shard(islice(records(training, given.seed), given.records), given.out / "data" / "new.parquet")
    if given.old:
        write_shard(islice(as_they_are(training, given.seed), given.old), given.out / "data" / "old.parquet")
    scenes = list(islice(read_shards(given.test), given.scenes))
    test = [sample for i, scene in enumerate(scenes) if (sample := painted(scene, given.seed + i))]
    began = time.monotonic()
    report = run(
        [given.out / "data"], given.out / "run",
        recipe="lora", epochs=given.epochs, rate=given.rate, adapt=given.adapt.split(","), seed=given.seed,
    )  # fmt: skip
    minutes = (time.monotonic() - began) / 60
    before, after = gar.load("nano"), gar.load(given.out / "run")
    result = {
        "minutes": round(minutes, 2),
        "report": report,
        "word": {"before": says_the_word(before, test), "after": says_the_word(after, test)},
        "exam": {"before": exam(before, scenes), "after": exam(after, scenes)},
    }
    (given.out / "lora.json").write_text(json.dumps(result, indent=2) + "\n")
    if given.json:
        print(json.dumps(result))
        return
    word = result["word"]
    print(f"trained in {minutes:.1f} minutes, measurements of the report included")
    for name in ("painted", "others"):
        print(f"called {WORD}, {name}: {word['before'][name]['share']:.1%} -> {word['after'][name]['share']:.1%}")
    print(f"all held-out questions right: {word['before']['all']['share']:.1%} -> {word['after']['all']['share']:.1%}")
    print(f"exam: {result['exam']['before']:.1%} -> {result['exam']['after']:.1%}")


if __name__ == "__main__":
    main()
