"""A score_backend that remembers what it was asked."""

from __future__ import annotations

from xent_metrics import hookimpl


class Backend:
    """A plugin module whose backend returns `result` and remembers its arguments."""

    def __init__(self, result):
        self.asked = []

        @hookimpl
        def score_backend(logits, target):
            self.asked.append((logits, target))
            return result(logits, target) if callable(result) else result

        self.score_backend = score_backend
