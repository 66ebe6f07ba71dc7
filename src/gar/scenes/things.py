"""The shapes of things: meshes made by code, from a few lathe / extrude / tube / box helpers and a table.

Knows geometry only (numpy): z is up, a finished mesh stands on z = 0, centred on the z axis, its largest extent 1.
Texture coordinates are in units of about three lengths, so that `n` repeats look alike on every thing.
Knows no color, no scene and no renderer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi, sin, tau
from random import Random

import numpy as np

UV_LENGTH = 3.0  # about the circumference of a round thing of extent 1


@dataclass(frozen=True)
class Mesh:
    """Triangles. vertices, normals: (N, 3); uv: (N, 2); faces: (M, 3) indices."""

    vertices: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    faces: np.ndarray

    def moved(self, matrix: np.ndarray, offset: Sequence[float] | np.ndarray = (0, 0, 0)) -> Mesh:
        """The mesh after x -> matrix @ x + offset. A reflection turns the faces round so that they still face out."""
        normals = self.normals @ np.linalg.inv(matrix)
        normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
        faces = self.faces if np.linalg.det(matrix) > 0 else self.faces[:, ::-1]
        return Mesh(self.vertices @ matrix.T + np.asarray(offset), normals, self.uv, faces)

    def seated(self) -> Mesh:
        """The mesh moved so that it stands on z = 0 and its extent is centred on the z axis."""
        low, high = self.vertices.min(0), self.vertices.max(0)
        return self.moved(np.eye(3), (-(low[0] + high[0]) / 2, -(low[1] + high[1]) / 2, -low[2]))


def join(*meshes: Mesh) -> Mesh:
    """One mesh of several."""
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes[:-1]])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.normals for m in meshes]),
        np.concatenate([m.uv for m in meshes]),
        np.concatenate([m.faces + s for m, s in zip(meshes, starts, strict=True)]),
    )


def turn(axis: str, angle: float) -> np.ndarray:
    """The 3x3 rotation by `angle` radians about axis "x", "y" or "z"."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[[i, j], [i, j]] = cos(angle)
    matrix[i, j], matrix[j, i] = -sin(angle), sin(angle)
    return matrix


def lathe(profile: Sequence[tuple[float, float]], steps: int = 40) -> Mesh:
    """Turn a profile of (radius, z) about the z axis. Listed with the solid on its left, i.e. upwards outside.

    Corners sharper than 40 degrees keep their edge; the others are shaded smoothly.
    """
    points = np.asarray(profile, float)
    edges = np.diff(points, axis=0)
    lengths = np.linalg.norm(edges, axis=1)
    points, edges, lengths = points[np.r_[True, lengths > 1e-9]], edges[lengths > 1e-9], lengths[lengths > 1e-9]
    flat = np.stack([edges[:, 1], -edges[:, 0]], 1) / lengths[:, None]
    start, end = flat.copy(), flat.copy()
    smooth = (flat[:-1] * flat[1:]).sum(1) > cos(40 / 180 * pi)
    mean = flat[:-1] + flat[1:]
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-9)
    end[:-1][smooth], start[1:][smooth] = mean[smooth], mean[smooth]

    angles = np.linspace(0, tau, steps + 1)
    rim = np.concatenate([points[:-1], points[1:]])  # a ring for both ends of every edge
    slope = np.concatenate([start, end])
    v = np.concatenate([np.r_[0, np.cumsum(lengths)[:-1]], np.cumsum(lengths)]) / UV_LENGTH
    c, s = np.cos(angles), np.sin(angles)
    vertices = np.stack([rim[:, :1] * c, rim[:, :1] * s, np.repeat(rim[:, 1:], steps + 1, 1)], -1)
    normals = np.stack([slope[:, :1] * c, slope[:, :1] * s, np.repeat(slope[:, 1:], steps + 1, 1)], -1)
    around = 1.0 if points[:, 0].max() > 0.28 else 0.5  # so that an even number of repeats closes on itself
    uv = np.stack(np.broadcast_arrays(around * angles / tau, v[:, None]), -1)
    row, column = np.meshgrid(np.arange(len(edges)), np.arange(steps), indexing="ij")
    a, b = row * (steps + 1) + column, (row + len(edges)) * (steps + 1) + column
    faces = np.concatenate([np.stack([a, a + 1, b + 1], -1), np.stack([a, b + 1, b], -1)]).reshape(-1, 3)
    return Mesh(vertices.reshape(-1, 3), normals.reshape(-1, 3), uv.reshape(-1, 2), faces)


