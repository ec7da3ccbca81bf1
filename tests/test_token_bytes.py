"""Every token's bytes: sums over real tokenizers' ids against the text's own bytes, and the errors."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import ByT5Tokenizer, GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from xent_metrics.errors import TokenBytesError
from xent_metrics.token_bytes import BYTE_ALPHABET, token_bytes

SAMPLES = [
    "",
    "Hello, world! don't stop.",
    "  two  spaces, a tab\t, trailing   ",
    "\n\r\n\x00\x01\x1f\x7f\x85\u00a0\u200b\u2028\ufeff\ufffd",
    "Ünïcödé ſtraße Ġ ĊĬ Ń ¡¬®ÿ <0x41> ##ing </w>",
    "Ελληνικά, русский, עברית, العربية, हिन्दी, ไทย, 中文字符, 日本語, 한국어, አማርኛ",
    "e\u0301 a\u0308\u0323 q\u0307\u0323 각",
    "🙂 👩🏽‍🚀 👨‍👩‍👧‍👦 🇪🇺 𝔘𝔫𝔦 𓂀 \U0010ffff",
    "def f(x):\n\treturn x ** 2  # comment\n" * 3,
]
CORPUS = SAMPLES * 5
TEXTS = st.text(max_size=60) | st.lists(st.sampled_from(SAMPLES), max_size=4).map("".join)
# SentencePiece-like tokenizers write a space as "▁", so that a "▁" of the text comes back as a space.
SPACED_TEXTS = TEXTS.map(lambda text: text.replace("▁", "_"))
QUICK = settings(max_examples=150, deadline=None)


def spelled(text: str) -> int:
    return len(text.encode())


def fast(tokenizer: Tokenizer, **kwargs: object) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kwargs)


def total(tokenizer: object, text: str) -> int:
    if isinstance(tokenizer, tiktoken.Encoding):
        ids = tokenizer.encode(text, disallowed_special=())
    elif isinstance(tokenizer, Tokenizer):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    else:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    table = token_bytes(tokenizer)
    assert table.dtype == torch.int64
    return int(table[torch.tensor(ids, dtype=torch.int64)].sum())


@cache
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet))
    return tokenizer


def state_of(tokenizer: Tokenizer) -> dict:
    return json.loads(tokenizer.to_str())


def merges() -> list[tuple[str, str]]:
    return [tuple(pair) for pair in state_of(byte_level())["model"]["merges"]]


@cache
def llama3() -> PreTrainedTokenizerFast:
    """Byte-level, with a Sequence as its pre-tokenizer, a special token, and added tokens that are text."""
    tokenizer = Tokenizer(models.BPE(byte_level().get_vocab(), merges(), ignore_merges=True))
    split = pre_tokenizers.Split(" ", "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin|>"])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<tool>", "日本語", "Ünïcödé", "  two")])
    return fast(tokenizer, bos_token="<|begin|>")


class SlowByteLevel(PreTrainedTokenizer):
    """GPT-2's tokenizer as remote code writes it, without the regex that only decides where merges stop."""

    def __init__(self, **kwargs: object) -> None:
        self.byte_encoder = bytes_to_unicode()
        self.byte_decoder = {char: byte for byte, char in self.byte_encoder.items()}
        self.encoder = byte_level().get_vocab()
        self.decoder = {token_id: token for token, token_id in self.encoder.items()}
        self.bpe = models.BPE(self.encoder, merges())
        super().__init__(**kwargs)

    vocab_size = property(lambda self: len(self.encoder))

    def get_vocab(self) -> dict[str, int]:
        return {**self.encoder, **self.added_tokens_encoder}

    def _tokenize(self, text: str) -> list[str]:
        return [token.value for token in self.bpe.tokenize("".join(self.byte_encoder[b] for b in text.encode()))]

    def _convert_token_to_id(self, token: str) -> int:
        return self.encoder[token]

    def _convert_id_to_token(self, token_id: int) -> str:
        return self.decoder[token_id]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return bytearray(self.byte_decoder[char] for char in "".join(tokens)).decode(errors="replace")


@cache
def slow_byte_level() -> SlowByteLevel:
    tokenizer = SlowByteLevel(eos_token="<|end|>")
    tokenizer.add_tokens(["日本語", "Ünïcödé"])
    return tokenizer


@cache
def tiktoken_encoding() -> tiktoken.Encoding:
    """The same merges as `byte_level`; the special token leaves a hole of 24 ids."""
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    ranks = {bytes(byte_of[char] for char in token): rank for token, rank in byte_level().get_vocab().items()}
    return tiktoken.Encoding("tiny", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={"<|end|>": len(ranks) + 24})


