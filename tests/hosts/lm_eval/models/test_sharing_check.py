"""Errors of sharing that only long texts show are found while requests run."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from support.hf_model import (
    CONFIGS,
    VOCAB,
    choices,
    stock,
)

from xent_metrics.hosts.lm_eval import XentHFLM


def test_sharing_that_goes_wrong_on_long_texts_is_switched_off(build, caplog, monkeypatch):
    """A mask that hides distant ids, which the short windows of `verify` don't have."""
    expected = choices(build(logits_cache=False))
    lm = build()
    tree = type(lm.forward)._tree

    def near(self, rows):
        arguments = tree(self, rows)
        columns = torch.arange(max(map(len, rows)))
        close = (columns[:, None] - columns[None, :]).abs() < 60
        arguments["attention_mask"] = arguments["attention_mask"] & close
        return arguments

    monkeypatch.setattr(type(lm.forward), "_tree", near)
    assert lm.forward.packing
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        found = choices(lm)
    assert not lm.forward.packing
    assert not lm.forward.caching
    [said] = [record.getMessage() for record in caplog.records if record.name.startswith("xent_metrics")]
    assert said.startswith("xent-hf: sharing is off for LlamaForCausalLM")
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], rel=1e-6)


def test_long_windows_are_checked_after_long_rows_of_short_ones(tokenizer, caplog):
    """A sliding window missing from the mask, which only long windows need. Long rows of short windows come first."""
    config, options = transformers.MistralConfig, CONFIGS["mistral_window"][1] | {"max_position_embeddings": 512}
    torch.manual_seed(0)
    model = transformers.MistralForCausalLM(config(vocab_size=VOCAB, **options | {"sliding_window": 260})).eval()
    lm = XentHFLM(pretrained=model, tokenizer=tokenizer)
    assert lm.forward.packing
    lm.forward.window = None  # and so out of the block mask
    ids = torch.randint(1, VOCAB, (4096,), generator=torch.Generator().manual_seed(0)).tolist()
    wide = [(None, ids[:20], ids[i : i + 12]) for i in range(20, 500, 12)]
    deep = [(None, ids[start : start + 300], ids[i : i + 3]) for start in (600, 1200) for i in range(2000, 2012, 3)]
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        found = lm._loglikelihood_tokens([*wide, *deep])
    expected = stock(model, tokenizer)._loglikelihood_tokens([*wide, *deep], disable_tqdm=True)
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], rel=1e-5)
    assert caplog.text.count("sharing is off for MistralForCausalLM") == 1
