"""Sampling of a world: what stands where, of which color, under which light, seen from where.

Two generators that look different on purpose: "rooms" (floors, walls, table tops, mirrors, pictures) and "studio"
(a seamless backdrop with other lamps, cameras, tones and finishes). Everything follows from one seed.
Colors are linear RGB. World axes: x right, y away from the camera, z up; lengths in metres; angles in degrees.
Knows no renderer and no pixels.
"""

from __future__ import annotations

import colorsys
import hashlib
from dataclasses import dataclass, field, replace
from math import atan, cos, degrees, pi, radians, sin, tan
from random import Random
from typing import Any

import numpy as np

from gar.scenes.things import EVERYDAY, FACED, FLAT_TOPS, HOLLOW, PRIMITIVES, THIN, Mesh, make, turn

GENERATORS = ("rooms", "studio")
SPLITS = ("train", "val", "unseen")
PIXELS = 336  # the side of a square picture, as large as nano sees it
MATERIALS = ("metal", "matte", "plastic", "glass")
PATTERNS = ("plain", "checkered", "striped", "dotted")
# Ranges of (hue in degrees, saturation, value), kept apart so that a person would give the same word.
COLORS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "red": ((-7, 7), (0.8, 0.95), (0.6, 0.95)),
    "orange": ((22, 32), (0.85, 1.0), (0.88, 1.0)),
    "yellow": ((49, 58), (0.75, 1.0), (0.85, 1.0)),
    "green": ((95, 150), (0.6, 0.95), (0.35, 0.8)),
    "blue": ((208, 236), (0.68, 0.95), (0.5, 0.95)),
    "purple": ((266, 284), (0.55, 0.85), (0.4, 0.75)),
    "pink": ((322, 346), (0.32, 0.55), (0.9, 1.0)),
    "brown": ((18, 30), (0.55, 0.75), (0.3, 0.48)),
    "gray": ((0, 360), (0.0, 0.06), (0.38, 0.58)),
    "white": ((0, 360), (0.0, 0.04), (0.9, 1.0)),
    "black": ((0, 360), (0.0, 0.2), (0.03, 0.12)),
}
# The same for scripts that hand such numbers to the renderer as linear values, where they turn out paler.
LINEAR_COLORS = COLORS | {
    "red": ((-5, 5), (0.87, 0.98), (0.5, 0.95)),
    "yellow": ((49, 57), (0.85, 1.0), (0.8, 1.0)),
    "green": ((100, 140), (0.75, 0.97), (0.25, 0.7)),
    "blue": ((216, 236), (0.8, 0.97), (0.4, 0.9)),
    "orange": ((19, 26), (0.93, 1.0), (0.85, 1.0)),
    "purple": ((264, 280), (0.65, 0.9), (0.3, 0.6)),
    "pink": ((324, 346), (0.45, 0.65), (0.85, 1.0)),
    "brown": ((18, 28), (0.6, 0.8), (0.2, 0.34)),
    "gray": ((0, 360), (0.0, 0.06), (0.18, 0.34)),
    "black": ((0, 360), (0.0, 0.2), (0.01, 0.045)),
}
GLASS_COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
GLASS_THINGS = {*PRIMITIVES, "bottle", "vase", "bowl", "plate", "star", "heart", "hourglass", "mushroom"}
HELD_OUT_SHARE = 0.12
X, Y, Z = np.eye(3)


@dataclass(frozen=True)
class Surface:
    """A finish: "matte", "metal", "plastic", "glass" or "mirror", of one color (3,) or a tile of colors (H, W, 3)."""

    material: str
    color: np.ndarray
    rough: float = 0.1
    repeat: tuple[float, float] = (1, 1)
    smooth: bool = False  # blend between the pixels of the tile instead of showing them as squares


@dataclass(frozen=True)
class Thing:
    """A thing that can be a region: its words, its mesh in the world, its finish."""

    category: str
    color: str
    material: str
    pattern: str
    mesh: Mesh
    surface: Surface

    @property
    def held_out(self) -> bool:
        return held_out(self.color, self.category, self.material)

    @property
    def extent(self) -> float:
        return float((self.mesh.vertices.max(0) - self.mesh.vertices.min(0)).max())

    @property
    def footprint(self) -> float:
        """Radius about the z axis of everything, as long as the thing has not been moved from it."""
        return float(np.hypot(*self.mesh.vertices[:, :2].T).max())

    @property
    def height(self) -> float:
        return float(self.mesh.vertices[:, 2].max())

    def moved(self, matrix: np.ndarray, offset: Any = (0, 0, 0)) -> Thing:
        return replace(self, mesh=self.mesh.moved(matrix, offset))

    def at(self, x: float, y: float, z: float = 0.0) -> Thing:
        return self.moved(np.eye(3), (x, y, z))


