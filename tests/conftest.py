"""Fixtures that several tests share: golden numbers, and the tokenizers of released checkpoints and of nano."""

from __future__ import annotations

import base64
import importlib.util
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

torch.set_num_threads(2)

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with all golden numbers and benchmarks."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED}, where all golden numbers are")
    return SHARED


@pytest.fixture(scope="session")
def python() -> Callable[[str], str]:
    """Runs code in a fresh interpreter that can import `gar`; gives what it printed."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}

    def run(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def processes() -> Any:
    """Starts processes from one that has imported what is heavy, so that a start costs milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "openai.resources.chat", "gar.predictor", "gar.bench.report"])
    return context


@pytest.fixture(scope="session")
def llama3_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of a released checkpoint, rebuilt from Llama 3's vocabulary."""
    spec = importlib.util.find_spec("llama_models")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llama-models is not installed; of it only the file llama3/tokenizer.model is needed")
    return released_tokenizer_of(Path(spec.submodule_search_locations[0]) / "llama3" / "tokenizer.model")


@pytest.fixture(scope="session")
def released_tokenizer() -> PreTrainedTokenizerFast:
    """The same with the words of the golden prompts only; any other word falls apart into bytes."""
    return released_tokenizer_of(GOLDEN / "llama3_words.tiktoken")


@pytest.fixture(scope="session")
def nano_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and the special tokens of nano, whose names of regions swallow the spaces around them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("<Prompt", " <Prompt"), decoders.ByteLevel()])
    names = [f"<Prompt{k}>" for k in range(16)]
    special = ["<|bos|>", "<|eos|>", "<|pad|>", "<|image|>", "<|answer|>", *(f"<|region{k}|>" for k in range(16))]
    tokenizer.add_special_tokens(
        [AddedToken(token, lstrip=True, rstrip=True, normalized=False) for token in special + names]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|pad|>"
    )


def released_tokenizer_of(vocabulary: Path) -> PreTrainedTokenizerFast:
    """Llama 3's tokenizer with PerceptionLM's special tokens and the names of regions.

    Args:
        vocabulary: a file in the format of `tokenizer.model`: on each line a token in base64 and its id. Two tokens
            merge wherever together they are a token, lower ids first.
    """
    ids = {base64.b64decode(token): int(i) for token, i in map(str.split, vocabulary.read_text().splitlines())}
    letters = bytes_to_unicode()

    def text(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    merges = []
    for token in sorted(ids, key=ids.__getitem__):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = sorted((ids[a], ids[b], a, b) for a, b in pairs if a in ids and b in ids)
        merges += [(text(a), text(b)) for _, _, a, b in pairs]

    def reserved(first: int, last: int) -> list[str]:
        return [f"<|reserved_special_token_{i}|>" for i in range(first, last + 1)]

    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|image|>", "<|video|>", *reserved(2, 3)]
    special += ["<|start_header_id|>", "<|end_header_id|>", *reserved(4, 4), "<|eot_id|>", *reserved(5, 250)]
    special += [*(f"<Prompt{k}>" for k in range(5)), "<NO_Prompt>"]
    vocab = {text(token): i for token, i in ids.items()} | {token: 128000 + i for i, token in enumerate(special)}

    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 128000)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>",
        clean_up_tokenization_spaces=True,
    )
