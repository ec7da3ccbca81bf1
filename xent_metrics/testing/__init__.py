"""Tests for metrics: `check_metric` checks the contract that every metric keeps, `no_host_sync` finds device waits."""

from xent_metrics.testing.contract import check_metric, made_up_batch
from xent_metrics.testing.host_sync import no_host_sync

__all__ = ["check_metric", "made_up_batch", "no_host_sync"]
