"""`xent-hf` beside lm-eval's own `hf`: time, peak memory and answers, each model in a process of its own.

    python benchmarks/lm_eval_hf.py [--quick] [--batch-size 16] [--repeats 3]

The model is a Llama of 135M parameters (30 layers, hidden size 576, vocabulary 49,152) with random weights, in fp32 on two
threads. Both get the same requests and arguments. The text is Python's manual and its modules' sources, with a tokenizer
trained on other modules, so that documents of equal length in characters differ in tokens, as in real corpora. Claims:

- rolling, 16 documents of 3,000 characters, some longer than a window of 1,024 tokens: 1.6x as fast, 0.35x the peak memory
- multiple choice, 40 documents of 4 choices after about 150 tokens: 3x as fast, 0.6x the peak memory
- five-shot multiple choice after about 600 tokens: 3.5x as fast
- loglikelihoods within 1e-5 and the same is_greedy, also for continuations that the model itself would write
- in bf16, loglikelihoods nearer than those of `hf` to what the same rounded weights give in fp32

Claims about time are made with xent-metrics-native, which `make` installs; rolling is also run in pure torch. Much of the
time of `hf` goes to the system, for new memory. Its cost differs by machine, and on a virtual one by the hour, so the seconds
in the system are shown for both.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import pydoc_data.topics
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from claims import Claims

THREADS = 2
MAX_LENGTH = 1024
WORKLOADS = ("rolling", "choices", "five_shot", "five_shot_shared")
#: Workload: (least speed-up, largest share of the peak).
CLAIMS = {"rolling": (1.6, 0.35), "choices": (3.0, 0.6), "five_shot": (3.5, None), "five_shot_shared": (3.5, None)}


#: Sources that documents are cut from, and others that the tokenizer was trained on.
MODULES, TRAINED = (
    ("argparse", "ast", "email.message", "html.entities", "inspect", "locale", "_pydecimal", "tarfile", "typing"),
    ("csv", "json.decoder", "shutil", "textwrap"),
)

# One measurement, in a process of its own.


def measure(
    model_name: str, workload: str, dtype: str, batch_size: str, quick: bool, tokenizer_file: str
) -> dict[str, Any]:
    import torch
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(THREADS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file, bos_token="<|end|>", eos_token="<|end|>")
    module = llama(4 if quick else 30)
    if dtype != "float32":
        module = module.to(torch.bfloat16)
    if dtype == "rounded":  # the weights of bfloat16, computed with in float32
        module = module.to(torch.float32)
    lm = language_model(model_name)(
        pretrained=module, tokenizer=tokenizer, batch_size=batch_size, max_length=MAX_LENGTH, softmax_dtype=None
    )
    kind = "loglikelihood_rolling" if workload == "rolling" else "loglikelihood"
    arguments = requests(workload, quick)
    run = getattr(lm, kind)
    run(
        instances(kind, [(arguments[0][-1][:200],) if kind == "loglikelihood_rolling" else ("A", " b")]),
        disable_tqdm=True,
    )
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    results = run(instances(kind, arguments), disable_tqdm=True)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    peak, system = after.ru_maxrss / 1024, after.ru_stime - before.ru_stime
    if kind == "loglikelihood":
        results += lm._loglikelihood_tokens(
            [pair for context, _ in arguments[::8] for pair in greedy(module, tokenizer.encode(context))],
            disable_tqdm=True,
        )
    answers = [[float(r), None] if kind == "loglikelihood_rolling" else [float(r[0]), bool(r[1])] for r in results]
    lengths = [len(tokenizer.encode(first)) for first, *_ in arguments]
    return {
        "seconds": seconds, "system": system, "peak": peak, "answers": answers, "lengths": lengths, "backend": backend(),
    }  # fmt: skip


def greedy(module: Any, context: list[int]) -> list[tuple[None, list[int], list[int]]]:
    """What the model itself would write, and that with another last id."""
    import torch

    ids = list(context)
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(module(torch.tensor([ids])).logits[0, -1].argmax()))
    written = ids[len(context) :]
    return [(None, context, written), (None, context, [*written[:-1], (written[-1] + 1) % 1000])]


def language_model(name: str) -> Any:
    if name == "hf":
        from lm_eval.models.huggingface import HFLM

        return HFLM
    from xent_metrics.hosts.lm_eval import XentHFLM

    return XentHFLM


def backend() -> str:
    """The plugin that scores rows of float32 logits on this machine."""
    import torch

    from xent_metrics.plugins import plugins

    rows = {"logits": torch.zeros(2, 8), "target": torch.zeros(2, dtype=torch.int64), "extra_scores": {}}
    for found in reversed(plugins().manager.hook.score_backend.get_hookimpls()):
        if found.function(*(rows[name] for name in found.argnames)) is not None:
            return str(found.plugin_name)
    return "torch"


def llama(layers: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=layers, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.04,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def instances(kind: str, arguments: list[tuple[str, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=args, idx=0, metadata=("benchmark", i, 1))
        for i, args in enumerate(arguments)
    ]


def corpus(modules: tuple[str, ...] = MODULES) -> tuple[str, str]:
    """The manual and some sources."""
    manual = " ".join(" ".join(pydoc_data.topics.topics.values()).split())
    return manual, "\n".join(inspect.getsource(importlib.import_module(name)) for name in modules)


def requests(workload: str, quick: bool) -> list[tuple[str, ...]]:
    """Pieces of the corpus, cut by a seeded draw; about 3 characters a token."""
    manual, sources = corpus()
    draw = random.Random(0)

    def cut(length: int, text: str = manual) -> str:
        start = draw.randrange(len(text) - length - 500)
        start = text.index(" ", start) + 1
        return text[start : start + length].rstrip()

    if workload == "rolling":
        return [(cut(3000, (manual, sources)[i % 2]),) for i in range(3 if quick else 16)]
    shared = "\n\n".join(cut(300) for _ in range(5))
    found: list[tuple[str, ...]] = []
    for _ in range(4 if quick else 40):
        question = cut(480)
        if workload.startswith("five_shot"):
            shots = shared if workload == "five_shot_shared" else "\n\n".join(cut(300) for _ in range(5))
            question = f"{shots}\n\n{cut(480)}"
        found += [(question, " " + cut(draw.randrange(20, 60))) for _ in range(4)]
    return found


# Both models in turn.


def in_a_process(*arguments: object, **variables: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", json.dumps(arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(THREADS), "TQDM_DISABLE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment | variables)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def train_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1_200, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(TRAINED), trainer)
    tokenizer.save(str(path))


def compare(claims: Claims, workload: str, batch_size: str, repeats: int, quick: bool, tokenizer_file: str) -> None:
    runs: dict[str, list[dict[str, Any]]] = {"hf": [], "xent-hf": []}
    rest = (workload, "float32", batch_size, quick, tokenizer_file)
    for _ in range(repeats):
        for model_name, taken in runs.items():
            taken.append(in_a_process(model_name, *rest))
    stock, ours = runs["hf"], runs["xent-hf"]
    seconds, system, peaks = (
        [statistics.median(run[name] for run in taken) for taken in (stock, ours)]
        for name in ("seconds", "system", "peak")
    )
    speed, share = CLAIMS[workload]
    lengths = ours[0]["lengths"]
    claims.note(
        workload,
        f"{len(lengths)} requests of {min(lengths)} to {max(lengths)} tokens, scored by {ours[0]['backend']}",
    )
    claims.ratio("  seconds, hf / xent-hf", seconds[0] / seconds[1], at_least=speed, seen=pair(seconds))
    claims.note("  processor seconds in the system", pair(system))
    claims.ratio("  peak MiB, xent-hf / hf", peaks[1] / peaks[0], at_most=share, seen=pair(peaks))
    if workload == "rolling":
        claims.holds("  some texts are longer than the window", max(lengths) > MAX_LENGTH)
        if ours[0]["backend"] != "torch":
            plain = in_a_process("xent-hf", *rest, XENT_METRICS_PLUGINS="")
            claims.ratio("  in pure torch: seconds, hf / xent-hf", seconds[0] / plain["seconds"])
            claims.ratio("  in pure torch: peak MiB, xent-hf / hf", plain["peak"] / peaks[0], at_most=share)
            claims.error("  in pure torch: largest relative difference", off(stock[0], plain), at_most=1e-5)
    claims.error("  largest relative difference", off(stock[0], ours[0]), at_most=1e-5)
    if workload != "rolling":
        greedy_ones = [[flag for _, flag in run["answers"]] for run in (stock[0], ours[0])]
        claims.holds("  is_greedy the same", greedy_ones[0] == greedy_ones[1])
        claims.holds(f"  {sum(greedy_ones[1])} of {len(greedy_ones[1])} are greedy", any(greedy_ones[1]))


def off(one: dict[str, Any], two: dict[str, Any]) -> float:
    """The largest relative difference of two runs' loglikelihoods."""
    return max(abs(a - b) / abs(a) for (a, _), (b, _) in zip(one["answers"], two["answers"], strict=True))


