"""Rendered scenes: the meshes, what the seeds promise, and that masks and facts are those of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from gar.data.sample import read_shards
from gar.regions import decode_rle
from gar.scenes import render
from gar.scenes.grammar import relations
from gar.scenes.things import EVERYDAY, PRIMITIVES, Mesh, make, turn
from gar.scenes.world import COLORS, GENERATORS, Camera, Light, Panel, Surface, Thing, World, color_of, sample_world

X, Y, Z = np.eye(3)


@pytest.fixture(scope="module")
def mitsuba():
    pytest.importorskip("mitsuba_oidn", reason="rendering needs mitsuba-oidn, of the extra `scenes`")
    return pytest.importorskip("mitsuba", reason="rendering needs mitsuba, of the extra `scenes`")


def thing(category: str = "sphere", color: str = "red", at: Sequence[float] = (0, 0, 0), extent: float = 1.0) -> Thing:
    mesh = make(category, Random(3)).moved(np.eye(3) * extent, at)
    return Thing(category, color, "matte", "plain", mesh, Surface("matte", color_of(color, Random(3))))


def world(*things: Thing, **other) -> World:
    """Things on a gray floor, seen from the front and a little above."""
    camera = Camera(np.array([0, -6.0, 1.5]), np.array([0, 0, 0.5]), 50.0, (96, 96))
    floor = Panel(np.zeros(3), 20 * X, 20 * Y, Surface("matte", np.full(3, 0.4)))
    return World(camera, list(things), [floor], sky=np.full((1, 1, 3), 0.8), **other)


def reddish(scene: render.Scene) -> np.ndarray:
    pixels = np.asarray(scene.picture).astype(int)
    return pixels[..., 0] > pixels[..., 1:].max(-1) + 50


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / max((a | b).sum(), 1)


def fact(scene: render.Scene, kind: str) -> tuple[np.ndarray, dict]:
    (found,) = [(m, f) for m, f in zip(scene.masks, scene.things, strict=True) if f["kind"] == kind]
    return found


@pytest.mark.parametrize("category", [*PRIMITIVES, *EVERYDAY])
def test_a_mesh_is_seated_closed_and_faces_outwards(category: str) -> None:
    for seed in range(4):
        mesh = make(category, Random(seed))
        low, high = mesh.vertices.min(0), mesh.vertices.max(0)
        assert np.allclose((low[2], (high - low).max()), (0, 1))
        corners = mesh.vertices[mesh.faces]
        outward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert np.allclose(outward.sum(0), 0, atol=1e-6), "an open mesh"
        assert np.einsum("ij,ij->", corners[:, 0], outward) > 0, "a mesh inside out"
        agree = np.einsum("ij,ij->i", outward, mesh.normals[mesh.faces].mean(1)) > -1e-9
        assert agree.mean() > 0.97


def test_a_reflected_mesh_still_faces_outwards() -> None:
    def volume(mesh: Mesh) -> float:
        a, b, c = mesh.vertices[mesh.faces].transpose(1, 0, 2)
        return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)

    mesh = make("mug", Random(0))
    assert volume(mesh.moved(np.diag([-1.0, 1, 1]), (2, 0, 0))) == pytest.approx(volume(mesh))
    assert np.allclose(turn("z", np.pi / 2) @ X, Y)


def test_no_two_color_words_share_a_color() -> None:
    vivid = {w: r for w, r in COLORS.items() if w not in ("gray", "white", "black", "brown")}
    spans = sorted(r[0] for r in vivid.values())
    assert all(b[0] - a[1] >= 12 for a, b in zip(spans, spans[1:], strict=False))
    brightness = [COLORS[w][2] for w in ("black", "gray", "white")]
    assert all(b[0] - a[1] > 0.2 for a, b in zip(brightness, brightness[1:], strict=False))


@pytest.mark.parametrize("generator", GENERATORS)
def test_held_out_combinations_are_in_the_unseen_split_only(generator: str) -> None:
    for seed in range(25):
        for split in ("train", "val"):
            shown = sample_world(seed, generator, split)
            inner = [t for _, w in shown.pictures for t in w.things]
            assert not any(t.held_out for t in [*shown.things, *inner])
        things = sample_world(seed, generator, "unseen").things
        assert 2 * sum(t.held_out for t in things) >= len(things)


def test_a_thing_on_another_stands_on_it_and_one_inside_another_lies_in_it() -> None:
    seen = set()
    for seed in range(60):
        shown = sample_world(seed)
        for i, word, j in shown.relations:
            (a, b), seen = (shown.things[k].mesh.vertices for k in (i, j)), seen | {word}
            if word == "on":
                assert a[:, 2].min() == pytest.approx(b[:, 2].max())
            if word == "inside":
                assert (a.min(0)[:2] > b.min(0)[:2]).all() and (a.max(0)[:2] < b.max(0)[:2]).all()
                assert b[:, 2].min() < a[:, 2].min() < b[:, 2].max()
            if word == "leaning on":
                assert a[:, 2].min() == pytest.approx(0, abs=1e-6)
    assert seen == {"on", "inside", "leaning on", "next to"}


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split 'test' is unknown"):
        sample_world(0, split="test")


def test_the_mask_is_the_thing_that_the_picture_shows(mitsuba) -> None:
    scene = render.render_scene(world(thing("sphere")), 1)
    mask, known = fact(scene, "object")
    assert overlap(mask, reddish(scene)) > 0.85
    assert known["visible"] > 0.9 and known["area"] == mask.sum() and not known["clipped"]
    assert known["depth"] == pytest.approx(6.08, abs=0.1)


def test_what_is_half_hidden_is_known_to_be(mitsuba) -> None:
    scene = render.render_scene(world(thing("cube", "blue", (0.5, -1.5, 0)), thing("sphere", extent=1.2)), 1)
    hidden = next(f for f in scene.things if f["color"] == "red")
    assert 0.1 < hidden["visible"] < 0.7


def test_what_leaves_the_picture_is_clipped_and_counts_as_hidden(mitsuba) -> None:
    scene = render.render_scene(world(thing("sphere", at=(2.7, 0, 0))), 1)
    _, known = fact(scene, "object")
    assert known["clipped"] and known["visible"] < 0.8


def test_a_reflection_has_the_mask_of_its_own_picture_in_the_mirror(mitsuba) -> None:
    mirror = Panel(np.array([0, 1.5, 1.2]), 2 * X, 1.2 * Z, Surface("mirror", np.full(3, 0.95)))
    shown = world(thing("sphere", at=(-0.9, 0, 0)), mirror=mirror)
    scene = render.render_scene(shown, 1)
    real, reflected = fact(scene, "object"), fact(scene, "reflection")
    assert scene.mirror is not None and not (reflected[0] & ~scene.mirror).any()
    assert overlap(reflected[0] | real[0], reddish(scene)) > 0.8
    assert scene.things[reflected[1]["of"]] == real[1]
    assert reflected[1]["depth"] > real[1]["depth"] and reflected[1]["xyz"][1] == pytest.approx(3.0, abs=0.01)


def test_a_picture_on_the_wall_hangs_upright_with_its_thing_in_its_mask(mitsuba) -> None:
    panel = Panel(np.array([0, 0.5, 1.2]), 1.4 * X, 1.4 * Z, Surface("matte", np.ones(3)))
    scene = render.render_scene(world(pictures=[(panel, world(thing("cone", extent=2.0)))]), 1)
    mask, _ = fact(scene, "picture")
    assert overlap(mask, reddish(scene)) > 0.75
    rows = np.nonzero(mask)[0]
    assert rows.mean() > (rows.min() + rows.max()) / 2, "a cone is wide below"


@pytest.mark.parametrize("material", ["matte", "plastic"])
def test_no_finish_is_told_by_the_noise_of_its_rendering(mitsuba, material: str) -> None:
    def noise(grain: float) -> float:
        """How far a pixel within a cube is from the mean of its neighbours, times two, of 255; the middle one."""
        cube = thing("cube", extent=2.0)
        cube = replace(cube, material=material, surface=replace(cube.surface, material=material, rough=0.03))
        lamp = Light("area", np.array([1.0, -3, 6]), np.full(3, 2.0), 0.5)
        scene = render.render_scene(world(cube, lights=[lamp], grain=grain), 1)
        mask, _ = fact(scene, "object")
        red = np.asarray(scene.picture).astype(float)[..., 0]
        within = mask & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
        return float(np.median(np.abs(2 * red - np.roll(red, 1, 1) - np.roll(red, -1, 1))[within]))

    assert noise(grain=0) <= 2
    assert noise(grain=0.03) > 5


def test_a_row_is_told_from_left_to_right(mitsuba) -> None:
    places = (1.2, -1.2, 0.0)
    things = [thing("cube", c, (x, 0, 0), 0.6) for c, x in zip(("red", "green", "blue"), places, strict=True)]
    scene = render.render_scene(world(*things, rows=[[0, 1, 2]]), 5)
    assert [scene.things[i]["color"] for i in scene.rows[0]] == ["green", "blue", "red"]


def test_the_mirror_image_of_a_scene_exchanges_left_and_right_and_nothing_else(mitsuba) -> None:
    sample = render.render_sample(11, pixels=96)
    other = render.mirrored(sample)
    back = render.mirrored(other)
    assert back.meta == sample.meta and back.masks == sample.masks
    for rle, flipped in zip(sample.masks, other.masks, strict=True):
        assert (decode_rle(rle)[:, ::-1] == decode_rle(flipped)).all()
    assert len(sample.masks) > 1
    for i in range(len(sample.masks)):
        for j in range(len(sample.masks)):
            swapped = {"left": "right", "right": "left"}
            held = {swapped.get(word, word) for word in relations(sample.meta, i, j)}
            assert relations(other.meta, i, j) == held
    pixels, mirror = np.asarray(sample.picture()).astype(int), np.asarray(other.picture()).astype(int)
    assert np.abs(pixels[:, ::-1] - mirror).mean() < 3  # JPEG twice


def test_a_seed_gives_the_same_record_whatever_the_workers_and_a_stopped_run_goes_on(
    mitsuba, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "SHARD", 2)
    render.render_shards(3, tmp_path / "a", seed=7, workers=1, pixels=64)
    render.render_shards(4, tmp_path / "b", seed=7, workers=2, pixels=64)
    render.render_shards(2, tmp_path / "c", seed=7, workers=1, pixels=64, both=True)
    first, second = list(read_shards(tmp_path / "a")), list(read_shards(tmp_path / "b"))
    assert list(read_shards(tmp_path / "c")) == [*first[:2], *map(render.mirrored, first[:2])]
    assert len(first) == 3 and first == second[:3]
    assert first[0].picture().width ** 2 < 64**2 * 2 and all(s.meta["seed"] == 7 + i for i, s in enumerate(second))
    assert all(len(s.masks) == len(s.meta["things"]) for s in second)

    kept = tmp_path / "a" / "train-00000.parquet"
    before = kept.stat().st_mtime_ns
    (tmp_path / "a" / "train-00001.parquet").unlink()
    render.render_shards(3, tmp_path / "a", seed=7, workers=1, pixels=64)
    assert kept.stat().st_mtime_ns == before and list(read_shards(tmp_path / "a")) == first
    render.render_shards(4, tmp_path / "a", seed=7, workers=1, pixels=64)  # the shard that was cut short is made anew
    assert kept.stat().st_mtime_ns == before and list(read_shards(tmp_path / "a")) == second
    render.render_shards(1, tmp_path / "a", seed=7, workers=1, pixels=64)  # fewer take none away
    assert list(read_shards(tmp_path / "a")) == second
    with pytest.raises(ValueError, match="split is 'test', expected one of"):
        render.render_shards(1, tmp_path / "e", workers=1, split="test")
    assert not (tmp_path / "e").exists()
    with pytest.raises(ValueError, match="has scenes with seed 7, not 8: name another --out"):
        render.render_shards(4, tmp_path / "a", seed=8, workers=1, pixels=64)
    with pytest.raises(ValueError, match="has scenes with both False, not True"):
        render.render_shards(4, tmp_path / "a", seed=7, workers=1, pixels=64, both=True)
    assert list(read_shards(tmp_path / "a")) == second
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train-00000.parquet").write_text("no shard")
    with pytest.raises(ValueError, match="is no shard of scenes: remove it"):
        render.render_shards(2, tmp_path / "d", seed=7, workers=1, pixels=64)
    render.contact_sheet(tmp_path / "a", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
