"""Rooms that nano's own generator did not make: other cameras, lamps, tones and sizes, plain questions with options.

    python benchmarks/shift.py --num 150 --out runs/shift
    gar scenes exam runs/shift --per-scene 20

Renders small rooms with Mitsuba, by a script that shares no line with `gar.scenes`. For development: it shows whether
what nano learned of rendered rooms is more than the habits of one generator. Nothing trains on these rooms.
"""

from __future__ import annotations

import argparse
import io
import random
from pathlib import Path
from typing import Any

import mitsuba
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from gar.data.packing import renumber
from gar.data.sample import Sample, Turn, write_shard
from gar.regions import encode_rle

mi: Any = mitsuba  # its type hints are those of another variant
mi.set_variant("scalar_rgb")
T = mi.ScalarTransform4f

COLORS = {
    "red": (0.72, 0.05, 0.05), "green": (0.06, 0.45, 0.08), "blue": (0.05, 0.12, 0.68), "yellow": (0.85, 0.7, 0.05),
    "orange": (0.9, 0.32, 0.03), "purple": (0.3, 0.06, 0.5), "gray": (0.25, 0.25, 0.25), "brown": (0.22, 0.1, 0.04),
}  # fmt: skip
SHAPES, PATTERNS, MATERIALS = ("sphere", "cube", "cylinder"), ("plain", "checkered", "striped"), ("metal", "matte")
ORDINALS: list[str] = ["first", "second", "third", "fourth", "fifth", "sixth"]
WALL = 2.6  # y of the back wall, in front of which all stands
LEAST = 160  # pixels of a region that is asked about


def finish(color: tuple[float, ...], pattern: str, material: str, rng: random.Random) -> dict[str, Any]:
    """A surface in Mitsuba's words."""
    paint: dict[str, Any] = {"type": "rgb", "value": list(color)}
    light = [min(1.0, 0.75 * c + 0.3) for c in color] if rng.random() < 0.3 else [0.85, 0.85, 0.82]
    if pattern == "checkered":
        n = rng.choice((4, 5, 6))
        other = {"type": "rgb", "value": light}
        paint = {"type": "checkerboard", "color0": paint, "color1": other, "to_uv": T().scale([n, n, 1])}
    elif pattern == "striped":
        rows = np.array([color] * 5 + [light] * 4, np.float32)[:, None]
        paint = {"type": "bitmap", "bitmap": mi.Bitmap(np.ascontiguousarray(rows)), "raw": True,
                 "filter_type": "nearest", "to_uv": T().scale([1, rng.choice((4, 5, 6)), 1])}  # fmt: skip
    if material == "metal":
        metal = {"type": "roughconductor", "material": "none", "alpha": rng.uniform(0.08, 0.18)}
        return metal | {"specular_reflectance": paint}
    return {"type": "diffuse", "reflectance": paint}


def solid(thing: dict[str, Any], name: str, flip: bool, bsdf: dict[str, Any]) -> dict[str, Any]:
    """The Mitsuba shapes of a thing; `flip`: of its image behind the back wall."""
    x, y, r = thing["x"], thing["y"], thing["r"]
    place = T().translate([x, 2 * WALL - y if flip else y, 0]).rotate([0, 0, 1], thing["turn"] * (-1 if flip else 1))
    common = {"bsdf": {"type": "twosided", "bsdf": bsdf}}
    if thing["shape"] == "sphere":
        return {f"{name}_a": {"type": "sphere", "to_world": place.translate([0, 0, r]).scale(r), **common}}
    if thing["shape"] == "cube":
        return {f"{name}_a": {"type": "cube", "to_world": place.translate([0, 0, 0.85 * r]).scale(0.85 * r), **common}}
    side = {"type": "cylinder", "p0": [0, 0, 0], "p1": [0, 0, 1.9 * r], "radius": 0.8 * r, "to_world": place}
    top = {"type": "disk", "to_world": place.translate([0, 0, 1.9 * r]).scale(0.8 * r)}
    return {f"{name}_a": side | common, f"{name}_b": top | common}


