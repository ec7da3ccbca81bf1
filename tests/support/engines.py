"""What tests of engines share: stand-ins for vLLM and SGLang, which need a GPU, and the comparison with `xent-hf`.

The stand-ins have the documented shapes, around a small transformers model.

Read in vLLM's sources (`vllm/outputs.py`, `vllm/logprobs.py`, `vllm/v1/engine/logprobs.py`) and SGLang's
(`srt/managers/tokenizer_manager.py`, `detokenize_logprob_tokens` and `detokenize_top_logprobs_tokens`).
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from lm_eval.api.registry import model_registry
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.hf_model import TEXT, choices, requests, rolling
from xent_metrics.hosts.lm_eval.extra_scores import ask_for
from xent_metrics.hosts.lm_eval.models.results import ScoredLoglikelihood, ScoredRolling

LENGTH = 60  # the most ids that a window reads, for every model
TEXTS = [TEXT, "Größe", "", TEXT[:200]]


def check_generated(lm: Any, hf: Any) -> None:
    """Check that a text is generated with the scores that xent-hf gives it as a continuation."""
    [request] = requests("generate_until", [("The loss", {"until": [], "max_gen_toks": 3, "do_sample": False})])
    ask_for([request], {})
    [text] = lm.generate_until([request])
    [expected] = hf.loglikelihood(requests("loglikelihood", [("The loss", str(text))]))
    assert text.loglikelihood == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(text.loglikelihood.scores.nll.float(), expected.scores.nll, atol=2e-5, rtol=1e-5)
    assert text.loglikelihood.scores.target.tolist() == expected.scores.target.tolist()


def check_same(lm, hf, *, atol=2e-5):
    """Choices and whole texts, token by token; `atol` is that of each token's nll."""
    pairs = zip(choices(lm) + rolling(lm, *TEXTS), choices(hf) + rolling(hf, *TEXTS), strict=True)
    for found, expected in pairs:
        assert type(found) is type(expected)
        assert isinstance(found, ScoredLoglikelihood | ScoredRolling)
        for name in ("target", "num_bytes", "correct", "counted"):
            assert torch.equal(getattr(found.scores, name), getattr(expected.scores, name)), name
        for name in ("nll", "confidence"):
            torch.testing.assert_close(
                getattr(found.scores, name),
                getattr(expected.scores, name).to(getattr(found.scores, name)),
                rtol=0,
                atol=atol,
            )


class _Model:
    """Log-probabilities and greedy tokens of a causal model."""

    def __init__(self, folder: str) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))

    @torch.no_grad()
    def rows(self, ids: list[int]) -> torch.Tensor:
        """ln p ``(T, V)`` of what follows each id."""
        return self.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)

    def greedy(self, ids: list[int], number: int) -> list[int]:
        generated: list[int] = []
        for _ in range(number):
            generated.append(int(self.rows(ids + generated)[-1].argmax()))
        return generated


# vLLM


@dataclass
class Logprob:
    """`vllm.logprobs.Logprob`."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class SamplingParams:
    """`vllm.SamplingParams`, as far as it is used."""

    temperature: float = 1.0
    max_tokens: int = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    stop: Any = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True


class LLM:
    """`vllm.LLM`: generates, and reports ``{id: Logprob}`` with the token first and then the likeliest."""

    change = staticmethod(lambda prompt_logprobs: prompt_logprobs)  # a test's fault

    def __init__(self, model: str, max_model_len: int | None = None, **options: Any) -> None:
        self._model = _Model(model)
        config = SimpleNamespace(max_model_len=max_model_len or self._model.model.config.max_position_embeddings)
        self.llm_engine = SimpleNamespace(model_config=config)
        self.prompts: list[list[int]] = []

    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool, lora_request: Any) -> list[Any]:
        asked = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(prompts)
        return [self._output(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, asked, strict=True)]

    def _output(self, ids: list[int], params: SamplingParams) -> Any:
        assert len(ids) + params.max_tokens <= self.llm_engine.model_config.max_model_len, "the prompt is too long"
        assert params.temperature == 0
        self.prompts.append(ids)
        generated = self._model.greedy(ids, params.max_tokens)
        rows = self._model.rows(ids + generated)
        entries = [None] + [self._entry(rows[i - 1], token) for i, token in enumerate(ids + generated) if i]
        completion = SimpleNamespace(
            token_ids=generated,
            logprobs=entries[len(ids) :] if params.logprobs else None,
            text=self._model.text(generated),
        )
        prompt_logprobs = self.change(entries[: len(ids)]) if params.prompt_logprobs else None
        return SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=prompt_logprobs, outputs=[completion])

    def _entry(self, row: torch.Tensor, token: int) -> dict[int, Logprob]:
        """The ranks count ≥, as vLLM's do: a tied argmax has rank 2."""
        best = int(row.argmax())
        return {i: Logprob(row[i].item(), int((row >= row[i]).sum()), None) for i in dict.fromkeys((token, best))}


