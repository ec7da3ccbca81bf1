"""Divergences of two models beside torch's `kl_div` and torchmetrics' KLDivergence: time, and how far each is from the truth.

    python benchmarks/pairs.py [--quick]

Rows of 32,000 logits of one model, and the same with noise for the other. The truth is mpmath's, with 50 digits, for some of
the rows. `score_pair` gives seven scores of a row in one pass, the peers one. Claims: both divergences of rows that differ by
noise of 1 and of 1e-4 are within 1e-10 of the truth, and none is negative.
"""

from __future__ import annotations

import argparse

import mpmath
import torch
from claims import Claims
from scoring import seconds
from torch.nn import functional as F
from torchmetrics.functional.regression import kl_divergence

from xent_metrics import score_pair

ROWS, VOCAB, CHECKED = 64, 32_000, 3


def torch_kl(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """KL(P‖Q) of each row by torch."""
    p, q = (F.log_softmax(x.to(dtype), dim=-1) for x in (a, b))
    return F.kl_div(q, p, log_target=True, reduction="none").sum(-1)


def true_divergences(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """KL(P‖Q) and the Jensen–Shannon divergence of a row, with 50 digits."""
    p, q = (_probabilities(x) for x in (a, b))
    kl = mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(p, q, strict=True))
    middle = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    halves = (mpmath.fsum(x * mpmath.log(x / m) for x, m in zip(r, middle, strict=True)) / 2 for r in (p, q))
    return float(kl), float(sum(halves))


def _probabilities(logits: torch.Tensor) -> list[mpmath.mpf]:
    terms = [mpmath.exp(mpmath.mpf(x)) for x in logits.tolist()]
    total = mpmath.fsum(terms)
    return [term / total for term in terms]


def accuracy(claims: Claims, rows: int, vocab: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    a = 3 * torch.randn(rows, vocab, generator=generator)
    b = a + noise * torch.randn(rows, vocab, generator=generator)
    ours, checked = score_pair(a, b).extra_scores, min(rows, CHECKED)
    truth = [true_divergences(*pair) for pair in zip(a[:checked], b[:checked], strict=True)]
    for name, values in zip(("kl_divergence", "jensen_shannon_divergence"), zip(*truth, strict=True), strict=True):
        claims.error(f"noise {noise:g}, {name}: relative error", worst(ours[name], values), at_most=1e-10)
        claims.holds("  none negative", bool((ours[name] >= 0).all()))
    kl = [each for each, _ in truth]
    for dtype in (torch.float64, torch.float32):
        found = torch_kl(a, b, dtype)
        negative = f"{worst(found, kl):.1e}, {float((found < 0).double().mean()):.0%} of rows negative"
        claims.note(f"  torch's kl_div in {str(dtype)[6:]}: relative error", negative)


def worst(found: torch.Tensor, truth: tuple[float, ...] | list[float]) -> float:
    return max(abs(float(x) / y - 1) for x, y in zip(found[: len(truth)], truth, strict=True))


def speed(claims: Claims, rows: int, vocab: int) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (3 * torch.randn(rows, vocab, generator=generator) for _ in range(2))
    p, q = (torch.softmax(x, -1) for x in (a, b))
    calls = {
        "torch's kl_div in float64": lambda: torch_kl(a, b, torch.float64),
        "torch's kl_div in float32": lambda: torch_kl(a, b, torch.float32),
        "torchmetrics' kl_divergence, of probabilities": lambda: kl_divergence(p, q),
    }
    own, *others = seconds(lambda: score_pair(a, b), *calls.values(), repeats=5)
    claims.note(f"score_pair, {rows} rows of {vocab:,} float32 logits", f"{1e3 * own / rows:.2f} ms a row")
    for name, taken in zip(calls, others, strict=True):
        claims.ratio(f"  time, score_pair / {name}", own / taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    claims = Claims("two models' distributions", quick=quick)
    mpmath.mp.dps = 50
    for noise in (1.0, 1e-4):
        accuracy(claims, 8 if quick else ROWS, 500 if quick else VOCAB, noise)
    speed(claims, 8 if quick else ROWS, VOCAB)
    claims.report()


if __name__ == "__main__":
    main()
