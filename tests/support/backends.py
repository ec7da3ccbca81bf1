"""A score_backend that remembers what it was asked, and scores compared bit by bit."""

from __future__ import annotations

import torch

from xent_metrics import TokenScores, hookimpl


class Backend:
    """A plugin module whose backend returns `result`, or what it gives for the arguments, and remembers the arguments."""

    def __init__(self, result):
        self.asked = []

        @hookimpl
        def score_backend(logits, target):
            self.asked.append((logits, target))
            return result(logits, target) if callable(result) else result

        self.score_backend = score_backend


class ExtrasBackend:
    """A plugin module whose backend gives the extra scores `extras(rows)` besides, and remembers the wanted ones."""

    def __init__(self, extras):
        self.wanted = []

        @hookimpl
        def score_backend(logits, extra_scores):
            self.wanted.append(extra_scores)
            rows = len(logits)
            return torch.full((rows,), 7.5), torch.full((rows,), 0.25), torch.ones(rows) > 0, extras(rows)

        self.score_backend = score_backend


def assert_same(scores: TokenScores, expected: TokenScores) -> None:
    assert scores.fields().keys() == expected.fields().keys()
    for name, value in expected.fields().items():
        torch.testing.assert_close(scores.fields()[name], value, equal_nan=True, rtol=0, atol=0)
    assert scores.extra_scores.keys() == expected.extra_scores.keys()
    for name, value in expected.extra_scores.items():
        torch.testing.assert_close(scores.extra_scores[name], value, rtol=0, atol=0)
