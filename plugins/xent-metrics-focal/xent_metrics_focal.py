"""Focal cross entropy (Lin et al. 2017, arXiv:1708.02002), in nats per token."""

from xent_metrics import RatioMetric, hookimpl


class FocalCrossEntropy(RatioMetric):
    """Focal cross entropy = −Σ (1 − p)^γ ln p / tokens, where p is the probability of the target. Easy tokens count less.

    Args:
        gamma: γ. With 0 it is the cross entropy.

    Reference: Lin et al. (2017), Focal Loss for Dense Object Detection, arXiv:1708.02002.

    >>> import torch
    >>> metric = FocalCrossEntropy(gamma=2.0)
    >>> metric.update(torch.zeros(3, 4), torch.tensor([0, 1, 2]))    # p = 1/4 each: (3/4)² ln 4
    >>> metric.compute()
    tensor(0.7798, dtype=torch.float64)
    """

    name = "focal_cross_entropy"
    higher_is_better = False
    formula = "−Σ (1 − p)^γ ln p / tokens"
    value_unit = "nats per token"
    reference = "Lin et al. (2017), arXiv:1708.02002"

    def __init__(self, gamma: float = 2.0, **kwargs):
        super().__init__(**kwargs)
        self.gamma = gamma

    def per_token(self, scores):
        return (1 - scores.prob) ** self.gamma * scores.nll


@hookimpl
def register_metrics(register):
    register(FocalCrossEntropy)