def pair(values: list[float]) -> str:
    return " / ".join(f"{value:,.2f}" for value in values)


def half_precision(claims: Claims, batch_size: str, quick: bool, tokenizer_file: str) -> None:
    """How far each is from the same rounded weights in fp32, on multiple choice in bf16."""
    rest = (batch_size, quick, tokenizer_file)
    texts = len(requests("choices", quick))  # what the model itself would write differs with its rounding
    truth = in_a_process("hf", "choices", "rounded", *rest)["answers"][:texts]
    errors = []
    for model_name in ("hf", "xent-hf"):
        found = in_a_process(model_name, "choices", "bfloat16", *rest)["answers"][:texts]
        errors.append(statistics.mean(abs(a - b) for (a, _), (b, _) in zip(found, truth, strict=True)))
    claims.error(
        f"bf16: mean |loglikelihood − that in fp32|, xent-hf / hf ({errors[1]:.4f} / {errors[0]:.4f})",
        errors[1] / errors[0], at_most=1.0,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="4 layers, few documents, one run: a smoke test, no claim")
    parser.add_argument("--batch-size", default="16", help="of both models")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workload", choices=[*WORKLOADS, "bf16"], action="append", help="only these")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*json.loads(arguments.measure))))
        return
    claims = Claims(f"batch_size={arguments.batch_size}, {THREADS} threads", quick=arguments.quick)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer_file = str(Path(folder) / "tokenizer.json")
        train_tokenizer(Path(tokenizer_file))
        rest = (arguments.batch_size, 1 if arguments.quick else arguments.repeats, arguments.quick, tokenizer_file)
        for workload in arguments.workload or [*WORKLOADS, "bf16"]:
            if workload == "bf16":
                half_precision(claims, arguments.batch_size, arguments.quick, tokenizer_file)
            else:
                compare(claims, workload, *rest)
    claims.report()


if __name__ == "__main__":
    main()
