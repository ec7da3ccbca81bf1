"""Tokenizers of all kinds, and what their tokens count in bytes."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from support.byte_model import TEXTS, ByteNet, byte_bpe
from support.byte_model import rolling as rolling_requests
from support.hf_model import TEXT, rolling, tiny_tokenizer
from tokenizers import Tokenizer, models

from xent_metrics.errors import TokenBytesError
from xent_metrics.hosts.lm_eval import TorchLM
from xent_metrics.hosts.lm_eval.models.tokenizers import ByteTokenizer, tokenizer_content


@pytest.mark.parametrize("adds_bos", [False, True])
def test_other_tokenizers(adds_bos):
    import tiktoken

    ranks = {bytes([i]): i for i in range(256)}
    encoding = tiktoken.Encoding(
        "bytes", pat_str=r"(?s).", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 256}
    )
    by_bytes = TorchLM(ByteNet()).loglikelihood_rolling(rolling_requests(TEXTS[2], "a <|endoftext|> spelt out"))
    by_tiktoken = TorchLM(ByteNet(), tokenizer=encoding).loglikelihood_rolling(
        rolling_requests(TEXTS[2], "a <|endoftext|> spelt out")
    )
    assert by_tiktoken == by_bytes
    tokenizer = byte_bpe(adds_bos)
    fast = TorchLM(ByteNet(vocab_size=320), tokenizer=tokenizer.backend_tokenizer, prefix_token_id=0)
    assert fast.tok_encode("Short.", add_special_tokens=False) == tokenizer.encode("Short.", add_special_tokens=False)


def test_a_tokenizer_that_cannot_count_gives_no_bytes():
    plain = SimpleNamespace(encode=lambda text: [ord(c) % 250 for c in text], decode=lambda ids: "", bos_token_id=250)
    [found] = TorchLM(ByteNet(), tokenizer=plain).loglikelihood_rolling(rolling_requests("abc"))
    assert found.scores.num_bytes is None
    assert found.scores.target.tolist() == [97, 98, 99]


def test_a_tokenizer_that_cannot_be_counted_gives_scores_without_bytes(build, tokenizer, monkeypatch):
    from xent_metrics.hosts.lm_eval.models import tokenizers as encoding

    def refuse(*args, **kwargs):
        raise TokenBytesError("unknown")

    monkeypatch.setattr(encoding, "token_bytes", refuse)
    [result] = rolling(build(), TEXT[:50])
    assert result.scores.num_bytes is None
    assert result.scores.target is not None


def test_bytes_tokenizer_is_lossless():
    tokenizer = ByteTokenizer()
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS


def test_tokenizers_of_one_name_are_told_apart_by_their_content():
    def content(**other):
        return tokenizer_content(tiny_tokenizer(**other))

    plain = tiny_tokenizer()
    assert content() == tokenizer_content(plain)
    assert content() != content(bos_token="<other>")
    before = tokenizer_content(plain)
    plain([TEXT, TEXT[:5]], padding=True, truncation=True, max_length=3)  # stays in the backend
    assert tokenizer_content(plain) == before
    slow = [SimpleNamespace(get_vocab=lambda ids=ids: ids) for ids in ({"a": 0, "b": 1}, {"b": 0, "a": 1})]
    assert tokenizer_content(slow[0]) != tokenizer_content(slow[1])
    assert tokenizer_content(SimpleNamespace(name="cl100k_base")) == "cl100k_base"


def test_a_tokenizer_of_any_kind_has_a_content():
    class Anything:
        def __getattr__(self, name):
            return lambda *args: None

    other = {"a": np.int64(0), b"b": 1}
    assert re.fullmatch(r"SimpleNamespace \w{12}", tokenizer_content(SimpleNamespace(get_vocab=lambda: other)))
    assert tokenizer_content(Anything()) == "Anything"
    one, two = (Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, merges)) for merges in ([], [("a", "b")]))
    assert tokenizer_content(one) != tokenizer_content(two)
