"""Tests for metrics: `check_metric` checks the contract that every metric keeps.

`no_host_sync` finds what waits for the device, `no_float64` what an MPS device can't run.
"""

from xent_metrics.testing.contract import check_metric, made_up_batch
from xent_metrics.testing.host_sync import no_host_sync
from xent_metrics.testing.no_float64 import no_float64

__all__ = ["check_metric", "made_up_batch", "no_float64", "no_host_sync"]
