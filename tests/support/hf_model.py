"""Tiny causal models of many architectures with random weights, a tiny tokenizer, and requests to them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from support.lm_eval_requests import request
from xent_metrics import hookimpl

TEXT = (
    "The loss of a language model is the mean of what each token costs it, and a token costs the more the less it was "
    "expected. Whoever compares two models by it has to count the same tokens of the same text; otherwise the smaller "
    "number may only tell of the larger vocabulary. Bytes are counted alike by everyone. «Größe» is seven bytes long."
)
VOCAB = 384


def tiny_tokenizer(**special: str | None) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `VOCAB` ids, trained on `TEXT`; id 0 begins, ends and pads unless `special` says otherwise."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT], trainer)
    names = {"bos_token": "<|end|>", "eos_token": "<|end|>", "pad_token": "<|end|>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


_LLAMA = {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96, "initializer_range": 0.3,
}  # fmt: skip
_HEAD_DIM = {"head_dim": 12}

#: Architecture: (config class, options). Weights are large, so that every mistake shows.
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 96, "initializer_range": 0.3}),
    "gpt_neo_local": (
        "GPTNeoConfig",
        {"hidden_size": 48, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
         "window_size": 8, "max_position_embeddings": 96, "initializer_range": 0.3},
    ),
    "gpt_neox": ("GPTNeoXConfig", {**_LLAMA, "num_key_value_heads": 4}),
    "llama_tied": ("LlamaConfig", {**_LLAMA, "tie_word_embeddings": True}),
    "llama_untied": ("LlamaConfig", {**_LLAMA, "tie_word_embeddings": False}),
    "mistral_window": ("MistralConfig", {**_LLAMA, "sliding_window": 16}),
    "gemma2": (
        "Gemma2Config",
        {**_LLAMA, **_HEAD_DIM, "sliding_window": 16, "final_logit_softcapping": 8.0, "query_pre_attn_scalar": 12,
         "attn_implementation": "eager"},  # the only one with the softcap of its attention, if not everywhere the default
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {**_LLAMA, **_HEAD_DIM, "sliding_window": 16, "final_logit_softcapping": 8.0, "query_pre_attn_scalar": 12,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "qwen2": ("Qwen2Config", _LLAMA),
    "qwen2_window": (
        "Qwen2Config", {**_LLAMA, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    ),
    "qwen3": ("Qwen3Config", {**_LLAMA, **_HEAD_DIM}),
    "phi": ("PhiConfig", {**_LLAMA, "num_key_value_heads": 4}),
    "opt": (
        "OPTConfig",
        {"hidden_size": 48, "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "word_embed_proj_dim": 24,
         "max_position_embeddings": 96, "init_std": 0.3},
    ),
    "bloom": ("BloomConfig", {"hidden_size": 48, "n_layer": 3, "n_head": 4, "initializer_range": 0.3}),
    "mamba": ("MambaConfig", {"hidden_size": 48, "num_hidden_layers": 3, "state_size": 8, "initializer_range": 0.3}),
    "stablelm": ("StableLmConfig", {**_LLAMA, "num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "mixtral": ("MixtralConfig", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "cohere": ("CohereConfig", {**_LLAMA, "logit_scale": 0.25}),
    "granite": ("GraniteConfig", {**_LLAMA, "logits_scaling": 4.0}),
    "mpt": ("MptConfig", {"d_model": 48, "n_heads": 4, "n_layers": 3, "max_seq_len": 96, "initializer_range": 0.3}),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "lru_width": 48,
         "attention_window_size": 96, "initializer_range": 0.3},
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {**_LLAMA, **_HEAD_DIM, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48,
         "shared_expert_intermediate_size": 48, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
         "linear_key_head_dim": 12, "linear_value_head_dim": 12,
         "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    ),
    "phi3_longrope": (
        "Phi3Config",
        {**_LLAMA, "original_max_position_embeddings": 48, "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 1.0, "factor": 2.0,
            "original_max_position_embeddings": 48, "short_factor": [1.0] * 6, "long_factor": [4.0] * 6}},
    ),
    "llama_dynamic": (
        "LlamaConfig",
        {**_LLAMA, "max_position_embeddings": 48,
         "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}},
    ),
}  # fmt: skip


#: Architectures whose frequencies depend on the longest text of a batch, and so `hf`'s answers on the batch.
SWITCHING = ("phi3_longrope", "llama_dynamic")


def switched_off(lm: Any) -> set[str]:
    """The shortcuts that `verify` left off."""
    return {shortcut for shortcut in ("hidden", "packing", "caching") if not getattr(lm.forward, shortcut)}


def tiny_model(name: str, **other: Any) -> Any:
    """A model of the architecture, the same each time; with other options, if the architecture has them."""
    config_class, options = CONFIGS[name]
    options = options | {key: value for key, value in other.items() if key in options}
    config = getattr(transformers, config_class)(
        vocab_size=VOCAB, bos_token_id=0, eos_token_id=0, pad_token_id=0, **options
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "bias" in parameter_name:  # zero at first, and so of no effect
                parameter.normal_(std=0.3)
    return model


def multiple_choice() -> list[tuple[str, str]]:
    """Questions with choices of several lengths, some of which begin alike, and one choice without a context."""
    header = TEXT[:90]
    choices = [" the", " the loss", " the loss of bytes", " Größe", " a model that counts alike by everyone"]
    questions = [TEXT[110:170], TEXT[110:150], "What counts?"]
    return [(f"{header}\n{question}", choice) for question in questions for choice in choices] + [("", "Bytes")]


def requests(kind: str, arguments: list[tuple[str, ...]]) -> list[Instance]:
    return [request(kind, *args, number=i) for i, args in enumerate(arguments)]


def choices(lm: Any, pairs: list[tuple[str, str]] | None = None) -> list[tuple[float, bool]]:
    """A model's answers to (context, continuation), those of `multiple_choice` by default."""
    return lm.loglikelihood(requests("loglikelihood", pairs or multiple_choice()), disable_tqdm=True)


def rolling(lm: Any, *texts: str) -> list[float]:
    """A model's loglikelihoods of whole texts."""
    found = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True)
    return [each[0] if isinstance(each, tuple) else each for each in found]  # pairs in lm-eval 0.5


def stock(model: Any, tokenizer: Any, **options: Any) -> HFLM:
    """lm-eval's own model, the reference."""
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, **options)


def context_plugin(give: Callable[[Any], Any]) -> ModuleType:
    """A plugin that gives `give(model)` as its `forward_context`."""

    @hookimpl
    def forward_context(model: Any) -> Any:
        return give(model)

    made = ModuleType("plugin")
    made.forward_context = forward_context  # type: ignore[attr-defined]
    return made
