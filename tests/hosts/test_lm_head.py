"""Heads that scale and cap their logits, and heads that can't be read."""

from __future__ import annotations

import pytest
import torch
from support.hf_model import tiny_model, tiny_tokenizer

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval import XentHFLM
from xent_metrics.hosts.lm_head import Head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_a_cap_and_a_scale_of_large_logits_agree_in_any_dtype(name, dtype):
    model = tiny_model(name, final_logit_softcapping=30.0)
    ids = torch.arange(1, 41)[None]
    with torch.no_grad():
        head = model.get_output_embeddings()
        spread = model(ids).logits.std()
        head.weight = torch.nn.Parameter(head.weight * (16 / spread))
    lm = XentHFLM(pretrained=model.to(dtype), tokenizer=tiny_tokenizer(), max_length=88)
    assert lm.forward.hidden


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_a_quantized_head_is_not_read(dtype):
    """Its numbers mean nothing without their scales, which each kind of quantization keeps elsewhere."""
    model = tiny_model("llama_untied")
    weight = model.lm_head.weight.data.to(dtype)
    model.lm_head.weight = torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(InvalidInputError, match=f"the output embeddings are Linear of {dtype}, whose weights can't be"):
        Head.of(model)
