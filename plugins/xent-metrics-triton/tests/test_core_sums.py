"""Exact sums as metrics take them: by the kernel, with the bits of torch's."""

import pytest
import torch
from xent_metrics_triton import sums

from xent_metrics import TokenMetricCollection, score_tokens
from xent_metrics.plugins import Plugins, use_plugins

NAMES = ["cross_entropy", "token_accuracy", "expected_calibration_error", "perplexity"]


@pytest.mark.usefixtures("loaded")
def test_metrics_take_their_sums_by_the_kernel_with_the_bits_of_torch_s(batch, monkeypatch):
    with use_plugins(Plugins()):
        scores = score_tokens(*batch)
        expected = TokenMetricCollection(NAMES)
        expected.update(scores)
    calls, exact_sums = [], sums.exact_sums

    def recording(values, bins, num_bins):
        calls.append((len(values), num_bins))
        return exact_sums(values, bins, num_bins)

    monkeypatch.setattr(sums, "exact_sums", recording)
    with use_plugins(Plugins()):
        scores = score_tokens(*batch)
    metrics = TokenMetricCollection(NAMES)
    metrics.update(scores)
    assert {bins for _, bins in calls} >= {1, 15}
    for name, value in expected.compute().items():
        assert torch.equal(metrics.compute()[name], value)
