"""Selective prediction: what a model's errors would be if it answered only where it is confident."""

from xent_metrics_selective.metrics import ConfidenceAUROC, RiskCoverageArea, register_metrics

# The version of xent-metrics' hooks that this plugin was made for.
XENT_METRICS_HOOKS = 1

__all__ = ["ConfidenceAUROC", "RiskCoverageArea", "register_metrics"]
