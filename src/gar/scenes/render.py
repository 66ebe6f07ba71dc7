"""Rendering of sampled worlds with Mitsuba: the picture, the exact visible mask of every thing, and the facts.

Knows Mitsuba (imported only when a function needs it) and the records of `gar.data`. Knows no question and no model.
"""

from __future__ import annotations

import io
import json
import multiprocessing
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from gar.data.sample import Sample, read_shards, replacing, write_shard, write_whole
from gar.regions import decode_rle, encode_rle
from gar.scenes.text import talk
from gar.scenes.things import PRIMITIVES, Mesh
from gar.scenes.world import PIXELS, SPLITS, Camera, Panel, Surface, Thing, World, linear, sample_world

SHARD = 50  # scenes in a shard
SAMPLES = 4  # a pixel, of which noise is then taken out
MIN_AREA = 40  # pixels; what is smaller is nothing one could talk about
LICENCE = "Apache-2.0"


def _mitsuba() -> Any:
    import drjit
    import mitsuba
    import mitsuba_oidn  # noqa: F401 (without it a run must end before it writes anything)

    if mitsuba.variant() != "scalar_rgb":
        mitsuba.set_variant("scalar_rgb")
        drjit.set_thread_count(1)  # the workers share the cores
    return mitsuba


def _load(description: dict[str, Any]) -> Any:
    """Mitsuba's object for a description; shapes neither merged nor in an order that changes from run to run."""
    return _mitsuba().load_dict(description, parallel=False, optimize=False)


# --- Our descriptions in Mitsuba's words -----------------------------------------------------------------------------


def _texture(color: np.ndarray, surface: Surface) -> dict[str, Any]:
    mi = _mitsuba()
    if color.ndim == 1:
        return {"type": "rgb", "value": [float(c) for c in np.clip(color, 0, 1)]}
    return {
        "type": "bitmap",
        "bitmap": mi.Bitmap(np.ascontiguousarray(np.clip(color, 0, 1), np.float32)),
        "raw": True,
        "filter_type": "bilinear" if surface.smooth else "nearest",
        "to_uv": mi.ScalarTransform4f().scale([*surface.repeat, 1]),
    }


