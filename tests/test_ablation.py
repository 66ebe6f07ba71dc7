"""The ablation shows the language model eight different things, and else does the same for all."""

from __future__ import annotations

import itertools
import json
import random
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_training import processor, samples  # noqa: F401

from gar.data.packing import Reading, collate, pack
from gar.data.sample import Turn, write_shard
from gar.inputs.processor import GARProcessor
from gar.train import nano

ROOT = Path(__file__).parents[1]
ablation: Any = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "ablation.py")))
SAME = Turn("Is the color of <Prompt0> the same as that of <Prompt1>?", "No, it is not.", "same", ("Yes", "No"))


@pytest.fixture(scope="module")
def settings(samples, processor, tmp_path_factory) -> Any:  # noqa: F811
    """Four scenes and a nano that was not trained, its mask embedding at random."""
    folder = tmp_path_factory.mktemp("ablation")
    more = {"shape": "cube", "material": "matte", "pattern": "plain", "size": "small", "clipped": False, "radius": 1.0}
    scenes = []
    for sample in samples[:4]:
        things = [more | thing for thing in sample.meta["things"]]
        meta = {**sample.meta, "things": things, "rows": []}
        scenes.append(replace(sample, turns=[*sample.turns, SAME], meta=meta))
    write_shard(scenes, folder / "scenes" / "part.parquet")
    model = nano.build(processor.tokenizer)
    torch.nn.init.normal_(model.model.mask_patch_embedding.weight, std=0.5)
    nano.export(model, GARProcessor(model.config, processor.tokenizer), folder / "model", scenes)
    made = ablation.Settings(
        folder / "scenes", folder / "scenes", str(folder / "model"), folder / "out", scenes=4, steps=2
    )
    ablation.encode(made, "train", 0)
    return made


def shown(settings: Any, variant: Any) -> torch.Tensor:
    """What the language model reads of the first pack of several regions, the summaries at its names included."""
    packs = ablation.seen(settings, "train", variant)
    packed = next(p for p in packs if len(p.things) > 1)
    inner = ablation.reader(settings, variant, seed=0).model.model
    ids = torch.tensor([packed.input_ids])
    return inner.embed(ids, packed.context.float(), packed.regions.float(), [packed.boxes])


@torch.no_grad()
def test_no_two_variants_show_the_language_model_the_same(settings):
    seen = {name: shown(settings, variant) for name, variant in ablation.VARIANTS.items()}
    for (one, first), (other, second) in itertools.combinations(seen.items(), 2):
        same_length = first.shape == second.shape
        some_apart = same_length and ((first - second).norm(dim=-1) > 0.01 * first.norm(dim=-1)).any()
        assert not same_length or some_apart, f"{one} and {other}"


def test_the_tokens_of_picture_and_regions_stand_where_a_variant_says(settings):
    def counts(name: str) -> tuple[int, int, int]:
        packed = next(p for p in ablation.seen(settings, "train", ablation.VARIANTS[name]) if len(p.things) > 1)
        config = ablation.reader(settings, ablation.VARIANTS[name], seed=0).model.config
        crops = [packed.input_ids.count(token) for token in config.crop_token_ids]
        names = sum(packed.input_ids.count(token) for token in config.prompt_token_ids)
        return packed.input_ids.count(config.image_token_id), sum(crops), names

    regions = next(len(p.things) for p in ablation.seen(settings, "train", ablation.VARIANTS["d"]) if len(p.things) > 1)
    context, _, mentions = counts("a")
    assert context == ablation.opened(settings.start).model.config.tokens_per_tile
    assert counts("a") == (context, 0, mentions)
    assert counts("b") == (0, 16 * regions, mentions + regions)
    assert counts("d") == counts("c") == counts("g1") == (context, 16 * regions, mentions + regions)
    assert counts("g2") == (context, 16 * mentions, mentions)


