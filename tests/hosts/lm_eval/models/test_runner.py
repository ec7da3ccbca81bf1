"""The batches that windows run in, and what happens when one doesn't fit into memory."""

from __future__ import annotations

import logging

import pytest
import torch
from support.byte_model import TEXTS, ByteNet, Watched, pairs
from support.byte_model import rolling as rolling_requests
from support.hf_model import (
    TEXT,
    choices,
    rolling,
)

from xent_metrics import CrossEntropy
from xent_metrics.hosts.lm_eval import TorchLM
from xent_metrics.hosts.lm_eval.models import hf_lm, runner
from xent_metrics.hosts.lm_eval.models.windows import Window, padded, rolling_windows


def test_contexts_run_once(lm, monkeypatch):
    run = []
    states = lm.forward.states

    def watch(rows, cache=None):
        run.append(sum(map(len, rows)))
        return states(rows, cache)

    monkeypatch.setattr(lm.forward, "states", watch)
    lm._runner.sharing.longest = lm._runner.sharing.deepest = 10**6  # nothing runs to be compared
    choices(lm)
    shared = sum(run)
    monkeypatch.setattr(lm, "logits_cache", False)
    run.clear()
    choices(lm)
    assert shared < 0.35 * sum(run)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried"), RuntimeError("MPS backend out of memory")]
)
def test_a_batch_that_does_not_fit_runs_in_halves(build, lm, monkeypatch, caplog, error):
    other = build(batch_size=64)
    states, run = other.forward.states, []

    def small_memory(rows, cache=None):
        run.append(len(rows) * max(map(len, rows)))
        if run[-1] > 150:
            raise error
        return states(rows, cache)

    monkeypatch.setattr(other.forward, "states", small_memory)
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        found = choices(other)
    assert max(run) > 150
    assert "out of memory; batches have at most" in caplog.text
    assert [one[0] for one in found] == pytest.approx([one[0] for one in choices(lm)], rel=1e-6)


def test_half_a_batch_after_a_prefix_is_half_its_rows(build, monkeypatch):
    """The prefix counts in each row, as it does where batches are made."""
    lm = build(batch_size=64, max_length=96)
    lm.forward.packing = False
    context = list(range(1, 61))
    requests = [(None, context, [100 + i, i + 1]) for i in range(8)]
    expected = lm._loglikelihood_tokens(requests)
    states, tried = lm.forward.states, []

    def small_memory(rows, cache=None):
        if cache is not None:
            tried.append(len(rows))
        if len(rows) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return states(rows, cache)

    monkeypatch.setattr(lm.forward, "states", small_memory)
    found = lm._loglikelihood_tokens(requests)
    assert tried == [8, 4, 4]
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], rel=1e-6)


