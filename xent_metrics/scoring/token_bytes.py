"""The number of UTF-8 bytes of each token id, to convert a loss in nats per token to bits per byte.

A tokenizer declares how its tokens become text: a fast Hugging Face tokenizer in the JSON of its decoder, a slow one in
its `sp_model` or in how it joins tokens, a tiktoken encoding in the bytes of each id. This gives one rule per tokenizer,
which is applied to every token. Ids are not decoded one by one: half a character would become U+FFFD, and the space
before a word would be lost. A tokenizer without a known rule is an error, never a guess, and a callable ``id -> bytes``
works for any tokenizer. No tokenizer library is imported here.
"""

from __future__ import annotations

import json
import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import reduce
from typing import Any

import torch

from xent_metrics.errors import TokenBytesError

__all__ = ["token_bytes"]

Rule = Callable[[str], int]  # a token as written in the vocabulary -> its number of UTF-8 bytes
Edit = Callable[[str], str]  # one decoder step, applied to a token
Rules = tuple[Rule, Rule]  # for the model's own tokens, and for added tokens

BYTE_TOKENS = frozenset(f"<0x{byte:{digits}}>" for byte in range(256) for digits in ("02X", "02x"))
# Byte-level BPE writes printable bytes as themselves and the other 68 as U+0100…U+0143, one character per byte.
BYTE_ALPHABET = frozenset(map(chr, (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 256 + 68))))
LONE_BYTES = frozenset(char for char in BYTE_ALPHABET if "\x7f" < char < "\u0100")  # "é" is 0xE9, alone no UTF-8
# The WordPiece decoder's cleanup removes the space before these.
UNSPACED_WORDS = (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")
_PASS_A_FUNCTION = "Pass a function that knows each token's bytes: token_bytes(lambda id: ..., vocab_size=V)"


def token_bytes(tokenizer: Any, *, vocab_size: int | None = None) -> torch.Tensor:
    r"""The number of UTF-8 bytes that each token id adds to decoded text, as int64 ``(V,)``.

    Special and unknown tokens, ids without a token and the padding up to `vocab_size` have 0 bytes, which means that they
    don't count.

    Args:
        tokenizer: a Hugging Face tokenizer (fast or slow), a `tokenizers.Tokenizer`, a `tiktoken.Encoding`, an object with
            a length and a method ``id_to_bytes(id) -> bytes | None``, or a callable ``id -> bytes | str | None``. A
            callable should return bytes for half a character: the str "\ufffd" counts 3.
        vocab_size: V, the size of the model's logits; by default the largest id + 1. Required for a callable.

    For a lossless tokenizer ``token_bytes(t)[ids].sum() == len(text.encode())`` holds exactly. Otherwise the bytes are
    those of the decoded tokens. If you have the raw text, count its bytes instead:

    - A space that the tokenizer puts before the text (Llama-2's ``▁``, `add_prefix_space`) counts, so the sum is one byte
      more than the text. Some tokenizers put one after each added token too.
    - WordPiece: a word counts the space before it, ``##ing`` doesn't. The first word counts one too, so the sum is one byte
      more than the decoded text.
    - An added token that is one Latin-1 character, such as "é", shares its id with a byte in a byte-level vocabulary. It
      counts as text, with a warning: as a part of another character it counts one byte too many.
    - Text that is changed or dropped before tokenizing (case, NFKC, whitespace beside an `lstrip` token, a literal ``▁``)
      counts as it is decoded. Special tokens that are spelled out in the text count 0.

    Raises:
        TokenBytesError: the tokenizer declares no known rule, `vocab_size` is smaller than its ids, or a callable fails.

    >>> token_bytes(["a", "é", b"\xe2\x96", None].__getitem__, vocab_size=4)
    tensor([1, 2, 2, 0])
    """
    if vocab_size is not None and (type(vocab_size) is not int or vocab_size < 1):
        raise TokenBytesError(f"vocab_size={vocab_size!r}: expected a positive int (the size V of the logits) or None")
    num_bytes = _num_bytes(tokenizer, vocab_size)
    num_ids = max(num_bytes, default=-1) + 1
    if vocab_size is not None and vocab_size < num_ids:
        raise TokenBytesError(
            f"vocab_size={vocab_size}, but {_name(tokenizer)} has ids up to {num_ids - 1}: "
            f"expected at least {num_ids}. Pass the size V of the model's logits, or leave vocab_size out"
        )
    return torch.tensor([num_bytes.get(i, 0) for i in range(vocab_size or num_ids)], dtype=torch.int64)  # (V,)


def _num_bytes(tokenizer: Any, vocab_size: int | None) -> dict[int, int]:
    """The bytes of every id of the tokenizer, also of those with 0."""
    if hasattr(tokenizer, "id_to_bytes"):
        return _from_callable(tokenizer.id_to_bytes, len(tokenizer))
    if hasattr(tokenizer, "decode_single_token_bytes"):
        return _from_tiktoken(tokenizer)
    if hasattr(tokenizer, "backend_tokenizer"):
        return _from_json(tokenizer, tokenizer.backend_tokenizer.to_str(), tokenizer.all_special_ids)
    if hasattr(tokenizer, "to_str"):
        return _from_json(tokenizer, tokenizer.to_str(), ())
    if hasattr(tokenizer, "get_vocab"):
        return _from_slow(tokenizer)
    if callable(tokenizer) and not hasattr(tokenizer, "decode"):  # tokenizers are callable too, with text
        return _from_callable(tokenizer, vocab_size)
    raise TokenBytesError(
        "token_bytes: expected a tokenizer (Hugging Face's, tiktoken's, or with a method id_to_bytes) or a function from an "
        f"id to its bytes; got {reprlib.repr(tokenizer)} ({type(tokenizer).__name__}). {_instead_of(tokenizer)}"
    )


def _instead_of(given: Any) -> str:
    """What to pass in place of something that has no bytes of its own."""
    if isinstance(given, str):
        return f"Load the tokenizer first: transformers.AutoTokenizer.from_pretrained({given!r})"
    if isinstance(given, list | tuple | torch.Tensor):
        return "A table of each id's bytes is passed to the metric, as a tensor: token_bytes=torch.tensor([...])"
    return _PASS_A_FUNCTION


def _from_tiktoken(encoding: Any) -> dict[int, int]:
    num_bytes = dict.fromkeys(range(encoding.n_vocab), 0)
    special_ids = {encoding.encode_single_token(token) for token in encoding.special_tokens_set}
    for token_id in num_bytes.keys() - special_ids:
        with suppress(KeyError):  # a gap between the ranks and the special tokens
            num_bytes[token_id] = len(encoding.decode_single_token_bytes(token_id))
    return num_bytes


def _from_callable(bytes_of: Callable[[int], object], vocab_size: int | None) -> dict[int, int]:
    if vocab_size is None:
        raise TokenBytesError(
            f"{_name(bytes_of)} is a callable, which has no vocabulary: expected vocab_size as well. "
            "Pass token_bytes(f, vocab_size=V) with V the size of the model's logits"
        )
    return {token_id: _size(bytes_of, token_id) for token_id in range(vocab_size)}


def _size(bytes_of: Callable[[int], object], token_id: int) -> int:
    try:
        token = bytes_of(token_id)
    except Exception as error:
        raise TokenBytesError(
            f"{_name(bytes_of)} raised {type(error).__name__} for id {token_id}: {error}. Expected the token's bytes, or "
            "None for an id that does not count"
        ) from error
    match token:
        case None:
            return 0
        case bytes():
            return len(token)
        case str() if not any("\ud800" <= char <= "\udfff" for char in token):
            return len(token.encode())
    raise TokenBytesError(
        f"{_name(bytes_of)} gave {token!r} ({type(token).__name__}) for id {token_id}: expected the token's bytes, "
        "a str that UTF-8 can encode, or None for an id that does not count. Return one of these"
    )


def _from_json(tokenizer: Any, text: str, special_ids: Iterable[int | None]) -> dict[int, int]:
    state = json.loads(text)
    model, added = state["model"], state["added_tokens"]
    is_unigram = model["type"] == "Unigram"
    vocab = {token: token_id for token_id, (token, _) in enumerate(model["vocab"])} if is_unigram else model["vocab"]
    unknown_id = model["unk_id"] if is_unigram else vocab.get(model.get("unk_token"))
    silent = {unknown_id, *special_ids, *(token["id"] for token in added if token["special"])}
    rules = _rules_from_json(tokenizer, state)
    added_vocab = {token["content"]: token["id"] for token in added}
    shared = {token for token in added_vocab if rules[0] is _byte_level_size and token in vocab and token in LONE_BYTES}
    if shared:
        warnings.warn(_shares_ids(tokenizer, sorted(shared)), stacklevel=3)
    # Any other added token that the model has too ("ĠĠ") is written by the model, so the model's rule applies.
    added_vocab = {token: each for token, each in added_vocab.items() if token not in vocab or token in shared}
    return _count(vocab, added_vocab, rules, silent)


def _shares_ids(tokenizer: Any, tokens: list[str]) -> str:
    named = ", ".join(f"{token!r} (byte {token.encode('latin-1').hex()})" for token in tokens)
    return (
        f"{_name(tokenizer)}: the added tokens {named} share their ids with parts of other characters. They are counted as "
        "text; where the id is such a part instead, it counts a byte too many. Count the bytes of the raw text instead"
    )


def _from_slow(tokenizer: Any) -> dict[int, int]:
    rules = _rules_from_python(tokenizer)
    added = tokenizer.added_tokens_decoder
    silent = {*tokenizer.all_special_ids, *(token_id for token_id, token in added.items() if token.special)}
    added_vocab = {token.content: token_id for token_id, token in added.items()}
    return _count(tokenizer.get_vocab(), added_vocab, rules, silent)


def _count(vocab: Mapping[str, int], added: Mapping[str, int], rules: Rules, silent: set[int | None]) -> dict[int, int]:
    rule, added_rule = rules
    num_bytes = {token_id: rule(token) for token, token_id in vocab.items()}
    num_bytes.update((token_id, added_rule(token)) for token, token_id in added.items())
    num_bytes.update((token_id, 0) for token_id in silent if token_id in num_bytes)
    return num_bytes


def _utf8_size(token: str) -> int:
    return len(token.encode())


def _byte_level_size(token: str) -> int:
    return len(token) if BYTE_ALPHABET.issuperset(token) else len(token.encode())


def _rules_from_json(tokenizer: Any, state: Mapping[str, Any]) -> Rules:
    steps = _decoder_steps(tokenizer, state)
    kinds = [step["type"] for step in steps]
    _check_markers(tokenizer, state["model"], kinds)
    # The first of these joins the tokens into one text. A Strip after it strips that text, not every token.
    joined = min((kinds.index(kind) for kind in ("Fuse", "ByteLevel") if kind in kinds), default=len(kinds))
    if not {"Fuse", "Strip"}.issuperset(kinds[joined + 1 :]):
        raise _uncountable(tokenizer, f"the decoder steps {kinds}, which edit text after {kinds[joined]}")
    edits = [_edit(tokenizer, step) for step in steps[:joined] if step["type"] != "ByteFallback"]
    if "ByteLevel" in kinds:
        return _rule(edits, _byte_level_size), _utf8_size  # added tokens are plain text
    falls_back = "ByteFallback" in kinds or state["model"].get("byte_fallback")
    rule = _rule(edits, ones=BYTE_TOKENS if falls_back else frozenset())
    return rule, rule


def _decoder_steps(tokenizer: Any, state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The decoder's steps in order; without a decoder, the encoding steps that imply how to decode."""
    encoding = _flat(state["pre_tokenizer"]) + _flat(state["normalizer"])
    implied = [step for step in encoding if step["type"] in ("ByteLevel", "Metaspace")]
    if not state["decoder"] and not implied:
        raise _uncountable(tokenizer, f"no decoder (the model is {state['model']['type']})")
    return _flat(state["decoder"]) or implied


def _flat(part: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if part is None:
        return []
    inner = part.get("decoders") or part.get("pretokenizers") or part.get("normalizers")
    return [step for each in inner for step in _flat(each)] if inner else [part]


def _check_markers(tokenizer: Any, model: Mapping[str, Any], kinds: list[str]) -> None:
    """Raise if BPE or WordPiece writes marks into its tokens and no decoder step removes them."""
    for mark, remover in (("end_of_word_suffix", "BPEDecoder"), ("continuing_subword_prefix", "WordPiece")):
        if model.get(mark) and remover not in kinds:
            raise _uncountable(tokenizer, f"{model['type']} tokens with {mark}={model[mark]!r} and the decoder {kinds}")


def _edit(tokenizer: Any, step: Mapping[str, Any]) -> Edit:
    match step:
        case {"type": "Replace", "pattern": {"String": mark}, "content": text}:
            return lambda token: token.replace(mark, text)
        case {"type": "Metaspace", "replacement": mark} | {"type": "BPEDecoder", "suffix": mark}:
            return lambda token: token.replace(mark, " ")
        case {"type": "WordPiece", "prefix": prefix, "cleanup": cleanup}:
            return lambda token: _word(token, prefix, UNSPACED_WORDS if cleanup else ())
    raise _uncountable(tokenizer, f"the decoder step {json.dumps(step)}")


def _word(token: str, prefix: str, unspaced: tuple[str, ...]) -> str:
    if token.startswith(prefix):
        return token.removeprefix(prefix)
    return token if token.startswith(unspaced) else " " + token


def _rules_from_python(tokenizer: Any) -> Rules:
    """The rules of a slow tokenizer, which decodes in Python: from its `sp_model`, or from how it joins a few tokens."""
    if hasattr(tokenizer, "sp_model"):
        return _sentencepiece_rules(tokenizer.sp_model)
    word_rule = _rule([lambda token: _word(token, "##", ())])
    probes: tuple[tuple[list[str], str, Rules], ...] = (
        (["Ġ", "Ã", "©"], " é", (_byte_level_size, _utf8_size)),
        (["a", "b", "##c"], "a bc", (word_rule, word_rule)),
        (["Ã", "©"], "é", (len, _utf8_size)),  # ByT5 and similar: chr(byte)
    )
    for tokens, text, rules in probes:
        with suppress(Exception):  # its vocabulary may lack these tokens, and it may raise anything then
            if tokenizer.convert_tokens_to_string(tokens) == text:
                return rules
    raise _uncountable(tokenizer, "a slow tokenizer with no sp_model, byte-level alphabet, '##' pieces or byte tokens")


def _sentencepiece_rules(sp_model: Any) -> Rules:
    ids = range(sp_model.get_piece_size())
    unseen = frozenset(sp_model.id_to_piece(i) for i in ids if sp_model.is_control(i) or sp_model.is_unknown(i))
    byte_pieces = frozenset(sp_model.id_to_piece(i) for i in ids if sp_model.is_byte(i))
    rule = _rule([lambda token: "" if token in unseen else token.replace("▁", " ")], ones=byte_pieces)
    return rule, rule


def _rule(edits: list[Edit], size: Rule = _utf8_size, ones: frozenset[str] = frozenset()) -> Rule:
    if not edits and not ones:
        return size
    return lambda token: 1 if token in ones else size(reduce(lambda text, edit: edit(text), edits, token))


def _name(tokenizer: Any) -> str:
    if not hasattr(tokenizer, "name_or_path"):
        return getattr(tokenizer, "__qualname__", type(tokenizer).__qualname__)
    return f"{type(tokenizer).__qualname__}(name_or_path={tokenizer.name_or_path!r})"


def _uncountable(tokenizer: Any, found: str) -> TokenBytesError:
    return TokenBytesError(
        f"token_bytes can't count the bytes of {_name(tokenizer)}: found {found}; expected a decoder made of "
        "ByteLevel, Metaspace, Replace (of a string), ByteFallback, Fuse, Strip (after Fuse), WordPiece, BPEDecoder, "
        f"or the like. {_PASS_A_FUNCTION}"
    )