def _bsdf(surface: Surface) -> dict[str, Any]:
    color = _texture(surface.color, surface)
    match surface.material:
        case "mirror":
            return {"type": "conductor", "material": "none", "specular_reflectance": color}
        case "metal":
            metal = {
                "type": "roughconductor",
                "material": "none",
                "alpha": surface.rough,
                "specular_reflectance": color,
            }
            return {"type": "twosided", "bsdf": metal}
        case "glass":
            kind = {"type": "roughdielectric", "alpha": surface.rough} if surface.rough else {"type": "dielectric"}
            return {**kind, "int_ior": 1.45, "specular_transmittance": color}
        case "plastic":
            # Shinier than most plastic is, so that flat sides show it too.
            plastic = {"type": "roughplastic", "diffuse_reflectance": color, "alpha": surface.rough, "int_ior": 2.2}
            return {"type": "twosided", "bsdf": plastic}
    return {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": color}}


def _mesh(mesh: Mesh, name: str, surface: Surface | None) -> Any:
    mi = _mitsuba()
    props = mi.Properties()
    if surface is not None:
        props["mesh_bsdf"] = _load(_bsdf(surface))
    result = mi.Mesh(
        name, len(mesh.vertices), len(mesh.faces), has_vertex_normals=True, has_vertex_texcoords=True, props=props
    )
    params = mi.traverse(result)
    params["vertex_positions"] = np.ascontiguousarray(mesh.vertices.ravel(), np.float32)
    params["vertex_normals"] = np.ascontiguousarray(mesh.normals.ravel(), np.float32)
    params["vertex_texcoords"] = np.ascontiguousarray(mesh.uv.ravel(), np.float32)
    params["faces"] = np.ascontiguousarray(mesh.faces.ravel(), np.uint32)
    params.update()
    return result


def _panel(panel: Panel, bsdf: dict[str, Any] | None = None) -> dict[str, Any]:
    mi = _mitsuba()
    matrix = np.eye(4)
    matrix[:3] = np.stack([panel.right, panel.up, panel.normal, panel.centre], 1)
    return {"type": "rectangle", "to_world": mi.ScalarTransform4f(matrix), "bsdf": bsdf or _bsdf(panel.surface)}


def _sensor(camera: Camera, spp: int) -> dict[str, Any]:
    mi = _mitsuba()
    return {
        "type": "perspective",
        "fov": camera.fov,
        "fov_axis": "x",
        "near_clip": 0.05,
        "to_world": mi.ScalarTransform4f().look_at(
            [float(v) for v in camera.origin], [float(v) for v in camera.target], [0, 0, 1]
        ),
        "film": {
            "type": "hdrfilm",
            "width": camera.size[0],
            "height": camera.size[1],
            "rfilter": {"type": "box"},
            "pixel_format": "rgb",
        },
        "sampler": {"type": "multijitter", "sample_count": spp},
    }


def _lamps(world: World) -> dict[str, Any]:
    mi = _mitsuba()
    result: dict[str, Any] = {}
    if world.sky.shape[:2] == (1, 1):
        result["sky"] = {"type": "constant", "radiance": {"type": "rgb", "value": [float(c) for c in world.sky[0, 0]]}}
    else:
        up = mi.ScalarTransform4f().rotate([1, 0, 0], 90)
        bitmap = mi.Bitmap(np.ascontiguousarray(world.sky, np.float32))
        result["sky"] = {"type": "envmap", "bitmap": bitmap, "to_world": up}
    for i, light in enumerate(world.lights):
        far = float(np.linalg.norm(light.position))
        if light.kind == "point":
            rgb = [float(c) for c in light.rgb * far**2]
            result[f"light{i}"] = {
                "type": "point",
                "position": [float(v) for v in light.position],
                "intensity": {"type": "rgb", "value": rgb},
            }
        else:
            rgb = [float(c) for c in light.rgb * far**2 / (4 * light.half**2)]
            toward = mi.ScalarTransform4f().look_at([float(v) for v in light.position], [0, 0, 0], [0.1, 0.9, 0.2])
            result[f"light{i}"] = {
                "type": "rectangle",
                "to_world": toward @ mi.ScalarTransform4f().scale(light.half),
                "emitter": {"type": "area", "radiance": {"type": "rgb", "value": rgb}},
            }
    return result


# --- What is seen ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
    """What each pixel shows, unlit: its shape (an index into the names given, -1 for none), uv, albedo and normal."""

    index: np.ndarray
    uv: np.ndarray
    guide: np.ndarray  # (H, W, 6): albedo and normal


def _view(shapes: dict[str, Any], camera: Camera) -> _View:
    mi = _mitsuba()
    scene = _load({"type": "scene", "sensor": _sensor(camera, 1), **shapes})
    aovs = "index:shape_index,uv:uv,albedo:albedo,normal:sh_normal"
    channels = np.array(mi.render(scene, integrator=_load({"type": "aov", "aovs": aovs}), seed=0))
    names = list(shapes)
    order = np.array([-1] + [names.index(s.id()) if s.id() in names else -1 for s in scene.shapes()])
    return _View(order[channels[..., 0].round().astype(int)], channels[..., 1:3], channels[..., 3:9])


def _silhouette(thing: Thing, camera: Camera) -> float:
    """Pixels that the thing would cover if nothing stood before it and the picture did not end."""
    width, height = camera.size
    points = camera.project(thing.mesh.vertices)
    if points[:, 2].min() < 0.1:
        return float("inf")
    xy = points[:, :2] * 2
    low = np.maximum(xy.min(0), (-width * 2, -height * 2))
    extent = np.minimum(xy.max(0), (width * 4, height * 4)) - low
    if extent.min() <= 0:
        return float("inf")
    canvas = Image.new("1", (int(extent[0]) + 2, int(extent[1]) + 2))
    draw = ImageDraw.Draw(canvas)
    triangles = (xy - low)[thing.mesh.faces]
    (ax, ay), (bx, by) = (triangles[:, 1] - triangles[:, 0]).T, (triangles[:, 2] - triangles[:, 0]).T
    front = ax * by - ay * bx < 0  # y goes down; the meshes are closed, so that their front faces are all there is
    for triangle in triangles[front].reshape(-1, 6).tolist():
        draw.polygon(triangle, fill=1)
    return float(np.asarray(canvas).sum()) / 4


def _size_word(extent: float) -> str | None:
    return "small" if extent < 0.6 else "large" if extent > 0.92 else None


def _fact(thing: Thing, kind: str, mask: np.ndarray, visible: float, camera: Camera) -> dict[str, Any]:
    ys, xs = np.nonzero(mask)
    x0, y0, x1, y1 = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    height, width = mask.shape
    low, high = thing.mesh.vertices.min(0), thing.mesh.vertices.max(0)
    centre = (low + high) / 2
    return {
        "category": thing.category,
        "shape": thing.category if thing.category in PRIMITIVES else None,
        "color": thing.color,
        "material": thing.material,
        "pattern": thing.pattern,
        "size": _size_word(thing.extent) if kind == "object" else None,
        "kind": kind,
        "of": None,
        "visible": round(min(1.0, float(visible)), 3),
        "clipped": x0 == 0 or y0 == 0 or x1 == width or y1 == height,
        "area": len(xs),
        "box": [x0, y0, x1, y1],
        "xyz": [round(float(v), 3) for v in centre],
        "depth": round(float(camera.project(centre[None])[0, 2]), 3),
        "radius": round(float(np.linalg.norm(high - low)) / 2, 3),
    }


@dataclass(frozen=True)
class Scene:
    """A rendered world: picture, (N, H, W) masks, the fact about each mask, the mirror's mask if there is one, and the
    facts about things of which fewer than `MIN_AREA` pixels show: they are there, and nobody is asked about them."""

    picture: Image.Image
    masks: np.ndarray
    things: list[dict[str, Any]]
    relations: list[list[Any]]
    rows: list[list[int]]
    mirror: np.ndarray | None
    hidden: list[dict[str, Any]]


def _calmed(radiance: np.ndarray, view: _View) -> np.ndarray:
    """Without the noise of few samples, by Open Image Denoise.

    Finishes are sampled differently, so that a model which sees this noise tells plastic from matte by it.
    """
    import mitsuba_oidn

    albedo, normal = (np.ascontiguousarray(x, np.float32) for x in np.split(view.guide, 2, -1))
    noisy = np.ascontiguousarray(radiance, np.float32)
    return np.asarray(mitsuba_oidn.denoise(noisy, albedo.clip(0, 1), normal, hdr=True))


def _developed(radiance: np.ndarray, view: _View, world: World, seed: int) -> Image.Image:
    """Linear radiance to a picture: noise taken out, exposure, tint, shoulder, gamma, the grain of a camera, blur."""
    image = _calmed(np.maximum(np.nan_to_num(radiance), 0), view) * world.exposure * world.tint
    if world.shoulder:
        image = np.where(image < 0.6, image, 0.6 + 0.4 * np.tanh((image - 0.6) / 0.4))
    image = np.clip(image, 0, 1)
    encoded = np.where(image < 0.0031308, 12.92 * image, 1.055 * np.maximum(image, 1e-8) ** (1 / 2.4) - 0.055)
    encoded = encoded ** (world.gamma / 2.2)
    if world.grain:
        encoded = encoded + np.random.default_rng(seed).normal(0, world.grain, encoded.shape)
    picture = Image.fromarray((255 * encoded.clip(0, 1) + 0.5).astype(np.uint8))
    return picture.filter(ImageFilter.GaussianBlur(world.blur)) if world.blur else picture


def render_scene(world: World, seed: int) -> Scene:
    """Render a world. `seed` is that of the noise."""
    mi = _mitsuba()
    camera = world.camera
    names = [f"thing{i}" for i in range(len(world.things))]
    shapes: dict[str, Any] = {f"panel{i}": _panel(p) for i, p in enumerate(world.panels)}
    shapes |= {name: _mesh(t.mesh, name, t.surface) for name, t in zip(names, world.things, strict=True)}
    if world.mirror is not None:
        shapes["mirror"] = _panel(world.mirror)
    framed = []
    for i, (panel, inner) in enumerate(world.pictures):
        framed.append(render_scene(inner, seed + i + 1))
        pixels = linear(np.asarray(framed[-1].picture)[::-1] / 255)  # v goes up, rows go down
        shapes[f"picture{i}"] = _panel(replace(panel, surface=Surface("matte", pixels, smooth=True)))

    glass = any(t.material == "glass" for t in world.things)
    depth = 6 if glass else 4 if world.mirror is not None else 3
    scene = _load({"type": "scene", "sensor": _sensor(camera, SAMPLES), **shapes, **_lamps(world)})
    integrator = _load({"type": "path", "max_depth": depth, "rr_depth": 3})
    view = _view(shapes, camera)
    index = view.index
    radiance = np.array(mi.render(scene, integrator=integrator, seed=seed & 0x7FFFFFFF))
    picture = _developed(radiance, view, world, seed)

    order = list(shapes)
    seen = {name: index == order.index(name) for name in order}
    found: list[tuple[str, np.ndarray, dict[str, Any]]] = []  # an identity for relations, the mask, the fact
    hidden: list[dict[str, Any]] = []

    def add(name: str, thing: Thing, kind: str, mask: np.ndarray, whole: float, by: Camera = camera) -> None:
        if not mask.any():
            return
        fact = _fact(thing, kind, mask, mask.sum() / max(whole, 1), by)
        if mask.sum() >= MIN_AREA:
            found.append((name, mask, fact))
        else:
            hidden.append(fact)

    for name, thing in zip(names, world.things, strict=True):
        add(name, thing, "object", seen[name], _silhouette(thing, camera))
    if world.mirror is not None:
        n = world.mirror.normal
        flip = np.eye(3) - 2 * np.outer(n, n)
        offset = 2 * n * float(n @ world.mirror.centre)
        behind = [t.moved(flip, offset) for t in world.things]
        ghosts = _view({m: _mesh(t.mesh, m, None) for m, t in zip(names, behind, strict=True)}, camera).index
        for i, thing in enumerate(behind):
            add(f"reflection{i}", thing, "reflection", (ghosts == i) & seen["mirror"], _silhouette(thing, camera))
            if found and found[-1][0] == f"reflection{i}":
                found[-1][2]["of"] = i
    for i, ((_, inner), scene_) in enumerate(zip(world.pictures, framed, strict=True)):
        width, height = inner.camera.size
        x = np.clip((view.uv[..., 0] * width).astype(int), 0, width - 1)
        y = np.clip(((1 - view.uv[..., 1]) * height).astype(int), 0, height - 1)
        for mask in scene_.masks:
            inside = mask[y, x] & seen[f"picture{i}"]
            add(f"picture{i}", inner.things[0], "picture", inside, inside.sum(), inner.camera)

    Random(seed).shuffle(found)
    place = {name: k for k, (name, _, _) in enumerate(found)}
    for _, _, fact in found:
        if fact["of"] is not None:
            fact["of"] = place.get(f"thing{fact['of']}")
    relations = [
        [place[f"thing{i}"], word, place[f"thing{j}"]]
        for i, word, j in world.relations
        if f"thing{i}" in place and f"thing{j}" in place
    ]
    facts = [fact for _, _, fact in found]
    rows = []
    for row in world.rows:
        members = [place[f"thing{i}"] for i in row if f"thing{i}" in place]
        if len(members) < len(row) or any(facts[m]["visible"] < 0.35 for m in members):
            continue
        middles = {m: (facts[m]["box"][0] + facts[m]["box"][2]) / 2 for m in members}
        members.sort(key=middles.__getitem__)
        if all(middles[b] - middles[a] > 5 for a, b in pairwise(members)):
            rows.append(members)
    masks = np.array([mask for _, mask, _ in found], bool).reshape(len(found), *index.shape)
    return Scene(picture, masks, facts, relations, rows, seen.get("mirror"), hidden)


# --- Shards ----------------------------------------------------------------------------------------------------------


def render_sample(
    seed: int,
    split: str = "train",
    generators: dict[str, float] | None = None,
    pixels: int = PIXELS,
    num_turns: int = 48,
) -> Sample:
    """The record of one seed: picture (JPEG), masks, talk and facts (`Sample.meta`).

    Args:
        generators: the weight of each generator; the seed chooses. Default: 4 rooms to 1 studio.
        num_turns: questions asked about the scene, at most.
    """
    weights = generators or {"rooms": 0.8, "studio": 0.2}
    generator = Random(f"generator {seed}").choices(tuple(weights), tuple(weights.values()))[0]
    scene = render_scene(sample_world(seed, generator, split, pixels), seed)
    facts = {
        "seed": seed,
        "generator": generator,
        "split": split,
        "size": list(scene.picture.size),
        "things": scene.things,
        "hidden": scene.hidden,
        "relations": scene.relations,
        "rows": scene.rows,
        "mirror": None if scene.mirror is None else encode_rle(scene.mirror),
    }
    return _told(scene.picture, [encode_rle(m) for m in scene.masks], facts, f"talk {seed}", num_turns)


def _told(picture: Image.Image, masks: list[dict[str, Any]], facts: dict[str, Any], seed: str, num: int) -> Sample:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=92, subsampling=0)
    turns = talk(facts, Random(seed), num)
    return Sample(data.getvalue(), masks, turns, f"scenes/{facts['generator']}", LICENCE, facts)