def room(seed: int) -> tuple[Image.Image, list[dict[str, Any]]]:
    """A picture, and its regions: real things, and reflections; each with `mask` and `depth`."""
    rng = random.Random(f"another room {seed}")
    things: list[dict[str, Any]] = []
    wanted = rng.choice((4, 4, 5, 6))
    while len(things) < wanted:
        x, y, r = rng.uniform(-2.0, 2.0), rng.uniform(-1.6, 1.5), rng.uniform(0.32, 0.55)
        if all(np.hypot(x - o["x"], y - o["y"]) > 1.15 * (r + o["r"]) + 0.12 for o in things):
            look = {"shape": SHAPES, "color": list(COLORS), "pattern": PATTERNS, "material": MATERIALS}
            words = {name: rng.choice(options) for name, options in look.items()}
            things.append(words | {"x": x, "y": y, "r": r, "turn": rng.uniform(0, 90)})
    eye = np.array([rng.uniform(-1.2, 1.2), rng.uniform(-6.5, -5.2), rng.uniform(1.6, 3.4)])
    sensor = {
        "type": "perspective", "fov": rng.uniform(42, 52),
        "to_world": T().look_at(origin=eye.tolist(), target=[0, 0.2, 0.45], up=[0, 0, 1]),
        "film": {"type": "hdrfilm", "width": 256, "height": 192, "rfilter": {"type": "box"}, "pixel_format": "rgb"},
        "sampler": {"type": "independent", "sample_count": 8},
    }  # fmt: skip

    def tone(low: float, high: float) -> dict[str, Any]:
        gray = rng.uniform(low, high)
        value = [gray * rng.uniform(0.9, 1.0) for _ in "rgb"]
        return {"type": "diffuse", "reflectance": {"type": "rgb", "value": value}}

    floor = {"type": "rectangle", "to_world": T().scale(12), "bsdf": tone(0.25, 0.6)}
    upright = T().translate([0, WALL, 0]).rotate([1, 0, 0], 90)
    wall = {"type": "rectangle", "to_world": upright.scale(12), "bsdf": tone(0.35, 0.75)}
    lamp = T().look_at(origin=[rng.uniform(-3, 3), rng.uniform(-4, 0), 5.5], target=[0, 0, 0], up=[0, 1, 0]).scale(1.2)
    watt = rng.uniform(7, 13)
    scene: dict[str, Any] = {
        "type": "scene", "integrator": {"type": "path", "max_depth": 6}, "sensor": sensor, "floor": floor, "wall": wall,
        "sky": {"type": "constant", "radiance": {"type": "rgb", "value": rng.uniform(0.25, 0.5)}},
        "lamp": {"type": "rectangle", "to_world": lamp,
                 "emitter": {"type": "area", "radiance": {"type": "rgb", "value": [watt, watt * 0.95, watt * 0.88]}}},
    }  # fmt: skip
    mirror = rng.random() < 0.5
    if mirror:
        glass = T().translate([rng.uniform(-0.5, 0.5), WALL - 0.02, 1.15]).rotate([1, 0, 0], 90)
        scene["mirror"] = {"type": "rectangle", "to_world": glass.scale([rng.uniform(1.4, 2.0), 0.95, 1]),
                           "bsdf": {"type": "twosided", "bsdf": {"type": "conductor", "material": "none"}}}  # fmt: skip
    for i, thing in enumerate(things):
        scene |= solid(thing, f"t{i}", False, finish(COLORS[thing["color"]], thing["pattern"], thing["material"], rng))
    loaded = mi.load_dict(scene, optimize=False, parallel=False)
    pixels = np.clip(np.array(mi.render(loaded, seed=seed)), 0, 1) ** (1 / 2.2)
    view = {"type": "scene", "sensor": sensor}
    real = owners(view | {name: part for name, part in scene.items() if name not in ("type", "integrator", "sky")})
    ghosts = owners(
        view
        | {k: part for i, t in enumerate(things) for k, part in solid(t, f"t{i}", True, {"type": "diffuse"}).items()}
    )
    regions = []
    for i, thing in enumerate(things):
        depth = float(np.hypot(thing["x"] - eye[0], thing["y"] - eye[1]))
        regions.append(thing | {"mask": real == f"t{i}", "kind": "object", "depth": depth, "among": len(things)})
        if mirror:
            mask = (ghosts == f"t{i}") & (real == "mirror")
            regions.append(thing | {"mask": mask, "kind": "reflection"})
    picture = Image.fromarray((255 * pixels + 0.5).astype(np.uint8))
    return picture, [region for region in regions if region["mask"].sum() >= LEAST]


