"""Pictures and regions in, words out: load a checkpoint, describe regions, ask about them.

Two things are computed once and kept, both exactly: the features of tiles that no region touches (from one region of a
picture to the next), and the language model's keys and values of a picture with its regions (from one question to the
next, in a `Scene`). Knows processor and model; knows no command line and no file format of results.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import Cache, DynamicLayer
from transformers.generation.streamers import BaseStreamer

from gar.familiar import Familiar
from gar.inputs.processor import CutImage, GARProcessor, Request
from gar.inputs.prompt import Form, PromptWriter, prompt_name
from gar.inputs.tiling import normalise, touched
from gar.model.config import GARConfig
from gar.model.gar import KEPT, GARForConditionalGeneration
from gar.regions import Located, Region, load_image
from gar.segment import load_segmenter, resolve

OnText = Callable[[str], None]
ChangeFeatures = Callable[[Tensor, Tensor], Tensor]
# What would change what `generate` gives back, or which token a probability belongs to.
NO_OPTIONS = {"generation_config", "prompt_lookup_num_tokens", "assistant_model", "return_dict_in_generate"}
NO_OPTIONS |= {"output_scores"}
MOST_NOTES = 64  # tokens that a model may note down before it answers
BROKEN = (
    SafetensorError,
    json.JSONDecodeError,
    AttributeError,
    KeyError,
    RuntimeError,
    TypeError,
)  # what a damaged checkpoint raises
_Row = tuple[Request, Tensor, list[Located]]  # a request, the features of its tiles, and the regions it is about


@dataclass(frozen=True)
class Answer:
    """What the model says.

    text: the answer; with choices, the text of the chosen one.
    choice: the letter of the chosen option, when choices were given.
    confidence: 0..1. The geometric mean probability of the answer's tokens, and of the notes before it where a model
        takes notes; with choices, the probability of the chosen one among them.
    regions: what it is about, located in the picture.
    num_tokens: of the answer, notes and the end token included; with choices ranked, 0.
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
        model: "nano" (built in), a folder in our layout or the released one, a hub id ("HaochenWang/GAR-1B"), or a
            folder with an adapter (peft): its base model is loaded, and the adapter merged into it in memory.
        device: "auto" (a GPU if there is one), or a torch device.
        dtype: "auto" (bfloat16 on a CUDA GPU, float32 elsewhere), "stored" (that of the checkpoint's file), or
            "float32", "float16", "bfloat16".
        segment: turn boxes, points and scribbles into masks with "grabcut" or a SAM checkpoint. Without it boxes stay
            rectangles; points and scribbles, which need a mask, use GrabCut.

    Raises:
        ValueError: no such checkpoint, or one that does not fit its configuration.
    """
    device = str(device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in ("stored", "float32", "float16", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}, expected auto, stored, float32, float16 or bfloat16")
    try:
        torch_device = torch.device(device)
        torch.empty(1, device=torch_device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device is {device!r}, which torch cannot use here: take auto, cpu, or what there is of cuda, cuda:0, mps"
        ) from error
    source = str(model)
    if source == "nano":
        source = str(files("gar") / "assets" / "nano")
        if not Path(source, "model.safetensors").exists():
            raise ValueError("no built-in model in this installation: train it with `gar train nano`, or name another")
    try:
        if Path(source, "adapter_config.json").is_file():
            return _adapted(source, device, dtype, segment)
        fields, _ = GARConfig.get_config_dict(source)
        if "mllm_config" not in fields and fields.get("model_type") != GARConfig.model_type:
            raise ValueError(f"cannot load {source!r}: its model_type is {fields.get('model_type')!r}, it is no GAR")
        kind = "auto" if dtype == "stored" else getattr(torch, dtype)
        network: Any = GARForConditionalGeneration.from_pretrained(source, dtype=kind)
        processor = GARProcessor.from_pretrained(source, config=network.config)
        familiar = Familiar.load(Path(source))
    except torch.OutOfMemoryError:
        raise
    except OSError as error:
        ways = "Give 'nano', a folder with a checkpoint, or a hub id (HaochenWang/GAR-1B)"
        raise ValueError(f"cannot load {source!r}: {_first_line(error)} {ways}") from error
    except BROKEN as error:
        raise ValueError(f"cannot load {source!r}: no GAR checkpoint, or damaged ({_first_line(error)})") from error
    return Predictor(network.to(torch_device).eval(), processor, segment=segment, name=str(model), familiar=familiar)


def _adapted(folder: str, device: str, dtype: str, segment: str | None) -> Predictor:
    """The base model of an adapter, with the adapter merged into it."""
    import peft

    config = peft.PeftConfig.from_pretrained(folder)
    if not Path(folder, "adapter_model.safetensors").is_file():
        raise ValueError(f"{folder} has an adapter_config.json, but no adapter_model.safetensors: copy all of it")
    if not config.base_model_name_or_path:
        raise ValueError(f"{folder}/adapter_config.json names no base_model_name_or_path to add the adapter to")
    base = load(config.base_model_name_or_path, device=device, dtype=dtype, segment=segment)
    merged: Any = peft.PeftModel.from_pretrained(base.model, folder, config=config)  # pyright: ignore
    base.model, base.name, base.familiar = merged.merge_and_unload().eval(), folder, None
    return base


class Predictor:
    """Describes and compares regions, and answers questions about them.

    Pictures are paths, PIL images or (H, W, 3) uint8 arrays; regions are `Region`s in the upright picture's pixels.
    Keyword arguments called `generation` go to transformers' `generate` (`max_new_tokens`, `num_beams`, ...); by
    default the likeliest token is taken, up to 256 of them. What a model notes down before it answers is not counted.

    Attributes:
        familiar: what the pictures that the checkpoint learned from look like to it, if it says so, as nano does.
        change_features: for experiments, called with features (T, g, g, D) of tiles and the marks (T, s, s) that they
            were encoded with; what it gives is read in their place. It has to take each tile by itself.
    """

    change_features: ChangeFeatures | None = None

    def __init__(
        self,
        model: GARForConditionalGeneration,
        processor: GARProcessor,
        *,
        segment: str | None = None,
        name: str = "",
        familiar: Familiar | None = None,
    ):
        self.model = model
        self.processor = processor
        self.name = name
        self.familiar = familiar
        self._segmenter = load_segmenter(segment, str(model.device)) if segment else None

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
        regions = [*map(_listed, regions)]
        if not all(regions):
            raise ValueError("no region to describe: give at least one, e.g. Region.box(x0, y0, x1, y1)")
        _check_batch_size(batch_size)
        located = (self._locate(image, mine) for image, mine in zip(images, regions, strict=True))
        answers = (self._together if together else self._one_by_one)(located, batch_size, generation)
        return [[next(answers) for _ in mine] for mine in regions]

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

    def ask_batch(
        self,
        images: Sequence[Any],
        questions: Sequence[str],
        regions: Sequence[Sequence[Region]],
        batch_size: int = 8,
        **generation: Any,
    ) -> list[Answer]:
        """Ask one open question about each of several pictures with their regions, in common batches.

        Otherwise as `ask`. For many questions about one picture, `open` it.
        """
        if not len(images) == len(questions) == len(regions):
            given = f"{len(images)} images, {len(questions)} questions and {len(regions)} lists of regions"
            raise ValueError(f"{given}: give one of each per request")
        regions = [*map(_listed, regions)]
        _check_batch_size(batch_size)
        located = (self._locate(image, mine) for image, mine in zip(images, regions, strict=True))
        return list(self._batches(self._asked(located, questions), batch_size, generation))

    def open(self, image: Any, regions: Sequence[Region] = ()) -> Scene:
        """Encode a picture with its regions once, to ask about them many times."""
        return Scene(self, *self._locate(image, _listed(regions)))

    def unlike(self, image: Any) -> bool:
        """Whether a picture is unlike all that the checkpoint learned from, so that its answers are not to be trusted.

        False, too, for a checkpoint that does not say what it learned from: all but nano.
        """
        return self.familiar is not None and self.familiar.unlike(self.impression(image))

    @torch.inference_mode()
    def impression(self, image: Any) -> Tensor:
        """(D,), the mean of a picture's features, nothing marked: what `familiar` compares."""
        tiles = normalise(self.processor.cut(load_image(image)).tiles)
        return self.model.model.encode(tiles.to(self.model.device, self.model.dtype)).float().mean((0, 1, 2)).cpu()

    def _locate(self, image: Any, regions: Sequence[Region]) -> tuple[CutImage, list[Located]]:
        picture = load_image(image)
        return self.processor.cut(picture), resolve(picture, regions, self._segmenter)

    def _one_by_one(
        self, located: Iterable[tuple[CutImage, list[Located]]], batch_size: int, generation: dict[str, Any]
    ) -> Iterator[Answer]:
        def rows() -> Iterator[_Row]:
            for cut, regions in located:
                picture = _Picture(self.model, cut, self.change_features)
                for some in _slices(regions, batch_size):
                    requests = [self.processor.describe(cut, region) for region in some]
                    features = picture.encode([request.mask_tiles for request in requests])
                    yield from zip(requests, features, ([region] for region in some), strict=True)

        return self._batches(rows(), batch_size, generation)

    def _asked(self, located: Iterable[tuple[CutImage, list[Located]]], questions: Iterable[str]) -> Iterator[_Row]:
        for (cut, regions), question in zip(located, questions, strict=True):
            request = self.processor.ask(cut, regions, question)
            (features,) = _Picture(self.model, cut, self.change_features).encode([request.mask_tiles])
            yield request, features, regions

    @torch.inference_mode()
    def _batches(self, rows: Iterator[_Row], batch_size: int, generation: dict[str, Any]) -> Iterator[Answer]:
        while batch := list(islice(rows, batch_size)):
            features = torch.cat([features for _, features, _ in batch])
            inputs = self.processor.collate([request for request, *_ in batch], features=features)
            for name in ("input_ids", "attention_mask"):
                inputs[name] = inputs[name].to(self.model.device)
            if "cache_implementation" not in generation:
                inputs[KEPT] = Cache(layer_class_to_replicate=_KeptLayer)
            yield from self._generate(inputs, [regions for *_, regions in batch], generation)

    def _together(
        self, located: Iterable[tuple[CutImage, list[Located]]], batch_size: int, generation: dict[str, Any]
    ) -> Iterator[Answer]:
        for cut, regions in located:
            for group in _slices(regions, self.model.config.max_prompts):
                scene = Scene(self, cut, group, form="together")
                for some in _slices(range(len(group)), batch_size):
                    questions = [scene.question_ids(self.processor.prompts.describing(k), region=k) for k in some]
                    yield from scene.generate(questions, [[group[k]] for k in some], generation)

    def _generate(self, inputs: dict[str, Any], about: list[list[Located]], generation: dict[str, Any]) -> list[Answer]:
        if generation.get("num_return_sequences", 1) != 1:
            raise ValueError(f"num_return_sequences is {generation['num_return_sequences']}: ask again for each answer")
        for name in NO_OPTIONS & generation.keys():
            raise ValueError(f"{name} is no option here: give those of `generate` by themselves, as max_new_tokens=40")
        prompts = self.processor.prompts
        end = prompts.end_id
        options = {"max_new_tokens": 256, "do_sample": False, "eos_token_id": end, "pad_token_id": end} | generation
        most = options["max_new_tokens"]
        if prompts.notes_ids and isinstance(most, int) and most > 0:  # else `generate` says what is wrong
            enough = _Enough(prompts, most)
            options["max_new_tokens"] = most + MOST_NOTES
            options["stopping_criteria"] = StoppingCriteriaList([*options.get("stopping_criteria", []), enough])
        beams = options.get("num_beams", 1) > 1
        probabilities = _TokenProbabilities()
        processors = LogitsProcessorList([*options.pop("logits_processor", []), probabilities])
        output: Any = self.model.generate(
            **inputs, **options, logits_processor=processors, return_dict_in_generate=True, output_scores=beams
        )
        answers = []
        for row, ids in enumerate(output.sequences.tolist()):
            if end in ids:
                ids = ids[: ids.index(end) + 1]
            if beams:  # a score is the sum of log-probabilities over the length to the power of the penalty
                penalty = options.get("length_penalty", 1.0)
                mean = output.sequences_scores[row].item() * len(ids) ** (penalty - 1)
            else:
                mean = probabilities.mean(row, ids)
            answers.append(Answer(self.processor.decode(ids), None, math.exp(min(mean, 0.0)), about[row], len(ids)))
        return answers


class Scene:
    """A picture with its regions, encoded once; each question after that costs only itself.

    From `Predictor.open`. The regions are `<Prompt0>`, `<Prompt1>`, ... in the order given. Nothing of a question is
    left when it is answered, so the order of questions means nothing.
    """

    def __init__(self, predictor: Predictor, cut: CutImage, regions: list[Located], form: Form = "ask"):
        self.regions = regions
        self._predictor = predictor
        self._form: Form = form
        processor, model = predictor.processor, predictor.model
        prefix = processor.prompts.encode_prefix(len(cut.tiles), range(len(regions)), form)
        self._boxes = {k: processor.rel_box(cut, region) for k, region in enumerate(regions)}
        with torch.inference_mode():
            (features,) = _Picture(model, cut, predictor.change_features).encode([processor.mark(cut, regions)])
            self._cut = model.model.cut(features, torch.tensor([cut.grid]), [self._boxes])
            ids = torch.tensor([prefix], device=model.device)
            embeds = model.model.embed(ids, features, self._cut, [self._boxes])
            self._kept = Cache(layer_class_to_replicate=_KeptLayer)
            model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1, **{KEPT: self._kept})
        self._length = len(prefix)

    def describe(self, index: int, on_text: OnText | None = None, **generation: Any) -> Answer:
        """Describe region `index`, with all regions marked."""
        if not 0 <= index < len(self.regions):
            raise ValueError(f"region {index} of {len(self.regions)}: count from 0")
        asked, name = self._predictor.processor.prompts.describing(index), prompt_name(index)
        # All regions stand before the question, so it has to name its own.
        ids = self.question_ids(asked if name in asked else f"Describe {name} in detail.")
        return self.generate([ids], [[self.regions[index]]], generation, on_text)[0]

    def ask(
        self, question: str, choices: Sequence[str] | None = None, on_text: OnText | None = None, **generation: Any
    ) -> Answer:
        """Ask about the regions; see `Predictor.ask`."""
        if choices is None:
            return self.generate([self.question_ids(question)], [self.regions], generation, on_text)[0]
        options = _options(choices)
        for option in options.values():
            self._predictor.processor.prompts.check_names(option, range(len(self.regions)), "choice")
        if self._predictor.model.config.choice_scoring == "letters":
            log_probabilities = self._letters(question, options)
        else:
            log_probabilities = self._texts(question, list(options.values()))
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
        if len({len(ids) for ids in questions}) > 1:
            raise ValueError("the questions of one batch must have one length")
        inputs = self._begun(questions)
        if on_text:
            inputs["streamer"] = _Pieces(self._predictor.processor, on_text)
        return self._predictor._generate(inputs, about, generation)

    def _begun(self, questions: list[list[int]]) -> dict[str, Any]:
        """What `generate` takes to go on from questions of one length, each after the picture.

        It wants the whole length, and of the embeddings reads only what the cache does not hold.
        """
        inputs = self._inputs(questions)
        inputs["inputs_embeds"] = F.pad(inputs["inputs_embeds"], (0, 0, self._length, 0))
        inputs["attention_mask"] = inputs["inputs_embeds"].new_ones(inputs["inputs_embeds"].shape[:2], dtype=torch.long)
        return inputs

    def _inputs(self, texts: list[list[int]]) -> dict[str, Any]:
        """What the model takes to read texts of one length, each after the picture."""
        model = self._predictor.model
        ids = torch.tensor(texts, device=model.device)
        cut, boxes = self._cut.repeat(len(texts), 1, 1), [self._boxes] * len(texts)
        layers: list[Any] = [_KeptLayer(layer) for layer in self._kept.layers]
        inputs: dict[str, Any] = {
            "inputs_embeds": model.model.embed_text(ids, cut, boxes),
            KEPT: Cache(layers),
        }
        if model.config.mention_embedding:
            inputs["mentions"] = model.model.mentions(cut, boxes)
        return inputs

    @torch.inference_mode()
    def _logits(self, texts: list[list[int]], keep: int) -> Tensor:
        """Logits (B, keep, V) at the last places of texts of one length, each read after the picture."""
        return self._predictor.model(**self._inputs(texts), use_cache=True, logits_to_keep=keep).logits.float()

    def _letters(self, question: str, options: dict[str, str]) -> list[float]:
        """Log-probability of each option's letter as the first token of the answer."""
        listed = "\n".join(f"{letter}. {text}" for letter, text in options.items())
        asked = f"Question: {question}\nOptions:\n{listed}\nAnswer with the correct option's letter directly."
        logits = self._logits([self.question_ids(asked)], keep=1)[0, 0].log_softmax(0)
        prompts = self._predictor.processor.prompts
        return [logits[prompts.encode_answer(letter, end=False)[0]].item() for letter in options]

    def _texts(self, question: str, options: list[str]) -> list[float]:
        """Mean log-probability of the tokens of each option's text, the end included."""
        prompts = self._predictor.processor.prompts
        asked = self._noted(self.question_ids(question))
        answers = [prompts.encode_answer(text) for text in options]
        longest = max(map(len, answers))
        # What fills up the shorter ones comes after them, where they do not look.
        texts = [asked + answer + [prompts.end_id] * (longest - len(answer)) for answer in answers]
        logits = self._logits(texts, keep=longest + 1).log_softmax(2)
        return [row[range(len(answer)), answer].mean().item() for row, answer in zip(logits, answers, strict=True)]

    @torch.inference_mode()
    def _noted(self, asked: list[int]) -> list[int]:
        """A question's ids, and what the model notes down before it answers."""
        ends = self._predictor.processor.prompts.notes_ids
        if not ends or self._logits([asked], keep=1).argmax() != ends[0]:
            return asked
        written: Any = self._predictor.model.generate(
            **self._begun([asked]), max_new_tokens=MOST_NOTES, do_sample=False, eos_token_id=ends[1],
            pad_token_id=ends[1],
        )  # fmt: skip
        return asked + written[0].tolist()


