"""Surprisal: the least likely tokens of a document, and the bits that each word costs."""

from typing import Any

from xent_metrics import hookimpl
from xent_metrics_surprisal.min_k import MinKProbability
from xent_metrics_surprisal.words import WordSurprisal, with_words, word_surprisals

# The version of xent-metrics' hooks that this plugin was made for.
XENT_METRICS_HOOKS = 1

__all__ = ["MinKProbability", "WordSurprisal", "register_metrics", "with_words", "word_surprisals"]


@hookimpl
def register_metrics(register: Any) -> None:
    """Register the metrics."""
    register(MinKProbability)
    register(WordSurprisal)
