"""Pictures and regions in, words out: load a checkpoint, describe regions, ask about them.

Two things are computed once and kept, both exactly: the features of tiles that no region touches (from one region of a
picture to the next), and the language model's keys and values of a picture with its regions (from one question to the
next, in a `Scene`). Knows processor and model; knows no command line and no file format of results.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from gar.inputs.processor import CutImage, GARProcessor, Request
from gar.inputs.prompt import DESCRIBE, Form, prompt_name
from gar.inputs.tiling import normalise, touched
from gar.model.gar import GARForConditionalGeneration
from gar.regions import Located, Region, load_image
from gar.segment import load_segmenter, resolve

TILES_AT_ONCE = 16
OnText = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """What the model says.

    text: the answer; with choices, the text of the chosen one.
    choice: the letter of the chosen option, when choices were given.
    confidence: 0..1. The geometric mean probability of the answer's tokens; with choices, the probability of the chosen
        one among them.
    regions: what it is about, located in the picture.
    num_tokens: of the answer, the end token included; with choices ranked, 0.
    """

    text: str
    choice: str | None
    confidence: float
    regions: list[Located]
    num_tokens: int


def load(
    model: str | Path = "nano", *, device: str = "auto", dtype: str = "auto", segment: str | None = None
) -> Predictor:
    """Load a checkpoint.

    Args:
        model: "nano" (built in), a folder in our layout or the released one, or a hub id ("HaochenWang/GAR-1B").
        device: "auto" (a GPU if there is one), or a torch device.
        dtype: "auto" (bfloat16 on a GPU, float32 elsewhere), or "float32", "float16", "bfloat16".
        segment: turn boxes, points and scribbles into masks with "grabcut" or a SAM checkpoint. Without it boxes stay
            rectangles; points and scribbles, which need a mask, use GrabCut.

    Raises:
        ValueError: no such checkpoint, or one that does not fit its configuration.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}, expected auto, float32, float16 or bfloat16")
    try:
        torch_device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}, expected auto, cpu, cuda, cuda:0, mps, ...") from error
    source = str(model)
    if source == "nano":
        source = str(files("gar") / "assets" / "nano")
        if not Path(source, "model.safetensors").exists():
            raise ValueError("no built-in model in this installation: train it with `gar train nano`, or name another")
    try:
        network = GARForConditionalGeneration.from_pretrained(source, dtype=getattr(torch, dtype))
        processor = GARProcessor.from_pretrained(source, config=network.config)
    except OSError as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"cannot load {source!r}: {first} Give 'nano', a folder with a checkpoint, or a hub id (HaochenWang/GAR-1B)"
        ) from error
    return Predictor(network.to(torch_device).eval(), processor, segment=segment, name=str(model))