def mirrored(sample: Sample, num_turns: int = 48) -> Sample:
    """The scene with left and right exchanged, as true a scene as the first, with questions of its own."""
    facts = sample.meta
    width = facts["size"][0]

    def flipped(thing: dict[str, Any]) -> dict[str, Any]:
        (x0, y0, x1, y1), (x, y, z) = thing["box"], thing["xyz"]
        return thing | {"box": [width - x1, y0, width - x0, y1], "xyz": [-x, y, z]}

    facts = facts | {
        "things": [flipped(thing) for thing in facts["things"]],
        "hidden": [flipped(thing) for thing in facts.get("hidden", ())],
        "rows": [row[::-1] for row in facts["rows"]],
        "mirror": facts["mirror"] and encode_rle(decode_rle(facts["mirror"])[:, ::-1]),
    }
    masks = [encode_rle(decode_rle(rle)[:, ::-1]) for rle in sample.masks]
    picture = sample.picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return _told(picture, masks, facts, f"mirrored talk {facts['seed']}", num_turns)


def _render_shard(job: tuple[Path, list[int], str, dict[str, float] | None, int, bool]) -> int:
    path, seeds, split, generators, pixels, both = job
    samples = [render_sample(seed, split, generators, pixels) for seed in seeds]
    return write_shard([*samples, *map(mirrored, samples)] if both else samples, path) // (1 + both)


