"""Risk, coverage and AUROC of histograms over the confidence. Every function takes cells from the lowest confidence up.

Which tokens of a cell are right is known, in which order they would be answered is not: each function gives the mean over
all orders. `sorted_cells` makes the best and the worst of the orders, which bound the value without cells.
"""

import torch
from torch import Tensor

from xent_metrics.metrics.running_sum import running_sum

__all__ = ["area", "auroc", "risk_coverage", "sorted_cells"]


def risk_coverage(tokens: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage and risk after each cell ``(K,)``, from the highest confidence down.

    Coverage is the share of tokens that are answered, risk the share of wrong ones among them.

    >>> risk_coverage(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 2.0]))
    (tensor([0.5000, 1.0000]), tensor([0.0000, 0.2500]))
    """
    tokens, correct = tokens.flip(0), correct.flip(0)
    answered = running_sum(tokens)
    return answered / answered[-1], running_sum(tokens - correct) / answered


def area(tokens: Tensor, correct: Tensor) -> Tensor:
    """1/N Σ_i (errors among the i most confident)/i, 0-d; nan without tokens.

    With E errors among the n before a cell of m tokens with the error rate r, the expected sum over its tokens is
    Σ_j (E + r j)/(n + j) = r m + (E − r n)(H_{n + m} − H_n), with the harmonic numbers H.

    >>> area(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 1.0]))  # (0/1 + 1/2 + 1/3) / 3
    tensor(0.2778)
    """
    tokens, errors = tokens.flip(0), (tokens - correct).flip(0)
    tokens_before, errors_before = running_sum(tokens) - tokens, running_sum(errors) - errors
    rate = errors / torch.where(tokens == 0, 1, tokens)
    harmonic = torch.digamma(tokens_before + tokens + 1) - torch.digamma(tokens_before + 1)
    return (rate * tokens + (errors_before - rate * tokens_before) * harmonic).sum() / tokens.sum()


def auroc(tokens: Tensor, correct: Tensor) -> Tensor:
    """The probability that a right token has a higher confidence than a wrong one, plus half of that of equal ones, 0-d.

    nan unless there are right and wrong tokens.

    >>> auroc(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([0.0, 1.0, 1.0]))  # (1 + ½ + 1 + 1) / 4
    tensor(0.8750)
    """
    errors = tokens - correct
    below = running_sum(errors) - errors / 2
    return (correct / correct.sum() * below / errors.sum()).sum()


def sorted_cells(tokens: Tensor, correct: Tensor, *, right_first: bool) -> tuple[Tensor, Tensor]:
    """The histogram with each cell split in two: its right and its wrong tokens, the ones answered first on top.

    >>> sorted_cells(torch.tensor([3.0]), torch.tensor([2.0]), right_first=True)
    (tensor([1., 2.]), tensor([0., 2.]))
    """
    errors, none = tokens - correct, torch.zeros_like(correct)
    halves = [(errors, none), (correct, correct)]
    if not right_first:
        halves.reverse()
    split, right = (torch.stack(each, dim=1).reshape(-1) for each in zip(*halves, strict=True))
    return split, right
