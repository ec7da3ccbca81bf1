"""Standard errors over sequences: from documents' own sums, from sums of products, and as numpy has them."""

import dataclasses

import numpy as np
import pytest
import torch

from xent_metrics import CrossEntropy, Perplexity, TokenMetricCollection, get_metric, score_tokens
from xent_metrics.analysis import StandardError, standard_error_from_moments
from xent_metrics.errors import CapacityError
from xent_metrics.scoring.pairs import score_pair
from xent_metrics.testing import no_host_sync
from xent_metrics.wrappers.standard_error import standard_error

VOCAB, SEQUENCES, LENGTH = 11, 24, 13
BYTES = torch.arange(VOCAB) % 4  # two tokens of no bytes


def sequences(seed=0):
    """Scores (SEQUENCES, LENGTH) of sequences of different lengths, one of them without any token that counts."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(SEQUENCES, LENGTH, VOCAB, generator=generator)
    target = torch.randint(VOCAB, (SEQUENCES, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (SEQUENCES, 1), generator=generator)
    target[torch.arange(LENGTH) >= lengths] = -100
    target[5] = -100
    return score_tokens(logits, target, token_bytes=BYTES)


def metrics():
    options = {
        "bits_per_byte": {"token_bytes": BYTES},
        "byte_perplexity": {},
        "expected_calibration_error": {"num_bins": 4},
    }
    names = ["cross_entropy", "perplexity", "token_accuracy", "calibration_weighted_cross_entropy", *options]
    return [get_metric(name, **options.get(name, {})) for name in names]


def ratio_estimator(numerator, denominator):
    """Cochran (1977), 6.3, in numpy: the error of Σy / Σx."""
    y, x = np.asarray(numerator, float), np.asarray(denominator, float)
    ratio = y.sum() / x.sum()
    return ratio, np.sqrt(len(x) / (len(x) - 1) * ((y - ratio * x) ** 2).sum()) / x.sum()


def counted_rows(scores):
    return [scores[row] for row in range(SEQUENCES) if scores.counted[row].any()]


@pytest.mark.parametrize("metric", metrics(), ids=lambda metric: metric.name)
def test_products_and_documents_give_one_error(metric):
    scores = sequences()
    error = StandardError(metric)
    error.update(scores)
    states = torch.stack([metric.exact_sums(row) for row in counted_rows(scores)])
    assert error.compute().item() == pytest.approx(standard_error(metric, states), rel=1e-10)
    assert error.compute() > 0


def test_ratio_errors_are_numpys():
    scores = sequences()
    rows = counted_rows(scores)
    nats = [row.nll[row.counted].double().sum().item() for row in rows]
    tokens = [row.counted.sum().item() for row in rows]
    mean, expected = ratio_estimator(nats, tokens)
    byte_nats = [row.nll[row.counted & (row.num_bytes > 0)].double().sum().item() for row in rows]
    _, per_byte = ratio_estimator(byte_nats, [(row.num_bytes * row.counted).sum().item() for row in rows])
    wanted = {
        "cross_entropy": expected,
        "perplexity": np.exp(mean) * expected,
        "token_accuracy": ratio_estimator([row.correct.sum().item() for row in rows], tokens)[1],
        "bits_per_byte": per_byte / np.log(2),
    }
    found = {metric.name: StandardError(metric) for metric in metrics()}
    for name, value in wanted.items():
        found[name].update(scores)
        assert found[name].compute().item() == pytest.approx(value, rel=1e-9), name


def test_any_order_batching_and_merge_has_the_same_bits():
    scores = sequences()
    whole = TokenMetricCollection([StandardError(metric) for metric in metrics()])
    whole.update(scores)
    order = torch.randperm(SEQUENCES, generator=torch.Generator().manual_seed(1))
    halves = [whole.clone(), whole.clone()]
    for half, rows in zip(halves, (order[:7], order[7:]), strict=True):
        half.reset()
        for part in rows.split(3):
            half.update(scores[part])
    for key, metric in halves[0].members().items():
        metric.merge_state(halves[1].members()[key])
        assert torch.equal(metric.state, whole.members()[key].state)
    assert halves[0].compute() == whole.compute()


@pytest.mark.parametrize("name", ["cross_entropy", "calibration_weighted_cross_entropy"])
def test_documents_in_any_order_have_one_error_to_the_last_bit(name):
    generator = torch.Generator().manual_seed(5)
    logits, target = (
        torch.randn(301, 7, VOCAB, generator=generator),
        torch.randint(VOCAB, (301, 7), generator=generator),
    )
    metric = get_metric(name)
    states = torch.stack([metric.exact_sums(score_tokens(x, y)) for x, y in zip(logits, target, strict=True)])
    orders = [torch.randperm(301, generator=generator) for _ in range(10)]
    assert {standard_error(metric, states[order]) for order in orders} == {standard_error(metric, states)}


def test_documents_that_are_empty_or_ignored_are_no_samples():
    metric, scores = CrossEntropy(), sequences()
    states = torch.stack([metric.exact_sums(scores[row]) for row in range(SEQUENCES)])
    only = torch.stack([metric.exact_sums(row) for row in counted_rows(scores)])
    assert len(only) == SEQUENCES - 1
    assert standard_error(metric, torch.cat([states, torch.zeros_like(states[:2])])) == standard_error(metric, only)


def test_padding_does_not_change_the_error():
    generator = torch.Generator().manual_seed(3)
    logits, target = torch.randn(6, 5, VOCAB, generator=generator), torch.randint(VOCAB, (6, 5), generator=generator)
    short, long = StandardError(CrossEntropy()), StandardError(CrossEntropy())
    short.update(logits, target)
    padding = torch.full((6, 3), -100)
    long.update(torch.cat([logits, torch.randn(6, 3, VOCAB)], 1), torch.cat([target, padding], 1))
    assert torch.equal(short.state[3:], long.state[3:])  # all but the counts of ignored rows


def test_duplicates_of_weight_zero_are_no_samples():
    scores = sequences()
    weight = torch.ones(SEQUENCES, LENGTH)
    weight[3] = 0.0
    masked, without = StandardError(CrossEntropy()), StandardError(CrossEntropy())
    masked.update(dataclasses.replace(scores, weight=weight))
    without.update(scores[torch.arange(SEQUENCES) != 3])
    assert masked.compute() == without.compute()


@pytest.mark.parametrize("name", ["cross_entropy", "token_accuracy", "expected_calibration_error"])
def test_nan_policy_omit_is_the_error_without_the_rows_of_nan(name):
    logits, target = torch.randn(9, 5, 7), torch.randint(7, (9, 5))
    spoilt, without = logits.clone(), target.clone()
    spoilt[0, 1], without[0, 1] = torch.nan, -100  # a row of a sequence
    spoilt[3], without[3] = torch.nan, -100  # a whole one
    found, want = StandardError(get_metric(name)), StandardError(get_metric(name))
    found.update(spoilt, target)
    want.update(logits, without)
    assert found.counts()["nan"] == 6
    assert found.compute(nan_policy="omit") == want.compute() > 0
    with pytest.warns(UserWarning, match="6 of 45 rows gave nan"):
        assert found.compute().isnan()
    spoilt[0, 1], spoilt[3] = -torch.inf, logits[3]
    spoilt[0, 1, 0] = 0.0
    target[0, 1] = 1
    infinite = StandardError(get_metric("cross_entropy"))
    infinite.update(spoilt, target)
    assert infinite.compute().isnan()


def test_one_sample_has_no_error_and_equal_samples_have_none_to_speak_of():
    error = StandardError(Perplexity())
    assert error.compute().isnan()
    error.update(torch.randn(1, 4, VOCAB), torch.zeros(1, 4, dtype=torch.long))
    assert error.compute().isnan()
    equal = StandardError(CrossEntropy())
    equal.update(torch.zeros(5, 4, VOCAB), torch.zeros(5, 4, dtype=torch.long))
    assert equal.compute() < 1e-7


def test_rows_of_one_dimension_are_samples_of_their_own():
    error = StandardError(CrossEntropy())
    scores = sequences()[0]
    error.update(scores)
    values = scores.nll[scores.counted].double().numpy()
    assert error.compute().item() == pytest.approx(values.std(ddof=1) / np.sqrt(len(values)), rel=1e-9)


def test_the_error_is_computed_in_inference_mode_too():
    with torch.inference_mode():
        error = StandardError(CrossEntropy())
        error.update(sequences())
        inside = error.compute()
    outside = StandardError(CrossEntropy())
    outside.update(sequences())
    assert inside.item() == outside.compute().item()


def test_a_function_that_is_no_ratio_has_its_own_error():
    rows = torch.rand(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    products, samples = rows.T @ rows, torch.tensor(20.0)
    found = standard_error_from_moments(lambda sums: sums[0], rows.sum(0), products, samples)  # a total
    assert found.item() == pytest.approx(np.sqrt(20) * rows[:, 0].numpy().std(ddof=1), rel=1e-9)


def test_an_update_waits_for_no_device():
    error, like = StandardError(get_metric("expected_calibration_error")), sequences()
    with no_host_sync() as device:
        scores = like.map(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device))
        assert error.exact_sums(scores).shape == error.state.shape


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-7])
@pytest.mark.parametrize("name", ["rms_probability_change", "kl_divergence", "jensen_shannon_divergence"])
def test_errors_of_tiny_values_are_those_of_the_documents(name, scale):
    generator = torch.Generator().manual_seed(6)
    base = torch.randn(SEQUENCES, LENGTH, VOCAB, generator=generator)
    other = base + scale * torch.randn(base.shape, generator=generator)
    target = torch.randint(VOCAB, (SEQUENCES, LENGTH), generator=generator)
    metric, error = get_metric(name), StandardError(get_metric(name))
    error.update((base, other), target)
    states = torch.stack([metric.exact_sums(score_pair(*row)) for row in zip(base, other, target, strict=True)])
    assert error.compute().item() == pytest.approx(standard_error(metric, states), rel=1e-8)
    assert error.compute() > 0


@pytest.mark.parametrize("name", ["cross_entropy", "expected_calibration_error"])
def test_the_scale_of_the_weights_does_not_change_the_error(name):
    scores, weight = sequences(), torch.rand(SEQUENCES, LENGTH, dtype=torch.float64) + 0.5
    found = []
    for factor in (1.0, 1e-9, 1e-12):
        error = StandardError(get_metric(name))
        error.update(dataclasses.replace(scores, weight=factor * weight))
        found.append(error.compute().item())
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


@pytest.mark.parametrize("token_bytes", [None, BYTES])
def test_weights_too_small_for_the_sums_are_refused_by_the_error_as_by_the_metric(token_bytes):
    scores = dataclasses.replace(sequences(), weight=torch.full((SEQUENCES, LENGTH), 1e-16, dtype=torch.float64))
    metric = CrossEntropy() if token_bytes is None else get_metric("bits_per_byte", token_bytes=token_bytes)
    for each in (metric, StandardError(metric), TokenMetricCollection([StandardError(metric)])):
        each.update(scores)
        with pytest.raises(CapacityError, match=r"so small that .* Multiply all weights by one factor"):
            each.compute()
