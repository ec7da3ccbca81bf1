"""What is summed: the terms of one sum, plain or by bin."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Binned", "Terms"]


@dataclass(frozen=True)
class Binned:
    """Terms that are summed by bin.

    Attributes:
        values: the terms, of any shape.
        bins: for each of them an index in ``[0, num_bins)``.
        num_bins: the number of bins.
    """

    values: Tensor
    bins: Tensor
    num_bins: int


#: The terms of one sum, or of one sum per bin.
Terms = Tensor | Binned
