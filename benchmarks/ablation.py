"""Does the method hold? One language model, eight ways to show it a region, at nano's size and on rendered scenes.

    a   global only       the picture's tokens; which region is meant, only the mask embedding says
    b   crop only         16 tokens of an enlarged crop around the region; nothing of the rest of the picture
    c   crop + global     the picture's tokens, and beside them those of the crop
    d   replay            the picture's tokens, and 16 tokens cut out of the picture's own features (RoIAlign): the
                          method, in nano's form: once in a preamble, and a summary of them at each mention of the name
    e   double-scaled     as d, the box scaled twice before the cut, as in the published code
    f   no mask           as d, the picture encoded without the mask embedding
    g1  preamble only     as d, without the summary at the mentions
    g2  in place only     as d, the 16 tokens behind each mention of the name instead: no preamble, no summary

All have the same vision (frozen: that of the nano `--start`), the same questions, steps and sizes, and for each seed
the same first language model and the same order. What trains is the language model and the layer that makes summaries,
which begins as in `--start`. Frozen vision is encoded once, and the vectors are kept.

A pack marks just the regions that its questions name; about half of the packs mark one. Where several are marked, a
cannot know which of them is called what: see the row "one of several". And the vision was trained, by auxiliary heads,
on marked pictures and on what d replays: a, b, c, e and f read features that nothing has fitted to them.

Questions that one word answers, synonyms folded: about one region those of the records, in all their wordings; those
that compare regions in one wording each (`gar.scenes.text.drill`), because in many a small model takes too long to
compare at all. With options, the right one must
be ranked first; without, greedy decoding must give the very word. "guess": always the word that is right most often.

    python benchmarks/ablation.py --train DIR --test DIR --out OUT [--start MODEL]
        [--steps 700] [--scenes 3000] [--seeds 0 1 2] [--variants a b ...] [--jobs 2]

One thread a job. A finished run is a file `OUT/runs/VARIANT-SEED.json` and is not run again, nor is finished encoding;
`OUT/ablation.json`, `.md` and `.png` are made anew from all finished runs.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from gar.data.packing import Pack, Spoken, named, pack
from gar.data.sample import Sample, Turn, read_shards, replacing
from gar.inputs.processor import CutImage, GARProcessor
from gar.inputs.prompt import NO_FAULTS, Form, PromptWriter, ReleasedFaults
from gar.inputs.tiling import normalise as scaled
from gar.model.gar import GARForConditionalGeneration
from gar.predictor import Predictor, load
from gar.regions import Located
from gar.scenes.grammar import normalise
from gar.scenes.text import drill
from gar.train.objective import Objective, part_of
from gar.train.recipes import Stage
from gar.train.recipes import nano as nano_stages

Place = Literal["nowhere", "preamble", "mentions"]
Split = Literal["train", "test"]

ABOUT_ONE = ("color", "shape", "pattern", "material", "category", "mirror")
COMPARED = ("relation", "ordering", "size", "same")
TYPES = ABOUT_ONE + COMPARED
REGIONS, TURNS = 5, 16  # at most so many a pack
PACKS = {"train": 1, "test": 3}  # of a scene
PART = 100  # scenes whose vectors are one file
MARGIN = 0.25  # of a box's longer side, around a crop on each side
DRAWS = 2000  # of the bootstrap
METHOD = "d"


@dataclass(frozen=True)
class Variant:
    """How a region is shown.

    context: which vectors the picture's own tokens are, or None without these tokens. regions: which vectors a region's
    tokens are. place: where they stand. summary: whether a layer's summary of them is added to each mention.
    """

    name: str
    context: str | None = "context"
    regions: str = "replay"
    place: Place = "preamble"
    summary: bool = True


VARIANTS = {
    "a": Variant("global only", place="nowhere", summary=False),
    "b": Variant("crop only", context=None, regions="crop"),
    "c": Variant("crop + global", regions="crop"),
    "d": Variant("replay"),
    "e": Variant("double-scaled", regions="released"),
    "f": Variant("no mask", context="context unmarked", regions="replay unmarked"),
    "g1": Variant("preamble only", summary=False),
    "g2": Variant("in place only", place="mentions", summary=False),
}


@dataclass(frozen=True)
class Settings:
    """What all runs of one folder share."""

    train: Path
    test: Path
    start: str
    out: Path
    scenes: int = 3000
    steps: int = 700

    def stage(self) -> Stage:
        """nano's own first stage on frozen vision, all tokens seen; its rate falls to zero, because a run ends here."""
        (compare,) = (stage for stage in nano_stages() if stage.name == "compare")
        return replace(
            compare, steps=self.steps, at_once=2, hidden=0.0, heads=0.0, floor=0.0, warmup=min(80, self.steps // 10 + 1)
        )


class Writer(PromptWriter):
    """Puts the tokens of picture and regions where a variant wants them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, config: Any, context: bool, place: Place):
        super().__init__(tokenizer, config)
        self._context, self._place = context, place
        crops = zip(config.prompt_token_ids, config.crop_token_ids, strict=True)
        self._behind = {name: [crop] * config.replay_size**2 for name, crop in crops if place == "mentions"}

    def encode_prefix(
        self, num_tiles: int, regions: Sequence[int], form: Form = "ask", faults: ReleasedFaults = NO_FAULTS
    ) -> list[int]:
        regions = regions if self._place == "preamble" else []
        return super().encode_prefix(num_tiles if self._context else 0, regions, form, faults)

    def encode_question(
        self, question: str, regions: Sequence[int], form: Form = "ask", region: int | None = None
    ) -> list[int]:
        ids = super().encode_question(question, regions, form, region)
        return [i for token in ids for i in (token, *self._behind.get(token, ()))]


class Drawing(GARProcessor):
    """Keeps the regions of the last picture as they were drawn; a pack has only their union."""

    def mark(self, picture: CutImage, regions: Sequence[Located]) -> Tensor:
        self.regions = list(regions)
        return super().mark(picture, regions)


class Blind(GARProcessor):
    """Makes packs of text alone, for vectors that are there already."""

    def cut(self, image: Image.Image, exact: bool = True) -> CutImage:
        return CutImage(torch.empty(1, 3, 0, 0, dtype=torch.uint8), (1, 1), *image.size)

    def mark(self, picture: CutImage, regions: Sequence[Located]) -> Tensor:
        return torch.empty(1, 0, 0, dtype=torch.bool)


@dataclass(frozen=True)
class Seen(Pack):
    """A pack with the vectors that a variant shows of it: context (1 or 0, c, c, D), regions (R, P * P, D), float16."""

    context: Tensor
    regions: Tensor


class Reader(Objective):
    """nano's objective on `Seen` packs: nothing is encoded."""

    def forward(self, packs: Sequence[Seen]) -> tuple[Tensor, dict[str, float], Spoken]:  # pyright: ignore
        """As `Objective.forward`."""
        context, regions = [p.context.float() for p in packs], [p.regions.float() for p in packs]
        spoken = self.spoken(self.model, packs, context, regions)
        return *self.loss_of(spoken), spoken


def short(turns: Iterable[Turn]) -> list[Turn]:
    """The questions about regions that one word answers, answers and options in their normal form, without notes.

    Of questions with yes or no only those stay that have no other form ("same").
    """
    kept = []
    for turn in turns:
        answer, choices = normalise(turn.answer), tuple(map(normalise, turn.choices))
        one_word = all(text and " " not in text and "prompt" not in text for text in (answer, *choices))
        told = answer not in ("yes", "no") or turn.type == "same"
        if turn.type in TYPES and named(turn) and one_word and told and len(set(choices)) == len(choices):
            kept.append(replace(turn, answer=answer, choices=choices, notes=""))
    return kept


@cache
def scenes(settings: Settings, split: Split) -> list[Sample]:
    """The scenes of a split with their short questions: all to test on, a drawn few to train on."""
    found = list(read_shards(settings.train if split == "train" else settings.test))
    if split == "train":  # not the first ones: folders of `--both` have scene and mirror image side by side
        found = random.Random(0).sample(found, min(settings.scenes, len(found)))
    asked = []
    for place, sample in enumerate(found):
        drilled = drill(sample.meta, random.Random(place))
        turns = short(turn for turn in sample.turns if turn.type in ABOUT_ONE)
        compared = short(turn for turn in drilled if turn.type in COMPARED)
        asked.append(replace(sample, turns=turns + compared[: len(turns)]))
    return [sample for sample in asked if sample.turns]


def draw(samples: Sequence[Sample], first: int, split: Split, processor: GARProcessor) -> Iterator[tuple[int, Pack]]:
    """Packs with the place of their scene, one by one: every second at most one region, the others up to `REGIONS`.

    What is drawn depends on the scene's place (of the first one: `first`), not on the variant.
    """
    for place, sample in enumerate(samples, first):
        for turn in range(PACKS[split]):
            rng = random.Random(f"{split}/{place}/{turn}")
            most = REGIONS if (place + turn) % 2 else 1
            for _ in range(20):  # until every marked region is named
                made = pack(sample, processor, rng, num_turns=TURNS, max_regions=most)
                if made and set().union(*map(named, made.turns)) == set(made.things):
                    yield place, made
                    break


@cache
def opened(start: str) -> Predictor:
    """The nano whose vision is used."""
    found = load(start, device="cpu")
    if found.model.config.prompt_style != "nano":
        raise ValueError(f"--start {start} is no nano")
    return found


def tokenizer_of(start: str) -> PreTrainedTokenizerFast:
    return opened(start).processor.tokenizer


def fresh(settings: Settings, seed: int) -> GARForConditionalGeneration:
    """Trained vision, and a language model that has learned nothing; its embeddings are those that vision points to."""
    trained = opened(settings.start).model
    torch.manual_seed(seed)
    model = GARForConditionalGeneration(deepcopy(trained.config))
    weights = {name: value for name, value in trained.state_dict().items() if not _learns(name)}
    model.load_state_dict(weights, strict=False)
    return model.eval()


def _learns(name: str) -> bool:
    return part_of(name) == "language" and not name.endswith(("embed_tokens.weight", "lm_head.weight"))


def crop(sample: Sample, region: Located, processor: GARProcessor) -> tuple[Tensor, Tensor]:
    """A region with some of what is around it, enlarged to a tile (1, 3, s, s), and its mask there (1, s, s)."""
    x0, y0, x1, y1 = region.box
    margin = round(MARGIN * max(x1 - x0, y1 - y0))
    height, width = region.mask.shape
    x0, y0, x1, y1 = max(x0 - margin, 0), max(y0 - margin, 0), min(x1 + margin, width), min(y1 + margin, height)
    cut = processor.cut(sample.picture().crop((x0, y0, x1, y1)))
    return cut.tiles, GARProcessor.mark(processor, cut, [Located.from_mask(region.mask[y0:y1, x0:x1])])


@torch.no_grad()
def encode(settings: Settings, split: Split, part: int) -> None:
    """Save the vectors of all variants for a part of the scenes: by pack (N, c, c, D), by region (R, P * P, D)."""
    model = fresh(settings, seed=0)
    inner, config = model.model, model.config
    processor = Drawing(config, tokenizer_of(settings.start))
    kept: dict[str, list[Tensor]] = defaultdict(list)
    samples = scenes(settings, split)[part * PART : (part + 1) * PART]
    for _, packed in draw(samples, part * PART, split, processor):
        regions = processor.regions
        crops = [crop(packed.sample, region, processor) for region in regions]
        unmarked = torch.zeros_like(packed.mask_tiles)
        grids, boxes = torch.tensor([packed.cut.grid]), [packed.boxes]
        tiles = torch.cat([packed.cut.tiles, packed.cut.tiles, *(tile for tile, _ in crops)])
        masks = torch.cat([packed.mask_tiles, unmarked, *(mask for _, mask in crops)])
        marked_one, unmarked_one, *enlarged = inner.encode(scaled(tiles), masks.float()).split(1)
        for name, features in (("", marked_one), (" unmarked", unmarked_one)):
            side = config.map_size // config.context_pooling
            kept[f"context{name}"].append(inner.context(features).view(1, side, side, -1))
            kept[f"replay{name}"].append(inner.cut(features, grids, boxes))
        config.replay_frame = "released"
        kept["released"].append(inner.cut(marked_one, grids, boxes))
        config.replay_frame = "feature"
        kept["crop"] += [inner.cut(features, grids, [{0: (0.0, 0.0, 1.0, 1.0)}]) for features in enlarged]
    with replacing(part_file(settings, split, part)) as temporary:
        save_file({name: torch.cat(values).half().contiguous() for name, values in kept.items()}, temporary)


def part_file(settings: Settings, split: Split, part: int) -> Path:
    return settings.out / "vectors" / f"{split}-{part:03}.safetensors"


def parts(settings: Settings, split: Split) -> range:
    return range(-(-len(scenes(settings, split)) // PART))


@cache
def vectors(settings: Settings, split: Split) -> dict[str, Tensor]:
    loaded = [load_file(part_file(settings, split, part)) for part in parts(settings, split)]
    return {name: torch.cat([part[name] for part in loaded]) for name in loaded[0]}


@cache
def packs(settings: Settings, split: Split, context: bool, place: Place) -> list[tuple[int, Pack]]:
    """All packs of a split with the places of their scenes, in one layout of their text."""
    tokenizer = tokenizer_of(settings.start)
    processor = Blind(opened(settings.start).model.config, tokenizer)
    processor.prompts = Writer(tokenizer, processor.config, context, place)
    return list(draw(scenes(settings, split), 0, split, processor))


def seen(settings: Settings, split: Split, variant: Variant) -> list[Seen]:
    """All packs of a split as a variant shows them."""
    known, made, region = vectors(settings, split), [], 0
    context = known[variant.context or "context"]
    for i, (_, packed) in enumerate(packs(settings, split, variant.context is not None, variant.place)):
        shown = context[i : i + 1] if variant.context else context[:0]
        cells = known[variant.regions][region : region + len(packed.things)]
        made.append(Seen(**vars(packed), context=shown, regions=cells))
        region += len(packed.things)
    return made


def reader(settings: Settings, variant: Variant, seed: int) -> Reader:
    """What a variant trains: the same for all, but that some add no summaries."""
    model = fresh(settings, seed)
    model.config.context_pooling = 1  # it is pooled already,
    model.config.middle_embedding = False  # and middles are found before that
    model.config.mention_embedding = variant.summary
    tokenizer: Any = tokenizer_of(settings.start)
    return Reader(model, settings.stage(), pad_id=tokenizer.pad_token_id)


def run(settings: Settings, name: str, seed: int) -> None:
    """Train one variant with one seed, answer the test's questions, and write both down."""
    variant, began = VARIANTS[name], time.monotonic()
    train, objective = seen(settings, "train", variant), reader(settings, variant, seed)
    stage, (optimizer, rates) = objective.stage, objective.optimizer()
    prepared, losses = time.monotonic(), [0.0] * stage.steps
    objective.training_mode()
    for step, chosen in enumerate(order(len(train), stage, seed)):
        share = min(1.0, (step + 1) / stage.warmup) * 0.5 * (1 + math.cos(math.pi * step / stage.steps))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad(set_to_none=True)
        groups = alike([train[i] for i in chosen], stage.at_once)
        for group in groups:
            loss, figures, _ = objective(group)
            (loss / len(groups)).backward()
            losses[step] += figures["language"] / len(groups)
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], stage.clip)
        optimizer.step()
        if (step + 1) % 100 == 0:
            seconds, lately = (time.monotonic() - prepared) / (step + 1), sum(losses[step - 99 : step + 1]) / 100
            far = f"{step + 1} of {stage.steps} steps, {seconds:.2f} s each, loss {lately:.3f}"
            print(f"{name} seed {seed}: {far}", file=sys.stderr)
    trained = time.monotonic()
    objective.eval()
    right = answers(objective, seen(settings, "test", variant))
    seconds = {"packs": prepared - began, "training": trained - prepared, "test": time.monotonic() - trained}
    result = {"variant": name, "seed": seed, "right": right, "losses": [round(loss, 4) for loss in losses]}
    with replacing(run_file(settings, name, seed)) as temporary:
        temporary.write_text(json.dumps(result | {"seconds": {k: round(v, 1) for k, v in seconds.items()}}))


def run_file(settings: Settings, name: str, seed: int) -> Path:
    return settings.out / "runs" / f"{name}-{seed}.json"


def order(count: int, stage: Stage, seed: int) -> Iterator[list[int]]:
    """The packs of each step: all in a fresh order, again and again; it depends on the seed alone."""
    rng = random.Random(seed)
    endless = (i for _ in repeat(None) for i in rng.sample(range(count), count))
    for _ in range(stage.steps):
        yield list(islice(endless, stage.batch))


def alike(packs: Sequence[Seen], size: int) -> list[list[Seen]]:
    """Groups of packs of about one length, so that little is padding; the same groups for all variants."""
    by_length = sorted(packs, key=lambda p: (len(p.things), len(p.turns)))
    return [by_length[i : i + size] for i in range(0, len(packs), size)]


@torch.no_grad()
def answers(objective: Reader, packs: Sequence[Seen]) -> list[int]:
    """For each question, pack after pack, 1 where it was answered right."""
    right: dict[int, list[int]] = {}
    for group in alike(packs, 8):
        _, _, spoken = objective(group)
        exact = iter(spoken.word_for_word())
        ranked = iter(
            min(options, key=lambda option: float(spoken.losses[option.start : option.stop].mean())) is options[0]
            for options in spoken.turns
        )
        for packed in group:
            right[id(packed)] = [
                best if turn.choices else said for turn, best, said in zip(packed.turns, ranked, exact, strict=False)
            ]
    return [int(one) for packed in packs for one in right[id(packed)]]


def questions(settings: Settings) -> list[dict[str, Any]]:
    """The test's questions in the order of `answers`: scene, type, how many regions it names and its picture marks,
    and whether a guesser is right who sees nothing but knows how often each word of a type is right here."""
    asked = [(scene, p, turn) for scene, p in packs(settings, "test", True, "preamble") for turn in p.turns]
    words = Counter((turn.type, turn.answer) for _, _, turn in asked)
    answers_of = {kind: [word for other, word in words if other == kind] for kind in TYPES}
    return [
        {
            "scene": scene,
            "type": turn.type,
            "names": len(named(turn)),
            "marked": len(p.things),
            "guess": int(turn.answer == max(turn.choices or answers_of[turn.type], key=lambda w: words[turn.type, w])),
        }
        for scene, p, turn in asked
    ]


ROWS: dict[str, Callable[[dict[str, Any]], bool]] = {
    **{kind: lambda q, kind=kind: q["type"] == kind for kind in TYPES},
    "one marked": lambda q: q["marked"] == 1,
    "one of several": lambda q: q["names"] == 1 < q["marked"],
    "about several": lambda q: q["names"] > 1,
    "all": lambda q: True,
}


def report(asked: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """By row and variant the share of right answers, and its difference to the method's, with 95 % intervals.

    A share is the mean over seeds. Intervals: percentiles over draws with replacement of scenes (with all their
    questions) and of seeds, the same draw for all variants, so that differences are paired. Only seeds that all
    variants have run count.
    """
    names = [name for name in VARIANTS if any(r["variant"] == name for r in runs)]
    found = {(r["variant"], r["seed"]): r["right"] for r in runs}
    seeds = sorted({seed for _, seed in found if all((name, seed) in found for name in names)})
    if not seeds:
        raise SystemExit("no seed that every variant has run: let the runs finish")
    right_VSQ = np.array([[found[name, seed] for seed in seeds] for name in names], float)
    scene_Q = np.unique([q["scene"] for q in asked], return_inverse=True)[1]
    rng = np.random.default_rng(0)
    drawn_DN = rng.multinomial(scene_Q.max() + 1, np.full(scene_Q.max() + 1, 1 / (scene_Q.max() + 1)), DRAWS)
    drawn_DS = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), DRAWS) / len(seeds)
    rows = {}
    for row, belongs in ROWS.items():
        where = np.flatnonzero([belongs(q) for q in asked])
        if not where.size:
            continue
        weight_DQ = drawn_DN[:, scene_Q[where]].astype(float)
        hits_DVS = np.einsum("dq,vsq->dvs", weight_DQ, right_VSQ[:, :, where], optimize=True)
        share_DV = np.einsum("dvs,ds->dv", hits_DVS, drawn_DS) / weight_DQ.sum(1, keepdims=True).clip(1)
        share_VS = right_VSQ[:, :, where].mean(2)
        figures = {
            name: {"right": _round(share_VS[v].mean()), "ci95": _middle(share_DV[:, v]), "seeds": _round(share_VS[v])}
            for v, name in enumerate(names)
        }
        if METHOD in names:
            m = names.index(METHOD)
            for v, name in enumerate(names):
                figures[name]["beyond_method"] = _round(share_VS[v].mean() - share_VS[m].mean())
                figures[name]["beyond_method_ci95"] = _middle(share_DV[:, v] - share_DV[:, m])
        guess = _round(np.mean([asked[i]["guess"] for i in where]))
        rows[row] = {"n": len(where), "guess": guess, "variants": figures}
    return {"seeds": seeds, "variants": names, "rows": rows}


