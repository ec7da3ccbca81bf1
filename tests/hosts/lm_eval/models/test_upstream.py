"""The undocumented parts of lm-eval and transformers that we use still do what we expect."""

from __future__ import annotations

from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM
from support.hf_model import TEXT, stock, tiny_model

from xent_metrics.hosts.lm_eval.models.upstream import (
    attention_implementation,
    encode_pair,
    set_max_length,
    set_rank,
)


def test_lm_eval(model, tokenizer):
    lm = stock(model, tokenizer)
    assert encode_pair(lm, "A context ", "and more") == (
        tokenizer.encode("A context"),
        tokenizer.encode("A context and more")[len(tokenizer.encode("A context")) :],
    )
    assert encode_pair(lm, "  ", TEXT) == ([], tokenizer.encode("  " + TEXT))
    set_max_length(lm, 17)
    assert lm.max_length == 17
    set_rank(lm, 2, 3)
    assert (lm.rank, lm.world_size) == (2, 3)
    assert "_loglikelihood_tokens" in TemplateLM.__abstractmethods__
    assert callable(HFLM._get_backend)


def test_transformers():
    model = tiny_model("llama_tied")
    model.set_attn_implementation("eager")
    assert attention_implementation(model.config) == "eager"
    model.set_attn_implementation("sdpa")
    assert attention_implementation(model.config) == "sdpa"
    assert attention_implementation(object()) is None