class _Picture:
    """The tiles of one picture, encoded under any marks. Those that a mark does not touch are encoded once.

    Exact: tiles do not attend to each other, and an empty mark adds nothing.
    """

    def __init__(self, model: GARForConditionalGeneration, cut: CutImage, change: ChangeFeatures | None = None):
        self._model = model
        self._change = change
        self._tiles = cut.tiles
        self._plain: dict[int, Tensor] = {}

    def encode(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Masks (T, s, s) -> for each the features (T, g, g, D) of the tiles marked so."""
        marked = [touched(mask).tolist() for mask in masks]
        plain = [t for t in range(len(self._tiles)) if t not in self._plain and not all(row[t] for row in marked)]
        jobs = [(t, torch.zeros_like(masks[0][t])) for t in plain]
        jobs += [(t, mask[t]) for mask, row in zip(masks, marked, strict=True) for t, mine in enumerate(row) if mine]
        encoded = iter(self._run(jobs))
        self._plain |= {t: next(encoded) for t in plain}
        return [
            torch.stack([next(encoded) if mine else self._plain[t] for t, mine in enumerate(row)]) for row in marked
        ]

    @torch.inference_mode()
    def _run(self, jobs: list[tuple[int, Tensor]]) -> Tensor:
        device, dtype = self._model.device, self._model.dtype
        step = 4 if device.type == "cpu" else 16  # a CPU is fastest on what stays in its caches
        encoded = []
        for some in _slices(jobs, step):
            marks = torch.stack([mark for _, mark in some]).to(device, dtype)
            tiles = normalise(self._tiles[[t for t, _ in some]]).to(device, dtype)
            features = self._model.model.encode(tiles, marks)
            encoded.append(self._change(features, marks) if self._change else features)
        return torch.cat(encoded)


class _KeptLayer(DynamicLayer):
    """One layer's keys and values, with room behind them: a token writes its own, where transformers copies all.

    May start after the keys and values of another, which it only reads, and repeats for as many rows as then come.
    """

    room = 256
    keys: Tensor
    values: Tensor

    def __init__(self, before: Any = None):
        super().__init__()
        self._memory: Tensor | None = None
        if before is not None:
            self.lazy_initialization(before.keys, before.values)
            self.keys, self.values = before.keys, before.values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (B, heads, new, width) each, and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        memory = self._memory
        # Beam search puts other tensors in the place of ours.
        if memory is None or end > memory.shape[3] or memory.data_ptr() != self.keys.data_ptr():
            rows, heads, _, width = key_states.shape
            memory = self._memory = key_states.new_empty(2, rows, heads, end + self.room, width)
            if start:
                memory[0, :, :, :start], memory[1, :, :, :start] = self.keys, self.values
        memory[0, :, :, start:end], memory[1, :, :, start:end] = key_states, value_states
        self.keys, self.values = memory[:, :, :, :end]
        return self.keys, self.values


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
        """Over the tokens of one row of the batch."""
        assert self._last is not None
        values = [step[row] for step in self._steps[: len(ids)]]
        if len(values) < len(ids):
            values.append(self._last[row, ids[-1]])
        return torch.stack(values).mean().item()


class _Enough(StoppingCriteria):
    """Ends an answer after so many tokens, the notes before it not counted."""

    def __init__(self, prompts: PromptWriter, most: int):
        self._prompts, self._most = prompts, most

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        said = [len(self._prompts.after_notes(ids)) >= self._most for ids in input_ids.tolist()]
        return torch.tensor(said, device=input_ids.device)


class _Pieces(BaseStreamer):
    """Hands on the text as it grows, by whole decoding. The pieces join to the answer.

    The last letters are held back until more follow or the text ends: they may be half of one, or move when a tokenizer
    takes away the space before "n't".
    """

    held_back = 4

    def __init__(self, processor: GARProcessor, on_text: OnText):
        self._processor, self._on_text = processor, on_text
        self._ids: list[int] = []
        self._said = 0

    def put(self, value: Tensor) -> None:
        if value.numel() == 1:  # otherwise the prompt
            self._ids.append(int(value))
            self._say(self._processor.decode(self._ids)[: -self.held_back])

    def end(self) -> None:
        self._say(self._processor.decode(self._ids))

    def _say(self, text: str) -> None:
        if len(text) > self._said:
            self._on_text(text[self._said :])
            self._said = len(text)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"


def _listed(regions: Any) -> Sequence[Region]:
    """Regions as they are. Raises ValueError where they are none."""
    if not isinstance(regions, Sequence):
        raise ValueError(f"regions is a {type(regions).__name__}: give a list of them, as [Region.box(x0, y0, x1, y1)]")
    for number, region in enumerate(regions):
        if not isinstance(region, Region):
            ways = "Region.box(x0, y0, x1, y1), Region.mask(array), ..."
            raise ValueError(f"region {number} is a {type(region).__name__}: make a Region of it, by {ways}")
    return regions


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")


def _slices(items: Sequence[Any], size: int) -> Iterator[Any]:
    return (items[i : i + size] for i in range(0, len(items), size))


def _options(choices: Sequence[str]) -> dict[str, str]:
    """Options by letter: "A. red", "(B) blue" keep their own letters, others get A, B, C, ... in order."""
    if (
        isinstance(choices, str)
        or not isinstance(choices, Sequence)
        or not all(isinstance(choice, str) for choice in choices)
    ):
        raise ValueError(f"choices is {choices!r}: give a list of texts, as ['red', 'blue']")
    if len(choices) < 2:
        raise ValueError(f"{len(choices)} choice(s): give at least two")
    if len(choices) > 26:
        raise ValueError(f"{len(choices)} choices: at most 26")
    if not all(choice.strip() for choice in choices):
        raise ValueError(f"the choices {list(choices)} hold an empty one: leave it out")
    matches = [re.match(r"\s*\(?([A-Za-z])[.):]\s*(.+)", choice, re.DOTALL) for choice in choices]
    lettered = {m[1].upper(): m[2].strip() for m in matches if m}
    if len(lettered) == len(choices):
        return lettered
    return {chr(ord("A") + i): choice.strip() for i, choice in enumerate(choices)}
