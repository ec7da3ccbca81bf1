"""A tiny Llama, its tokenizer, and `XentHFLM` of both."""

from __future__ import annotations

import pytest
from support.hf_model import tiny_model, tiny_tokenizer

from xent_metrics.hosts.lm_eval import XentHFLM


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama_tied")


@pytest.fixture(scope="module")
def build(model, tokenizer):
    return lambda **options: XentHFLM(**({"pretrained": model, "tokenizer": tokenizer, "batch_size": 4} | options))


@pytest.fixture(scope="module")
def lm(build):
    return build()
