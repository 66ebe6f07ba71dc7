"""Fixtures that several tests share."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

torch.set_num_threads(2)

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden numbers and benchmarks beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"no {SHARED}: it holds the full golden numbers")
    return SHARED


@pytest.fixture(scope="session")
def llama3_tokenizer():
    """A released checkpoint's tokenizer, rebuilt from Llama 3's vocabulary with PerceptionLM's special tokens."""
    spec = importlib.util.find_spec("llama_models")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llama-models is not installed: it holds Llama 3's tokenizer.model (pip install --no-deps)")
    return build_llama3_tokenizer(Path(spec.submodule_search_locations[0]) / "llama3" / "tokenizer.model")


def build_llama3_tokenizer(path: Path):
    import base64

    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    # Each line of the file is a token, base64, and its id; two tokens merge where their concatenation is a token.
    ranks = {base64.b64decode(token): int(i) for token, i in map(str.split, path.read_text().splitlines())}
    letter = bytes_to_unicode()

    def text(token: bytes) -> str:
        return "".join(letter[byte] for byte in token)

    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [(a, b) for a, b in pairs if a in ranks and b in ranks]
        merges += [(text(a), text(b)) for a, b in sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))]
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE({text(token): i for token, i in ranks.items()}, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()

    def reserved(first: int, last: int) -> list[str]:
        return [f"<|reserved_special_token_{i}|>" for i in range(first, last + 1)]

    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|image|>", "<|video|>", *reserved(2, 3)]
    special += ["<|start_header_id|>", "<|end_header_id|>", *reserved(4, 4), "<|eot_id|>", *reserved(5, 250)]
    special += [*(f"<Prompt{k}>" for k in range(5)), "<NO_Prompt>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    begin = ("<|begin_of_text|>", len(ranks))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin[0]} $A", pair=f"{begin[0]} $A {begin[0]} $B", special_tokens=[begin]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin[0],
        eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>",
        clean_up_tokenization_spaces=True,
    )
