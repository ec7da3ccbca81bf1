"""Metrics of selective prediction, from sums over 256 fixed cells of the top-1 confidence, which calibration metrics share."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from xent_metrics import SharedSum, TokenMetric, hookimpl
from xent_metrics.metrics.confidence_bins import CELLS, BinSum
from xent_metrics.plots import pyplot_axes
from xent_metrics_selective.curves import area, auroc, risk_coverage, sorted_cells

__all__ = ["ConfidenceAUROC", "RiskCoverageArea", "register_metrics"]

_TOKENS, _CORRECT = BinSum("tokens", "mass", CELLS), BinSum("correct", "mass", CELLS)


class _OfCells(TokenMetric):
    """A function of how many tokens, and how many right ones, are in each cell of the confidence."""

    requires = frozenset({"nll", "confidence", "correct"})

    def shared_sums(self) -> Sequence[SharedSum]:
        return _TOKENS, _CORRECT

    @staticmethod
    @abstractmethod
    def of_cells(tokens: Tensor, correct: Tensor) -> Tensor:
        """The value, 0-d, of histograms ``(K,)`` from the lowest confidence up."""

    def value(self, sums: Mapping[str, Tensor]) -> Tensor:
        return self.of_cells(sums[_TOKENS.name], sums[_CORRECT.name])

    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value that any order of the tokens within the cells has, over all processes.

        The value without cells, from all confidences sorted, is between them whatever its ties.
        """
        tokens, correct = self._cells()
        found = [float(self.of_cells(*sorted_cells(tokens, correct, right_first=first))) for first in (True, False)]
        return min(found), max(found)

    def _cells(self) -> tuple[Tensor, Tensor]:
        with self.over_all_processes():
            self.check_state(self.state.cpu())
            sums = self.totals()
        return sums[_TOKENS.name], sums[_CORRECT.name]


class RiskCoverageArea(_OfCells):
    """Area under the risk–coverage curve = 1/N Σ_i (errors among the i most confident tokens)/i, an error rate (AURC).

    A model that answers only its i most confident tokens has the coverage i/N and the risk errors/i. The area is the mean
    risk over all coverages: the error rate if confidence says nothing, less if errors come with low confidence.

    Within a cell the tokens count as in random order: exact for tokens of equal confidence, `bounds` says how far other
    orders could lie. With weights, i is the running sum of the weights.

    Reference: Geifman, Uziel and El-Yaniv (2019), Bias-Reduced Uncertainty Estimation, arXiv:1805.08206.

    >>> import torch
    >>> metric = RiskCoverageArea()
    >>> logits = torch.tensor([[4.0, 0.0], [2.0, 0.0], [1.0, 0.0]])  # three confidences
    >>> metric.update(logits, torch.tensor([0, 1, 0]))  # right, wrong, right: (0/1 + 1/2 + 1/3) / 3
    >>> metric.compute()
    tensor(0.2778, dtype=torch.float64)
    """

    name = "risk_coverage_area"
    formula = "1/N Σ_i (errors among the i most confident tokens)/i"
    latex = (
        r"\frac{1}{N} \sum_{i=1}^{N} \frac{1}{i} \sum_{j=1}^{i} \left[\operatorname{argmax} p_{(j)} \ne y_{(j)}\right]"
    )
    use_when = (
        "Where a model may abstain: its mean error rate over all shares of tokens that it answers, the surest first."
    )
    hides = "At which share the errors come (plot the curve). A more accurate model is better here even if its confidence is not."
    value_unit = "error rate"
    value_range = (0.0, 1.0)
    reference = "Geifman et al. (2019), arXiv:1805.08206"
    higher_is_better = False
    of_cells = staticmethod(area)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the risk–coverage curve of everything added, on all processes; with `val`, these values over steps.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        if val is not None:
            return super().plot(val, ax)
        figure, axes = pyplot_axes(ax)
        tokens, correct = self._cells()
        coverage, risk = (each[tokens.flip(0) > 0].numpy() for each in risk_coverage(tokens, correct))
        axes.plot(coverage, risk, marker=".", label="answered in the order of confidence")
        axes.axhline(float(1 - correct.sum() / tokens.sum()), linestyle="--", color="grey", label="in random order")
        axes.set(xlim=(0, 1), ylim=(0, None), xlabel="coverage: share of tokens answered", ylabel="risk: share wrong")
        axes.set_title(f"risk–coverage area {float(area(tokens, correct)):.4f}")
        axes.legend()
        return figure, axes


class ConfidenceAUROC(_OfCells):
    """AUROC of the confidence = P(a right token is more confident than a wrong one) + ½ P(equally), a probability.

    ½ if the confidence says nothing about which tokens are right, 1 if every right token is more confident than every
    wrong one. nan if all tokens are right, or all wrong. Pairs within a cell count as equal; `bounds` says how far the
    value of the sorted confidences could lie.

    Reference: Hendrycks and Gimpel (2017), A Baseline for Detecting Misclassified Examples, arXiv:1610.02136.

    >>> import torch
    >>> metric = ConfidenceAUROC()
    >>> logits = torch.tensor([[4.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    >>> metric.update(logits, torch.tensor([0, 1, 0]))  # the wrong one is between the right ones
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    name = "confidence_auroc"
    formula = "P(confidence of a right token > of a wrong one) + ½ P(equal)"
    latex = r"P(c_{\mathrm{right}} > c_{\mathrm{wrong}}) + \tfrac{1}{2} P(c_{\mathrm{right}} = c_{\mathrm{wrong}})"
    use_when = "To see how well confidence tells right from wrong, whatever the accuracy; 0.5 is chance."
    hides = "Calibration: any increasing change of the confidence leaves it as it is."
    value_unit = "probability"
    value_range = (0.0, 1.0)
    reference = "Hendrycks and Gimpel (2017), arXiv:1610.02136"
    higher_is_better = True
    of_cells = staticmethod(auroc)


@hookimpl
def register_metrics(register: Any) -> None:
    """Register the metrics."""
    register(RiskCoverageArea)
    register(ConfidenceAUROC)
