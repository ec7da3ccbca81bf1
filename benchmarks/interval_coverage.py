"""How often 95 % intervals contain the truth: document means with tails, 0 or 1 per document, and paired differences of these.

    python benchmarks/interval_coverage.py [--corpora N]

Each cell draws corpora of documents of one token, whose losses are the means, and counts the intervals that contain the mean of
the distribution. The intervals are the package's own. Beside it: Student's t, and scipy's bootstrap-t and BCa, on the same
corpora. Claims, to within three standard errors of the count: 93 to 97 % for normal, exponential and lognormal means from 10
documents on; at least 93 % for shares of right documents. What no claim is made for, the longer tails, is in the table all the
same. Takes a minute.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
import torch
from claims import Claims
from rich.console import Console
from rich.table import Table
from scipy import stats

from xent_metrics.analysis.skewed_t import reach, reliability_note
from xent_metrics.analysis.zero_one import newcombe_interval, wilson_interval

SIZES = (5, 10, 20, 40, 100)
#: How to draw means, and their mean.
MEANS: dict[str, tuple[Callable[[np.random.Generator, tuple[int, int]], np.ndarray], float]] = {
    "normal": (lambda rng, shape: rng.normal(3, 0.5, shape), 3.0),
    "uniform": (lambda rng, shape: rng.uniform(0, 1, shape), 0.5),
    "exponential": (lambda rng, shape: rng.exponential(size=shape), 1.0),
    "lognormal, σ = 1": (lambda rng, shape: rng.lognormal(size=shape), math.exp(0.5)),
    "Pareto, α = 3": (lambda rng, shape: rng.pareto(3, size=shape), 0.5),
    "Pareto, α = 2": (lambda rng, shape: rng.pareto(2, size=shape), 1.0),
    "lognormal, σ = 2": (lambda rng, shape: rng.lognormal(0, 2, size=shape), math.exp(2)),
    "5 % outliers": (lambda rng, shape: rng.normal(3, 0.5, shape) + 5 * (rng.random(shape) < 0.05), 3.25),
}
CLAIMED = ("normal", "exponential", "lognormal, σ = 1")


def ours(means: np.ndarray) -> tuple[float, float, bool]:
    """The interval of the mean, as `delta_interval` makes it of the jackknife, and whether it has a note."""
    size, value = len(means), float(means.mean())
    without = torch.from_numpy((means.sum() - means) / (size - 1))
    below, above, lean = reach(without, torch.from_numpy(np.abs(means) + abs(value)), 0.95)
    return value - below, value + above, bool(reliability_note(size, lean)) and size >= 10


def peers(corpora: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The ends of other intervals of each corpus, ``(2, C)``: all corpora share their resamples."""
    size, rng = corpora.shape[1], np.random.default_rng(seed)
    mean, error = corpora.mean(axis=1), stats.sem(corpora, axis=1)
    counts = rng.multinomial(size, np.full(size, 1 / size), size=999).astype(float)
    centred = corpora - mean[:, None]
    drawn = counts @ centred.T / size
    spread = np.sqrt(np.maximum(counts @ (centred**2).T / size - drawn**2, 1e-300) / (size - 1))
    low, high = np.quantile(drawn / spread, [0.025, 0.975], axis=0)
    half = stats.t.ppf(0.975, size - 1) * error
    return {
        "Student's t": np.stack([mean - half, mean + half]),
        "bootstrap-t": np.stack([mean - high * error, mean - low * error]),
        "BCa": _bca(drawn + mean, corpora, mean),
    }


def _bca(drawn: np.ndarray, corpora: np.ndarray, mean: np.ndarray) -> np.ndarray:
    size, centred = corpora.shape[1], corpora - corpora.mean(axis=1, keepdims=True)
    lean = (centred**3).sum(axis=1) / (6 * (centred**2).sum(axis=1) ** 1.5)
    bias = stats.norm.ppf(np.clip((drawn < mean).mean(axis=0), 1e-3, 1 - 1e-3))
    levels = [stats.norm.cdf(bias + (bias + z) / (1 - lean * (bias + z))) for z in stats.norm.ppf([0.025, 0.975])]
    ordered = np.sort(drawn, axis=0)
    places = [np.clip((level * len(drawn)).astype(int), 0, len(drawn) - 1) for level in levels]
    assert size > 2
    return np.stack([ordered[place, np.arange(len(place))] for place in places])


def coverage_of_means(name: str, size: int, count: int) -> dict[str, float]:
    """The share of corpora whose interval holds the mean, in percent, by method; "noted" is how many of ours carry a note."""
    draw, truth = MEANS[name]
    corpora = draw(np.random.default_rng(size), (count, size))
    found = [ours(means) for means in corpora]
    shares = {
        "ours": np.mean([low <= truth <= high for low, high, _ in found]),
        "noted": np.mean([noted for *_, noted in found]),
    }
    others = peers(corpora, seed=1)
    shares |= {method: ((low <= truth) & (high >= truth)).mean() for method, (low, high) in others.items()}
    return {method: 100 * float(share) for method, share in shares.items()}


def coverage_of_shares(share: float, size: int, count: int) -> tuple[float, float]:
    """Of Wilson's interval of a share, and of Newcombe's of a difference between models that agree on most documents."""
    rng = np.random.default_rng(size)
    hit = difference = 0
    gain = 0.5 * (1 - share)  # of what A gets wrong, B gets this part right, and loses a tenth of what A gets right
    truth = (1 - share) * gain - share * 0.1
    for _ in range(count):
        a = torch.from_numpy((rng.random(size) < share).astype(float))
        b = torch.from_numpy(np.where(a == 1, rng.random(size) < 0.9, rng.random(size) < gain).astype(float))
        low, high = wilson_interval(a, 0.95)
        hit += low <= share <= high
        low, high = newcombe_interval(a, b, 0.95)
        difference += low <= truth <= high
    return 100 * hit / count, 100 * difference / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", type=int, default=2_000, help="how many are drawn for each cell")
    parser.add_argument("--quick", action="store_true", help="200 of them")
    arguments = parser.parse_args()
    count = 200 if arguments.quick else arguments.corpora
    slack = 100 * 3 * math.sqrt(0.95 * 0.05 / count)  # three standard errors of what is counted
    claims = Claims(f"coverage of 95 % intervals, {count:,} corpora each")
    methods = ["ours", "noted", "Student's t", "bootstrap-t", "BCa"]
    table = Table("document means", "documents", *methods)
    for name in MEANS:
        for size in SIZES:
            shares = coverage_of_means(name, size, count)
            table.add_row(name, str(size), *(f"{shares[method]:.1f}" for method in methods))
            if name in CLAIMED and size >= 10:
                label, seen = f"{name}, {size} documents: 93 to 97 %", f"{shares['ours']:.1f} %"
                claims.holds(label, 93 - slack <= shares["ours"] <= 97 + slack, seen)
    Console(width=120).print(table)
    for share in (0.5, 0.9):
        for size in (20, 100):
            of_share, of_difference = coverage_of_shares(share, size, count // 2)
            claims.holds(f"{share:.0%} right of {size}: Wilson", of_share >= 93 - slack, f"{of_share:.1f} %")
            claims.holds(
                f"{share:.0%} right of {size}: Newcombe", of_difference >= 93 - slack, f"{of_difference:.1f} %"
            )
    claims.report()


if __name__ == "__main__":
    main()