def _flat(triangles: np.ndarray) -> Mesh:
    """A faceted mesh of (M, 3, 3) triangles, textured by projection along each facet's main axis."""
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    length = np.linalg.norm(normals, axis=1)
    triangles, normals = triangles[length > 1e-12], normals[length > 1e-12] / length[length > 1e-12, None]
    axis = np.abs(normals).argmax(1)
    u, v = np.array([1, 0, 0])[axis], np.array([2, 2, 1])[axis]
    which = np.arange(len(triangles))[:, None], np.arange(3)[None]
    uv = np.stack([triangles[*which, u[:, None]], triangles[*which, v[:, None]]], -1) / UV_LENGTH
    return Mesh(
        triangles.reshape(-1, 3),
        np.repeat(normals, 3, 0),
        uv.reshape(-1, 2),
        np.arange(3 * len(triangles)).reshape(-1, 3),
    )


def extrude(polygon: Sequence[tuple[float, float]], depth: float) -> Mesh:
    """A slab: the counter-clockwise polygon of (x, z), seen from its middle without overlap, `depth` thick along y."""
    p = np.asarray(polygon, float)
    q, middle = np.roll(p, -1, 0), p.mean(0)

    def at(points: np.ndarray, y: float) -> np.ndarray:
        points = np.broadcast_to(points, p.shape)
        return np.stack([points[:, 0], np.full(len(p), y), points[:, 1]], 1)

    front, back = -depth / 2, depth / 2
    return _flat(
        np.concatenate(
            [
                np.stack([at(middle, front), at(p, front), at(q, front)], 1),
                np.stack([at(middle, back), at(q, back), at(p, back)], 1),
                np.stack([at(p, front), at(p, back), at(q, back)], 1),
                np.stack([at(p, front), at(q, back), at(q, front)], 1),
            ]
        )
    )


def box(x: float, y: float, z: float, sx: float, sy: float, sz: float) -> Mesh:
    """A box about the centre (x, y, z), `sx` by `sy` by `sz` in all."""
    slab = extrude([(-sx / 2, -sz / 2), (sx / 2, -sz / 2), (sx / 2, sz / 2), (-sx / 2, sz / 2)], sy)
    return slab.moved(np.eye(3), (x, y, z))


