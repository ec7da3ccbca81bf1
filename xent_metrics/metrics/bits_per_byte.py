"""Losses per byte and per word of text, which can be compared between tokenizers.

Nats and bytes are counted over the same tokens: a special token has 0 bytes, so its nll is left out, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from xent_metrics.errors import MetricOptionError
from xent_metrics.scoring.inputs import as_tensor, bytes_of
from xent_metrics.scoring.scores import TokenScores
from xent_metrics.scoring.token_bytes import token_bytes as make_token_bytes
from xent_metrics.sums.options import readable
from xent_metrics.sums.ratio import RatioMetric
from xent_metrics.sums.shared_sums import SharedSum

__all__ = ["BitsPerByte", "BytePerplexity", "WordPerplexity"]


@dataclass(frozen=True)
class Length(SharedSum):
    """Σ weight · num_bytes, or num_words."""

    field: str

    @property
    def name(self) -> str:
        return self.field

    def terms(self, scores: TokenScores) -> Tensor:
        return scores.weighted(_lengths(scores, self.field))


@dataclass(frozen=True)
class NatsWithLength(SharedSum):
    """Σ weight · nll over the rows with a length."""

    field: str

    @property
    def name(self) -> str:
        return f"nats[{self.field} > 0]"

    def terms(self, scores: TokenScores) -> Tensor:
        return scores.weighted(_nll_if(_lengths(scores, self.field) > 0, scores))


def _lengths(scores: TokenScores, field: str) -> Tensor:
    lengths: Tensor = getattr(scores, field)
    return lengths


def _nll_if(has_length: Tensor, scores: TokenScores) -> Tensor:
    return torch.where(has_length, scores.nll, torch.zeros_like(scores.nll))


class _PerLength(RatioMetric):
    """Σ nll / Σ length over the rows with a length."""

    length: ClassVar[str]
    higher_is_better = False
    row_kinds = frozenset({"token", "document", "choice"})

    def sum_names(self) -> tuple[str | SharedSum, str | SharedSum]:
        return NatsWithLength(self.length), Length(self.length)

    def per_token(self, scores: TokenScores) -> Tensor:
        return _nll_if(self.denominator(scores) > 0, scores)

    def denominator(self, scores: TokenScores) -> Tensor:
        return _lengths(scores, self.length)


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

    def sum_names(self) -> tuple[str | SharedSum, str | SharedSum]:
        if not isinstance(self.token_bytes, Tensor):
            return super().sum_names()
        nats, length = (each.name for each in (NatsWithLength(self.length), Length(self.length)))
        return f"{nats}(token_bytes={self._table_name})", f"{length}(token_bytes={self._table_name})"

    def denominator(self, scores: TokenScores) -> Tensor:
        """The bytes by the metric's own table; without one, those of the scores."""
        if not isinstance(self.token_bytes, Tensor):
            return super().denominator(scores)
        assert scores.target is not None
        return bytes_of(scores.target, self.token_bytes, scores.vocab_size)


def _whole(table: Tensor) -> Tensor:
    if table.is_floating_point() or table.is_complex() or table.dtype == torch.bool:
        raise MetricOptionError(
            f"token_bytes holds the bytes of each id as integers; got {table.dtype}. Pass token_bytes.long()"
        )
    if bool((table < 0).any()):
        raise MetricOptionError(
            f"token_bytes holds the bytes of each id, integers from 0; got {int(table.min())}. Give ids that don't count 0"
        )
    return table.to(torch.int64)


