"""`xent-hf` with `invariant=true` beside its ordinary route: what the same bits cost, and how far the bits move without it.

    python benchmarks/invariance.py [--quick] [--repeats 3]

The model is a Llama with random weights, in fp32 on two threads: 4 layers, hidden size 576, vocabulary 16,384. Requests are
random ids: texts of 50 to 500 ids, and questions of about 100 ids with four choices. Each is scored with batch sizes 1, 4 and 16.
The ordinary route runs twice, with `logits_cache=False` too, since much of what it saves is shared contexts. Claims:

- the scores of both routes differ by at most 1e-4 nats per token
- with `invariant=true`, the scores have the same bits for every batch size
- it takes at most 5x the time of the ordinary route where nothing is shared, and 12x where contexts are

Times are of requests alone; trying the shapes is shown apart, since it is done once per shape and process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from claims import Claims
from torch import Tensor

THREADS = 2
BATCH_SIZES = (1, 4, 16)
ROUTES: Mapping[str, Mapping[str, Any]] = {
    "ordinary": {}, "ordinary, nothing shared": {"logits_cache": False}, "invariant": {"invariant": True},
}  # fmt: skip


def llama(quick: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16_384, hidden_size=576, intermediate_size=1536, num_hidden_layers=1 if quick else 4,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=512, initializer_range=0.04,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tokenizer() -> Any:
    """One that is never called: requests are ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    found = Tokenizer(models.BPE(letters, []))
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=found, eos_token="<eos>", pad_token="<eos>")


def workloads(quick: bool) -> dict[str, list[Any]]:
    """Windows, by workload."""
    from xent_metrics.hosts.lm_eval.models.windows import continuation_window, rolling_windows

    draw = torch.Generator().manual_seed(0)

    def ids(least: int, most: int) -> list[int]:
        size = int(torch.randint(least, most, (), generator=draw))
        return torch.randint(1, 16_384, (size,), generator=draw).tolist()  # type: ignore[no-any-return]

    number = 4 if quick else 16
    rolling = [
        window for _ in range(number) for window in rolling_windows(ids(50, 500), prefix_token=0, max_length=512)
    ]
    contexts = [ids(60, 140) for _ in range(number)]
    choices = [continuation_window(context, ids(2, 12), max_length=512) for context in contexts for _ in range(4)]
    return {"rolling": rolling, "choices": choices}


def run(lm: Any, windows: Sequence[Any], batch_size: int) -> tuple[float, Tensor]:
    """The seconds, and the nll of every token."""
    lm.batch_size_per_gpu = batch_size
    start = time.perf_counter()
    found = lm.score(windows)
    return time.perf_counter() - start, torch.cat([scores.nll for scores in found])


def compare(claims: Claims, name: str, windows: Sequence[Any], lms: Mapping[str, Any], repeats: int) -> None:
    claims.note(name, f"{len(windows)} windows, {sum(len(window.inputs) for window in windows)} ids")
    first, _ = run(lms["invariant"], windows, 1)
    seconds: dict[str, list[float]] = {route: [] for route in lms}
    nll: dict[str, list[Tensor]] = {route: [] for route in lms}
    for _ in range(repeats):
        for route, lm in lms.items():
            for batch_size in BATCH_SIZES:
                took, found = run(lm, windows, batch_size)
                nll[route].append(found)
                if batch_size == BATCH_SIZES[-1]:
                    seconds[route].append(took)
    median = {route: statistics.median(took) for route, took in seconds.items()}
    for route in ("ordinary", "ordinary, nothing shared"):
        pair = f"{median['invariant']:.2f} / {median[route]:.2f}"
        most = 12 if route == "ordinary" else 5
        claims.ratio(f"  seconds, invariant / {route}", median["invariant"] / median[route], at_most=most, seen=pair)
    claims.note("  seconds more in the first run, which tries the shapes", f"{first - median['invariant']:.2f}")
    for route in ("ordinary", "ordinary, nothing shared"):
        claims.note(f"  nats that a token moves between batch sizes, {route}", f"{spread(nll[route]):.1e}")
    claims.error("  nats between the routes, per token", off(nll["ordinary"][0], nll["invariant"][0]), at_most=1e-4)
    same = all(
        torch.equal(found.view(torch.int32), nll["invariant"][0].view(torch.int32)) for found in nll["invariant"]
    )
    claims.holds(f"  invariant: the same bits in batches of {', '.join(map(str, BATCH_SIZES))}", same)


def off(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


def spread(runs: Sequence[Tensor]) -> float:
    """The most that a token's nll differs from that of the first run."""
    return max(map(partial(off, runs[0]), runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1 layer, few requests, one run: a smoke test")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    from xent_metrics.hosts.lm_eval import XentHFLM

    torch.set_num_threads(THREADS)
    model, words = llama(arguments.quick), tokenizer()
    lms = {
        route: XentHFLM(model, tokenizer=words, device="cpu", max_length=512, **options)
        for route, options in ROUTES.items()
    }
    claims = Claims(f"{THREADS} threads", quick=arguments.quick)
    for name, windows in workloads(arguments.quick).items():
        compare(claims, name, windows, lms, 1 if arguments.quick else arguments.repeats)
    claims.report()


if __name__ == "__main__":
    main()