class Predictor:
    """Describes and compares regions, and answers questions about them.

    Pictures are paths, PIL images or (H, W, 3) uint8 arrays; regions are `Region`s in the upright picture's pixels.
    Keyword arguments called `generation` go to transformers' `generate` (`max_new_tokens`, `num_beams`, ...); by
    default the likeliest token is taken, up to 256 of them.
    """

    def __init__(
        self, model: GARForConditionalGeneration, processor: GARProcessor, *, segment: str | None = None, name: str = ""
    ):
        self.model = model
        self.processor = processor
        self.name = name
        self._segmenter = load_segmenter(segment) if segment else None

    def describe(
        self, image: Any, regions: Sequence[Region], together: bool = False, batch_size: int = 8, **generation: Any
    ) -> list[Answer]:
        """Describe each region.

        Args:
            together: mark all regions in one encoding of the picture, and share it. Several times faster, and in the
                form of the training data; each text may then be coloured by the other marks. Without, each region is
                marked alone.
            batch_size: regions generated at once.

        Raises:
            ValueError: no region, or one that does not fit the picture.
        """
        return self.describe_batch([image], [regions], together, batch_size, **generation)[0]

    def describe_batch(
        self,
        images: Sequence[Any],
        regions: Sequence[Sequence[Region]],
        together: bool = False,
        batch_size: int = 8,
        **generation: Any,
    ) -> list[list[Answer]]:
        """Describe regions of several pictures, of any sizes, in common batches. Otherwise as `describe`."""
        if len(images) != len(regions):
            raise ValueError(f"{len(images)} images but {len(regions)} lists of regions: give one list per image")
        located = [self._locate(image, mine) for image, mine in zip(images, regions, strict=True)]
        if together:
            most = self.model.config.max_prompts
            return [
                [a for i in range(0, len(mine), most) for a in self._together(cut, mine[i : i + most], generation)]
                for cut, mine in located
            ]
        answers = iter(self._one_by_one(located, batch_size, generation))
        return [[next(answers) for _ in mine] for _, mine in located]

    def ask(
        self,
        image: Any,
        question: str,
        regions: Sequence[Region] = (),
        choices: Sequence[str] | None = None,
        on_text: OnText | None = None,
        **generation: Any,
    ) -> Answer:
        """Ask about regions, which the question names `<Prompt0>`, `<Prompt1>`, ..., or about all of them.

        Args:
            choices: options; one of them is the answer. They may begin with their letters ("A. red").
            on_text: called with each piece of text as it is written.

        Raises:
            ValueError: the question names a region that is not given; too many regions for the checkpoint.
        """
        return self.open(image, regions).ask(question, choices, on_text=on_text, **generation)

    def open(self, image: Any, regions: Sequence[Region] = ()) -> Scene:
        """Encode a picture with its regions once, to ask about them many times."""
        cut, located = self._locate(image, regions, need=False)
        return Scene(self, cut, located)

    def _locate(self, image: Any, regions: Sequence[Region], need: bool = True) -> tuple[CutImage, list[Located]]:
        if need and not regions:
            raise ValueError("no region to describe: give at least one, e.g. Region.box(x0, y0, x1, y1)")
        picture = load_image(image)
        return self.processor.cut(picture), resolve(picture, regions, self._segmenter)

    @torch.inference_mode()
    def _encode(self, cut: CutImage, masks: Sequence[Tensor]) -> list[Tensor]:
        """The features of one picture under several masks (T, s, s); a tile that a mask does not touch is encoded once.

        Exact: tiles do not attend to each other, and an empty mask adds nothing.
        """
        plain = torch.zeros_like(masks[0][0])
        jobs: dict[tuple[int, int], int] = {}  # (tile, mask or -1) -> place among the encoded
        tiles, marks = [], []
        where = []
        for m, mask in enumerate(masks):
            owners = [m if t else -1 for t in touched(mask).tolist()]
            where.append(owners)
            for tile, owner in enumerate(owners):
                if (tile, owner) not in jobs:
                    jobs[tile, owner] = len(tiles)
                    tiles.append(cut.tiles[tile])
                    marks.append(plain if owner < 0 else mask[tile])
        device, dtype = self.model.device, self.model.dtype
        encoded = torch.cat(
            [
                self.model.model.encode(
                    normalise(torch.stack(tiles[i : i + TILES_AT_ONCE])).to(device, dtype),
                    torch.stack(marks[i : i + TILES_AT_ONCE]).to(device, dtype),
                )
                for i in range(0, len(tiles), TILES_AT_ONCE)
            ]
        )
        return [encoded[[jobs[tile, owner] for tile, owner in enumerate(owners)]] for owners in where]

    @torch.inference_mode()
    def _one_by_one(
        self, located: list[tuple[CutImage, list[Located]]], batch_size: int, generation: dict[str, Any]
    ) -> Iterator[Answer]:
        pending: list[tuple[Request, Tensor, Located]] = []
        for cut, regions in located:
            requests = [self.processor.describe(cut, region) for region in regions]
            features = self._encode(cut, [r.mask_tiles for r in requests])
            pending += zip(requests, features, regions, strict=True)
            while len(pending) >= batch_size:
                yield from self._describe(pending[:batch_size], generation)
                pending = pending[batch_size:]
        if pending:
            yield from self._describe(pending, generation)

    def _describe(self, rows: list[tuple[Request, Tensor, Located]], generation: dict[str, Any]) -> list[Answer]:
        batch = self._tensors(self.processor.collate([request for request, _, _ in rows]))
        batch["features"] = torch.cat([features for _, features, _ in rows])
        return self._generate(batch, [[region] for _, _, region in rows], generation)

    @torch.inference_mode()
    def _together(self, cut: CutImage, regions: list[Located], generation: dict[str, Any]) -> list[Answer]:
        scene = Scene(self, cut, regions, form="together")
        questions = [scene.question_ids(DESCRIBE, region=k) for k in range(len(regions))]
        return scene.generate(questions, [[region] for region in regions], generation)

    def _tensors(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The part of a batch that goes with features already encoded, on the model's device."""
        device = self.model.device
        return {
            "input_ids": batch["input_ids"].to(device),
            "attention_mask": batch["attention_mask"].to(device),
            "tile_grids": batch["tile_grids"],
            "region_boxes": batch["region_boxes"],
        }

    def _generate(
        self, batch: dict[str, Any], about: list[list[Located]], generation: dict[str, Any], **more: Any
    ) -> list[Answer]:
        end = self.processor.prompts.end_id
        options = {"max_new_tokens": 256, "do_sample": False, "eos_token_id": end, "pad_token_id": end} | generation
        probabilities = _TokenProbabilities()
        processors = LogitsProcessorList([*options.pop("logits_processor", []), probabilities])
        output = self.model.generate(
            **batch, **more, **options, logits_processor=processors, return_dict_in_generate=True
        )
        answers = []
        for row, ids in enumerate(output.sequences.tolist()):
            if end in ids:
                ids = ids[: ids.index(end) + 1]
            beams = getattr(output, "sequences_scores", None)
            mean = probabilities.mean(row, ids) if beams is None else beams[row].item()
            text = self.processor.decode(ids)
            answers.append(Answer(text, None, math.exp(min(mean, 0.0)), about[row], len(ids)))
        return answers


class Scene:
    """A picture with its regions, encoded once; each question after that costs only itself.

    From `Predictor.open`. The regions are `<Prompt0>`, `<Prompt1>`, ... in the order given.
    """

    def __init__(self, predictor: Predictor, cut: CutImage, regions: list[Located], form: Form = "ask"):
        self.regions = regions
        self._predictor = predictor
        self._form: Form = form
        numbers = range(len(regions))
        processor, model = predictor.processor, predictor.model
        self._prefix = processor.prompts.encode_prefix(len(cut.tiles), numbers, form)
        self._boxes = {k: processor.rel_box(cut, region) for k, region in enumerate(regions)}
        self._grids = torch.tensor([cut.grid])
        with torch.inference_mode():
            (self._features,) = predictor._encode(cut, [processor.mark(cut, regions)])
            self._cache = DynamicCache(config=model.config.text_config)
            model(
                inputs_embeds=self._embed(self._prefix), past_key_values=self._cache, use_cache=True, logits_to_keep=1
            )

    def describe(self, index: int, on_text: OnText | None = None, **generation: Any) -> Answer:
        """Describe region `index`, with all regions marked."""
        if not 0 <= index < len(self.regions):
            raise ValueError(f"region {index} of {len(self.regions)}: count from 0")
        ids = self.question_ids(f"Describe {prompt_name(index)} in detail.")
        return self.generate([ids], [[self.regions[index]]], generation, on_text)[0]

    def ask(
        self, question: str, choices: Sequence[str] | None = None, on_text: OnText | None = None, **generation: Any
    ) -> Answer:
        """Ask about the regions; see `Predictor.ask`."""
        if choices is None:
            return self.generate([self.question_ids(question)], [self.regions], generation, on_text)[0]
        options = _options(choices)
        if self._predictor.model.config.choice_scoring == "letters":
            log_probabilities = self._letters(question, options)
        else:
            log_probabilities = self._texts(question, options)
        share = torch.tensor(log_probabilities).softmax(0)
        best = int(share.argmax())
        letter, text = list(options.items())[best]
        return Answer(text, letter, share[best].item(), self.regions, 0)

    def question_ids(self, question: str, region: int | None = None) -> list[int]:
        """Token ids of a question, to follow the picture's."""
        prompts = self._predictor.processor.prompts
        return prompts.encode_question(question, range(len(self.regions)), self._form, region)

    @torch.inference_mode()
    def generate(
        self,
        questions: list[list[int]],
        about: list[list[Located]],
        generation: dict[str, Any],
        on_text: OnText | None = None,
    ) -> list[Answer]:
        """Answer questions of one length, each as a branch of its own from the picture's cache, in one batch."""
        model = self._predictor.model
        if len({len(ids) for ids in questions}) > 1:
            raise ValueError("the questions of one batch must have one length")
        ids = torch.tensor([self._prefix + question for question in questions], device=model.device)
        cache = self._cache
        if len(questions) > 1:
            cache = copy.deepcopy(cache)
            cache.batch_repeat_interleave(len(questions))
        more: dict[str, Any] = {"past_key_values": cache}
        if on_text:
            more["streamer"] = _Pieces(self._predictor.processor, on_text)
        batch = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "tile_grids": self._grids.expand(len(questions), 2),
            "region_boxes": [self._boxes] * len(questions),
            "features": self._features.repeat(len(questions), 1, 1, 1),
        }
        try:
            return self._predictor._generate(batch, about, generation, **more)
        finally:
            self._forget()

    def _forget(self) -> None:
        """Cut the cache back to the prefix."""
        if later := self._cache.get_seq_length() - len(self._prefix):
            self._cache.crop(-later)

    def _embed(self, ids: list[int]) -> Tensor:
        model = self._predictor.model
        return model.embed(
            torch.tensor([ids], device=model.device),
            tile_grids=self._grids,
            region_boxes=[self._boxes],
            features=self._features,
        )

    @torch.inference_mode()
    def _logits(self, ids: list[int], keep: int) -> Tensor:
        """Logits (keep, V) at the last places of the prefix and `ids`."""
        embeds = self._embed(self._prefix + ids)[:, len(self._prefix) :]
        try:
            output = self._predictor.model(
                inputs_embeds=embeds, past_key_values=self._cache, use_cache=True, logits_to_keep=keep
            )
        finally:
            self._forget()
        return output.logits[0].float()

    def _letters(self, question: str, options: dict[str, str]) -> list[float]:
        """Log-probability of each option's letter as the first token of the answer."""
        listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
        asked = f"Question: {question}\nOptions:\n{listed}\nAnswer with the correct option's letter directly."
        logits = self._logits(self.question_ids(asked), keep=1)[-1].log_softmax(0)
        prompts = self._predictor.processor.prompts
        return [logits[prompts.encode_answer(letter, end=False)[0]].item() for letter in options]

    def _texts(self, question: str, options: dict[str, str]) -> list[float]:
        """Mean log-probability of the tokens of each option's text, the end included."""
        ids = self.question_ids(question)
        scores = []
        for text in options.values():
            answer = self._predictor.processor.prompts.encode_answer(text)
            logits = self._logits(ids + answer, keep=len(answer) + 1)[:-1].log_softmax(1)
            scores.append(logits[range(len(answer)), answer].mean().item())
        return scores