@dataclass(frozen=True)
class Panel:
    """A rectangle: its centre and its two half axes; `right` x `up` points to the side that is looked at."""

    centre: np.ndarray
    right: np.ndarray
    up: np.ndarray
    surface: Surface

    @property
    def normal(self) -> np.ndarray:
        n = np.cross(self.right, self.up)
        return n / np.linalg.norm(n)

    def scaled(self, factor: float, forward: float, surface: Surface) -> Panel:
        return Panel(self.centre + forward * self.normal, self.right * factor, self.up * factor, surface)


@dataclass(frozen=True)
class Light:
    """kind: "point", or "area" with a half side in metres; it gives `rgb` irradiance at the origin, facing it."""

    kind: str
    position: np.ndarray
    rgb: np.ndarray
    half: float = 0.0


@dataclass(frozen=True)
class Camera:
    """A pinhole that looks from origin to target; fov is the horizontal angle of view; size is (W, H) pixels."""

    origin: np.ndarray
    target: np.ndarray
    fov: float
    size: tuple[int, int]

    def axes(self) -> np.ndarray:
        """(3, 3): rows right, up, forward."""
        forward = self.target - self.origin
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, (0, 0, 1))
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(right, forward), forward])

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (N, 3) to (N, 3): x and y in pixels (y down), and the depth along the view axis."""
        x, y, depth = self.axes() @ (np.asarray(points) - self.origin).T
        (width, height), depth_safe = self.size, np.maximum(depth, 1e-3)
        scale = width / 2 / tan(radians(self.fov / 2)) / depth_safe
        return np.stack([width / 2 + scale * x, height / 2 - scale * y, depth], 1)


@dataclass
class World:
    """All that a picture is made of. `pictures` are worlds shown in a frame on a panel of the wall."""

    camera: Camera
    things: list[Thing]
    panels: list[Panel] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)
    sky: np.ndarray = field(default_factory=lambda: np.ones((1, 1, 3)))  # radiance, an equirectangular image
    relations: list[tuple[int, str, int]] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    mirror: Panel | None = None
    pictures: list[tuple[Panel, World]] = field(default_factory=list)
    exposure: float = 1.0
    gamma: float = 2.2
    shoulder: bool = False
    tint: np.ndarray = field(default_factory=lambda: np.ones(3))
    grain: float = 0.0  # of the camera: standard deviation of a pixel's value, of 1
    blur: float = 0.0


# --- Finishes --------------------------------------------------------------------------------------------------------


def held_out(color: str, shape: str, material: str) -> bool:
    """Whether this combination of a primitive is kept for the "unseen" split."""
    digest = hashlib.sha256(f"{color} {shape} {material}".encode()).digest()
    return shape in PRIMITIVES and int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_SHARE


def linear(srgb: Any) -> np.ndarray:
    """sRGB values to linear ones."""
    c = np.asarray(srgb, float)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def color_of(word: str, rng: Random, raw: bool = False) -> np.ndarray:
    """A linear RGB color that the word names. raw: as a simple script would give it, without a thought of sRGB."""
    hue, saturation, value = (rng.uniform(*r) for r in (LINEAR_COLORS if raw else COLORS)[word])
    rgb = np.array(colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value))
    return rgb if raw else linear(rgb)


def _gray(value: float, rng: Random, tint: float = 0.06) -> np.ndarray:
    """A tone of sRGB brightness `value`, near neutral."""
    return linear(np.clip(value * np.array([1 + rng.uniform(-tint, tint) for _ in range(3)]), 0, 1))


def _pattern(pattern: str, main: np.ndarray, other: np.ndarray, share: float, rng: Random) -> np.ndarray:
    """One tile of a pattern, (H, W, 3). `share` is what the main color covers of a striped tile."""
    if pattern == "checkered":
        return np.stack([np.stack([main, other]), np.stack([other, main])])
    if pattern == "striped":
        tile = np.where(np.arange(20)[:, None] < 20 * share, main, other)[:, None]
        return tile if rng.random() < 0.65 else tile.transpose(1, 0, 2)
    grid = (np.arange(32) + 0.5) / 32 - 0.5
    return np.where((np.hypot(*np.meshgrid(grid, grid)) < rng.uniform(0.26, 0.31))[..., None], other, main)


def _thing_surface(color: str, material: str, pattern: str, rng: Random, studio: bool) -> Surface:
    main = color_of(color, rng, raw=rng.random() < (0.15 if studio else 0.35))
    if material == "metal":
        rough = rng.uniform(0.04, 0.14) if studio else rng.choice((0.05, 0.08, 0.12, 0.16, 0.2)) * rng.uniform(0.8, 1.2)
        if color == "white":
            rough = max(rough, 0.2)
        main = np.maximum(main, 0.25 if color == "gray" else 0.025)  # it shows the room, which is darker than lamps
    elif material == "glass":
        return Surface("glass", np.sqrt(np.clip(main * 1.15 + 0.02, 0, 1)), rng.choice((0.0, 0.0, 0.06)))
    else:
        rough = rng.uniform(0.01, 0.03) if studio else rng.uniform(0.01, 0.06)
    if pattern == "plain":
        return Surface(material, main, rough)
    if color in ("white", "black"):
        other = linear([rng.uniform(0.03, 0.35) if color == "white" else rng.uniform(0.75, 1.0)] * 3)
        share = 0.72
    else:
        choices = [_gray(rng.uniform(0.85, 1.0), rng, 0.02), _gray(rng.uniform(0.02, 0.12), rng, 0.02)]
        if color not in ("brown", "gray", "orange"):
            choices.append(main * rng.uniform(0.12, 0.3))
        other, share = rng.choice(choices), rng.uniform(0.5, 0.68)
    repeats = rng.choice((4, 6, 6, 8, 8, 10) if pattern == "checkered" else (6, 8, 8, 10, 12))
    across = max(2, 2 * round(repeats * rng.uniform(0.7, 1.3) / 2))
    return Surface(material, _pattern(pattern, main, other, share, rng), rough, (repeats, across))


def _ground_surface(rng: Random, length: float, wall: bool = False) -> Surface:
    """A floor or a wall `length` metres wide: plain, tiled, planked or speckled, in tones that are seldom strong."""
    tone = _gray(rng.uniform(0.45, 0.95) if wall else rng.uniform(0.25, 0.9), rng)
    if rng.random() < 0.35:  # a pale color
        hsv = rng.random(), rng.uniform(0.08, 0.35), rng.uniform(0.5, 0.95)
        tone = linear(colorsys.hsv_to_rgb(*hsv))
    style = rng.choices(("plain", "checkered", "planks", "noise"), (6, 1, 1, 2) if wall else (4, 2.5, 2, 2))[0]
    if style == "plain":
        return Surface("matte", tone)
    if style == "checkered":
        other = tone * rng.uniform(0.35, 0.8)
        n = length / rng.uniform(0.8, 3.0)
        return Surface("matte", np.stack([np.stack([tone, other]), np.stack([other, tone])]), repeat=(n, n))
    grain = np.random.default_rng(rng.getrandbits(32))
    if style == "planks":
        if rng.random() < 0.7:
            tone = linear(colorsys.hsv_to_rgb(rng.uniform(0.06, 0.1), rng.uniform(0.3, 0.6), rng.uniform(0.45, 0.85)))
        plank = np.repeat(grain.uniform(0.7, 1.0, 8), 8)[:, None] * grain.uniform(0.93, 1.0, (64, 16))
        plank[::8] *= 0.6
        tile = plank if rng.random() < 0.5 else plank.T
        n = length / rng.uniform(3, 8)
        return Surface("matte", tile[..., None] * tone, repeat=(n, n))
    noise = sum(
        np.kron(grain.uniform(-1, 1, (k, k)), np.ones((64 // k, 64 // k))) * s
        for k, s in ((8, 1.0), (16, 0.7), (64, 0.6))
    )
    n = length / rng.uniform(2, 6)
    return Surface(
        "matte",
        np.clip(1 + rng.uniform(0.04, 0.15) * np.asarray(noise), 0.3, 1.3)[..., None] * tone * 0.77,
        repeat=(n, n),
        smooth=True,
    )


# --- Things and how they stand together ------------------------------------------------------------------------------

Group = tuple[list[Thing], list[tuple[int, str, int]]]


@dataclass
class _Maker:
    """Makes single things under the rules of a split and the taste of one world."""

    rng: Random
    split: str
    studio: bool
    everyday: float  # share of everyday things

    def thing(self, extent: float, category: str | None = None) -> Thing:
        """A thing with its largest extent in metres, standing on the z axis.

        In the "unseen" split a held-out primitive may come instead of the everyday category that was asked for.
        """
        rng = self.rng
        unseen = self.split == "unseen" and rng.random() < 0.65
        if category is None or (unseen and category not in PRIMITIVES):
            if unseen or rng.random() >= self.everyday:
                category = rng.choices(tuple(PRIMITIVES), (3, 3, 3, 1.5, 1.5))[0]
            else:
                category = rng.choice(tuple(EVERYDAY))
        while True:
            color = rng.choice(tuple(COLORS))
            material = rng.choices(MATERIALS, (3, 3, 2.2, 1.0))[0]
            if material == "glass" and (color not in GLASS_COLORS or category not in GLASS_THINGS):
                continue
            if material == "metal" and color in ("white", "black") and rng.random() < 0.6:
                continue
            if category not in PRIMITIVES or held_out(color, category, material) == unseen:
                break
        pattern = "plain"
        if material != "glass" and category not in THIN:
            kinds = PATTERNS[2:] if color in ("white", "black") else PATTERNS[1:]
            pattern = rng.choices(("plain", *kinds), (4, *[1.6] * len(kinds)))[0]
        surface = _thing_surface(color, material, pattern, rng, self.studio)
        mesh = make(category, rng).moved(np.eye(3) * extent)
        if category == "torus" and rng.random() < 0.4:  # standing on its rim
            mesh = mesh.moved(turn("x", pi / 2)).seated().moved(turn("z", radians(rng.uniform(-50, 50))))
        elif category == "cylinder" and rng.random() < 0.12:  # lying
            mesh = mesh.moved(turn("y", pi / 2)).seated()
        spread = 50 if category in FACED else 180
        return Thing(
            category, color, material, pattern, mesh.moved(turn("z", radians(rng.uniform(-spread, spread)))), surface
        )

    def single(self) -> Group:
        low, high = self.rng.choice(((0.4, 0.62), (0.62, 0.9), (0.9, 1.3)))
        return [self.thing(self.rng.uniform(low, high))], []

    def stack(self) -> Group:
        """Two things, one on the other, or three."""
        rng = self.rng
        things = [self.thing(rng.uniform(0.7, 1.2), rng.choice(FLAT_TOPS))]
        relations = []
        for level in range(1 + (rng.random() < 0.2)):
            base = things[-1]
            top = base.mesh.vertices[base.mesh.vertices[:, 2] > base.height - 1e-3 * base.extent]
            room = min(np.ptp(top[:, 0]), np.ptp(top[:, 1]))
            if base.category not in FLAT_TOPS or room < 0.3 * base.extent:
                break
            thing = self.thing(1.0)
            scale = min(rng.uniform(0.5, 0.9), room * rng.uniform(0.7, 1.1) / (2 * thing.footprint))
            things.append(thing.moved(np.eye(3) * scale).at(0, 0, base.height))
            relations.append((level + 1, "on", level))
        return things, relations

    def inside(self) -> Group:
        """A small thing, not a flat one, that lies in a bowl or a crate."""
        rng = self.rng
        holder = self.thing(rng.uniform(1.0, 1.5), rng.choice(HOLLOW))
        while holder.material == "glass" or holder.category not in HOLLOW:
            holder = self.thing(rng.uniform(1.0, 1.5), rng.choice(HOLLOW))
        thing = self.thing(1.0)
        while thing.height < 0.55 * thing.extent:
            thing = self.thing(1.0)
        width = (0.62 if holder.category == "bowl" else 0.75) * holder.extent
        thing = thing.moved(np.eye(3) * min(width / (2 * thing.footprint), 1.3 * holder.height))
        floor = 0.05 * holder.extent
        if holder.category == "bowl" and thing.category != "sphere":  # its edge touches the curved side
            floor += 0.15 * thing.footprint**2 / holder.extent * 4
        return [thing.at(0, 0, floor), holder], [(0, "inside", 1)]

    def leaning(self) -> Group:
        """A book, plate or ladder that leans on a cube."""
        rng = self.rng
        height = rng.uniform(0.5, 0.9)
        box = replace(self.thing(height, "cube"), mesh=make("cube", rng).moved(np.eye(3) * height))
        category = rng.choice(("book", "plate", "ladder"))
        slab = self.thing(1.0, category)
        while slab.category != category:
            slab = self.thing(1.0, category)
        mesh = make(category, rng).moved(np.eye(3) * height * rng.uniform(1.0, 1.6))
        if category == "book":
            mesh = mesh.moved(turn("z", pi / 2) @ turn("x", pi / 2))
        else:
            mesh = mesh.moved(turn("z", pi / 2) if category == "ladder" else turn("y", -pi / 2))
        mesh = mesh.seated()
        mesh = mesh.moved(np.eye(3), (-mesh.vertices[:, 0].max(), 0, 0))
        angle, length = radians(rng.uniform(15, 35)), float(mesh.vertices[:, 2].max())
        reach = height * tan(angle) if length * cos(angle) > height else length * sin(angle)
        mesh = mesh.moved(turn("y", angle))
        mesh = mesh.moved(np.eye(3), (-height / 2 - reach - 0.005, 0, -mesh.vertices[:, 2].min()))
        spin = turn("z", radians(rng.uniform(-75, 75)) + (pi if rng.random() < 0.5 else 0))
        return [replace(slab, mesh=mesh).moved(spin), box.moved(spin)], [(0, "leaning on", 1)]

    def pair(self) -> Group:
        """Two things close beside each other."""
        rng = self.rng
        (a,), (b,) = self.single()[0], self.single()[0]
        gap = a.footprint + b.footprint + rng.uniform(0.03, 0.12)
        angle = radians(rng.uniform(-60, 60))
        x, y = gap * cos(angle) / 2, gap * sin(angle) / 2
        return [a.at(-x, -y), b.at(x, y)], [(0, "next to", 1), (1, "next to", 0)]


def _scattered(maker: _Maker, rng: Random) -> Group:
    """Groups strewn over an ellipse, apart from each other."""
    wanted = rng.choice((2, 3, 4, 4, 5, 5, 6, 7, 8))
    things: list[Thing] = []
    relations: list[tuple[int, str, int]] = []
    discs: list[tuple[float, float, float]] = []
    spread = rng.uniform(0.4, 0.9)
    special = rng.random() < 0.6
    while len(things) < wanted:
        kinds = (maker.single, maker.stack, maker.inside, maker.leaning, maker.pair)
        kind = rng.choices(kinds, (2.5, 1.2, 1.2, 1.0, 1.0) if special else (1, 0, 0, 0, 0))[0]
        group, links = kind()
        radius = max(t.footprint for t in group)
        for attempt in range(60):
            reach = spread * (1.0 + 0.35 * wanted**0.7 + 0.04 * attempt)
            x, y = rng.uniform(-1.15, 1.15) * reach, rng.uniform(-0.9, 0.9) * reach
            if all(np.hypot(x - u, y - v) > radius + r + 0.14 for u, v, r in discs):
                break
        else:
            break
        discs.append((x, y, radius))
        relations += [(i + len(things), word, j + len(things)) for i, word, j in links]
        things += [t.at(x, y) for t in group]
    return things, relations


def _lined(maker: _Maker, rng: Random, lines: int, count: int) -> tuple[list[Thing], list[list[int]]]:
    """One or more parallel lines of things, equally spaced, with the list of each line's things."""
    low, high = rng.choice(((0.45, 0.7), (0.55, 1.0), (0.6, 0.75)))
    things = [maker.thing(rng.uniform(low, high)) for _ in range(lines * count)]
    step = 2 * max(t.footprint for t in things) + rng.uniform(0.12, 0.4)
    deep = step * rng.uniform(1.0, 1.5)
    angle = radians(rng.uniform(-18, 18)) if lines > 1 else radians(rng.triangular(-40, 40, 0))
    placed, rows = [], []
    for line in range(lines):
        for i in range(count):
            x, y = (i - (count - 1) / 2) * step + rng.uniform(-0.05, 0.05), (line - (lines - 1) / 2) * deep
            x, y = x * cos(angle) - y * sin(angle), x * sin(angle) + y * cos(angle)
            placed.append(things[line * count + i].at(x, y))
        rows.append(list(range(line * count, (line + 1) * count)))
    return placed, rows


