"""Losses per unit of text, which can be compared between tokenizers: per byte and per word.

Nats and bytes are counted over the same tokens: a special token has 0 bytes, and its nll is left out with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.scoring.inputs import as_tensor, bytes_of
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.scoring.token_bytes import token_bytes as make_token_bytes
from xent_metrics.sums.metric import RatioMetric
from xent_metrics.sums.options import readable

__all__ = ["BitsPerByte", "BytePerplexity", "WordPerplexity"]


class _PerLength(RatioMetric):
    """Σ nll / Σ length over the rows that have a length."""

    length: ClassVar[str]
    row_kinds = frozenset({"token", "document", "choice"})

    def sum_names(self) -> tuple[str, str]:
        return f"nats[{self.length} > 0]", self.length

    def per_token(self, scores: TokenScores) -> Tensor:
        return torch.where(self.denominator(scores) > 0, scores.nll, torch.zeros_like(scores.nll))

    def denominator(self, scores: TokenScores) -> Tensor:
        lengths: Tensor = getattr(scores, self.length)
        return lengths


class _PerByte(_PerLength):
    length = "num_bytes"
    requires = frozenset({"nll", "num_bytes"})

    def __init__(self, token_bytes: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        table = token_bytes
        if table is not None:
            self.requires = frozenset({"nll", "target"})
            is_array = isinstance(table, Tensor) or hasattr(table, "__array__")
            table = _whole(as_tensor(table)) if is_array else make_token_bytes(table)
        self.register_buffer("token_bytes", table, persistent=False)
        self._table_name = readable(table)

    def sum_names(self) -> tuple[str, str]:
        nats, length = super().sum_names()
        if not isinstance(self.token_bytes, Tensor):
            return nats, length
        return f"{nats}(token_bytes={self._table_name})", f"{length}(token_bytes={self._table_name})"

    def denominator(self, scores: TokenScores) -> Tensor:
        """The metric's own table, where it has one, goes before the scores' bytes."""
        if not isinstance(self.token_bytes, Tensor):
            return super().denominator(scores)
        assert scores.target is not None
        return bytes_of(scores.target, self.token_bytes, scores.vocab_size)


def _whole(table: Tensor) -> Tensor:
    if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool or bool((table < 0).any()):
        raise MetricOptionError(f"token_bytes holds the bytes of each id, whole numbers from 0; got {table}")
    return table.to(torch.int64)


class BitsPerByte(_PerByte):
    """Bits per byte = −Σ ln p(target) / (ln 2 · Σ bytes): how well the model compresses UTF-8 text, in bits.

    Args:
        token_bytes: a tokenizer, or the ``(V,)`` table `xent_metrics.token_bytes` makes of it; not needed where the
            scores have `num_bytes` (lm-eval hosts count them from the text).

    Special tokens (0 bytes) are left out of both sums. Uniform over the 256 bytes it is 8.
    Reference: Gao et al. (2020), The Pile, arXiv:2101.00027, section 3.1.

    Raises:
        MetricOptionError: a table that doesn't hold whole numbers. TokenBytesError: a tokenizer that can't be counted.

    >>> metric = BitsPerByte(token_bytes=torch.tensor([0, 1, 1, 2]))
    >>> metric.update(torch.zeros(3, 4), torch.tensor([1, 3, 0]))     # 2 · 2 bits over 1 + 2 bytes
    >>> metric.compute()
    tensor(1.3333, dtype=torch.float64)
    """

    name = "bits_per_byte"
    formula = "−Σ ln p(target) / (ln 2 · bytes)"
    value_unit = "bits per byte"
    reference = "Gao et al. (2020), arXiv:2101.00027"

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return super().value(sums) / math.log(2)


class BytePerplexity(_PerByte):
    """Byte perplexity = exp(−Σ ln p(target) / Σ bytes) = 2^(bits per byte).

    Args:
        token_bytes: as for `BitsPerByte`.

    Uniform over the 256 bytes it is 256. Reference: as for `BitsPerByte`.

    Raises:
        MetricOptionError, TokenBytesError: as for `BitsPerByte`.

    >>> metric = BytePerplexity()
    >>> from xent_metrics.scoring.scores import from_loglikelihoods
    >>> metric.update(from_loglikelihoods([-4 * math.log(3.0)], num_bytes=[4]))
    >>> metric.compute()
    tensor(3.0000, dtype=torch.float64)
    """

    name = "byte_perplexity"
    formula = "exp(−Σ ln p(target) / bytes)"
    value_unit = "per byte"
    reference = "2 to the bits per byte of Gao et al. (2020), arXiv:2101.00027"
    interval_scale = "log"

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return torch.exp(super().value(sums))


class WordPerplexity(_PerLength):
    """Word perplexity = exp(−Σ ln p(target) / Σ words), words as split at white space.

    Needs scores with `num_words`: lm-eval tasks know them from the text. Reference: Jelinek et al. (1977), whose tokens
    are words.

    >>> from xent_metrics.scoring.scores import from_loglikelihoods
    >>> metric = WordPerplexity()
    >>> metric.update(from_loglikelihoods([-2 * math.log(50.0)], num_words=[2]))
    >>> metric.compute()
    tensor(50.0000, dtype=torch.float64)
    """

    name = "word_perplexity"
    formula = "exp(−Σ ln p(target) / words)"
    value_unit = "per word"
    reference = "Jelinek et al. (1977), Perplexity: a measure of the difficulty of speech recognition tasks"
    interval_scale = "log"
    length = "num_words"
    requires = frozenset({"nll", "num_words"})

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return torch.exp(super().value(sums))
