"""How much faster than the published schedule, on random weights in float32 on two CPU threads?

Eight regions of one picture of 4x4 tiles and a thumbnail, 32 tokens each:
  one by one        every region marked alone; tiles that it does not touch are encoded once
  together          all regions marked in one encoding; the picture is read once, then a branch per region
  second question   to its first token, on an open scene of two regions
The published schedule is `published` below: each request alone, all its tiles encoded anew, eager attention in the
language model, nothing kept. Beside each ratio stands its bound: the ratio of the multiplications that both need.

    python benchmarks/speed.py [--json] [--size tiny] [--repeat 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gar.inputs.processor import GARProcessor
from gar.inputs.prompt import DESCRIBE
from gar.inputs.tiling import touched
from gar.model.config import GARConfig
from gar.model.gar import GARForConditionalGeneration
from gar.predictor import Predictor
from gar.regions import Region

REGIONS, NEW_TOKENS, TILES, VOCAB, SIDE = 8, 32, 17, 4096, 1024
EXACTLY: dict[str, Any] = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
QUESTION = "Is <Prompt0> behind <Prompt1>?"


@dataclass(frozen=True)
class Size:
    """The sizes of a model: E width and layers of the tower, D width, M inner width, layers and heads of the text."""

    name: str
    vision_width: int
    vision_layers: int
    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    repeat: int


SIZES = {
    size.name: size
    for size in (Size("tiny", 64, 2, 64, 192, 2, 2, 1, 3), Size("middle", 256, 6, 512, 1408, 8, 8, 2, 1))
}


@dataclass(frozen=True)
class Result:
    """One line of the table: seconds of both schedules, how many times faster, and how many times fewer FLOPs."""

    model: str
    job: str
    published_s: float
    ours_s: float
    ratio: float
    bound: float
    same_text: bool | None


def build(size: Size) -> Predictor:
    """A model of random weights with a tokenizer of bytes, names and filling words."""
    tokenizer = _tokenizer()

    def ids(names: str | list[str]) -> Any:
        return tokenizer.convert_tokens_to_ids(names)

    config = GARConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_large_patch14_336",
            "model_args": {
                "embed_dim": size.vision_width,
                "depth": size.vision_layers,
                "num_heads": size.vision_width // 64,
                "img_size": [448, 448],
                "global_pool": "",
                "use_post_transformer_norm": False,
                "ref_feat_shape": [32, 32],
            },
        },
        text_config={
            "model_type": "llama",
            "hidden_size": size.width,
            "intermediate_size": size.inner,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "vocab_size": VOCAB,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": False,
        },
        tie_word_embeddings=False,
        vision_use_cls_token=True,
        image_token_id=ids("<|image|>"),
        prompt_token_ids=ids([f"<Prompt{k}>" for k in range(REGIONS)]),
        crop_token_ids=ids([f"<|region{k}|>" for k in range(REGIONS)]),
        feature_width=size.vision_width,
        prompt_style="nano",
    )
    torch.manual_seed(0)
    model = GARForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.mask_patch_embedding.weight, std=0.02)
    torch.nn.init.normal_(model.model.language_model.embed_tokens.weight)
    return Predictor(model, GARProcessor(config, tokenizer))


def _tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|bos|>", "<|eos|>", "<|pad|>", "<|image|>", "<|answer|>"]
    special += [name for k in range(REGIONS) for name in (f"<Prompt{k}>", f"<|region{k}|>")]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [f"w{i}." for i in range(VOCAB - len(letters) - len(special))]  # so that a text tells its ids
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(letters + words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eos|>", pad_token="<|pad|>")


def scenery() -> tuple[Image.Image, list[Region]]:
    """A picture and regions of a tenth to a third of its side, as things in a room are."""
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    regions = []
    for _ in range(REGIONS):
        radius_x, radius_y = rng.uniform(0.05, 0.17, 2)
        centre_x, centre_y = rng.uniform(radius_x, 1 - radius_x), rng.uniform(radius_y, 1 - radius_y)
        regions.append(Region.mask(((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2 < 1))
    return rough.resize((SIDE, SIDE), Image.Resampling.BICUBIC), regions


@torch.inference_mode()
def published(
    predictor: Predictor, image: Image.Image, regions: list[Region], question: str | None = None, **options: Any
) -> str:
    """The published schedule: one request from the picture to its text, everything anew."""
    model, processor = predictor.model, predictor.processor
    located = [region.locate(*image.size) for region in regions]
    language = model.model.language_model
    language.set_attn_implementation("eager")
    try:
        batch = processor([image], [located], question and [question])
        end = processor.prompts.end_id
        ids = model.generate(**batch, do_sample=False, eos_token_id=end, pad_token_id=end, **options)
    finally:
        language.set_attn_implementation("sdpa")
    return processor.decode(ids[0])


def tower_flops(config: GARConfig) -> int:
    """Of one tile: patch and mask embedding, blocks with full attention, projector."""
    vision: Any = config.vision_config
    text: Any = config.text_config
    width, depth = config.feature_width, vision.model_args["depth"]
    patches = (config.tile_size // config.patch_size) ** 2
    tokens = patches + config.vision_use_cls_token
    embedding = 2 * 2 * patches * 3 * config.patch_size**2 * width
    blocks = depth * (2 * tokens * 12 * width**2 + 4 * tokens**2 * width)
    return embedding + blocks + 2 * patches * (width * text.hidden_size + text.hidden_size**2)


def text_flops(config: GARConfig, new: int, past: int = 0, causal: bool = True) -> int:
    """Of `new` tokens after `past` ones: blocks, and the head for the last. Eager attention computes what it masks."""
    text: Any = config.text_config
    head = text.hidden_size // text.num_attention_heads
    linear = text.hidden_size * head * 2 * (text.num_attention_heads + text.num_key_value_heads)
    linear += 3 * text.hidden_size * text.intermediate_size
    pairs = new * past + (new * (new + 1) // 2 if causal else new * new)
    blocks = text.num_hidden_layers * (2 * new * linear + 4 * pairs * text.hidden_size)
    return blocks + 2 * text.hidden_size * text.vocab_size


def count(predictor: Predictor, image: Image.Image, regions: list[Region]) -> dict[str, tuple[int, int]]:
    """FLOPs of each job, as (published, ours)."""
    config, processor = predictor.model.config, predictor.processor
    prompts, cut = processor.prompts, processor.cut(image)
    tile, located = tower_flops(config), [region.locate(*image.size) for region in regions]
    alone = [processor.describe(cut, region) for region in located]
    length = len(alone[0].input_ids)
    marked = torch.stack([touched(request.mask_tiles) for request in alone])
    encoded = int(marked.sum() + (~marked).any(0).sum())
    prefix = len(prompts.encode_prefix(TILES, range(REGIONS), "together"))
    branch = len(prompts.encode_question(DESCRIBE, range(REGIONS), "together", region=0))
    pair = len(prompts.encode_prefix(TILES, range(2)))
    question = len(prompts.encode_question(QUESTION, range(2)))

    def answer(past: int) -> int:  # the prompt itself gives the first token
        return sum(text_flops(config, 1, past + i) for i in range(NEW_TOKENS - 1))

    published = REGIONS * (TILES * tile + text_flops(config, length, causal=False) + answer(length))
    one_by_one = encoded * tile + REGIONS * (text_flops(config, length) + answer(length))
    branches = REGIONS * (text_flops(config, branch, prefix) + answer(prefix + branch))
    return {
        "one by one": (published, one_by_one),
        "together": (published, TILES * tile + text_flops(config, prefix) + branches),
        "second question": (
            TILES * tile + text_flops(config, pair + question, causal=False),
            text_flops(config, question, pair),
        ),
    }


def measure(size: Size, repeat: int) -> list[Result]:
    """Both schedules in turn, so that a machine that slows down slows both."""
    predictor = build(size)
    image, regions = scenery()
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    texts: defaultdict[str, list[str]] = defaultdict(list)
    console = Console(stderr=True)

    def timed(job: str, run: Callable[[], list[str]]) -> None:
        with console.status(f"{size.name} model, {job}, time {len(seconds[job]) + 1}"):
            start = time.perf_counter()
            texts[job] += run()
            seconds[job].append(time.perf_counter() - start)

    def describe(together: bool) -> list[str]:
        return [answer.text for answer in predictor.describe(image, regions, together, **EXACTLY)]

    for _ in range(repeat):
        for k, region in enumerate(regions):
            timed("published", lambda region=region: [published(predictor, image, [region], **EXACTLY)])
            if k == REGIONS // 2:
                timed("together", lambda: describe(together=True))
        timed("one by one", lambda: describe(together=False))
        timed("published question", lambda: [published(predictor, image, regions[:2], QUESTION, max_new_tokens=1)])
        scene = predictor.open(image, regions[:2])
        scene.ask("What is <Prompt0>?", max_new_tokens=1)
        for _ in range(5):
            timed("second question", lambda scene=scene: [scene.ask(QUESTION, max_new_tokens=1).text])

    median = {job: statistics.median(times) for job, times in seconds.items()}
    results = []
    for job, (theirs, ours) in count(predictor, image, regions).items():
        against = "published question" if job == "second question" else "published"
        published_s = median[against] * (REGIONS if against == "published" else 1)
        same = texts[job][0] == texts[against][0] if job == "second question" else texts[job] == texts[against]
        results.append(
            Result(size.name, job, published_s, median[job], published_s / median[job], theirs / ours,
                   None if job == "together" else same)
        )  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--size", choices=list(SIZES), help="only this one")
    parser.add_argument("--repeat", type=int, help="how often everything is measured; medians are shown")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = [SIZES[arguments.size]] if arguments.size else SIZES.values()
    results = [result for size in sizes for result in measure(size, arguments.repeat or size.repeat)]
    if arguments.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
        return
    table = Table("model", "job", "published s", "ours s", "times faster", "FLOPs allow", "same text", box=box.SIMPLE)
    for result in results:
        table.add_row(
            result.model, result.job, f"{result.published_s:.2f}", f"{result.ours_s:.2f}", f"{result.ratio:.1f}",
            f"{result.bound:.1f}", {True: "yes", False: "NO", None: "-"}[result.same_text],
        )  # fmt: skip
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
