"""Heads that scale and cap their logits."""

from __future__ import annotations

import pytest
import torch
from support.hf_model import tiny_model

from xent_metrics.hosts.lm_eval import XentHFLM


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_a_cap_and_a_scale_of_large_logits_agree_in_any_dtype(name, dtype, tokenizer):
    model = tiny_model(name, final_logit_softcapping=30.0)
    ids = torch.arange(1, 41)[None]
    with torch.no_grad():
        head = model.get_output_embeddings()
        spread = model(ids).logits.std()
        head.weight = torch.nn.Parameter(head.weight * (16 / spread))
    lm = XentHFLM(pretrained=model.to(dtype), tokenizer=tokenizer, max_length=88)
    assert lm.forward.hidden
