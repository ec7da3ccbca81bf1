"""The losses of up to a billion tokens, one batch after another: exact to the last bit, beside counters in float32.

    python benchmarks/many_tokens.py [--tokens 1000000000] [--quick]

The losses are those of English text under a byte trigram model, with noise, so that no two batches are alike. Each is a float32
and a multiple of 2^-41, and these are added as Python integers: the truth, which owes nothing to this package. Claims: the sum
and the mean of `CrossEntropy` are the truth, in either order of the batches. Beside it, on the same batches: torchmetrics'
`MeanMetric`, and a loop that adds the batches' sums and counts in float32. Then the state is merged with itself until it
holds at least 10^15 tokens, and is compared with the integers again.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch
from claims import Claims
from torchmetrics import MeanMetric
from tqdm import tqdm

from xent_metrics import CrossEntropy, TokenScores
from xent_metrics.sums import exact_sum

BATCH = 2**16
BITS = 41  # a float32 of 2^-17 or more is a multiple of 2^-41
MANY = 10**15


def text_losses() -> np.ndarray:
    """The loss in nats of each byte of the text under a trigram model of itself, with 0.1 added to each count."""
    data = np.frombuffer("".join(pydoc_data.topics.topics.values()).encode(), dtype=np.uint8).astype(np.int64)
    before, pairs = data[:-2] * 256 + data[1:-1], data[:-2] * 65536 + data[1:-1] * 256 + data[2:]
    counts, contexts = (np.bincount(ids, minlength=size) for ids, size in ((pairs, 2**24), (before, 2**16)))
    losses: np.ndarray = -np.log((counts[pairs] + 0.1) / (contexts[before] + 25.6))
    return losses.astype(np.float32)


def batches(tokens: int, *, backwards: bool = False) -> Iterator[np.ndarray]:
    """The losses, float32, `BATCH` at a time."""
    text = np.tile(text_losses(), 2)
    numbers = range(-(-tokens // BATCH))
    for number in reversed(numbers) if backwards else numbers:
        rng = np.random.default_rng(number)
        start = int(rng.integers(len(text) // 2))
        noise = rng.random(BATCH, dtype=np.float32) * np.float32(0.2) + np.float32(0.9)
        yield np.maximum(text[start : start + BATCH] * noise, np.float32(2**-17))[: tokens - number * BATCH]


def as_integer(losses: np.ndarray) -> int:
    """Their sum in units of 2^-41, exactly."""
    units = losses.astype(np.float64) * 2.0**BITS
    whole = units.astype(np.int64)
    assert np.array_equal(whole.astype(np.float64), units)
    return (int((whole >> 32).sum()) << 32) + int((whole & 0xFFFFFFFF).sum())


class Peers:
    """What adds in float32."""

    def __init__(self) -> None:
        self.mean = MeanMetric()
        self.nats = self.tokens = torch.tensor(0.0)

    def update(self, losses: torch.Tensor) -> None:
        self.mean.update(losses)
        self.nats, self.tokens = self.nats + losses.sum(), self.tokens + float(len(losses))

    def values(self) -> dict[str, float]:
        return {"torchmetrics' MeanMetric": float(self.mean.compute()), "float32 sums": float(self.nats / self.tokens)}


def stream(tokens: int, *, backwards: bool) -> tuple[CrossEntropy, Peers, int, float]:
    """Ours and the others over all batches, the true sum in units of 2^-41, and the seconds in our updates."""
    metric, peers, total, seconds = CrossEntropy(), Peers(), 0, 0.0
    found = batches(tokens, backwards=backwards)
    for batch in tqdm(found, total=-(-tokens // BATCH), desc="backwards" if backwards else "forwards", disable=None):
        losses, total = torch.from_numpy(batch), total + as_integer(batch)
        start = time.process_time()
        metric.update(TokenScores(nll=losses, counted=torch.ones(len(losses), dtype=torch.bool)))
        seconds += time.process_time() - start
        peers.update(losses)
    return metric, peers, total, seconds


def exact(metric: CrossEntropy) -> dict[str, Fraction]:
    """The sums of a metric by name, as fractions."""
    named = metric.layout.by_name(metric.state)
    return {name: exact_sum.to_fraction(rows[0]) for name, rows in named.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--quick", action="store_true", help="a million tokens")
    given = parser.parse_args()
    tokens = 1_000_000 if given.quick else given.tokens
    claims = Claims(f"the losses of {tokens:,} tokens", quick=given.quick)
    metric, peers, total, seconds = stream(tokens, backwards=False)
    backwards, others, _, _ = stream(tokens, backwards=True)
    truth = Fraction(total, 2**BITS)
    claims.holds("the sum is the integers'", exact(metric) == {"nats": truth, "tokens": Fraction(tokens)})
    claims.holds(
        "the mean is within its rounding", abs(Fraction(float(metric.compute())) / (truth / tokens) - 1) < 2**-51
    )
    claims.holds("backwards, the same bits", torch.equal(metric.state, backwards.state))
    claims.note("processor time in our updates", f"{1e9 * seconds / tokens:.1f} ns a token")
    for (name, value), again in zip(peers.values().items(), others.values().values(), strict=True):
        error = f"{float(abs(Fraction(value) / (truth / tokens) - 1)):.1e} from the truth, "
        claims.note(name, error + f"{abs(again / value - 1):.1e} between the two orders")
    copies = 1
    while copies * tokens < MANY:
        metric.merge_state(metric.clone())
        copies *= 2
    merged = {"nats": truth * copies, "tokens": Fraction(tokens * copies)}
    claims.holds(f"merged with itself to {tokens * copies:.2g} tokens: the integers'", exact(metric) == merged)
    claims.report()


if __name__ == "__main__":
    main()
