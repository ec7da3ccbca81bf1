"""Scoring speed and memory beside torchmetrics' Perplexity, torch's own loss and the bare matmul, in one run.

    python benchmarks/scoring.py [--quick]

Prints ratios (medians of alternated runs) and checks that both sides give the same answer. Claims, on two cores:
nll + confidence + correct at least 1.15x (fp32) and 0.9x (bf16) as fast as torchmetrics' Perplexity with at most 32 MiB
of extra peak memory; score_hidden_states at most 1.25x the bare matmul with at most a tenth of the logits' bytes; a
collection of 8 metrics at most 1.1x one metric.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from claims import Claims
from torch.nn import functional as F
from torchmetrics.text import Perplexity as PeerPerplexity

from xent_metrics import (
    BitsPerByte,
    CrossEntropy,
    ExpectedCalibrationError,
    TokenMetricCollection,
    score_hidden_states,
    score_tokens,
)
from xent_metrics.metrics import MaximumCalibrationError
from xent_metrics.plugins import plugins

MIB = 2**20


def seconds(*functions: Callable[[], object], repeats: int) -> list[float]:
    """The median seconds of each function, run in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 1):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if repeat:  # the first round warms up
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def peak_mib(job: str, *arguments: object) -> float:
    """How far `job` raises the peak resident memory of a process of its own, in MiB."""
    command = [sys.executable, __file__, "--peak-of", job, *map(str, arguments)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # freed memory goes back, so that peaks are peaks
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def measure_peak(job: str, rows: int, vocab_size: int, dtype: torch.dtype) -> float:
    logits, target = make(rows, vocab_size, dtype) if job == "tokens" else (torch.empty(0), torch.empty(0))
    hidden, head, ids = hidden_case(rows, vocab_size) if job == "hidden" else (None, None, None)
    small = torch.randn(8, 64)
    score_tokens(small, torch.zeros(8, dtype=torch.long))  # threads and buffers that any run needs
    F.linear(torch.randn(64, 576), torch.randn(4096, 576))
    with open("/proc/self/clear_refs", "w") as handle:
        handle.write("5")  # resets the peak to what is resident now
    before = status("VmRSS")
    if job == "tokens":
        score_tokens(logits, target)
    else:
        score_hidden_states(hidden, head, ids)
    return (status("VmHWM") - before) / 1024


def status(key: str) -> int:
    with open("/proc/self/status") as handle:
        return next(int(line.split()[1]) for line in handle if line.startswith(key))


def make(rows: int, vocab_size: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, vocab_size, generator=generator).mul_(3).to(dtype)
    return logits, torch.randint(vocab_size, (rows,), generator=generator)


def hidden_case(rows: int, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 576, generator=generator)
    head = torch.randn(vocab_size, 576, generator=generator) / 24
    return hidden, head, torch.randint(vocab_size, (rows,), generator=generator)


def backend() -> str:
    """What scores plain rows here."""
    found = plugins().manager.hook.score_backend.get_hookimpls()
    return str(found[-1].plugin_name) if found else "torch"


def tokens_case(claims: Claims, rows: int, vocab_size: int, dtype: torch.dtype, floor: float, repeats: int) -> None:
    logits, target = make(rows, vocab_size, dtype)
    peer = PeerPerplexity()
    ours, theirs, loss, read = seconds(
        lambda: score_tokens(logits, target),
        lambda: peer.update(logits[None], target[None]),
        lambda: F.cross_entropy(logits.float(), target, reduction="none"),
        lambda: logits.sum(-1),
        repeats=repeats,
    )
    scores = score_tokens(logits, target)
    truth = F.cross_entropy(logits.double(), target, reduction="none")
    error = float((scores.nll - truth).abs().max())
    torch_error = float((F.cross_entropy(logits.float(), target, reduction="none") - truth).abs().max())
    extra = peak_mib("tokens", rows, vocab_size, str(dtype).removeprefix("torch."))
    name = f"score_tokens {rows:,} × {vocab_size:,} {str(dtype).removeprefix('torch.')}"
    claims.ratio(f"{name}: torchmetrics' Perplexity / ours", theirs / ours, at_least=floor)
    claims.ratio(f"{name}: extra peak, MiB", extra, at_most=32)
    claims.note(
        f"{name}: ms (ours, Perplexity, F.cross_entropy, read)",
        " / ".join(f"{1e3 * t:.0f}" for t in (ours, theirs, loss, read)),
    )
    claims.note(f"{name}: largest |nll − float64 nll|, F.cross_entropy's", f"{torch_error:.1e}")
    claims.error(f"{name}: largest |nll − float64 nll|, ours", error, at_most=max(1.5 * torch_error, 1e-5))
    claims.holds(f"{name}: correct as argmax has it", torch.equal(scores.correct, logits.argmax(-1) == target))


def hidden_states_case(claims: Claims, rows: int, repeats: int) -> None:
    hidden, head, target = hidden_case(rows, 49_152)
    ours, matmul = seconds(
        lambda: score_hidden_states(hidden, head, target), lambda: F.linear(hidden, head), repeats=repeats
    )
    exact = F.cross_entropy((hidden.double() @ head.double().T), target, reduction="none")
    error = float((score_hidden_states(hidden, head, target).nll - exact).abs().max())
    share = peak_mib("hidden", rows, 49_152, "float32") * MIB / (rows * 49_152 * 4)
    claims.ratio(f"score_hidden_states {rows:,} × 576 → 49,152: ours / bare matmul", ours / matmul, at_most=1.25)
    claims.ratio("  extra peak / the logits' bytes", share, at_most=0.1)
    claims.error("  largest |nll − float64 nll|", error, at_most=1e-4)


def collection_case(claims: Claims, rows: int, repeats: int) -> None:
    logits, target = make(rows, 50_304, torch.float32)
    table_of_bytes = torch.randint(1, 8, (50_304,))
    one = CrossEntropy()
    names = ["cross_entropy", "perplexity", "token_accuracy", "calibration_weighted_cross_entropy"]
    others = {
        "bits": CrossEntropy(unit="bits"),
        "bits_per_byte": BitsPerByte(token_bytes=table_of_bytes),
        "expected": ExpectedCalibrationError(),
        "largest": MaximumCalibrationError(),
    }
    eight = TokenMetricCollection({name: name for name in names} | others)
    single, collection = seconds(
        lambda: one.update(logits, target), lambda: eight.update(logits, target), repeats=repeats
    )
    claims.ratio("collection of 8 metrics / one metric", collection / single, at_most=1.1)
    claims.holds("  the same cross-entropy", eight.compute()["cross_entropy"] == one.compute())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer runs: a smoke test")
    parser.add_argument("--peak-of", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ["XENT_METRICS_PLUGINS"] = ""  # the package's own pass; a plugin's is measured in a benchmark of its own
    if arguments.peak_of:
        job, rows, vocab_size, dtype = arguments.peak_of
        print(measure_peak(job, int(rows), int(vocab_size), getattr(torch, dtype)))
        return
    repeats, scale = (2, 8) if arguments.quick else (7, 1)
    claims = Claims(f"scoring by {backend()}, {torch.get_num_threads()} threads", quick=arguments.quick)
    for rows, vocab_size in ((2048 // scale, 50_304), (1024 // scale, 151_936)):
        tokens_case(claims, rows, vocab_size, torch.float32, 1.15, repeats)
        tokens_case(claims, rows, vocab_size, torch.bfloat16, 0.9, repeats)
    hidden_states_case(claims, 2048 // scale, repeats)
    collection_case(claims, 2048 // scale, repeats)
    claims.report()


if __name__ == "__main__":
    main()