def tube(path: Sequence[tuple[float, float]], radius: float, sides: int = 10) -> Mesh:
    """A round tube along a path of (x, z) in the plane y = 0, with closed ends."""
    p = np.asarray(path, float)
    along = np.gradient(p, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    angles = np.linspace(0, tau, sides + 1)
    out = np.stack([-along[:, 1], np.zeros(len(p)), along[:, 0]], 1)  # across the path, in its plane
    normals = np.cos(angles)[None, :, None] * out[:, None] + np.sin(angles)[None, :, None] * np.array([0, 1.0, 0])
    spine = np.stack([p[:, 0], np.zeros(len(p)), p[:, 1]], 1)
    vertices = spine[:, None] + radius * normals
    v = np.r_[0, np.cumsum(np.linalg.norm(np.diff(p, axis=0), axis=1))] / UV_LENGTH
    uv = np.stack(np.broadcast_arrays(angles[None] * radius / UV_LENGTH, v[:, None]), -1)
    row, column = np.meshgrid(np.arange(len(p) - 1), np.arange(sides), indexing="ij")
    a = row * (sides + 1) + column
    b = a + sides + 1
    faces = np.concatenate([np.stack([a, b, b + 1], -1), np.stack([a, b + 1, a + 1], -1)]).reshape(-1, 3)
    side = Mesh(vertices.reshape(-1, 3), normals.reshape(-1, 3), uv.reshape(-1, 2), faces)
    caps = [
        np.stack([np.broadcast_to(spine[i], (sides, 3)), vertices[i, a:][:sides], vertices[i, b:][:sides]], 1)
        for i, a, b in ((0, 0, 1), (-1, 1, 0))
    ]
    return join(side, _flat(np.concatenate(caps)))


def _arc(x: float, z: float, radius: float, start: float, end: float, n: int = 12) -> list[tuple[float, float]]:
    """Points on a circle about (x, z), from angle `start` to `end` in degrees."""
    return [(x + radius * cos(a), z + radius * sin(a)) for a in np.radians(np.linspace(start, end, n))]


def _ball(radius: float, z: float, squash: float = 1.0) -> Mesh:
    return lathe([(max(r, 0.0), z + squash * h) for r, h in _arc(0, 0, radius, -90, 90, 20)])


def _rod(x: float, y: float, low: float, high: float, radius: float) -> Mesh:
    return lathe([(0, low), (radius, low), (radius, high), (0, high)], 12).moved(np.eye(3), (x, y, 0))


def _legs(x: float, y: float, height: float, thick: float, low: float = 0.0) -> list[Mesh]:
    return [box(i * x, j * y, (low + height) / 2, thick, thick, height - low) for i in (-1, 1) for j in (-1, 1)]


# --- Primitives ------------------------------------------------------------------------------------------------------


def _sphere(_: Random) -> Mesh:
    return _ball(0.5, 0.5)


def _cube(_: Random) -> Mesh:
    return box(0, 0, 0.5, 1, 1, 1)


def _cylinder(rng: Random) -> Mesh:
    radius = rng.uniform(0.3, 0.62)
    return lathe([(0, 0), (radius, 0), (radius, 1), (0, 1)], 48)


def _cone(rng: Random) -> Mesh:
    radius = rng.uniform(0.38, 0.6)
    return lathe([(0, 0), (radius, 0), (0, 1)], 48)


def _torus(rng: Random) -> Mesh:
    thick = rng.uniform(0.11, 0.17)
    return lathe(_arc(0.5 - thick, thick, thick, -90, 270, 24), 48)


# --- Everyday things -------------------------------------------------------------------------------------------------


def _mug(rng: Random) -> Mesh:
    r, wall = rng.uniform(0.33, 0.42), 0.035
    foot = r * rng.uniform(0.8, 1.0)
    body = lathe([(0, 0), (foot, 0), (r, 0.9), (r - wall, 0.9), (foot - wall, 0.06), (0, 0.06)])
    size = rng.uniform(0.22, 0.28)
    return join(body, tube(_arc(r - 0.04, 0.46, size, -85, 85), 0.05))


def _bottle(rng: Random) -> Mesh:
    r, neck, shoulder = rng.uniform(0.16, 0.22), rng.uniform(0.05, 0.075), rng.uniform(0.5, 0.62)
    slope = [(r + (neck - r) * (1 - cos(t * pi)) / 2, shoulder + 0.2 * t) for t in np.linspace(0, 1, 8)]
    return lathe([(0, 0), (r, 0), *slope, (neck, 0.92), (neck * 1.4, 0.93), (neck * 1.4, 1), (0, 1)])


def _vase(rng: Random) -> Mesh:
    belly, neck, lip = rng.uniform(0.28, 0.36), rng.uniform(0.1, 0.14), rng.uniform(0.2, 0.28)
    z = np.array([0, 0.06, 0.36, 0.72, 0.9, 1])
    r = np.array([0.16, 0.2, belly, neck, neck * 1.3, lip])
    heights = np.linspace(0, 1, 24)
    outside = [(float(np.interp(h, z, r)), float(h)) for h in heights]
    radii = np.convolve(np.pad([p[0] for p in outside], 2, "edge"), np.ones(5) / 5, "valid")
    outside = [(float(a), h) for a, (_, h) in zip(radii, outside, strict=True)]
    inside = [(a - 0.03, h) for a, h in outside[:2:-1]]
    return lathe([(0, 0), *outside, *inside, (0, inside[-1][1])])


def _bowl(rng: Random) -> Mesh:
    height, foot = rng.uniform(0.36, 0.48), rng.uniform(0.16, 0.22)
    outside = [(foot + (0.5 - foot) * sin(t), height * (1 - cos(t))) for t in np.linspace(0, pi / 2, 14)]
    inside = [(r - 0.035 if r > 0.1 else r, z + 0.035 * (1 - z / height)) for r, z in outside[::-1]]
    return lathe([(0, 0), *outside, *inside, (0, 0.035)])


def _plate(rng: Random) -> Mesh:
    rim, well = rng.uniform(0.07, 0.1), rng.uniform(0.28, 0.34)
    return lathe([(0, 0), (well, 0), (0.5, rim), (0.5, rim + 0.025), (well, 0.035), (0, 0.035)], 48)


def _pot(rng: Random) -> Mesh:
    r, h = rng.uniform(0.34, 0.38), rng.uniform(0.4, 0.55)
    lid = [(r + 0.02, h), (r + 0.02, h + 0.03), (r * 0.6, h + 0.09), (0.03, h + 0.11), (0.03, h + 0.14)]
    knob = [(0.07, h + 0.16), (0.07, h + 0.2), (0, h + 0.22)]
    body = lathe([(0, 0), (r, 0), (r, h), *lid, *knob])
    handle = tube(_arc(r - 0.02, h * 0.75, 0.13, -70, 70), 0.035)
    flip = turn("z", pi)
    return join(body, handle, handle.moved(flip))


def _lamp(rng: Random) -> Mesh:
    low, top, bottom = rng.uniform(0.58, 0.66), rng.uniform(0.14, 0.22), rng.uniform(0.3, 0.36)
    foot = rng.uniform(0.18, 0.25)
    base = lathe([(0, 0), (foot, 0), (foot, 0.04), (0.03, 0.07), (0.03, 0.95), (0, 0.95)])
    shade = lathe([(bottom - 0.02, low), (bottom, low), (top, 1), (top - 0.02, 1), (bottom - 0.02, low)])
    return join(base, shade)


def _mushroom(rng: Random) -> Mesh:
    stem, cap, low = rng.uniform(0.12, 0.18), rng.uniform(0.42, 0.5), rng.uniform(0.45, 0.55)
    dome = [(cap * cos(t), low + (0.95 - low) * sin(t)) for t in np.linspace(0, pi / 2, 14)]
    return lathe([(0, 0), (stem * 1.3, 0), (stem, low * 0.5), (stem, low), *dome])


def _hourglass(rng: Random) -> Mesh:
    r, waist = rng.uniform(0.26, 0.32), 0.045
    z = np.linspace(0.07, 0.93, 25)
    glass = [(waist + (r - waist - 0.03) * min(1.0, abs(2 * h - 1) * 1.5) ** 0.8, float(h)) for h in z]
    return lathe([(0, 0), (r, 0), (r, 0.07), *glass, (r, 0.93), (r, 1), (0, 1)])


def _bell(rng: Random) -> Mesh:
    lip, top = rng.uniform(0.4, 0.48), rng.uniform(0.16, 0.22)
    side = [(top + (lip - top) * t**2.6, 0.1 + 0.62 * (1 - t)) for t in np.linspace(1, 0, 12)]
    body = lathe([(0, 0.08), (lip - 0.03, 0.08), *side, (0, 0.82)])
    ring = tube(_arc(0, 0.89, 0.08, -90, 270, 16), 0.03)
    return join(body, ring, _ball(0.09, 0.09))


def _hat(rng: Random) -> Mesh:
    brim, crown, height = 0.5, rng.uniform(0.25, 0.3), rng.uniform(0.34, 0.6)
    return lathe([(0, 0), (brim, 0), (brim, 0.03), (crown, 0.04), (crown * 0.95, height), (0, height)])


def _snowman(rng: Random) -> Mesh:
    a, b, c = rng.uniform(0.27, 0.31), rng.uniform(0.19, 0.22), rng.uniform(0.13, 0.16)
    z = [0.9 * a, 0.9 * a + 0.85 * (a + b), 0.9 * a + 0.85 * (a + 2 * b + c)]
    nose = lathe([(0, 0), (0.04, 0), (0, 0.16)], 12).moved(turn("x", pi / 2), (0, -c * 0.9, z[2]))
    return join(_ball(a, z[0]), _ball(b, z[1]), _ball(c, z[2]), nose)


def _umbrella(rng: Random) -> Mesh:
    rise = rng.uniform(0.26, 0.34)
    dome = [(0.5 * cos(t), 0.94 - rise + rise * sin(t)) for t in np.linspace(0, pi / 2, 12)]
    under = [(r * 0.96, z - 0.02) for r, z in dome[::-1]]
    canopy = lathe([*dome, *under, dome[0]], 24)
    hook = [(0, 1.0), (0, 0.5), (0, 0.1), *_arc(0.08, 0.1, 0.08, 180, 350, 8)]
    return join(canopy, tube(hook, 0.025))


def _trophy(rng: Random) -> Mesh:
    r, foot = rng.uniform(0.24, 0.3), rng.uniform(0.18, 0.24)
    cup = [(0.05 + (r - 0.05) * sin(t * pi / 2) ** 0.8, 0.5 + 0.48 * t) for t in np.linspace(0, 1, 10)]
    body = lathe([(0, 0), (foot, 0), (foot, 0.14), (0.05, 0.2), (0.04, 0.42), *cup, (r - 0.03, 0.98), (0, 0.6)])
    handle = tube(_arc(r - 0.03, 0.78, 0.14, -100, 95), 0.03)
    return join(body, handle, handle.moved(turn("z", pi)))


def _star(rng: Random) -> Mesh:
    inner = rng.uniform(0.2, 0.26)
    points = [(r * cos(a), r * sin(a)) for i in range(10) for r, a in [((0.5, inner)[i % 2], pi / 2 + i * pi / 5)]]
    return extrude(points, rng.uniform(0.14, 0.22))


def _heart(rng: Random) -> Mesh:
    t = np.linspace(0, tau, 40, endpoint=False)
    z = (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 32
    return extrude(list(zip(16 * np.sin(t)[::-1] ** 3 / 32, z[::-1], strict=True)), rng.uniform(0.16, 0.26))


def _key(rng: Random) -> Mesh:
    ring, thick = rng.uniform(0.15, 0.18), rng.uniform(0.045, 0.06)
    head = tube(_arc(0, 1 - ring, ring - thick / 2, -90, 270, 24), thick)
    teeth = [box(0.09, 0, z, 0.14, thick * 1.6, 0.07) for z in (0.06, rng.uniform(0.18, 0.22))]
    return join(head, tube([(0, 0), (0, 0.35), (0, 1 - 2 * ring)], thick), *teeth)


def _gear(rng: Random) -> Mesh:
    teeth, inner = rng.choice((8, 9, 10)), rng.uniform(0.36, 0.4)
    angles = [(i + s) / teeth * tau for i in range(teeth) for s in (0, 0.14, 0.36, 0.5)]
    ring = np.array([(r * cos(a), r * sin(a)) for a, r in zip(angles, (inner, 0.5, 0.5, inner) * teeth, strict=True)])
    bore = ring / np.linalg.norm(ring, axis=1, keepdims=True) * rng.uniform(0.12, 0.17)
    depth = rng.uniform(0.14, 0.22)

    def strip(inside: np.ndarray, y0: float, outside: np.ndarray, y1: float) -> np.ndarray:
        """The band of triangles between two closed lines of (x, z)."""
        a, d = (np.insert(line, 1, y, 1) for line, y in ((inside, y0), (outside, y1)))
        b, c = np.roll(a, -1, 0), np.roll(d, -1, 0)
        return np.concatenate([np.stack([a, d, c], 1), np.stack([a, c, b], 1)])

    f, b = -depth / 2, depth / 2
    return _flat(
        np.concatenate(
            [strip(bore, f, ring, f), strip(ring, b, bore, b), strip(ring, f, ring, b), strip(bore, b, bore, f)]
        )
    )


def _chair(rng: Random) -> Mesh:
    w, seat, back = rng.uniform(0.4, 0.5), rng.uniform(0.4, 0.48), 0.06
    legs = _legs(w / 2 - 0.035, w / 2 - 0.035, seat, 0.07)
    rest = [box(0, w / 2 - back / 2, (seat + 1) / 2, w, back, 1 - seat)]
    if rng.random() < 0.5:  # two posts and two slats instead of a full back
        rest = [box(i * (w / 2 - 0.035), w / 2 - 0.035, (seat + 1) / 2, 0.07, 0.07, 1 - seat) for i in (-1, 1)]
        rest += [box(0, w / 2 - 0.035, z, w, 0.04, 0.13) for z in (0.92, 0.7)]
    return join(*legs, box(0, 0, seat + 0.03, w, w, 0.07), *rest)


def _table(rng: Random) -> Mesh:
    depth, height = rng.uniform(0.55, 0.85), rng.uniform(0.45, 0.62)
    if rng.random() < 0.35:  # round, on one leg
        top, foot = rng.uniform(0.46, 0.5), rng.uniform(0.2, 0.28)
        profile = [(0, 0), (foot, 0), (foot, 0.04), (0.05, 0.07), (0.05, height - 0.06), (top, height - 0.06)]
        return lathe([*profile, (top, height), (0, height)])
    return join(*_legs(0.44, depth / 2 - 0.05, height - 0.05, 0.08), box(0, 0, height - 0.03, 1, depth, 0.06))


def _bed(rng: Random) -> Mesh:
    w, head = rng.uniform(0.5, 0.65), rng.uniform(0.38, 0.5)
    mattress = box(0, 0, 0.19, 0.94, w, 0.14)
    boards = [box(-0.48, 0, head / 2, 0.05, w, head), box(0.48, 0, 0.15, 0.05, w, 0.3)]
    pillow = _ball(0.5, 0, 1.0).moved(np.diag([0.2, w * 0.7, 0.12]), (-0.33, 0, 0.28))
    return join(mattress, *boards, pillow)


def _shelf(rng: Random) -> Mesh:
    w, depth, boards = rng.uniform(0.55, 0.7), rng.uniform(0.22, 0.3), rng.choice((3, 4))
    sides = [box(i * (w / 2 - 0.02), 0, 0.5, 0.04, depth, 1) for i in (-1, 1)]
    levels = [box(0, 0, z, w, depth, 0.04) for z in np.linspace(0.03, 0.98, boards + 1)]
    return join(*sides, *levels, box(0, depth / 2 - 0.01, 0.5, w, 0.02, 1))


def _ladder(rng: Random) -> Mesh:
    w, rungs = rng.uniform(0.14, 0.18), rng.choice((4, 5, 6))
    rails = [box(i * w, 0, 0.5, 0.05, 0.06, 1) for i in (-1, 1)]
    return join(*rails, *[box(0, 0, (i + 0.6) / rungs, 2 * w, 0.04, 0.04) for i in range(rungs)])


def _house(rng: Random) -> Mesh:
    w, eaves, depth = rng.uniform(0.6, 0.75), rng.uniform(0.42, 0.52), rng.uniform(0.6, 0.85)
    body = extrude([(-w / 2, 0), (w / 2, 0), (w / 2, eaves), (0, 0.88), (-w / 2, eaves)], depth)
    rise = 0.88 - eaves
    slant = np.hypot(w / 2, rise) + 0.1
    angle = float(np.arctan2(rise, w / 2))
    roof = [
        box(0, 0, 0, slant, depth + 0.1, 0.05).moved(turn("y", s * angle), (s * w / 4, 0, (eaves + 0.88) / 2 + 0.01))
        for s in (-1, 1)
    ]
    x = rng.choice((-1, 1)) * w * 0.25
    return join(body, *roof, box(x, depth * 0.15, 0.82, 0.1, 0.1, 0.36), box(0, -depth / 2, 0.13, 0.15, 0.05, 0.26))


def _car(rng: Random) -> Mesh:
    w, hood, roof = rng.uniform(0.38, 0.46), rng.uniform(0.22, 0.27), rng.uniform(0.38, 0.44)
    front, back = rng.uniform(0.12, 0.2), rng.uniform(-0.42, -0.3)
    body = extrude([(-0.5, 0.08), (0.5, 0.08), (0.5, hood * 0.85), (0.45, hood), (-0.5, hood)], w)
    cabin = extrude([(back, hood), (front + 0.12, hood), (front - 0.03, roof), (back + 0.06, roof)], w * 0.86)
    wheel = lathe([(0, -0.05), (0.11, -0.05), (0.11, 0.05), (0, 0.05)], 20).moved(turn("x", pi / 2))
    wheels = [wheel.moved(np.eye(3), (x, y * w / 2, 0.11)) for x in (-0.29, 0.29) for y in (-1, 1)]
    return join(body, cabin, *wheels)


def _boat(rng: Random) -> Mesh:
    w, deck = rng.uniform(0.22, 0.3), rng.uniform(0.18, 0.24)
    hull = extrude([(-0.32, 0), (0.3, 0), (0.46, deck), (-0.42, deck)], w)
    sail = extrude([(-0.02, deck + 0.1), (0.38, deck + 0.1), (-0.02, 0.95)], 0.03)
    jib = extrude([(-0.36, deck + 0.1), (-0.08, deck + 0.1), (-0.08, 0.8)], 0.03)
    return join(hull, sail, jib, _rod(-0.05, 0, deck, 1.0, 0.025))


def _book(rng: Random) -> Mesh:
    w, thick = rng.uniform(0.66, 0.78), rng.uniform(0.14, 0.24)
    cover = [box(0, 0, z, w, 1, 0.03) for z in (0.015, thick - 0.015)]
    return join(
        *cover, box(-w / 2 + 0.015, 0, thick / 2, 0.03, 1, thick), box(-0.02, 0, thick / 2, w - 0.1, 0.92, thick - 0.06)
    )


def _crate(rng: Random) -> Mesh:
    w, h, slats = rng.uniform(0.8, 1.0), rng.uniform(0.5, 0.68), rng.choice((3, 4))
    tall = h / (slats + 0.4 * (slats - 1))
    sides = []
    for i in range(slats):
        z = tall / 2 + i * tall * 1.4
        sides += [box(0, s * w / 2, z, w, 0.04, tall) for s in (-1, 1)] + [
            box(s * w / 2, 0, z, 0.04, w, tall) for s in (-1, 1)
        ]
    return join(*sides, *_legs(w / 2 - 0.05, w / 2 - 0.05, h, 0.08), box(0, 0, 0.03, w, w, 0.05))


def _tree(rng: Random) -> Mesh:
    r, stem = rng.uniform(0.28, 0.36), rng.uniform(0.14, 0.2)
    trunk = lathe([(0, 0), (0.07, 0), (0.07, stem), (0, stem)], 16)
    if rng.random() < 0.35:
        ball = rng.uniform(0.3, 0.36)
        return join(lathe([(0, 0), (0.07, 0), (0.06, 1 - ball), (0, 1 - ball)], 16), _ball(ball, 1 - ball))
    tiers = [(r, stem, stem + 0.42), (r * 0.8, stem + 0.24, stem + 0.62), (r * 0.58, stem + 0.46, 1.0)]
    return join(trunk, *[lathe([(0, a), (radius, a), (0, b)], 28) for radius, a, b in tiers])


def _dumbbell(rng: Random) -> Mesh:
    r, plate = rng.uniform(0.18, 0.24), rng.uniform(0.14, 0.2)
    half = [(0.06, 0.5 - plate), (r, 0.5 - plate), (r, 0.5), (0, 0.5)]
    bar = lathe([(radius, -z) for radius, z in half[::-1]] + half, 24)
    return bar.moved(turn("y", pi / 2), (0, 0, r))


PRIMITIVES: dict[str, Callable[[Random], Mesh]] = {
    "sphere": _sphere,
    "cube": _cube,
    "cylinder": _cylinder,
    "cone": _cone,
    "torus": _torus,
}
EVERYDAY: dict[str, Callable[[Random], Mesh]] = {
    "mug": _mug,
    "bottle": _bottle,
    "vase": _vase,
    "bowl": _bowl,
    "plate": _plate,
    "pot": _pot,
    "lamp": _lamp,
    "mushroom": _mushroom,
    "hourglass": _hourglass,
    "bell": _bell,
    "hat": _hat,
    "snowman": _snowman,
    "umbrella": _umbrella,
    "trophy": _trophy,
    "star": _star,
    "heart": _heart,
    "key": _key,
    "gear": _gear,
    "chair": _chair,
    "table": _table,
    "bed": _bed,
    "shelf": _shelf,
    "ladder": _ladder,
    "house": _house,
    "car": _car,
    "boat": _boat,
    "book": _book,
    "crate": _crate,
    "tree": _tree,
    "dumbbell": _dumbbell,
}
FACED = {"star", "heart", "key", "gear", "boat", "ladder", "shelf", "mug", "house"}  # known by their front
FLAT_TOPS = ("cube", "cylinder", "table", "book")  # what another thing can stand on
THIN = ("key", "ladder", "shelf", "crate", "bed", "boat")  # too slender to show a pattern for certain
HOLLOW = ("bowl", "crate")  # what a small thing can lie in and still be seen


def make(category: str, rng: Random) -> Mesh:
    """A mesh of the category, with proportions of its own, scaled to a largest extent of 1 and seated."""
    mesh = (PRIMITIVES | EVERYDAY)[category](rng)
    extent = (mesh.vertices.max(0) - mesh.vertices.min(0)).max()
    return mesh.moved(np.eye(3) / extent).seated()