def render_shards(
    num: int,
    out: str | Path,
    seed: int = 0,
    workers: int = 2,
    split: str = "train",
    generators: dict[str, float] | None = None,
    pixels: int = PIXELS,
    both: bool = False,
) -> None:
    """Render the scenes of seeds seed .. seed + num - 1 into `out`/{split}-{index:05d}.parquet, 50 to a file.

    A file with as many scenes as it needs is kept, so that a stopped run goes on where it was, and a longer one after a
    shorter one. A scene depends on its seed and these settings alone. `out`/{split}.json has the settings.

    Args:
        both: write each scene's mirror image (`mirrored`) too: twice the records for little more time.

    Raises:
        ValueError: `out` has scenes of the split by other settings, or a file that is no shard.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    if num < 1 or workers < 1:
        raise ValueError(f"num {num} and workers {workers}: both must be at least 1")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    _mitsuba()  # before anything is written
    settings = {"seed": seed, "generators": generators, "pixels": pixels, "both": both}
    _same_settings(Path(out) / f"{split}.json", settings)
    jobs = []
    for index, start in enumerate(range(0, num, SHARD)):
        path = Path(out) / f"{split}-{index:05d}.parquet"
        seeds = list(range(seed + start, seed + min(start + SHARD, num)))
        if not _holds(path, len(seeds) * (1 + both)):
            jobs.append((path, seeds, split, generators, pixels, both))
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress("scenes", *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=num, completed=num - sum(len(j[1]) for j in jobs))
        if workers == 1:
            for job in jobs:
                progress.advance(task, _render_shard(job))
        elif jobs:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, mp_context=spawn)
            try:
                for done in as_completed([pool.submit(_render_shard, job) for job in jobs]):
                    progress.advance(task, _rendered(done))
            finally:
                pool.shutdown(cancel_futures=True)


def _rendered(done: Future[int]) -> int:
    """How many scenes a worker wrote. Raises ValueError where it was killed."""
    try:
        return done.result()
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker was killed, most often for lack of memory: take fewer --workers; the same command again goes on"
        ) from error


def _same_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write a run's settings, or compare them with those of the run before. Raises ValueError where they differ."""
    if path.exists():
        there = json.loads(path.read_text())
        for name, value in settings.items():
            if there.get(name) != value:
                raise ValueError(
                    f"{path.parent} has scenes with {name} {there.get(name)}, not {value}: name another --out"
                )
    else:
        write_whole(path, json.dumps(settings).encode())