# --- Rooms, studios, cameras and lamps -------------------------------------------------------------------------------


def _size(rng: Random, pixels: int, wide: bool) -> tuple[int, int]:
    """Width and height of about pixels**2 in all, in an ordinary aspect ratio."""
    aspect = rng.choice((1.0, 4 / 3, 4 / 3, 3 / 2, 16 / 9) if wide else (1.0, 1.0, 4 / 3, 4 / 3, 3 / 2, 3 / 4))
    return round(pixels * aspect**0.5), round(pixels / aspect**0.5)


def _lights(
    rng: Random, studio: bool, camera: Camera, left: float = -99.0, right: float = 99.0
) -> tuple[list[Light], np.ndarray, float]:
    """Lamps out of the camera's sight between the walls, the sky, and the radiance of a white floor (about)."""

    def tint(amount: float) -> np.ndarray:
        t = rng.uniform(-amount, amount)
        return np.array([1 + t, 1.0, 1 - t])

    sky = rng.uniform(0.25, 0.9)
    image = np.full((1, 1, 3), sky) * tint(0.05)
    lamps = rng.choice((3, 3, 2)) if studio else rng.choice((0, 1, 1, 1, 2, 2, 3))
    if lamps == 0 or rng.random() < (
        0.8 if studio else 0.5
    ):  # something for metal to mirror: a horizon and bright windows
        rows = np.linspace(rng.uniform(1.0, 1.6), rng.uniform(0.25, 0.8), 16)
        image = np.broadcast_to(image, (16, 32, 3)) * rows[:, None, None]
        for _ in range(rng.randint(1, 4)):
            r, c = rng.randint(2, 6), rng.randint(0, 27)
            image[r : r + rng.randint(1, 3), c : c + rng.randint(1, 5)] += rng.uniform(0.5, 2.0)
    lights, white = [], 0.7 * float(image[: max(1, len(image) // 2)].mean())
    for i in range(lamps):
        height, around = radians(rng.uniform(30, 85)), radians(rng.uniform(180, 360))
        half = rng.uniform(0.3, 1.5) if studio or rng.random() < 0.55 else 0.0
        position = rng.uniform(4, 9) * np.array([cos(height) * cos(around), cos(height) * sin(around), sin(height)])
        while half:  # a lamp with a body goes up until it is out of the picture
            position[0] = min(max(position[0], left + 1.5), right - 1.5)
            (x, y, depth), (width, _) = camera.project(position[None])[0], camera.size
            size = 1.5 * half * width / 2 / tan(radians(camera.fov / 2)) / max(depth, 1e-3)
            if depth < -2 * half or (depth > half and (y + size < 0 or not -size < x < width + size)):
                break
            position = position * (1.1, 1.1, 1.25)
        position[0] = min(max(position[0], left + 0.3), right - 0.3)
        power = rng.uniform(0.6, 3.0) * (1.0 if i == 0 else 0.5)
        rgb = power * tint(0.1)
        lights.append(Light("area" if half else "point", position, rgb, half))
        white += power * position[2] / float(np.linalg.norm(position)) / pi
    return lights, image, white


def _aim(
    rng: Random, things: list[Thing], size: tuple[int, int], studio: bool, mirror: Panel | None, pictures: list[Panel]
) -> Camera:
    """A camera in front of the things that sees about all of them, the pictures, and often the mirror."""
    points = np.concatenate([t.mesh.vertices[:: max(1, len(t.mesh.vertices) // 60)] for t in things])
    for panel in [*pictures, *([mirror] if mirror is not None and rng.random() < 0.6 else [])]:
        corners = [panel.centre + i * panel.right * 0.8 + j * panel.up * 0.8 for i in (-1, 1) for j in (-1, 1)]
        points = np.concatenate([points, corners])
    centre = (points.min(0) + points.max(0)) / 2
    tilt = radians(rng.uniform(18, 42) if studio else rng.triangular(6, 52, 22))
    if mirror is not None or pictures:
        tilt = radians(rng.uniform(6, 28))
    around = radians(rng.triangular(-40, 40, 0))
    if mirror is not None and abs(mirror.normal[0]) > 0.5:  # look towards the side wall
        around = -np.sign(mirror.centre[0]) * radians(rng.uniform(10, 35))
    reach = float(np.linalg.norm(points - centre, axis=1).max())
    far = reach * (rng.uniform(2.6, 4.5) if studio else rng.uniform(1.7, 4.0)) + 0.8
    away = np.array([sin(around) * cos(tilt), -cos(around) * cos(tilt), sin(tilt)])
    shift = np.array([rng.uniform(-0.12, 0.12), 0, rng.uniform(-0.1, 0.1)]) * reach
    camera = Camera(centre + far * away, centre + shift, 90.0, size)
    seen = np.abs(camera.project(points)[:, :2] - np.array(size) / 2) / (size[0] / 2)  # tangents, as fov is 90
    half = max(seen[:, 0].max(), seen[:, 1].max() * size[0] / size[1])
    margin = rng.uniform(0.8, 1.0) if rng.random() < 0.12 else rng.triangular(1.0, 1.3, 1.03)
    return replace(camera, fov=min(degrees(2 * atan(half * margin)), 95.0))


def _frame(panel: Panel, rng: Random) -> Panel:
    """A plain border behind a panel."""
    wood = linear(colorsys.hsv_to_rgb(rng.uniform(0.05, 0.11), rng.uniform(0.2, 0.6), rng.uniform(0.25, 0.7)))
    tone = wood if rng.random() < 0.5 else _gray(rng.uniform(0.05, 0.95), rng)
    width = 1 + rng.uniform(0.04, 0.12)
    return panel.scaled(width, -0.012, Surface("matte", tone))


def _portrait(maker: _Maker, rng: Random) -> World:
    """One thing before a plain ground: what a picture on the wall shows."""
    thing = maker.single()[0][0]
    ground, wall = (Surface("matte", _gray(rng.uniform(0.35, 0.95), rng, 0.15)) for _ in range(2))
    camera = _aim(rng, [thing], (96, 96) if rng.random() < 0.5 else (112, 84), maker.studio, None, [])
    lights, sky, white = _lights(rng, maker.studio, camera)
    panels = [
        Panel(np.zeros(3), np.array([30.0, 0, 0]), np.array([0, 30.0, 0]), ground),
        Panel(np.array([0, 3.0, 0]), np.array([30.0, 0, 0]), np.array([0, 0, 30.0]), wall),
    ]
    return World(camera, [thing], panels, lights, sky, exposure=rng.uniform(0.75, 1.0) / white)


@dataclass
class _Room:
    """Where the floor and the walls are, and the panels that they are made of."""

    panels: list[Panel]
    back: float  # y of the back wall
    sides: tuple[float, float]  # x of the left and of the right wall, which may be missing
    height: tuple[float, float]  # z of the floor and of the top of the walls
    paint: Surface

    def side(self, sign: int, inset: float = 0.0) -> Panel:
        """The left (-1) or right (1) wall, `inset` metres before it."""
        low, high = self.height
        x = self.sides[sign > 0] - sign * inset
        return Panel(np.array([x, 0, (low + high) / 2]), -sign * 20 * Y, (high - low) / 2 * Z, self.paint)


def _room(rng: Random, low: np.ndarray, high: np.ndarray, near: bool) -> _Room:
    """A room about things that fill low..high. near: its back wall is close, and no table comes between."""
    back = high[1] + rng.uniform(0.3, 1.3 if near else 3.0)
    sides = low[0] - rng.uniform(0.4, 3.0), high[0] + rng.uniform(0.4, 3.0)
    table = not near and rng.random() < 0.25
    floor, top = (-rng.uniform(0.8, 2.0) if table else 0.0), rng.uniform(3.0, 7.0)
    wall = _ground_surface(rng, 40, wall=True)
    panels = [Panel(floor * Z, 20 * X, 20 * Y, _ground_surface(rng, 40))]
    if table:
        half = np.maximum(-low, high)[:2] + rng.uniform(0.3, 1.2)
        back = max(back, half[1] + 0.2)
        board = Panel(np.zeros(3), half[0] * X, half[1] * Y, _ground_surface(rng, 2 * half[0]))
        edge = Surface("matte", board.surface.color.reshape(-1, 3).mean(0))
        thick = rng.uniform(0.05, 0.2)
        panels += [board, Panel(np.array([0, -half[1], -thick]), half[0] * X, thick * Z, edge)]
    wall = replace(wall, repeat=(wall.repeat[0], wall.repeat[1] * (top - floor) / 40))
    panels.append(Panel(np.array([0, back, (floor + top) / 2]), 20 * X, (top - floor) / 2 * Z, wall))
    room = _Room(panels, back, sides, (floor, top), Surface("matte", wall.color.reshape(-1, 3).mean(0)))
    if not table:
        panels += [room.side(sign) for sign in (-1, 1) if rng.random() < 0.5]
    return room


def _studio(rng: Random, high: np.ndarray) -> _Room:
    """One sheet of paper under the things and mostly behind them too."""
    tone = _gray(rng.uniform(0.3, 0.85), rng, 0.04)
    if rng.random() < 0.35:
        tone = linear(colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.1, 0.3), rng.uniform(0.5, 0.9)))
    paper = Surface("matte", tone)
    back = high[1] + rng.uniform(0.3, 3.0)
    panels = [Panel(np.zeros(3), 60 * X, 60 * Y, paper)]
    if rng.random() < 0.6:
        panels.append(Panel(back * Y, 60 * X, 30 * Z, paper))
    return _Room(panels, back, (-60.0, 60.0), (0.0, 30.0), paper)


def _mirror(rng: Random, room: _Room, sign: int) -> Panel:
    """A mirror on the back wall (sign 0), the left (-1) or the right wall (1), which is built if it is missing."""
    wide, tall = rng.uniform(0.8, 2.0), rng.uniform(0.6, 1.3)
    z, along = tall + rng.uniform(0.05, 0.5), rng.uniform(-0.8, 0.8)
    silver = Surface("mirror", np.full(3, rng.uniform(0.85, 0.97)))
    if sign == 0:
        mirror = Panel(np.array([along, room.back - 0.03, z]), wide * X, tall * Z, silver)
    else:
        room.panels = [p for p in room.panels if sign * p.normal[0] > -0.5] + [room.side(sign)]
        mirror = Panel(np.array([room.side(sign, 0.03).centre[0], along, z]), -sign * wide * Y, tall * Z, silver)
    if rng.random() < 0.75:
        room.panels.append(_frame(mirror, rng))
    return mirror


def _pictures(rng: Random, maker: _Maker, room: _Room) -> list[tuple[Panel, World]]:
    """One or two framed pictures on the back wall."""
    result = []
    num = rng.choice((1, 1, 2))
    for i in range(num):
        world = _portrait(maker, rng)
        half = rng.uniform(0.6, 1.0)
        aspect = world.camera.size[1] / world.camera.size[0]
        x = (i - (num - 1) / 2) * rng.uniform(2.3, 2.8) + rng.uniform(-0.3, 0.3)
        centre = np.array([x, room.back - 0.03, rng.uniform(0.9, 1.8) + half * aspect])
        panel = Panel(centre, half * X, half * aspect * Z, Surface("matte", np.ones(3)))
        room.panels.append(_frame(panel, rng))
        result.append((panel, world))
    return result


def _layout(maker: _Maker, rng: Random) -> tuple[list[Thing], list[tuple[int, str, int]], list[list[int]]]:
    """Things strewn about, in a row, or in two rows; their relations; the rows."""
    lines = rng.choices((0, 1, 2), (6, 2.5, 0.8))[0]
    if lines == 0:
        things, relations = _scattered(maker, rng)
        return things, relations, []
    things, rows = _lined(maker, rng, lines, rng.choice((3, 4, 5, 6, 7) if lines == 1 else (2, 3, 4)))
    return things, [], rows


def sample_world(seed: int, generator: str = "rooms", split: str = "train", pixels: int = PIXELS) -> World:
    """The world of a seed.

    Args:
        seed: everything random follows from it, the generator and the split.
        generator: "rooms" or "studio".
        split: "train" and "val" never show a held-out combination of color, shape and material; in "unseen" at least
            half of the things are one.
        pixels: the picture has about pixels**2 pixels.

    Raises:
        ValueError: the generator or the split is unknown.
    """
    if generator not in GENERATORS:
        raise ValueError(f"generator {generator!r} is unknown: use one of {', '.join(GENERATORS)}")
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown: use one of {', '.join(SPLITS)}")
    rng = Random(f"{seed} {generator} {split}")
    studio = generator == "studio"
    maker = _Maker(rng, split, studio, rng.choice((0.0, 0.0, 0.3, 0.5, 0.8, 1.0)))
    things, relations, rows = _layout(maker, rng)
    while split == "unseen" and 2 * sum(t.held_out for t in things) < len(things):
        things, relations, rows = _layout(maker, rng)

    low = np.min([t.mesh.vertices.min(0) for t in things], 0)
    high = np.max([t.mesh.vertices.max(0) for t in things], 0)
    where = rng.choice((0, 0, -1, 1)) if not studio else 0
    has_mirror = rng.random() < (0.2 if studio else 0.33)
    room = _studio(rng, high) if studio else _room(rng, low, high, near=has_mirror)
    mirror = _mirror(rng, room, where) if has_mirror else None
    pictures = []
    if not (has_mirror and where == 0) and rng.random() < (0.05 if studio else 0.24):
        pictures = _pictures(rng, maker, room)

    camera = _aim(rng, things, _size(rng, pixels, wide=len(rows) == 1), studio, mirror, [p for p, _ in pictures])
    # A wall that stands between the camera and the things goes away.
    panels = [p for p in room.panels if p.normal @ (camera.origin - p.centre) > 0.3]
    walls = [float(p.centre[0]) for p in panels if abs(p.normal[0]) > 0.5]
    left, right = max([-99.0, *(x for x in walls if x < 0)]), min([99.0, *(x for x in walls if x > 0)])
    lights, sky, white = _lights(rng, studio, camera, left, right)
    grainy = rng.random() < 0.3
    return World(
        camera,
        things,
        panels,
        lights,
        sky,
        relations,
        rows,
        mirror,
        pictures,
        exposure=rng.uniform(0.7, 1.2) / white,
        gamma=rng.uniform(1.95, 2.45),
        shoulder=rng.random() < 0.4,
        tint=np.array([1 + rng.uniform(-0.04, 0.04) for _ in range(3)]),
        blur=rng.uniform(0.3, 0.8) if rng.random() < 0.3 else 0.0,
        grain=rng.uniform(0.01, 0.04) if grainy else 0.0,
    )
