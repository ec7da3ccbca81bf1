"""Heads that scale and cap their logits, and heads that can't be read."""

from __future__ import annotations

import pytest
import torch
import transformers
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


@pytest.mark.parametrize("name", ["HyperCLOVAXConfig", "GraniteConfig", "CohereConfig"])
def test_a_scale_is_read_as_the_model_means_it(name):
    """HyperCLOVA X multiplies by what Granite, under the same name, divides by."""
    scale = {"logit_scale": 0.5} if name == "CohereConfig" else {"logits_scaling": 4.0}
    config = getattr(transformers, name)(
        vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.5, bos_token_id=0, eos_token_id=0, pad_token_id=0, **scale,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    ids = torch.arange(6)[None]
    with torch.no_grad():
        head, states, logits = Head.of(model), model.base_model(ids)[0], model(ids).logits
    assert torch.allclose(head.logits(states, logits.dtype), logits, rtol=1e-5, atol=1e-5)
    target = torch.arange(1, 7)[None]
    expected = torch.nn.functional.cross_entropy(logits.mT, target, reduction="none")
    assert torch.allclose(head.score(states, target).nll, expected, rtol=1e-4, atol=1e-4)
