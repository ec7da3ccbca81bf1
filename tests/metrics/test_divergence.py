"""Metrics of two models against torch's kl_div, scipy and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from support import reference_pairs
from torch.nn import functional as F

from xent_metrics import TokenMetricCollection, get_metric
from xent_metrics.analysis import StandardError, delta_interval
from xent_metrics.errors import MetricOptionError
from xent_metrics.scoring.pairs import score_pair
from xent_metrics.wrappers.standard_error import standard_error

MEANS = ["kl_divergence", "jensen_shannon_divergence", "soft_cross_entropy"]


def probabilities(base, other, temperature=1.0):
    return [torch.softmax(x.double() / temperature, -1).reshape(-1, 70).numpy() for x in (base, other)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", reference_pairs.REFERENCES)
def test_metrics_of_two_models_are_those_of_fifty_digits(name, dtype, pair_batch):
    base, other, target = (tensor[:, :12] for tensor in pair_batch)
    base, other = base.to(dtype), other.to(dtype)
    rows = [logits.double().flatten(0, -2).tolist() for logits in (base, other)]
    want = float(reference_pairs.REFERENCES[name](*rows, target.flatten().tolist()))
    metric = get_metric(name)
    metric.update((base, other), target)
    exact = 0.0101 if name == "kl_divergence_quantile" else 1e-13 if dtype == torch.float64 else 5e-6
    assert metric.compute().item() == pytest.approx(want, rel=exact)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_divergences_are_those_of_torch_and_scipy(pair_batch, temperature):
    base, other, _ = pair_batch
    metrics = TokenMetricCollection({name: get_metric(name, temperature=temperature) for name in MEANS})
    metrics.update(base, other)
    found = metrics.compute()
    p, q = probabilities(base, other, temperature)
    kl = F.kl_div(torch.tensor(q).log(), torch.tensor(p), reduction="batchmean")
    js = np.mean([jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)])
    assert float(found["kl_divergence"]) == pytest.approx(float(kl), rel=1e-5)
    assert float(found["jensen_shannon_divergence"]) == pytest.approx(js, rel=1e-5)
    assert float(found["soft_cross_entropy"]) == pytest.approx(-(p * np.log(q)).sum(1).mean(), rel=1e-5)
    soft = F.cross_entropy(other.reshape(-1, 70) / temperature, torch.tensor(p, dtype=torch.float32))
    assert float(found["soft_cross_entropy"]) == pytest.approx(float(soft), rel=1e-5)


def test_changes_by_quantising_are_those_of_numpy(pair_batch):
    base, other, target = pair_batch
    names = ["probability_change", "rms_probability_change", "log_perplexity_ratio", "same_top_token"]
    metrics = TokenMetricCollection(names)
    metrics.update((base, other), target)
    found = {name: float(value) for name, value in metrics.compute().items()}
    keep = (target != -100).reshape(-1).numpy()
    ids = target.reshape(-1).numpy()[keep]
    p, q = (x[keep][np.arange(len(ids)), ids] for x in probabilities(base, other))
    assert found["probability_change"] == pytest.approx((q - p).mean(), rel=1e-5)
    assert found["rms_probability_change"] == pytest.approx(np.sqrt(((q - p) ** 2).mean()), rel=1e-5)
    assert found["log_perplexity_ratio"] == pytest.approx(np.log(p / q).mean(), rel=1e-5)
    same = (base.argmax(-1) == other.argmax(-1)).reshape(-1).numpy()[keep]
    assert found["same_top_token"] == same.mean()


def test_the_perplexity_ratio_is_the_ratio_of_both_perplexities(pair_batch):
    base, other, target = pair_batch
    ratio, first, second = get_metric("log_perplexity_ratio"), get_metric("perplexity"), get_metric("perplexity")
    ratio.update((base, other), target)
    first.update(base, target)
    second.update(other, target)
    assert math.exp(ratio.compute()) == pytest.approx(float(second.compute() / first.compute()), rel=1e-6)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99, 0.999, 1.0])
def test_quantiles_are_within_one_percent(quantile):
    generator = torch.Generator().manual_seed(1)
    base = 3 * torch.randn(4000, 20, generator=generator)
    other = base + torch.randn(4000, 20, generator=generator) * torch.rand(4000, 1, generator=generator) ** 4
    metric = get_metric("kl_divergence_quantile", quantile=quantile)
    for rows in range(0, 4000, 1000):
        metric.update(base[rows : rows + 1000], other[rows : rows + 1000])
    divergences = score_pair(base, other).extra_scores["kl_divergence"].double().numpy()
    exact = np.quantile(divergences, quantile, method="inverted_cdf")
    assert float(metric.compute()) == pytest.approx(exact, rel=0.0101)


def test_equal_models_do_not_differ(pair_batch):
    base, _, target = pair_batch
    for name, value in {**dict.fromkeys(MEANS[:2], 0.0), "same_top_token": 1.0, "log_perplexity_ratio": 0.0}.items():
        metric = get_metric(name)
        metric.update((base, base), target)
        assert float(metric.compute()) == pytest.approx(value, abs=1e-6)
    quantile = get_metric("kl_divergence_quantile", quantile=0.0)
    quantile.update(base, base)
    assert float(quantile.compute()) < 1e-6


def test_quantiles_on_an_infinite_divergence_are_infinite():
    possible, impossible = torch.zeros(3, 2), torch.tensor([[0.0, -torch.inf]])
    quantiles = {
        quantile: get_metric("kl_divergence_quantile", quantile=quantile) for quantile in (0.5, 0.75, 0.76, 1.0)
    }
    for metric in quantiles.values():
        metric.update(possible, possible)
        metric.update(possible[:1], impossible)
    assert [float(metric.compute()) for metric in quantiles.values()] == [0.0, 0.0, math.inf, math.inf]
    alone = get_metric("kl_divergence_quantile")
    alone.update(possible[:1], impossible)
    assert float(alone.compute()) == math.inf
    far = get_metric("kl_divergence_quantile", quantile=1.0)  # far, but not infinitely
    far.update(torch.tensor([[0.0, 9e4]]), torch.tensor([[9e4, 0.0]]))
    assert float(far.compute()) == pytest.approx(1e4, rel=0.0101)


def test_identical_models_have_an_rms_change_of_zero_with_an_error_of_zero(pair_batch):
    error = StandardError(get_metric("rms_probability_change"))
    error.update((pair_batch[0], pair_batch[0]), pair_batch[2])
    assert float(error.compute()) == 0.0


def test_a_quantile_has_no_standard_error_by_the_delta_method(pair_batch):
    metric = get_metric("kl_divergence_quantile")
    with pytest.raises(
        MetricOptionError, match=r"kl_divergence_quantile is a step .* xent_metrics\.analysis\.bootstrap"
    ):
        StandardError(metric)
    documents = torch.stack([metric.exact_sums(score_pair(*row)) for row in zip(*pair_batch, strict=True)])
    assert math.isnan(standard_error(metric, documents))
    assert math.isnan(delta_interval(metric, documents).low)


def test_a_quantile_is_from_0_to_1():
    with pytest.raises(MetricOptionError, match=r"quantile is a number in \[0, 1\]; got 2"):
        get_metric("kl_divergence_quantile", quantile=2)