def test_a_request_that_never_fits_is_an_error(build, monkeypatch, caplog):
    lm = build(batch_size=64)

    def no_memory(rows, cache=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(lm.forward, "states", no_memory)
    with caplog.at_level(logging.WARNING, logger="xent_metrics"), pytest.raises(torch.OutOfMemoryError):
        choices(lm)
    assert "nothing is shared from here on" in caplog.text


def test_a_batch_size_bounds_the_tokens_of_a_batch(build, monkeypatch):
    monkeypatch.setattr(hf_lm, "_CPU_TOKENS", 10**6)
    lm = build(batch_size=2, logits_cache=False)
    states, run = lm.forward.states, []

    def watch(rows, cache=None):
        run.append(len(rows) * max(map(len, rows)))
        return states(rows, cache)

    monkeypatch.setattr(lm.forward, "states", watch)
    rolling(lm, TEXT, *(TEXT[:n] for n in (10, 20, 30, 40, 50)))
    assert max(run) == 2 * lm.max_length
    assert len(run) < 4  # short texts fill up a batch


def test_batches_hold_as_many_ids_as_the_longest_windows_and_rows_are_shared():
    watched = Watched()
    lm = TorchLM(watched, max_length=16, batch_size=2)
    requests = pairs(("pq", "r"), ("ab", "c"), ("abcdef", "gh"), ("ab", "d"), ("k", "l"), ("xyzw", "e"))
    watched.seen.clear()
    found = lm.loglikelihood(requests)
    rows = ["abcdefg", "xyzw"], ["pq", "k"]  # "ab" begins the first one, and is read there for two continuations
    expected = [
        padded([Window((*row.encode(),), ()) for row in texts], length=len(texts[0]), fill=256)[0] for texts in rows
    ]
    assert all(torch.equal(ids, wanted) for ids, wanted in zip(watched.seen, expected, strict=True))
    for request, (value, greedy) in zip(requests, found, strict=True):
        [(alone, greedy_alone)] = lm.loglikelihood([request])
        assert value == pytest.approx(alone, rel=1e-6)
        assert greedy is greedy_alone


def test_any_module_s_batch_that_does_not_fit_runs_in_halves(monkeypatch, caplog):
    lm, other = (TorchLM(Watched(), max_length=16, batch_size=8) for _ in range(2))
    run, tried = other.model.forward, []

    def small_memory(ids):
        tried.append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return run(ids)

    monkeypatch.setattr(other.model, "forward", small_memory)
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        found = other.loglikelihood_rolling(rolling_requests(*TEXTS))
    assert tried[:3] == [8, 4, 2]
    assert "Watched: out of memory; batches have at most 64 tokens from here on" in caplog.text
    assert found == pytest.approx(lm.loglikelihood_rolling(rolling_requests(*TEXTS)), rel=1e-6)


def test_with_keep_order_a_batch_that_does_not_fit_is_an_error(monkeypatch):
    """Smaller batches would not be those of the DataLoader."""
    lm, tried = TorchLM(Watched(), max_length=16, batch_size=8, keep_order=True), []

    def small_memory(ids):
        tried.append(len(ids))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(lm.model, "forward", small_memory)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        lm.loglikelihood_rolling(rolling_requests(*TEXTS))
    assert tried == [8]


def test_with_keep_order_batches_are_those_of_a_data_loader():
    texts = [TEXTS[0], TEXTS[0], TEXTS[2]]
    watched = Watched()
    lm = TorchLM(watched, max_length=16, batch_size=4, keep_order=True)
    watched.seen.clear()
    found = lm.loglikelihood_rolling(rolling_requests(*texts))
    windows = [w for text in texts for w in rolling_windows(list(text.encode()), prefix_token=256, max_length=16)]
    loader = torch.utils.data.DataLoader(
        windows, batch_size=4, collate_fn=lambda rows: padded(rows, length=16, fill=256)
    )
    metric = CrossEntropy()
    expected = list(loader)
    assert len(watched.seen) == len(expected)
    for seen, (ids, target) in zip(watched.seen, expected, strict=True):
        assert torch.equal(seen, ids)
        with torch.no_grad():
            metric.update(watched.net(ids), target)
    other = CrossEntropy()
    for value in found:
        other.update(value.scores)
    assert metric.compute().item() == other.compute().item()
    assert metric.counts()["counted"] == other.counts()["counted"] == sum(len(text.encode()) for text in texts)


def test_with_keep_order_short_windows_are_padded_to_one_shape():
    watched = Watched()
    lm = TorchLM(watched, max_length=16, batch_size=2, keep_order=True)
    watched.seen.clear()
    lm.loglikelihood_rolling(rolling_requests("ab", "c", "d"))
    assert [tuple(ids.shape) for ids in watched.seen] == [(2, 16), (1, 16)]


# Results are read one batch behind.


def watched(lm, monkeypatch):
    """What happens in order: batches that start, and batches whose results are read."""
    events, states, start_copy = [], lm.forward.states, runner.start_copy

    def start(rows, cache=None):
        events.append("start")
        return states(rows, cache)

    def copying(scores):
        arrive = start_copy(scores)
        return lambda: events.append("read") or arrive()

    monkeypatch.setattr(lm.forward, "states", start)
    monkeypatch.setattr(runner, "start_copy", copying)
    return events


def test_a_batch_is_read_once_the_next_is_started(monkeypatch):
    lm = TorchLM(ByteNet(), max_length=16, batch_size=1)
    events = watched(lm, monkeypatch)
    lm.loglikelihood_rolling(rolling_requests("abcdefgh", "bcdefgh", "cdefghi"))
    assert events == ["start", "start", "read", "start", "read", "read"]


@pytest.mark.parametrize("fails", [2, 3])
def test_what_was_started_is_kept_if_the_next_batch_does_not_fit(monkeypatch, fails):
    """No window runs twice, and none is lost."""
    lm, texts = TorchLM(ByteNet(), max_length=16, batch_size=2), ["abcdefgh", "bcdefgh", "cdefg", "defg", "efgh", "f"]
    expected = lm.loglikelihood_rolling(rolling_requests(*texts))
    events = watched(lm, monkeypatch)
    scored, states = [], lm.forward.states

    def small_memory(rows, cache=None):
        if len(events) and events.count("start") == fails - 1 and len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        scored.extend(place for row in rows for place, _, _ in row.places)
        return states(rows, cache)

    monkeypatch.setattr(lm.forward, "states", small_memory)
    assert lm.loglikelihood_rolling(rolling_requests(*texts)) == pytest.approx(expected, rel=1e-6)
    assert sorted(scored) == list(range(len(texts)))