@torch.no_grad()
def test_the_method_reads_what_the_package_itself_would_give_it(settings, processor):  # noqa: F811
    model = ablation.fresh(settings, seed=0)
    scene = ablation.scenes(settings, "train")[1]
    whole = GARProcessor(model.config, processor.tokenizer)
    own = pack(scene, whole, random.Random("train/1/0"), num_turns=ablation.TURNS, max_regions=ablation.REGIONS)
    ours = ablation.seen(settings, "train", ablation.VARIANTS["d"])[1]
    assert own is not None and ours.input_ids == own.input_ids and ours.boxes == own.boxes
    batch = collate([own]) | {"input_ids": Reading.of([own], 0).input_ids}
    features = model.model.encode(batch["pixel_values"], batch["mask_values"])
    regions = model.model.cut(features, batch["tile_grids"], batch["region_boxes"])
    expected = model.model.embed(batch["input_ids"], features, regions, batch["region_boxes"])
    inner = ablation.reader(settings, ablation.VARIANTS["d"], seed=0).model.model
    found = inner.embed(batch["input_ids"], ours.context.float(), ours.regions.float(), [ours.boxes])
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)  # kept in float16


def test_all_variants_of_a_seed_begin_alike_and_train_the_same_weights(settings):
    one, other = (ablation.reader(settings, ablation.VARIANTS[name], seed=3) for name in ("a", "d"))
    states = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    trained = [{name for name, p in r.model.named_parameters() if p.requires_grad} for r in (one, other)]
    assert trained[0] == trained[1] and not any("tower" in name or "projector" in name for name in trained[0])


@pytest.mark.slow
def test_two_variants_are_trained_and_told_and_a_finished_run_is_not_repeated(settings):
    text = ablation.ablate(settings, ["a", "d"], [0], jobs=1)
    assert "| color |" in text and "d replay" in text and "Differences to d" in text
    files = sorted((settings.out / "runs").iterdir())
    assert [file.name for file in files] == ["a-0.json", "d-0.json"]
    told = json.loads((settings.out / "ablation.json").read_text())
    right = json.loads(files[1].read_text())["right"]
    assert told["rows"]["all"]["n"] == len(right) > told["rows"]["same"]["n"] > 0
    assert told["rows"]["all"]["variants"]["d"]["right"] == pytest.approx(sum(right) / len(right), abs=1e-4)
    assert (settings.out / "ablation.png").stat().st_size > 10_000

    before = [file.stat().st_mtime_ns for file in files]
    ablation.ablate(settings, ["a", "d"], [0], jobs=1)
    assert [file.stat().st_mtime_ns for file in files] == before
    with pytest.raises(SystemExit, match="other settings"):
        ablation.ablate(replace(settings, steps=3), ["a"], [0], jobs=1)


def test_only_one_word_answers_of_the_types_that_are_asked_stay():
    turns = [
        Turn("What is the shape of <Prompt0>?", "a ball.", "shape", ("A box.", "a ball.")),
        Turn("Is <Prompt0> red?", "Yes", "color"),
        Turn("Which of <Prompt0> or <Prompt1> is in the mirror?", "<Prompt0>", "mirror"),
        Turn("How many things are there?", "two", "counting"),
        SAME,
    ]
    assert [(t.answer, t.choices) for t in ablation.short(turns)] == [
        ("sphere", ("cube", "sphere")),
        ("no", ("yes", "no")),
    ]


def test_differences_are_paired_and_seeds_that_not_all_have_run_do_not_count():
    rng = random.Random(0)
    asked = [
        {"scene": i // 5, "type": "color", "names": 1, "marked": 1 + i % 2, "guess": int(i % 4 == 0)}
        for i in range(200)
    ]
    method = {seed: [int(rng.random() < 0.7) for _ in asked] for seed in (0, 1, 2)}
    runs = [{"variant": "d", "seed": seed, "right": right} for seed, right in method.items()]
    worse = {seed: [right if i % 5 else 0 for i, right in enumerate(method[seed])] for seed in (0, 1)}
    runs += [{"variant": "a", "seed": seed, "right": right} for seed, right in worse.items()]
    told = ablation.report(asked, runs)
    assert told["seeds"] == [0, 1] and set(told["rows"]) == {"color", "one marked", "one of several", "all"}
    figures = told["rows"]["all"]["variants"]
    assert figures["d"]["right"] == pytest.approx(sum(sum(method[s]) for s in (0, 1)) / 400, abs=1e-4)
    assert figures["d"]["beyond_method"] == 0 and figures["d"]["beyond_method_ci95"] == [0, 0]
    low, high = figures["a"]["beyond_method_ci95"]
    assert low < figures["a"]["beyond_method"] < high < 0
    assert high - low < figures["a"]["ci95"][1] - figures["a"]["ci95"][0]  # in each scene they differ by the same
    assert told["rows"]["all"]["guess"] == 0.25
