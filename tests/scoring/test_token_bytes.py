"""Every token's bytes: sums over real tokenizers' ids against the text's own bytes, and the errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    ByT5Tokenizer,
    CanineTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from xent_metrics import errors
from xent_metrics.errors import TokenBytesError
from xent_metrics.hosts.lm_eval.models.tokenizers import ByteTokenizer
from xent_metrics.scoring.token_bytes import BYTE_ALPHABET, token_bytes

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
    special = {"<|end|>": len(ranks) + 24}
    return tiktoken.Encoding("tiny", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens=special)


def with_byte_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Byte fallback as in SentencePiece: 256 pieces that match no text, for bytes that no other piece covers."""
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
    few = {"special_tokens": ["<unk>", "<s>"], "vocab_size": 200, "show_progress": False}
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
    """Spaces by a normalizer, and an added token "▁▁" for two spaces."""
    tokenizer = copy(trained("bpe"))
    tokenizer.pre_tokenizer, tokenizer.normalizer = None, normalizers.Replace(" ", "▁")
    tokenizer.add_tokens([AddedToken("▁▁", normalized=True), AddedToken("日本語", normalized=False)])
    return fast(tokenizer)


@cache
def slow_sentencepiece(model_type: str, dummy_prefix: bool = False) -> SentencePieceBackend:
    # Not hard: a small corpus has fewer pieces. Identity, and no whitespace removed: lossless.
    options = "--vocab_size=420 --hard_vocab_limit=false --character_coverage=0.98 --byte_fallback --minloglevel=2"
    options += " --normalization_rule_name=identity --remove_extra_whitespaces=false"
    options += f" --model_type={model_type} --add_dummy_prefix={str(dummy_prefix).lower()}"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "corpus").write_text(" ".join(CORPUS), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(f"{options} --input={folder}/corpus --model_prefix={folder}/tiny")
        tokenizer = SentencePieceBackend(vocab_file=f"{folder}/tiny.model", unk_token="<unk>", eos_token="</s>")
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
    """Llama-2 as first converted: a normalizer adds the "▁", a Strip at the end removes it."""
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


@pytest.mark.parametrize(
    ("make", "doubles_a_space"),
    [(prepended, 1), (lambda: slow_sentencepiece("bpe", True), 1), (llama2, 0), (t5, 0), (roberta, 0)],
    ids=["prepend normalizer", "slow", "metaspace first", "metaspace always", "add_prefix_space"],
)
def test_a_dummy_prefix_is_one_byte_more_than_the_text(make, doubles_a_space):
    assert total(make(), "") == 0
    assert total(make(), "Hello, 🦀\n") == spelled("Hello, 🦀\n") + 1
    assert total(make(), " Hello") == spelled(" Hello") + doubles_a_space


def test_a_dummy_prefix_comes_again_after_an_added_token():
    assert total(slow_sentencepiece("bpe", True), "Hello日本語Hello") == spelled("Hello日本語Hello") + 2


def test_byte_tokens_are_one_byte_where_the_decoder_says_so():
    tokenizer = Tokenizer(models.BPE({"<0x41>": 0, "<0xe2>": 1, "<0x1F642>": 2}, []))
    tokenizer.decoder = decoders.ByteFallback()
    assert token_bytes(tokenizer).tolist() == [1, 1, 9]
    tokenizer.decoder = decoders.Fuse()
    assert token_bytes(tokenizer).tolist() == [6, 6, 9]


def test_a_literal_mark_counts_as_the_space_that_it_decodes_to():
    assert total(trained("bpe"), "a▁b") == 3


def test_wordpiece_counts_the_space_before_every_word():
    text = "Hello, world! Русский don't stop . done"
    ids = words().encode(text).ids
    assert words().decode(ids) == "hello, world! русскии don ' t stop. done"
    assert total(words(), text) == spelled(words().decode(ids)) + 1


def test_slow_wordpiece_has_no_cleanup(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\nhello\n##ing\n,\n")
    table = token_bytes(BertTokenizerLegacy(str(tmp_path / "vocab.txt")))
    assert table.tolist() == [0, 0, 0, 0, 0, 6, 3, 2]


def test_an_end_of_word_suffix_is_one_space():
    tokenizer = Tokenizer(models.BPE({"a</w>": 0, "é": 1}, [], end_of_word_suffix="</w>"))
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    assert token_bytes(tokenizer).tolist() == [2, 2]


def test_without_a_decoder_the_parts_that_encode_decide():
    tokenizer = Tokenizer(models.BPE({"Ġa": 0, "▁a": 1}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])
    assert token_bytes(tokenizer).tolist() == [2, 4]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    assert token_bytes(tokenizer).tolist() == [3, 2]


def test_special_unknown_and_padding_ids_count_zero():
    vocab = {"<unk>": 0, "a": 1, "<pad>": 2, "<sep>": 3}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<sep>"])
    tokenizer.add_tokens(["<tool>"])
    assert token_bytes(tokenizer, vocab_size=8).tolist() == [0, 1, 5, 0, 6, 0, 0, 0]
    named = fast(tokenizer)
    named.pad_token = "<pad>"
    assert token_bytes(named).tolist() == [0, 1, 0, 0, 6]
    unigram = Tokenizer(models.Unigram([("a", -1.0), ("what", -2.0)], unk_id=1))
    unigram.decoder = decoders.Metaspace()
    assert token_bytes(unigram).tolist() == [1, 0]


def test_special_ids_of_slow_tokenizers_count_zero():
    tokenizer = SlowByteLevel(added_tokens_decoder={600: AddedToken("<|x|>", special=True), 601: AddedToken("é")})
    tokenizer.pad_token = "!"
    table = token_bytes(tokenizer, vocab_size=700)
    assert table[[600, 601, tokenizer.encoder["!"], tokenizer.encoder["a"]]].tolist() == [0, 2, 0, 1]
    assert table[602:].sum() == 0
    pieces = slow_sentencepiece("bpe")  # knows of no bos_token; the model has one
    assert [pieces.sp_model.id_to_piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    assert token_bytes(pieces)[:3].tolist() == [0, 0, 0]


def test_an_added_token_is_text_unless_the_model_writes_it():
    tokenizer = copy(byte_level())
    tokenizer.add_tokens(["Ġ", "éé"])  # in the byte-level alphabet "Ġ" is the space
    table = token_bytes(tokenizer)
    assert [table[tokenizer.token_to_id(token)] for token in ("Ġ", "éé")] == [1, 4]


@pytest.mark.parametrize("char", ["é", "£", "°", "µ", "½"])
def test_an_added_character_that_has_the_id_of_a_byte_is_text(char):
    tokenizer = copy(byte_level())
    assert char in tokenizer.get_vocab()  # as one of the 256 bytes
    tokenizer.add_tokens([char])
    with pytest.warns(UserWarning, match=rf"added tokens '{char}' \(byte {ord(char):02x}\) share their ids"):
        table = token_bytes(tokenizer)
    text = f"2 {char} and {char}{char}, 漢"
    assert table[tokenizer.encode(text).ids].sum() == len(text.encode())


def test_tiktoken_and_tokenizers_agree_on_every_token():
    table, holes = token_bytes(byte_level()), [0] * 25
    assert token_bytes(tiktoken_encoding()).tolist() == table.tolist() + holes
    assert set(pre_tokenizers.ByteLevel.alphabet()) == BYTE_ALPHABET


def test_a_callable_gives_bytes_text_or_nothing():
    assert token_bytes([b"\xe2\x96", "▁", "", None].__getitem__, vocab_size=4).tolist() == [2, 3, 0, 0]


class Processor:
    def __call__(self, text: str) -> str:
        return text

    decode = __call__


class Unknown(PreTrainedTokenizer):
    vocab_size = 1

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}


def with_decoder(decoder: object, model: object = None) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model or models.BPE({"a": 0}, []))
    tokenizer.decoder = decoder
    return fast(tokenizer, name_or_path="org/model")


STEP = """TokenizersBackend(name_or_path='org/model'): found the decoder step {"type": """
REFUSED = {
    "unknown decoder": (lambda: with_decoder(decoders.CTC()), STEP + '"CTC", '),
    "regex": (lambda: with_decoder(decoders.Replace(Regex("a+"), " ")), STEP + '"Replace", '),
    "strip each token": (lambda: with_decoder(decoders.Strip()), STEP + '"Strip", '),
    "no decoder": (
        lambda: Tokenizer(models.WordLevel({}, "a")),
        "Tokenizer: found no decoder (the model is WordLevel)",
    ),
    "edit when joined": (
        lambda: with_decoder(decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")])),
        "found the decoder steps ['Fuse', 'Replace'], which edit text after Fuse",
    ),
    "marks left": (
        lambda: with_decoder(decoders.ByteLevel(), models.BPE({"a": 0}, [], end_of_word_suffix="</w>")),
        "found BPE tokens with end_of_word_suffix='</w>' and the decoder ['ByteLevel']",
    ),
    "slow": (Unknown, "Unknown(name_or_path=''): found a slow tokenizer with no sp_model, byte-level alphabet, "),
    "codepoints": (CanineTokenizer, "CanineTokenizer(name_or_path=''): found a slow tokenizer with no sp_model"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_counted_is_named_and_has_a_way_out(make, message):
    with pytest.raises(TokenBytesError) as caught:
        token_bytes(make(), vocab_size=9)
    error = str(caught.value)
    assert error.startswith("token_bytes can't count the bytes of ")
    assert message in error
    assert "; expected a decoder made of ByteLevel, " in error
    assert error.endswith(
        "Pass a function that knows each token's bytes: token_bytes(lambda id: ..., vocab_size=V) [E012]"
    )


@pytest.mark.parametrize(
    ("given", "got", "cure"),
    [
        ("gpt2", "'gpt2' (str)", "Load the tokenizer first: transformers.AutoTokenizer.from_pretrained('gpt2')"),
        ([1, 2], "[1, 2] (list)", "A table of each id's bytes is passed to the metric, as a tensor"),
        (3, "3 (int)", "Pass a function that knows each token's bytes"),
        (Processor(), "(Processor)", "Pass a function that knows each token's bytes"),
    ],
)
def test_what_is_no_tokenizer_at_all_is_told_what_to_pass(given, got, cure):
    with pytest.raises(TokenBytesError) as caught:
        token_bytes(given, vocab_size=9)
    assert f"{got}. {cure}" in str(caught.value)
    assert "decoder" not in str(caught.value)


BAD_ARGUMENTS = [
    (
        byte_level,
        None,
        f"{byte_level.__qualname__} is a callable, which has no vocabulary: expected vocab_size as well",
    ),
    ([b"", 7].__getitem__, 2, "list.__getitem__ gave 7 (int) for id 1: expected the token's bytes, a str that UTF-8"),
    (["\ud800"].__getitem__, 1, "list.__getitem__ gave '\\ud800' (str) for id 0: expected the token's bytes"),
    (
        {0: b"a"}.__getitem__,
        2,
        "dict.__getitem__ raised KeyError for id 1: 1. Expected the token's bytes, or None for an",
    ),
    (byte_level, 0, "vocab_size=0: expected a positive int (the size V of the logits) or None [E012]"),
    (byte_level, 5.0, "vocab_size=5.0: expected a positive int"),
]


@pytest.mark.parametrize(("tokenizer", "vocab_size", "message"), BAD_ARGUMENTS)
def test_a_bad_callable_or_size_says_what_to_pass(tokenizer, vocab_size, message):
    with pytest.raises(TokenBytesError, match=re.escape(message)):
        token_bytes(tokenizer, vocab_size=vocab_size)


def test_anything_that_knows_its_ids_bytes_is_counted():
    table = token_bytes(ByteTokenizer(), vocab_size=300)
    assert table.tolist() == [1] * 256 + [0] * 44
    assert len(token_bytes(ByteTokenizer())) == 257
    with pytest.raises(TokenBytesError, match="has ids up to 256"):
        token_bytes(ByteTokenizer(), vocab_size=256)


def test_a_vocab_size_below_the_ids_is_no_padding():
    message = "vocab_size=547, but Encoding has ids up to 547: expected at least 548. Pass the size V of the model's"
    with pytest.raises(TokenBytesError, match=re.escape(message)):
        token_bytes(tiktoken_encoding(), vocab_size=547)
    assert len(token_bytes(tiktoken_encoding(), vocab_size=548)) == 548


def test_the_module_imports_no_tokenizer_library():
    # An empty package takes the place of ours, so that only this module's own imports count.
    code = f"""
import sys, types
package = sys.modules["xent_metrics"] = types.ModuleType("xent_metrics")
package.__path__ = [{str(Path(errors.__file__).parent)!r}]
import xent_metrics.scoring.token_bytes
print(sorted({{"transformers", "tokenizers", "tiktoken", "sentencepiece"}} & sys.modules.keys()))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_a_tokenizer_without_ids_has_no_bytes():
    class Empty:
        def __len__(self):
            return 0

        def id_to_bytes(self, token_id):
            raise AssertionError(token_id)

    assert token_bytes(Empty()).shape == (0,)
    assert token_bytes(Empty(), vocab_size=2).tolist() == [0, 0]
