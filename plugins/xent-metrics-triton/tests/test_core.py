"""The hooks as users meet them: `score_tokens`, `score_hidden_states` and metrics, with the plugin and without."""

from __future__ import annotations

import pytest
import torch
from xent_metrics_triton import fused, rows
from xent_metrics_triton import head as heads

from xent_metrics import TokenMetricCollection, get_metric, score_hidden_states, score_tokens
from xent_metrics.plugins import Plugins, use_plugins

EXTRA_METRICS = ["prediction_entropy", "brier_score", "z_loss", "mean_reciprocal_rank"]


@pytest.fixture
def asked(monkeypatch):
    """The names of the extra scores that the kernels were asked for, once per call."""
    asked, score_rows = [], rows.score_rows

    def recording(logits, target, wanted=(), *shape):
        asked.append(sorted(wanted))
        return score_rows(logits, target, wanted, *shape)

    monkeypatch.setattr(rows, "score_rows", recording)
    monkeypatch.setattr(heads, "score_rows", recording)
    return asked


def by_torch(compute):
    with use_plugins(Plugins()):
        return compute()


@pytest.mark.usefixtures("loaded", "small")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tokens_are_scored_by_the_kernel(dtype, batch, asked):
    logits, target = batch[0].to(dtype), batch[1]
    target[1, 3] = 13  # invalid
    scores = score_tokens(logits, target)
    assert asked == [[]]
    expected = by_torch(lambda: score_tokens(logits, target))
    assert scores.fields().keys() == expected.fields().keys()
    for name, value in expected.fields().items():
        torch.testing.assert_close(scores.fields()[name], value, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.usefixtures("loaded", "small")
def test_a_collection_gets_its_extra_scores_from_one_read(batch, asked, monkeypatch):
    metrics = TokenMetricCollection(["cross_entropy", *EXTRA_METRICS])
    reference = TokenMetricCollection(["cross_entropy", *EXTRA_METRICS])
    by_torch(lambda: reference.update(*batch))
    from xent_metrics.scoring.rows import RowScorer

    monkeypatch.setattr(RowScorer, "_by_torch", None)  # torch reads no logits
    metrics.update(*batch)
    assert asked == [sorted(rows.EXTRA_SCORES)]
    for name, value in by_torch(reference.compute).items():
        torch.testing.assert_close(metrics.compute()[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("loaded", "small")
@pytest.mark.parametrize("with_all", [False, True], ids=["plain", "bias, scale and softcap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_hidden_states_are_scored_by_the_kernel(dtype, with_all, asked, monkeypatch):
    monkeypatch.setattr(heads, "BLOCK_ROWS", 16)
    monkeypatch.setattr(heads, "_FEWEST_ROWS", 2)
    monkeypatch.setattr(fused, "score_fused", None)
    hidden, weight = torch.randn(3, 8, 6).to(dtype), torch.randn(40, 6).to(dtype)
    target = torch.randint(40, (3, 8))
    target[0, 0] = -100
    options = {"logit_scale": 0.5, "logit_softcap": 3.0, "bias": torch.randn(40)} if with_all else {}
    scores = score_hidden_states(hidden, weight, target, **options)
    assert asked
    expected = by_torch(lambda: score_hidden_states(hidden.float(), weight.float(), target, **options))
    bias_in_half = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(scores.nll, expected.nll, rtol=1e-5, atol=bias_in_half if options else 1e-5)
    assert torch.equal(scores.nll == 0, target == -100)


@pytest.mark.usefixtures("loaded", "small")
def test_a_metric_has_the_same_value_and_bits_in_any_batch(batch):
    whole, parts = get_metric("cross_entropy"), get_metric("cross_entropy")
    whole.update(*batch)
    for logits, target in zip(*batch, strict=True):
        parts.update(logits, target)
    assert torch.equal(whole.compute(), parts.compute())
    reference = get_metric("cross_entropy")
    by_torch(lambda: reference.update(*batch))
    torch.testing.assert_close(whole.compute(), reference.compute(), rtol=1e-7, atol=1e-7)
