"""The undocumented parts of transformers that we use still do what we expect."""

from __future__ import annotations

import threading

import torch
from support.hf_model import tiny_model
from transformers import masking_utils

from xent_metrics.hosts.lm_eval.models.upstream import attention_implementation, without_looking_for_packed_texts


def test_transformers():
    model = tiny_model("llama_tied")
    model.set_attn_implementation("eager")
    assert attention_implementation(model.config) == "eager"
    model.set_attn_implementation("sdpa")
    assert attention_implementation(model.config) == "sdpa"
    assert attention_implementation(object()) is None


def test_packed_texts_are_looked_for_outside_of_our_forwards_and_in_other_threads():
    two_texts, found = torch.tensor([[0, 1, 0]]), []

    def look():
        found.append(masking_utils.find_packed_sequence_indices(two_texts))

    with without_looking_for_packed_texts():
        look()
        other = threading.Thread(target=look)
        other.start()
        other.join()
    look()
    assert found[0] is None
    assert [each.tolist() for each in found[1:]] == [[[0, 0, 1]]] * 2