def owners(scene: dict[str, Any]) -> np.ndarray:
    """(H, W), the name of what each pixel shows, without what follows "_"."""
    loaded = mi.load_dict(scene, optimize=False, parallel=False)
    finder = mi.load_dict({"type": "aov", "aovs": "i:shape_index"})
    index = np.array(mi.render(loaded, integrator=finder, spp=1, seed=0))[..., 0].round().astype(int)
    names = np.array(["sky", *(shape.id().split("_")[0] for shape in loaded.shapes())])
    return names[index]


def middle(region: dict[str, Any]) -> float:
    return float(np.nonzero(region["mask"])[1].mean())


def questions(regions: list[dict[str, Any]], rng: random.Random) -> list[tuple[str, str, list[int], str, list[str]]]:
    """(type, question, regions, right option, options)."""
    asked = []
    real = [i for i, region in enumerate(regions) if region["kind"] == "object"]
    ghosts = [i for i, region in enumerate(regions) if region["kind"] == "reflection"]

    def one(kind: str, question: str, ids: list[int], right: str, options: list[str]) -> None:
        asked.append((kind, question, ids, right, rng.sample(options, len(options))))

    for i in rng.sample(real, min(2, len(real))):
        thing = regions[i]
        others = rng.sample([c for c in COLORS if c != thing["color"]], 3)
        one("color", "What color is <Prompt0>?", [i], thing["color"], [thing["color"], *others])
        one("shape", "What is the shape of <Prompt0>?", [i], thing["shape"], list(SHAPES))
        one("pattern", "What is the texture/pattern of <Prompt0>?", [i], thing["pattern"], list(PATTERNS))
        one("material", "What material is <Prompt0> made of?", [i], thing["material"], list(MATERIALS))
    for _ in range(2):
        i, j = rng.sample(real, 2) if len(real) > 1 else (0, 0)
        apart = middle(regions[i]) - middle(regions[j])
        if abs(apart) > 16:
            side = "left" if apart < 0 else "right"
            one("relation", "Is <Prompt0> to the left or to the right of <Prompt1>?", [i, j], side, ["left", "right"])
        deep = regions[i]["depth"] - regions[j]["depth"]
        if abs(deep) > 0.7:
            place = "in front of" if deep < 0 else "behind"
            one("relation", "Is <Prompt0> in front of or behind <Prompt1>?", [i, j], place, ["in front of", "behind"])
    if ghosts and len(real) > 1:
        ids = rng.sample([rng.choice(ghosts), *rng.sample(real, 2)], 3)
        names = [f"<Prompt{k}>" for k in range(3)]
        right = next(name for name, i in zip(names, ids, strict=True) if i in ghosts)
        one("mirror", "Which one among <Prompt0>, <Prompt1> or <Prompt2> is in the mirror?", ids, right, names)
    order = sorted(real, key=lambda i: middle(regions[i]))
    spaced = all(middle(regions[b]) - middle(regions[a]) > 12 for a, b in zip(order, order[1:], strict=False))
    whole = bool(real) and len(real) == regions[real[0]]["among"]  # none is too small to be a region
    if not ghosts and len(order) >= 3 and spaced and whole:
        place = rng.randrange(len(order))
        words = list(ORDINALS[: max(4, len(order))])
        question = "Counting the objects from the left, which position does <Prompt0> have?"
        one("ordering", question, [order[place]], ORDINALS[place], words)
        ids = rng.sample(order, 3)
        first = min(ids, key=lambda i: middle(regions[i]))
        names = [f"<Prompt{k}>" for k in range(3)]
        question = "Which of <Prompt0>, <Prompt1> and <Prompt2> is the leftmost?"
        one("ordering", question, ids, names[ids.index(first)], names)
    return asked


def sample(seed: int) -> Sample:
    """A room as a record, its questions all with options."""
    picture, regions = room(seed)
    file = io.BytesIO()
    picture.save(file, "PNG")
    turns = []
    for kind, question, ids, right, options in questions(regions, random.Random(seed)):
        question, right, *options = (renumber(text, dict(enumerate(ids))) for text in (question, right, *options))
        turns.append(Turn(question, right, kind, tuple(options)))
    return Sample(file.getvalue(), [encode_rle(region["mask"]) for region in regions], turns, "shift", "Apache-2.0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=150, help="rooms")
    parser.add_argument("--out", type=Path, required=True, help="folder for the shard")
    given = parser.parse_args()
    rooms = track(range(given.num), "rooms", console=Console(stderr=True))
    write_shard(map(sample, rooms), given.out / "rooms.parquet")


if __name__ == "__main__":
    main()
