"""False alarms among many comparisons: families of tasks and metrics without a difference, and with one in half of them.

    python benchmarks/alarms.py [--quick]

A family is 10 tasks of 24 documents. On each, cross entropy is tested by the permutation test, and a 0 or 1 per document, which
follows the loss, by McNemar's: 20 tests. Without a difference, A and B are the same model read twice with noise. Claims, over
1,000 families: an alarm in at most 5 % of them after Holm's correction, or Benjamini and Hochberg's; and where half of the
tasks differ, at most 5 % of what Benjamini and Hochberg's finds is false. Takes a few minutes; --quick draws 100 families.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from claims import Claims

from xent_metrics import CrossEntropy
from xent_metrics.analysis import benjamini_hochberg, holm
from xent_metrics.analysis.permutation import permutation_p_value
from xent_metrics.analysis.zero_one import mcnemar_p_value

TASKS, DOCUMENTS, RESAMPLES, LEVEL = 10, 24, 499, 0.05
METRIC = CrossEntropy()
NATS, TOKENS = -2, -1  # the rows of its sums


def family(rng: np.random.Generator, gains: np.ndarray) -> list[float]:
    """The p values of all tasks: of cross entropy, then of the share of documents with a loss below 3."""
    of_loss, of_share = [], []
    for gain in gains:
        level = rng.gamma(9, 1 / 3, size=DOCUMENTS)
        a, b = (level + 0.5 * rng.normal(size=DOCUMENTS) - better for better in (0, gain))
        of_loss.append(
            permutation_p_value(METRIC, sums(a), sums(b), num_resamples=RESAMPLES, seed=int(rng.integers(2**31)))
        )
        of_share.append(mcnemar_p_value(*(torch.from_numpy((each < 3).astype(float)) for each in (a, b))))
    return of_loss + of_share


def sums(nats: np.ndarray) -> torch.Tensor:
    """Sums of documents of one token, ``(D, rows)``."""
    rows = torch.zeros(len(nats), len(METRIC.state), dtype=torch.float64)
    rows[:, NATS], rows[:, TOKENS] = torch.from_numpy(nats), 1
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="100 families")
    count = 100 if parser.parse_args().quick else 1000
    claims = Claims(f"{count} families of {2 * TASKS} tests")
    rng = np.random.default_rng(0)
    equal = [family(rng, np.zeros(TASKS)) for _ in range(count)]
    claims.note("families with an alarm, uncorrected", f"{np.mean([min(p) <= LEVEL for p in equal]):.1%}")
    for name, adjust in (("Holm", holm), ("Benjamini–Hochberg", benjamini_hochberg)):
        alarms = float(np.mean([min(adjust(p)) <= LEVEL for p in equal]))
        claims.error(f"families with an alarm, {name}", alarms, at_most=LEVEL)
    gains = np.where(np.arange(TASKS) < TASKS // 2, 0.6, 0.0)
    found = [np.array(benjamini_hochberg(family(rng, gains))) <= LEVEL for _ in range(count)]
    is_equal = np.tile(gains == 0, 2)
    false = [(each & is_equal).sum() / max(each.sum(), 1) for each in found]
    claims.error("share of false ones found, Benjamini–Hochberg", float(np.mean(false)), at_most=LEVEL)
    claims.note("share of true ones found", f"{np.mean([each[~is_equal].mean() for each in found]):.0%}")
    claims.report()


if __name__ == "__main__":
    main()