class _TokenProbabilities(LogitsProcessor):
    """Keeps the log-probability of each chosen token: those of a step are read when the next step shows its choice."""

    def __init__(self):
        self._steps: list[Tensor] = []
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._last is not None:
            self._steps.append(self._last.gather(1, input_ids[:, -1:])[:, 0])
        self._last = scores.float().log_softmax(1)
        return scores

    def mean(self, row: int, ids: list[int]) -> float:
        assert self._last is not None
        values = [step[row].item() for step in self._steps[: len(ids)]]
        if len(values) < len(ids):
            values.append(self._last[row, ids[-1]].item())
        return sum(values) / max(len(values), 1)


class _Pieces(BaseStreamer):
    """Hands on the text as it grows, by whole decoding, so that pieces always join to the answer."""

    def __init__(self, processor: GARProcessor, on_text: OnText):
        self._processor, self._on_text = processor, on_text
        self._ids: list[int] = []
        self._said = ""

    def put(self, value: Tensor) -> None:
        if value.numel() != 1:
            return  # the prompt
        self._ids.append(int(value.flatten()[0]))
        text = self._processor.decode(self._ids)
        if not text.endswith("\ufffd"):  # half a character
            self._say(text)

    def end(self) -> None:
        self._say(self._processor.decode(self._ids))

    def _say(self, text: str) -> None:
        if len(text) > len(self._said):
            self._on_text(text[len(self._said) :])
            self._said = text


def _options(choices: Sequence[str]) -> dict[str, str]:
    """Options by letter: "A. red", "(B) blue" keep their own letters, others get A, B, C, ... in order."""
    if len(choices) < 2:
        raise ValueError(f"{len(choices)} choice(s): give at least two")
    if len(choices) > 26:
        raise ValueError(f"{len(choices)} choices: at most 26")
    matches = [re.match(r"\s*\(?([A-Za-z])[.):]\s*(.+)", choice, re.DOTALL) for choice in choices]
    lettered = {m[1].upper(): m[2].strip() for m in matches if m}
    if len(lettered) == len(choices):
        return lettered
    return {chr(ord("A") + i): choice.strip() for i, choice in enumerate(choices)}