# SGLang


class Engine:
    """`sglang.Engine`: generates, and reports triples ``(logprob, id, text)`` in `meta_info`."""

    change = staticmethod(lambda meta_info: meta_info)  # a test's fault

    def __init__(self, model_path: str, context_length: int | None = None, **options: Any) -> None:
        self._model = _Model(model_path)
        length = context_length or self._model.model.config.max_position_embeddings
        self.tokenizer_manager = SimpleNamespace(tokenizer=self._model.tokenizer, context_len=length)

    def generate(
        self, input_ids: Any, sampling_params: Any, return_logprob: bool, top_logprobs_num: int, logprob_start_len: int
    ) -> list[Any]:
        found = []
        for ids, params in zip(input_ids, sampling_params, strict=True):
            number = params["max_new_tokens"]
            assert len(ids) + number < self.tokenizer_manager.context_len, "the prompt is too long"
            assert params["temperature"] == 0
            generated = self._model.greedy(ids, number)
            rows = self._model.rows(ids + generated)
            own = [(None, ids[0], None)] + [
                (rows[i - 1, token].item(), token, None) for i, token in enumerate(ids + generated) if i
            ]
            top = [None, *([(row.max().item(), int(row.argmax()), None)] for row in rows[:-1])]
            start = logprob_start_len if logprob_start_len >= 0 else len(ids)
            meta_info = {
                "input_token_logprobs": own[start : len(ids)], "input_top_logprobs": top[start : len(ids)],
                "output_token_logprobs": own[len(ids) :], "output_top_logprobs": top[len(ids) :],
            }  # fmt: skip
            found.append({"text": "", "meta_info": self.change(meta_info) if return_logprob else {}})
        return found


@dataclass
class _Modules:
    """Modules put in place of others, until they are taken back."""

    patch: pytest.MonkeyPatch = field(default_factory=pytest.MonkeyPatch)

    def put(self, name: str, **contents: Any) -> ModuleType:
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []  # type: ignore[attr-defined]
        vars(module).update(contents)
        self.patch.setitem(sys.modules, name, module)
        return module


@contextlib.contextmanager
def vllm_in_place() -> Iterator[Any]:
    """`XentVLLM` as if vLLM were installed; lm-eval's own class for vLLM runs on the stand-in."""
    modules = _Modules()
    with contextlib.closing(SimpleNamespace(close=modules.patch.undo)):
        modules.put("vllm", LLM=LLM, SamplingParams=SamplingParams, TokensPrompt=dict)
        modules.put("vllm.lora")
        modules.put("vllm.lora.request", LoRARequest=object)
        modules.put("vllm.renderers")
        modules.put("vllm.renderers.hf", resolve_chat_template=lambda **_: None)
        modules.put("vllm.tokenizers", get_tokenizer=lambda name, **_: AutoTokenizer.from_pretrained(name))
        version = importlib.metadata.version
        modules.patch.setattr(importlib.metadata, "version", lambda name: "0.18.0" if name == "vllm" else version(name))
        for name in ("vllm", "xent-vllm"):
            modules.patch.delitem(model_registry._objs, name, raising=False)
        for name in ("lm_eval.models.vllm_causallms", "xent_metrics.hosts.lm_eval.engines.vllm"):
            modules.patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module("xent_metrics.hosts.lm_eval.engines.vllm").XentVLLM


@contextlib.contextmanager
def sglang_in_place() -> Iterator[Any]:
    """`XentSGLang` as if SGLang were installed; lm-eval's own class for SGLang runs on the stand-in."""
    from lm_eval.models import sglang_causallms

    from xent_metrics.hosts.lm_eval.engines.sglang import XentSGLang

    modules = _Modules()
    with contextlib.closing(SimpleNamespace(close=modules.patch.undo)):
        stand_in = modules.put("sglang", Engine=Engine)
        modules.patch.setattr(sglang_causallms, "sgl", stand_in, raising=False)
        yield XentSGLang