class BitsPerByte(_PerByte):
    """Bits per byte = −Σ ln p(target) / (ln 2 · Σ bytes): how well the model compresses UTF-8 text, in bits.

    Args:
        token_bytes: a tokenizer, or the table ``(V,)`` that `xent_metrics.token_bytes` makes of it. Not needed if the
            scores have `num_bytes`, as in lm-eval tasks, which count them in the text.
        kwargs: as for `TokenMetric`.

    Special tokens (0 bytes) are left out of both sums. Uniform over the 256 bytes it is 8.
    Reference: Gao et al. (2020), The Pile, arXiv:2101.00027, section 3.1.

    Raises:
        MetricOptionError: a table that doesn't hold whole numbers.
        TokenBytesError: a tokenizer with ids that can't be mapped to bytes.

    >>> metric = BitsPerByte(token_bytes=torch.tensor([0, 1, 1, 2]))
    >>> metric.update(torch.zeros(3, 4), torch.tensor([1, 3, 0]))     # 2 · 2 bits over 1 + 2 bytes
    >>> metric.compute()
    tensor(1.3333, dtype=torch.float64)
    """

    name = "bits_per_byte"
    formula = "−Σ ln p(target) / (ln 2 · bytes)"
    latex = r"-\frac{\sum_t \ln p_t(y_t)}{\ln 2 \cdot \sum_t \mathrm{bytes}(y_t)}"
    value_unit = "bits per byte"
    value_range = (0.0, math.inf)
    reference = "Gao et al. (2020), arXiv:2101.00027"
    use_when = (
        "To compare models with different tokenizers on the same text. It is the rate at which the model would "
        "compress the text."
    )
    hides = (
        "Languages and scripts can't be compared by it: a byte isn't the same amount of text in all of them. Special "
        "tokens don't count, however badly they are predicted."
    )

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return super().value(sums) / math.log(2)


class BytePerplexity(_PerByte):
    """Byte perplexity = exp(−Σ ln p(target) / Σ bytes) = 2^(bits per byte).

    Args:
        token_bytes: as for `BitsPerByte`.
        kwargs: as for `TokenMetric`.

    Uniform over the 256 bytes it is 256. Reference: as for `BitsPerByte`.

    Raises:
        MetricOptionError: as for `BitsPerByte`.
        TokenBytesError: as for `BitsPerByte`.

    >>> metric = BytePerplexity()
    >>> from xent_metrics.scoring.scores import from_loglikelihoods
    >>> metric.update(from_loglikelihoods([-4 * math.log(3.0)], num_bytes=[4]))
    >>> metric.compute()
    tensor(3.0000, dtype=torch.float64)
    """

    name = "byte_perplexity"
    formula = "exp(−Σ ln p(target) / bytes)"
    latex = r"\exp\left(-\frac{\sum_t \ln p_t(y_t)}{\sum_t \mathrm{bytes}(y_t)}\right)"
    value_unit = "per byte"
    value_range = (1.0, math.inf)
    reference = "2 to the bits per byte of Gao et al. (2020), arXiv:2101.00027"
    use_when = "Where a benchmark reports it. It is 2 to the power of bits_per_byte, and says the same."
    hides = "All that bits_per_byte hides. It is not far above 1 for good models, so that differences look small."
    interval_scale = "log"

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return torch.exp(super().value(sums))


class WordPerplexity(_PerLength):
    """Word perplexity = exp(−Σ ln p(target) / Σ words), with words split at white space.

    Needs scores with `num_words`, which lm-eval tasks count in the text. Reference: Jelinek et al. (1977), in which tokens
    are words.

    >>> from xent_metrics.scoring.scores import from_loglikelihoods
    >>> metric = WordPerplexity()
    >>> metric.update(from_loglikelihoods([-2 * math.log(50.0)], num_words=[2]))
    >>> metric.compute()
    tensor(50.0000, dtype=torch.float64)
    """

    name = "word_perplexity"
    formula = "exp(−Σ ln p(target) / words)"
    latex = r"\exp\left(-\frac{\sum_t \ln p_t(y_t)}{\mathrm{words}}\right)"
    value_unit = "per word"
    value_range = (1.0, math.inf)
    reference = "Jelinek et al. (1977), Perplexity: a measure of the difficulty of speech recognition tasks"
    use_when = "To compare with published values on corpora of words, such as WikiText."
    hides = (
        "Words are what white space separates, which means little for code and for languages that are written without"
        " spaces. A text that was preprocessed in another way has another number of words."
    )
    interval_scale = "log"
    length = "num_words"
    requires = frozenset({"nll", "num_words"})

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return torch.exp(super().value(sums))