def with_byte_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Byte fallback as SentencePiece has it: 256 pieces that no text can match, used for what no other piece covers."""
    state = state_of(tokenizer)
    vocab = state["model"]["vocab"]
    for byte in range(256):
        if isinstance(vocab, list):
            vocab.append([f"<0x{byte:02X}>", -1e4])
        else:
            vocab[f"<0x{byte:02X}>"] = len(vocab)
    state["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(state))


SPACED_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


@cache
def trained(kind: str) -> Tokenizer:
    few = dict(special_tokens=["<unk>", "<s>"], vocab_size=200, show_progress=False)
    if kind == "unigram":
        tokenizer, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(unk_token="<unk>", **few)
    else:
        tokenizer, trainer = Tokenizer(models.BPE(unk_token="<unk>")), trainers.BpeTrainer(limit_alphabet=60, **few)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.decoder = decoders.Sequence(SPACED_DECODER)
    return with_byte_tokens(tokenizer)


def copy(tokenizer: Tokenizer) -> Tokenizer:
    return Tokenizer.from_str(tokenizer.to_str())


@cache
def gemma() -> PreTrainedTokenizerFast:
    """Spaces by a normalizer, and an added token "▁▁" that stands for two spaces."""
    tokenizer = copy(trained("bpe"))
    tokenizer.pre_tokenizer, tokenizer.normalizer = None, normalizers.Replace(" ", "▁")
    tokenizer.add_tokens([AddedToken("▁▁", normalized=True), AddedToken("日本語", normalized=False)])
    return fast(tokenizer)


@cache
def slow_sentencepiece(model_type: str, dummy_prefix: bool = False) -> SentencePieceBackend:
    options = dict(vocab_size=420, character_coverage=0.98, hard_vocab_limit=False, minloglevel=2)
    lossless = dict(byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(CORPUS).splitlines()),
        model_writer=model,
        model_type=model_type,
        add_dummy_prefix=dummy_prefix,
        **options,
        **lossless,
    )
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        Path(file.name).write_bytes(model.getvalue())
        tokenizer = SentencePieceBackend(vocab_file=file.name, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(["日本語"])
    return tokenizer


@cache
def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]"]))
    return tokenizer


LOSSLESS = {
    "raw tokenizers": byte_level,
    "llama 3": llama3,
    "gpt-2": lambda: GPT2Tokenizer(vocab=byte_level().get_vocab(), merges=merges()),
    "slow byte-level": slow_byte_level,
    "tiktoken": tiktoken_encoding,
    "byt5": cache(ByT5Tokenizer),
}
LOSSLESS_BUT_MARK = {
    "unigram": lambda: trained("unigram"),
    "bpe": lambda: fast(trained("bpe")),
    "gemma": gemma,
    "slow unigram": lambda: slow_sentencepiece("unigram"),
    "slow bpe": lambda: slow_sentencepiece("bpe"),
}


@pytest.mark.parametrize("make", LOSSLESS.values(), ids=LOSSLESS)
@QUICK
@given(text=TEXTS)
def test_a_lossless_tokenizer_sums_to_the_bytes_of_any_text(make, text):
    assert total(make(), text) == spelled(text)


@pytest.mark.parametrize("make", LOSSLESS_BUT_MARK.values(), ids=LOSSLESS_BUT_MARK)
@QUICK
@given(text=SPACED_TEXTS)
def test_byte_fallback_sums_to_the_bytes_of_any_text(make, text):
    assert total(make(), text) == spelled(text)


@pytest.mark.parametrize("text", SAMPLES)
@pytest.mark.parametrize("make", [*LOSSLESS.values(), *LOSSLESS_BUT_MARK.values()], ids=[*LOSSLESS, *LOSSLESS_BUT_MARK])
def test_the_samples_one_by_one(make, text):
    assert total(make(), text) == spelled(text)


def prepended() -> Tokenizer:
    """Llama-2 as first converted: a normalizer puts the "▁" there, a Strip at the end takes it away."""
    tokenizer = copy(trained("bpe"))
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([*SPACED_DECODER, decoders.Strip(" ", 1, 0)])
    return tokenizer


def llama2() -> LlamaTokenizer:
    model = state_of(trained("bpe"))["model"]
    return LlamaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def t5() -> Tokenizer:
    tokenizer = copy(trained("unigram"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tokenizer


def roberta() -> Tokenizer:
    tokenizer = copy(byte_level())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


@pytest.mark.parametrize("text", ["Hello, world!", "日本語 🙂\n", " starts with a space"])
@pytest.mark.parametrize(
    ("make", "always"),
    [(prepended, True), (lambda: slow_sentencepiece("bpe", True), True), (llama2, False), (t5, False), (roberta, False)],
    ids=["prepend normalizer", "slow", "metaspace first", "metaspace always", "add_prefix_space"],
)
def test_a_dummy_prefix_is_one_byte_more_than_the_text(make, always, text):
    # Metaspace and add_prefix_space leave a text alone that has its space already.
    added = 1 if always or not text.startswith(" ") else 0
    if make is not t5 and "日本語" in text and always and not isinstance(make(), Tokenizer):
        added += 1
    assert total(make(), text) == spelled(text) + added