def _round(figures: Any) -> Any:
    return np.asarray(figures).round(4).tolist()


def _middle(draws_D: np.ndarray) -> list[float]:
    return _round(np.percentile(draws_D, [2.5, 97.5]))


def markdown(told: dict[str, Any]) -> str:
    """Two tables: shares of right answers, and differences to the method; 95 % intervals in brackets."""
    names = told["variants"]
    titles = [f"{name} {VARIANTS[name].name}" for name in names]

    def table(heads: list[str], cells: Callable[[dict[str, Any]], list[str]]) -> str:
        lines = ["| question | n | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
        lines += ["| " + " | ".join([row, str(r["n"]), *cells(r)]) + " |" for row, r in told["rows"].items()]
        return "\n".join(lines) + "\n"

    def share(r: dict[str, Any]) -> list[str]:
        each = (r["variants"][name] for name in names)
        return [f"{r['guess']:.2f}", *(f"{f['right']:.2f} [{f['ci95'][0]:.2f}, {f['ci95'][1]:.2f}]" for f in each)]

    def difference(r: dict[str, Any]) -> list[str]:
        each = (r["variants"][name] for name in names if name != METHOD)
        return ["{:+.2f} [{:+.2f}, {:+.2f}]".format(f["beyond_method"], *f["beyond_method_ci95"]) for f in each]

    text = table(["guess", *titles], share)
    if METHOD in names:
        others = [title for name, title in zip(names, titles, strict=True) if name != METHOD]
        text += f"\nDifferences to {METHOD}:\n\n" + table(others, difference)
    return text


def plot(told: dict[str, Any], file: Path) -> None:
    """A panel for each row: every variant's share with its interval; the method's as a line, the guesser's dashed."""
    from matplotlib.figure import Figure

    names, rows = told["variants"], told["rows"]
    across = 5
    down = -(-len(rows) // across)
    figure = Figure(figsize=(2.6 * across, 0.6 + (0.5 + 0.24 * len(names)) * down), layout="constrained")
    panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
    for axes in panels[len(rows) :]:
        axes.set_visible(False)
    for axes, (row, r) in zip(panels, rows.items(), strict=False):
        for height, name in enumerate(names):
            f = r["variants"][name]
            color = "#0072b2" if name == METHOD else "#444444"
            low, high = f["right"] - f["ci95"][0], f["ci95"][1] - f["right"]
            axes.errorbar(
                f["right"], height, xerr=[[max(low, 0)], [max(high, 0)]], color=color, capsize=2,
                marker="D" if name == METHOD else "o", markersize=5,
            )  # fmt: skip
        axes.axvline(r["guess"], color="#999999", linestyle="--", linewidth=1)
        if METHOD in names:
            axes.axvline(r["variants"][METHOD]["right"], color="#0072b2", linewidth=0.7)
        axes.set_title(f"{row} (n={r['n']})", fontsize=10)
        axes.set_xlim(0, 1)
        axes.set_yticks(range(len(names)), [f"{name} {VARIANTS[name].name}" for name in names], fontsize=8)
    panels[0].invert_yaxis()  # shared by all, as are the marks of x, which only the last panel of a column shows
    for axes in panels[max(len(rows) - across, 0) : len(rows)]:
        axes.tick_params(labelbottom=True)
    seeds = len(told["seeds"])
    figure.suptitle(f"Share of right answers, mean of {seeds} seeds, 95 % intervals; dashed: a guesser", fontsize=11)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def tell(settings: Settings) -> str:
    """Write table, plot and figures of all finished runs, and give the table."""
    runs = [json.loads(file.read_text()) for file in sorted((settings.out / "runs").glob("*.json"))]
    told = report(questions(settings), runs)
    told["settings"] = {name: str(value) for name, value in asdict(settings).items()}
    with replacing(settings.out / "ablation.json") as temporary:
        temporary.write_text(json.dumps(told, indent=1))
    with replacing(settings.out / "ablation.md") as temporary:
        temporary.write_text(markdown(told))
    plot(told, settings.out / "ablation.png")
    return markdown(told)


def _one_thread() -> None:
    torch.set_num_threads(1)


def each(function: Callable[..., None], tasks: Sequence[tuple[Any, ...]], jobs: int, what: str) -> None:
    """Call a function once for each task, so many at a time in processes of one thread."""
    if jobs == 1:
        for task in track(tasks, what, console=Console(stderr=True)):
            function(*task)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _one_thread) as pool:
        done = as_completed([pool.submit(function, *task) for task in tasks])
        for future in track(done, what, len(tasks), console=Console(stderr=True)):
            future.result()


def ablate(settings: Settings, names: Sequence[str], seeds: Sequence[int], jobs: int) -> str:
    """Do what is not done yet, and tell what came of all that is; see the head of this file."""
    file = settings.out / "settings.json"
    about = json.dumps({name: str(value) for name, value in asdict(settings).items()}, indent=1)
    if file.exists() and file.read_text() != about:
        raise SystemExit(f"{settings.out} holds an ablation with other settings ({file}): give another --out")
    with replacing(file) as temporary:
        temporary.write_text(about)
    opened(settings.start)  # complains here, and not in every process
    splits: tuple[Split, ...] = ("test", "train")
    todo: list[tuple[Settings, Split, int]] = [
        (settings, split, part) for split in splits for part in parts(settings, split)
    ]
    each(encode, [task for task in todo if not part_file(*task).exists()], jobs, "encoding")
    runs = [(settings, name, seed) for seed in seeds for name in names if not run_file(settings, name, seed).exists()]
    each(run, runs, jobs, "training")
    return tell(settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, what in {
        "train": "folder of shards to train on", "test": "folder of shards to test on",
        "out": "folder for everything",
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=Path, required=True, help=what)
    parser.add_argument("--start", default="nano", help="the nano whose vision is used; the built-in one if not given")
    parser.add_argument("--scenes", type=int, default=Settings.scenes, help="so many to train on")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="of 4 packs each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args()
    settings = Settings(given.train, given.test, given.start, given.out, given.scenes, given.steps)
    _one_thread()
    try:
        print(ablate(settings, given.variants, given.seeds, given.jobs))
    except ValueError as error:
        raise SystemExit(f"ablation: {error}") from error


if __name__ == "__main__":
    main()
