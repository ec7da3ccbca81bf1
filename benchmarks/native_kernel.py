"""Scoring with xent-metrics-native beside torchmetrics' Perplexity, pure torch and merely reading the logits.

    pip install ./plugins/xent-metrics-native && python benchmarks/native_kernel.py [--quick]

Prints ratios (medians of alternated runs), errors against float64, and whether bits are the same in other batches and on
other numbers of threads. Claims, on two cores: nll, confidence and correct at least 5x (fp32) and 3.5x (bf16) as fast as
Perplexity; nll within 1e-6 below 32 nats and within a relative 1e-7 above; score_hidden_states in fp32 takes at most the
time of the bare matmul, because it doesn't write the logits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from claims import Claims
from scoring import hidden_case, make, seconds
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.text import Perplexity

from xent_metrics import TokenScores, score_hidden_states, score_tokens
from xent_metrics.plugins import Plugins, plugins, use_plugins

PLUGIN = "native of xent-metrics-native"
BUILT_IN = Plugins()  # without the plugin


def in_torch(score: Callable[..., TokenScores], *arguments: Tensor) -> TokenScores:
    with use_plugins(BUILT_IN):
        return score(*arguments)


def speed_case(claims: Claims, rows: int, vocab_size: int, dtype: torch.dtype, floor: float, repeats: int) -> None:
    logits, target = make(rows, vocab_size, dtype)
    peer = Perplexity()
    ours, theirs, plain, read = seconds(
        lambda: score_tokens(logits, target),
        lambda: peer.update(logits[None], target[None]),
        lambda: in_torch(score_tokens, logits, target),
        lambda: logits.view(torch.float32).sum(-1),  # the same bytes
        repeats=repeats,
    )
    name = f"{rows:,} × {vocab_size:,} {described(dtype)}"
    claims.ratio(f"{name}: Perplexity / ours", theirs / ours, at_least=floor)
    claims.ratio("  pure torch / ours", plain / ours)
    claims.ratio("  read / ours (share of the read speed)", read / ours)
    claims.note(
        "  ms (ours, Perplexity, pure torch, read)",
        " / ".join(f"{1e3 * t:.0f}" for t in (ours, theirs, plain, read)),
    )


def hidden_states_case(claims: Claims, rows: int, repeats: int) -> None:
    hidden, head, target = hidden_case(rows, 49_152)
    ours, plain, matmul = seconds(
        lambda: score_hidden_states(hidden, head, target),
        lambda: in_torch(score_hidden_states, hidden, head, target),
        lambda: F.linear(hidden, head),
        repeats=repeats,
    )
    claims.ratio(
        f"score_hidden_states {rows:,} × 576 → 49,152: ours / bare matmul", ours / matmul, at_most=1.0,
        seen=f"{1e3 * ours:.0f} / {1e3 * matmul:.0f} ms",
    )  # fmt: skip
    claims.ratio("  pure torch / ours", plain / ours, at_least=1.05)
    scores, torchs = score_hidden_states(hidden, head, target), in_torch(score_hidden_states, hidden, head, target)
    truth = F.cross_entropy(hidden.double() @ head.double().T, target, reduction="none")
    error, theirs = ((found.nll - truth).abs().max() for found in (scores, torchs))
    claims.error(f"  largest error, in nats (pure torch: {theirs:.1e})", float(error), at_most=1e-5)
    claims.holds("  correct as in pure torch", torch.equal(scores.correct, torchs.correct))
    some = slice(rows // 3, rows // 2)
    part = score_hidden_states(hidden[some], head, target[some])
    claims.holds("  the same bits in another batch", torch.equal(part.nll, scores.nll[some]))


def accuracy_case(claims: Claims, vocab_size: int, dtype: torch.dtype) -> None:
    """Rows of logits with spreads from 0.1 to 1,000, so that nll ranges from ln V to thousands of nats."""
    logits, target = make(256, vocab_size, torch.float32)
    logits = (logits * torch.logspace(-1, 2.5, 256)[:, None]).to(dtype)
    scores = score_tokens(logits, target)
    truth = torch.cat([
        F.cross_entropy(rows.double(), ids, reduction="none")
        for rows, ids in zip(logits.split(32), target.split(32), strict=True)
    ])  # fmt: skip
    error, low = (scores.nll - truth).abs(), truth < 32
    name = f"{described(dtype)}, V = {vocab_size:,}: largest error"
    claims.error(f"{name} below 32 nats", float(error[low].max()), at_most=1e-6)
    claims.error(f"{name} above, relative", float((error / truth)[~low].max()), at_most=1e-7)
    claims.holds("  correct as argmax has it", torch.equal(scores.correct, logits.argmax(-1) == target))


def same_bits_case(claims: Claims, vocab_size: int, dtype: torch.dtype) -> None:
    logits, target = make(64, vocab_size, dtype)
    whole, threads = score_tokens(logits, target).nll, torch.get_num_threads()
    torch.set_num_threads(1)
    one_thread = score_tokens(logits, target).nll
    torch.set_num_threads(threads)
    alone = torch.cat([score_tokens(logits[i : i + 1], target[i : i + 1]).nll for i in range(64)])
    claims.holds(f"{described(dtype)}: the same bits on 1 and {threads} threads", torch.equal(whole, one_thread))
    claims.holds(f"{described(dtype)}: the same bits row by row", torch.equal(whole, alone))


def described(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer runs: a smoke test")
    quick = parser.parse_args().quick
    if not plugins().manager.has_plugin(PLUGIN):
        raise SystemExit(
            "xent-metrics-native is not installed or was set aside: pip install ./plugins/xent-metrics-native"
        )
    repeats, scale = (3, 8) if quick else (9, 1)
    claims = Claims(f"xent-metrics-native, {torch.get_num_threads()} threads", quick=quick)
    for rows, vocab_size in ((2048 // scale, 50_304), (1024 // scale, 151_936)):
        speed_case(claims, rows, vocab_size, torch.float32, 5.0, repeats)
        speed_case(claims, rows, vocab_size, torch.bfloat16, 3.5, repeats)
    hidden_states_case(claims, 2048 // scale, repeats)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        accuracy_case(claims, 50_304, dtype)
        same_bits_case(claims, 50_304, dtype)
    claims.report()


if __name__ == "__main__":
    main()
