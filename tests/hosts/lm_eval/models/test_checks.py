"""Models, windows and ids that are refused before any request runs."""

from __future__ import annotations

import pytest
import torch
import transformers
from support.hf_model import (
    CONFIGS,
    TEXT,
    VOCAB,
    choices,
    rolling,
    stock,
    tiny_model,
)

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval import XentHFLM


def test_encoder_decoders_are_refused(tokenizer):
    config = transformers.T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(InvalidInputError, match=r"t5 is an encoder-decoder\. Use `--model hf`"):
        XentHFLM(pretrained=transformers.T5ForConditionalGeneration(config), tokenizer=tokenizer)


def test_encoder_decoders_are_refused_whatever_they_are_called(tokenizer):
    config = transformers.T5Config(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(InvalidInputError, match="t5 is an encoder-decoder"):
        XentHFLM(
            pretrained=transformers.T5ForConditionalGeneration(config), tokenizer=tokenizer, backend="causal",
            max_length=32,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_a_window_has_no_more_ids_than_positions(tokenizer, name):
    with pytest.raises(
        InvalidInputError, match=r"max_length=200 is more than the \d+ positions of \S*(wpe|embed_positions)"
    ):
        XentHFLM(pretrained=tiny_model(name), tokenizer=tokenizer, max_length=200)


def test_the_patches_of_an_image_are_no_positions_of_a_text(tokenizer):
    """Gemma 3 with its vision tower, which has a table of fewer positions than a text."""
    text = dict(
        CONFIGS["gemma3"][1],
        max_position_embeddings=1024,
        final_logit_softcapping=None,
        vocab_size=VOCAB,
        pad_token_id=0,
    )
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, boi_token_index=381, eoi_token_index=382,
        image_token_index=383,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert type(model).__name__ == "Gemma3ForConditionalGeneration"
    lm = XentHFLM(pretrained=model, tokenizer=tokenizer)
    assert lm.max_length == 1024
    assert all((lm.forward.hidden, lm.forward.packing, lm.forward.caching))
    theirs = stock(model, tokenizer)
    assert [a[0] for a in choices(lm)] == pytest.approx([a[0] for a in choices(theirs)], rel=1e-5)


@pytest.mark.parametrize("stride", [0, 97, "half", 2.0])
def test_a_stride_lies_within_the_window(build, stride):
    with pytest.raises(InvalidInputError, match="stride lies between 1 and max_length=96"):
        build(stride=stride)


def test_a_tokenizer_with_more_ids_than_the_model_is_found_before_it_runs(tokenizer, monkeypatch):
    config = transformers.LlamaConfig(**CONFIGS["llama_tied"][1], vocab_size=260)
    lm = XentHFLM(pretrained=transformers.LlamaForCausalLM(config).eval(), tokenizer=tokenizer)
    monkeypatch.setattr(lm.forward, "states", lambda *args: pytest.fail("the model ran"))
    with pytest.raises(InvalidInputError, match=r"gives the id \d+, and the model has 260 ids; pass the tokenizer"):
        rolling(lm, TEXT)
