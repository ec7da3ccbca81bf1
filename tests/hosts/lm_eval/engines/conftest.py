"""A tiny Llama with its tokenizer, also as a folder, and servers of it."""

from __future__ import annotations

import contextlib

import pytest
import torch
from support.completions_server import served
from support.engines import LENGTH
from support.hf_model import tiny_model, tiny_tokenizer

from xent_metrics.hosts.lm_eval import XentCompletions, XentHFLM


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model():
    model = tiny_model("llama_tied")
    torch.nn.init.normal_(
        model.get_input_embeddings().weight.data[0]
    )  # at first zero, after which all tokens are as likely
    return model


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def hf(model, tokenizer):
    """The reference."""
    return XentHFLM(model, tokenizer=tokenizer, batch_size=4, max_length=LENGTH)


@pytest.fixture
def connect(model, tokenizer, folder):
    """Makes `XentCompletions` of a server with some habits; both are kept as `connect.lm` and `connect.server`."""
    with contextlib.ExitStack() as stack:

        def connect(habits=None, **options):
            url, connect.server = stack.enter_context(served(model, tokenizer, **(habits or {})))
            arguments = {
                "model": "tiny",
                "tokenizer": folder,
                "max_length": LENGTH + 2,
                "tokenizer_backend": "huggingface",
            }
            connect.lm = XentCompletions(url, **arguments | options)
            return connect.lm

        yield connect


@pytest.fixture
def no_waiting(monkeypatch):
    """Retries come at once."""
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
