"""lm-eval's `hf` and `xent-hf` on one random Llama, where lm-eval is installed: rolling texts and multiple choice."""

from __future__ import annotations

import importlib
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from card.cases import Route, Sizes, find_routes
from card.device import Card, Timing, medians
from card.record import Section

Requests = list[tuple[str, ...]]
OFF = 0.02  # relative, of loglikelihoods in bfloat16: `hf` rounds its log-probabilities to it


def language_models(card: Card, sizes: Sizes, routes: list[Route], section: Section) -> None:
    """Seconds, peak memory and the distance of the answers, with the same module and the same requests."""
    try:
        importlib.import_module("lm_eval.models.huggingface")
        models = importlib.import_module("xent_metrics.hosts.lm_eval")
    except Exception as error:
        section.skip("hf and xent-hf", f"lm-eval can't be imported: {error}")
        return
    stock = importlib.import_module("lm_eval.models.huggingface").HFLM
    module, tokenizer = llama(card, sizes), make_tokenizer()
    for workload, (kind, requests) in workloads(sizes).items():
        answers: dict[str, list[Any]] = {}
        calls: dict[str, Callable[[], Any]] = {}
        for route in [None, *(routes[:1] if card.dry else routes)]:  # Triton's interpreter takes minutes
            name = "hf" if route is None else f"xent-hf, {route.name}"
            if section.out_of_time(f"{workload}: {name}"):
                continue
            route = route or find_routes()[0][0]
            made = route.call(
                stock if name == "hf" else models.XentHFLM, pretrained=module, tokenizer=tokenizer, batch_size=16,
                max_length=min(1024, sizes.width * 8), softmax_dtype=None,
            )  # fmt: skip
            calls[name] = route.bound(run, made, kind, requests, answers, name)
        found = medians(card, calls, repeats=1, deadline=section.deadline)
        for name, timing in found.items():
            if isinstance(timing, str):
                section.check(f"{workload}: {name}", False, error=timing)
                continue
            numbers: dict[str, Any] = {"s": timing.ms / 1e3, "extra_mib": timing.extra_mib}
            hf = found.get("hf")
            if name == "hf" or not isinstance(hf, Timing):
                section.note(f"{workload}: {name}", **numbers)
                continue
            off = largest_difference(answers["hf"], answers[name])
            section.check(f"{workload}: {name}", off <= OFF, **numbers, hf_s_by_this=hf.ms / timing.ms, off=off)


def run(model: Any, kind: str, requests: Requests, answers: dict[str, list[Any]], name: str) -> None:
    from lm_eval.api.instance import Instance

    instances = [
        Instance(request_type=kind, doc={}, arguments=given, idx=0, metadata=("benchmark", i, 1))
        for i, given in enumerate(requests)
    ]
    answers[name] = getattr(model, kind)(instances, disable_tqdm=True)


def largest_difference(one: list[Any], two: list[Any]) -> float:
    """The largest relative difference of loglikelihoods."""
    sums = [[float(each[0] if isinstance(each, tuple) else each) for each in answers] for answers in (one, two)]
    return max(abs(a - b) / abs(a) for a, b in zip(*sums, strict=True))


def llama(card: Card, sizes: Sizes) -> Any:
    """A Llama with random weights, in bfloat16 on the card; of full size it has the shape of Llama 3.2 1B."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = max(2, sizes.width // 64)
    config = LlamaConfig(
        vocab_size=2048 if card.dry else sizes.vocab_size,
        hidden_size=sizes.width, intermediate_size=4 * sizes.width, num_hidden_layers=sizes.layers,
        num_attention_heads=heads, num_key_value_heads=max(1, heads // 4), max_position_embeddings=2048,
        tie_word_embeddings=True, initializer_range=0.02,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with card.device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def make_tokenizer() -> Any:
    from lm_eval_hf import train_tokenizer
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        train_tokenizer(path)
        return PreTrainedTokenizerFast(tokenizer_file=str(path), bos_token="<|end|>", eos_token="<|end|>")


def workloads(sizes: Sizes) -> dict[str, tuple[str, Requests]]:
    """Pieces of Python's manual, cut by a seeded draw."""
    from lm_eval_hf import corpus

    manual, draw = corpus()[0], random.Random(0)

    def cut(length: int) -> str:
        start = manual.index(" ", draw.randrange(len(manual) - length - 500)) + 1
        return manual[start : start + length].rstrip()

    texts = [(cut(sizes.text_length),) for _ in range(sizes.texts)]
    choices = []
    for _ in range(sizes.questions):
        question = cut(480)
        choices += [(question, " " + cut(draw.randrange(20, 60))) for _ in range(4)]
    return {"rolling": ("loglikelihood_rolling", texts), "choices": ("loglikelihood", choices)}
