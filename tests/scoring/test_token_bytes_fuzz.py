"""Tokenizers of random parts: the bytes of a text's ids add up to those of what they decode to, or the tokenizer is refused."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from xent_metrics.errors import TokenBytesError
from xent_metrics.scoring.token_bytes import token_bytes

TEXTS = st.text(alphabet=st.sampled_from("ab é中🙂.,'\n▁#<0x41>"), max_size=20)
ADDED = ["ab", "🙂", "<x>"]
NORMALIZERS = {
    "none": lambda: None, "nfc": normalizers.NFC, "lowercase": normalizers.Lowercase,
    "strip": normalizers.Strip, "prepend": lambda: normalizers.Prepend("▁"),
}  # fmt: skip
PRE_TOKENIZERS = {
    "none": lambda: None, "bytes": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "bytes, a space first": lambda: pre_tokenizers.ByteLevel(add_prefix_space=True),
    "mark": lambda: pre_tokenizers.Metaspace(prepend_scheme="never"),
    "mark first": lambda: pre_tokenizers.Metaspace(prepend_scheme="always"), "blanks": pre_tokenizers.Whitespace,
}  # fmt: skip
DECODERS = {
    "none": lambda: None, "bytes": decoders.ByteLevel, "mark": lambda: decoders.Metaspace(prepend_scheme="never"),
    "mark first": lambda: decoders.Metaspace(prepend_scheme="always"), "words": decoders.WordPiece,
    "replace": lambda: decoders.Replace("▁", " "), "ctc": decoders.CTC, "suffix": decoders.BPEDecoder,
    "fallback": lambda: decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "fallback, then strip": lambda: decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
}  # fmt: skip
MODELS = {
    "bpe": (models.BPE, trainers.BpeTrainer),
    "unigram": (models.Unigram, trainers.UnigramTrainer),
    "wordpiece": (lambda: models.WordPiece(unk_token="?"), trainers.WordPieceTrainer),
}


PRE, DEC = sorted(PRE_TOKENIZERS), sorted(DECODERS)
#: Pairs that undo each other, but for a space before the text and after added tokens.
LOSSLESS = {
    ("bytes", "bytes"), ("bytes, a space first", "bytes"), ("mark", "mark"), ("mark first", "mark first"), ("mark", "fallback"),
}  # fmt: skip


@st.composite
def tokenizers(draw):
    """A tokenizer trained on a few texts."""
    model, trainer = MODELS[draw(st.sampled_from(sorted(MODELS)))]
    made = Tokenizer(model())
    before, after = draw(st.one_of(st.sampled_from(sorted(LOSSLESS)), st.tuples(*map(st.sampled_from, (PRE, DEC)))))
    parts = {
        "normalizer": NORMALIZERS[draw(st.sampled_from(sorted(NORMALIZERS)))](),
        "pre_tokenizer": PRE_TOKENIZERS[before](),
        "decoder": DECODERS[after](),
    }
    for name, part in parts.items():
        if part is not None:
            setattr(made, name, part)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if draw(st.booleans()) else ["a", "b", "▁", "é"]
    with suppress(Exception):  # Unigram may find no pieces in so little text
        made.train_from_iterator(
            draw(st.lists(TEXTS, min_size=1, max_size=6)),
            trainer(vocab_size=draw(st.integers(260, 330)), show_progress=False, initial_alphabet=alphabet),
        )
    assume(made.get_vocab_size())
    made.add_tokens([AddedToken(text) for text in draw(st.lists(st.sampled_from(ADDED), max_size=2))])
    return made, (before, after) in LOSSLESS and isinstance(made.model, models.BPE | models.Unigram)


@given(tokenizers(), TEXTS)
def test_the_bytes_add_up_or_the_tokenizer_is_refused(made, text):
    tokenizer, is_lossless = made
    try:
        table = token_bytes(tokenizer)
    except TokenBytesError:
        assert not is_lossless
        return
    assert len(table) == max(tokenizer.get_vocab().values()) + 1
    assert (table >= 0).all()
    if is_lossless:
        try:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
        except Exception:  # Unigram without an unknown token
            return
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        assume("\ufffd" not in decoded)  # a part of a character
        spaces = 1 + sum(text.count(each) for each in ADDED)
        assert 0 <= int(table[ids].sum()) - len(decoded.encode()) + normalized(tokenizer, ids) <= spaces


def normalized(tokenizer, ids):
    """The bytes by which added tokens are longer when they are decoded, normalized, than in the text, as they were added."""
    added = tokenizer.get_added_tokens_decoder()
    decoded = "".join(tokenizer.id_to_token(each) for each in ids if each in added)
    return len(decoded.encode()) - sum(len(added[each].content.encode()) for each in ids if each in added)
