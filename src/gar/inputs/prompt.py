"""Text and regions -> token ids, with one run of placeholders for the picture and one for each region.

Every request is a prefix (the picture and its regions) and a question, and its ids are exactly those of the one after
those of the other: the two meet at a placeholder or at a name `<Promptk>`, which no token reaches across. So a prefix
may be kept and asked again. Knows the tokenizer and the layouts of text. Knows no pixel, no box and no model.

Three forms of the same parts:
  "describe"  one region, marked in the prefix; the question speaks of "this masked region"
  "ask"       all regions marked in the prefix; the question may name them
  "together"  all regions named in the prefix; each question first marks the one that it is about
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from gar.model.config import GARConfig
from gar.regions import prompt_name, prompts_named

Form = Literal["describe", "ask", "together"]

DESCRIBE = GARConfig.describe_question
IGNORED = -100  # the label of a token that is not trained

_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)


@dataclass(frozen=True)
class ReleasedFaults:
    """What the published evaluation code does by accident. For reproducing its numbers, never for use.

    double_bos: the text begins with two begin-of-text tokens.
    region_order: the order in which regions are listed, instead of ascending (published: the order of a Python set).
    last_box: every region gets the box of the last one.
    """

    double_bos: bool = False
    region_order: tuple[int, ...] | None = None
    last_box: bool = False


NO_FAULTS = ReleasedFaults()


@dataclass(frozen=True)
class ChatTurn:
    """A question and its answer in training. `region`: the prompt number that is marked right before the question."""

    question: str
    answer: str
    region: int | None = None


@dataclass(frozen=True)
class _Layout:
    """The texts around a picture, its regions, questions and answers."""

    bos: str
    opening: str  # between it and the picture
    listing: str  # names all regions
    listing_of_one: str  # the same before a description
    mark: str  # one region: its name and its placeholder
    between: str  # two marked regions
    gap: str  # between all regions and a question about them
    answer: str  # between a question and its answer
    end: str  # of an answer
    again: str  # between an answer and the next question
    noting: str = ""  # begins notes, which a model may write before its answer; `answer` ends them


_USER = "<|start_header_id|>user<|end_header_id|>\n\n"
_LAYOUTS = {
    "released": _Layout(
        bos="<|begin_of_text|>",
        opening=f"<|start_header_id|>system<|end_header_id|>\n\n{_SYSTEM}<|eot_id|>{_USER}",
        listing="There are some objects I am curious about: {names}; \n",
        # Without the space of the training data: so the published code asks for a description.
        listing_of_one="There are some objects I am curious about: {names};\n",
        mark="{name}: {crop}",
        between="\n",
        gap="\n\n",
        answer="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        again=_USER,
    ),
    "nano": _Layout(
        bos="<|bos|>",
        opening="",
        listing="",
        listing_of_one="",
        mark="{name}{crop}",
        between="",
        gap="",
        answer="<|answer|>",
        end="<|eos|>",
        again="",
        noting="<|bos|>",
    ),
}


class PromptWriter:
    """Writes the token ids of one checkpoint's prompts.

    Regions are prompt numbers k, of the name `<Promptk>`. Texts of users are trimmed at both ends.

    Attributes:
        end_id: the token that ends an answer, where generation stops.
        notes_ids: the tokens that begin and end notes; None where a model takes none.
        reserved_ids: tokens of the layout and placeholders: users may not write them, answers are shown without them.

    Raises:
        ValueError: the tokenizer does not know a token that the configuration or the layout needs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: GARConfig):
        self._tokenizer = tokenizer
        self._config = config
        self._layout = _LAYOUTS[config.prompt_style]
        for k, expected in enumerate(config.prompt_token_ids):
            if (found := self._token_id(prompt_name(k))) != expected:
                raise ValueError(
                    f"{prompt_name(k)} is token {found} of the tokenizer, but {expected} of the configuration: take "
                    "both from one checkpoint"
                )
        for token in re.findall(r"<\|\w+\|>", self._layout.bos + self._layout.opening + self._layout.answer):
            self._token_id(token)
        self.end_id = self._token_id(self._layout.end)
        ends = (self._layout.noting, self._layout.answer)
        self.notes_ids = (self._token_id(ends[0]), self._token_id(ends[1])) if self._layout.noting else None
        crop_ids = config.crop_token_ids
        self._image, *self._crops = tokenizer.convert_ids_to_tokens([config.image_token_id, *crop_ids])
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.reserved_ids = special.union(crop_ids, [config.image_token_id]).difference(config.prompt_token_ids)

    def encode_prefix(
        self, num_tiles: int, regions: Sequence[int], form: Form = "ask", faults: ReleasedFaults = NO_FAULTS
    ) -> list[int]:
        """Everything up to and including the regions.

        Args:
            num_tiles: of the picture, with its thumbnail.
            regions: prompt numbers, listed in ascending order; none to ask about the picture as a whole.
            form: see the head of this module.
            faults: named faults of the published code to repeat.

        Returns:
            Token ids with `num_tiles * config.tokens_per_tile` image tokens and, unless the form is "together",
            `config.replay_size ** 2` placeholders per region.

        Raises:
            ValueError: more regions than the checkpoint has prompts, one twice, or not one region to "describe".
        """
        self._check_regions(regions)
        if form == "describe" and len(regions) != 1:
            raise ValueError(f"{len(regions)} regions to describe: one at a time; use 'ask' or 'together' for several")
        order = faults.region_order or tuple(sorted(regions))
        if sorted(order) != sorted(regions):
            raise ValueError(f"region_order {order} does not list the regions {sorted(regions)}")
        return self._prefix(num_tiles, order, form, double_bos=faults.double_bos)

    def describing(self, k: int) -> str:
        """The question that asks this checkpoint for a description of region k."""
        return self._config.describe_question.format(name=prompt_name(k))

    def encode_question(
        self, question: str, regions: Sequence[int], form: Form = "ask", region: int | None = None
    ) -> list[int]:
        """Everything from the regions to where the answer begins.

        Args:
            question: may name regions as `<Promptk>`; one that names none is about all of them.
            regions: as for the prefix.
            form: as for the prefix.
            region: of the form "together", the one that this question marks and is about; None marks none, as in
                training, where a question may be about a region that is not there.

        Raises:
            ValueError: the question is empty, names a region that is not there, or holds a reserved token.
        """
        question = self._proper(question)
        if not question.strip():
            raise ValueError("the question is empty: ask something, or use 'describe'")
        self.check_names(question, regions, "question")
        if region is not None and region not in regions:
            raise ValueError(f"region is {region}, expected one of {sorted(regions)}: each question marks its region")
        before = self._layout.gap if form == "ask" and regions else ""
        return self._question(self._mark(region) if region is not None else before, question)

    @staticmethod
    def check_names(text: str, regions: Sequence[int], what: str) -> None:
        """Raises ValueError where a text (`what` says which) names a region that is not among these."""
        for k in prompts_named(text):
            if k not in regions:
                there = ", ".join(map(prompt_name, sorted(regions))) or "none"
                raise ValueError(
                    f"the {what} names {prompt_name(k)}, but the given regions are: {there}; add its region or correct "
                    "the name"
                )

    def encode_answer(self, answer: str, end: bool = True) -> list[int]:
        """An answer as the model would write it, with the token that ends it or without."""
        answer = self._proper(answer)
        self._check_text(answer, "answer")
        return self._ids(answer.strip()) + [self.end_id] * end

    def encode_notes(self, notes: str) -> list[int]:
        """Notes as the model would write them between question and answer; nothing where it takes none."""
        if not self.notes_ids or not notes:
            return []
        self._check_text(notes, "notes")
        begin, end = self.notes_ids
        return [begin, *self._ids(notes), end]

    def after_notes(self, ids: list[int]) -> list[int]:
        """What was written, without the notes that it may begin with; nothing as long as these go on.

        A whole request, which begins as notes do but with its picture, has none.
        """
        if not self.notes_ids or ids[:1] != [self.notes_ids[0]] or ids[1:2] == [self._config.image_token_id]:
            return ids
        end = self.notes_ids[1]
        return ids[ids.index(end) + 1 :] if end in ids else []

    def encode_conversation(
        self, num_tiles: int, turns: Sequence[ChatTurn], regions: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """A training example: ids, and labels that are -100 outside of the answers and their ends.

        Args:
            num_tiles: as for the prefix.
            turns: questions and answers in order. If any has a `region`, each question marks its own ("together");
                otherwise the prefix marks all ("ask").
            regions: prompt numbers in the order in which they are listed.

        Raises:
            ValueError: no turn, too many regions, a region that is marked twice or not listed, a reserved token.
        """
        if not turns:
            raise ValueError("a conversation without a turn: give at least one question and its answer")
        self._check_regions(regions)
        marked = [turn.region for turn in turns if turn.region is not None]
        if len(set(marked)) < len(marked) or not set(marked) <= set(regions):
            raise ValueError(f"the turns mark the regions {marked}, expected each at most once and out of {regions}")
        ids = self._prefix(num_tiles, regions, "together" if marked else "ask")
        labels = [IGNORED] * len(ids)
        for i, turn in enumerate(turns):
            before = self._layout.again if i else self._layout.gap if regions and not marked else ""
            if turn.region is not None:
                before += self._mark(turn.region)
            question = self._question(before, turn.question)
            answer = self.encode_answer(turn.answer)
            ids += question + answer
            labels += [IGNORED] * len(question) + answer
        return ids, labels

    def _prefix(self, num_tiles: int, regions: Sequence[int], form: Form, double_bos: bool = False) -> list[int]:
        layout = self._layout
        text = layout.bos * (1 + double_bos) + layout.opening + self._image
        if regions:
            listing = layout.listing_of_one if form == "describe" else layout.listing
            text += listing.format(names="; ".join(map(prompt_name, regions)))
            if form != "together":
                text += layout.between.join(map(self._mark, regions))
        return self._expand(text, num_tiles)

    def _question(self, before: str, question: str) -> list[int]:
        self._check_text(question, "question")
        return self._expand(before + question.strip() + self._layout.answer)

    def _mark(self, k: int) -> str:
        return self._layout.mark.format(name=prompt_name(k), crop=self._crops[k])

    def _expand(self, text: str, num_tiles: int = 0) -> list[int]:
        """Token ids of a text in which one token stands for each run of placeholders."""
        run = dict.fromkeys(self._config.crop_token_ids, self._config.replay_size**2)
        run[self._config.image_token_id] = num_tiles * self._config.tokens_per_tile
        return [i for token in self._ids(text) for i in [token] * run.get(token, 1)]

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _token_id(self, token: str) -> int:
        ids = self._ids(token)
        if len(ids) != 1:
            raise ValueError(f"the tokenizer has no token {token}: take the tokenizer of a GAR checkpoint")
        return ids[0]

    def _proper(self, text: str) -> str:
        """A text with the names of regions as they are spelt; to a released checkpoint "<prompt0>" is other words.

        Raises ValueError where it is no text, or one with halves of letters.
        """
        if not isinstance(text, str) or text != text.encode(errors="replace").decode():
            raise ValueError(f"{text!r} is no valid text: give a str of whole Unicode letters")
        if self._config.prompt_style == "released":
            return text
        return re.sub(r"<\s*prompt\s*(\d+)\s*>", r"<Prompt\1>", text, flags=re.IGNORECASE)

    def _check_text(self, text: str, what: str) -> None:
        for i in self._ids(text):
            if i in self.reserved_ids:
                token = self._tokenizer.convert_ids_to_tokens(i)
                raise ValueError(f"the {what} holds {token}, which is reserved for the layout: remove it")

    def _check_regions(self, regions: Sequence[int]) -> None:
        most = self._config.max_prompts
        if len(regions) > most:
            raise ValueError(
                f"{len(regions)} regions at once, but this checkpoint has prompts for {most}: ask about at most {most} "
                "in one request (`predictor.describe` groups by itself)"
            )
        if len(set(regions)) < len(regions) or not all(0 <= k < most for k in regions):
            raise ValueError(f"prompt numbers {list(regions)}, expected different ones from 0 to {most - 1}")