def _holds(path: Path, records: int) -> bool:
    """Whether a shard is there and has so many records, or more. Raises ValueError where it is something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return path.exists() and pq.read_metadata(path).num_rows >= records
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no shard of scenes: remove it, or name another --out") from error


def contact_sheet(folder: str | Path, path: str | Path, num: int = 24, columns: int = 6) -> None:
    """A PNG of the first `num` pictures of a folder of shards, with the outline of every region."""
    cells = []
    for sample, _ in zip(read_shards(folder), range(num), strict=False):
        picture = np.array(sample.picture())
        for i, rle in enumerate(sample.masks):
            mask = decode_rle(rle)
            inner = mask.copy()
            for axis in (0, 1):
                inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
            hue = (int(256 * (i * 0.618 % 1)), 255, 255)
            picture[mask & ~inner] = Image.new("HSV", (1, 1), hue).convert("RGB").getpixel((0, 0))
        cells.append(Image.fromarray(picture))
    width, height = max(c.width for c in cells), max(c.height for c in cells)
    sheet = Image.new("RGB", (columns * width, -(-len(cells) // columns) * height), "white")
    for i, cell in enumerate(cells):
        sheet.paste(cell, (i % columns * width, i // columns * height))
    with replacing(Path(path)) as temporary:
        sheet.save(temporary, "PNG")
