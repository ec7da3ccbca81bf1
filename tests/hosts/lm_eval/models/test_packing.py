"""Rows in which shared prefixes run once, for any windows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xent_metrics.hosts.lm_eval.models.packing import PADDING, Costs, Row, after, alone, batches_of, plan
from xent_metrics.hosts.lm_eval.models.windows import Window

ids = st.integers(0, 2)  # few, so that much is shared


@st.composite
def some_windows(draw, fewest=0, most=0):
    """Windows that all share `fewest` to `most` ids, and some of which share more."""
    common = (7,) * draw(st.integers(fewest, most))
    found = []
    for _ in range(draw(st.integers(1, 12))):
        inputs = (*common, *draw(st.lists(ids, min_size=1, max_size=8)))
        size = draw(st.integers(1, len(inputs) - len(common)))
        found.append(Window(inputs, tuple(draw(st.lists(ids, min_size=size, max_size=size)))))
    return found


def check(windows, groups):
    """Every window is scored once, and sees its own ids at their own positions and no others."""
    done = []
    for group in groups:
        for row in group.rows:
            sees = row.sees()
            for place, columns, targets in row.places:
                window = windows[place]
                done.append(place)
                assert targets == window.targets
                ancestors = sees[columns[-1]].nonzero().squeeze(-1).tolist()
                assert [*group.prefix, *(row.tokens[column] for column in ancestors)] == list(window.inputs)
                assert [row.depths[column] for column in ancestors] == list(
                    range(len(group.prefix), len(window.inputs))
                )
                assert columns == ancestors[-len(targets) :]
            if row.is_chain:
                assert torch.equal(sees, torch.ones_like(sees).tril())
    assert sorted(done) == list(range(len(windows)))


@settings(max_examples=150, deadline=None)
@given(some_windows(), st.booleans(), st.booleans())
def test_every_window_is_scored_once_from_its_own_ids(windows, packing, caching):
    groups = plan(windows, range(len(windows)), packing=packing, caching=caching)
    check(windows, groups)
    if not packing:
        assert all(row.is_chain for group in groups for row in group.rows)
    if not caching:
        assert not any(group.prefix for group in groups)


@settings(max_examples=60, deadline=None)
@given(some_windows(40, 90), st.booleans())
def test_a_long_shared_prefix_never_costs_more_than_running_it_each_time(windows, packing):
    groups = plan(windows, range(len(windows)), packing=packing, caching=True)
    check(windows, groups)
    apart = plan(windows, range(len(windows)), packing=False, caching=False)
    assert sum(map(Costs().of, groups)) <= sum(map(Costs().of, apart))


@settings(max_examples=60, deadline=None)
@given(some_windows(5, 5), st.booleans())
def test_rows_after_a_prefix_keep_their_windows(windows, packing):
    check(windows, [after(5, windows, packing=packing)])


def test_choices_are_packed_after_their_context():
    context = tuple(range(100, 250))
    windows = [Window((*context, choice, 1, 2), (choice, 1, 2, 3)) for choice in range(4)]
    [group] = plan(windows, range(4), packing=True, caching=True)
    [row] = group.rows
    assert group.prefix == ()
    assert len(row) == 150 + 4 * 3
    assert row.branches == [(0, -1), (153, 149), (156, 149), (159, 149)]


def test_without_packing_the_context_becomes_a_prefix():
    context = tuple(range(100, 250))
    windows = [Window((*context, choice, 1, 2), (choice, 1, 2, 3)) for choice in range(4)]
    [group] = plan(windows, range(4), packing=False, caching=True)
    assert group.prefix == context[:149]  # the last one predicts the first target
    assert [len(row) for row in group.rows] == [4] * 4


def test_shots_shared_by_documents_run_once_with_choices_after_each_question():
    shots = tuple(range(1000, 1450))
    questions = [tuple(range(2000 + 200 * i, 2150 + 200 * i)) for i in range(6)]
    windows = [Window((*shots, *question, choice, 1), (choice, 1, 2)) for question in questions for choice in range(4)]
    [group] = plan(windows, range(24), packing=True, caching=True)
    assert group.prefix == shots
    assert [len(row) for row in group.rows] == [150 + 8] * 6
    assert group.num_tokens == 450 + 6 * 158


def test_equal_inputs_run_once_even_when_nothing_may_be_shared():
    windows = [Window((1, 2, 3), (choice,)) for choice in range(4)]
    [group] = plan(windows, range(4), packing=False, caching=False)
    assert group.num_tokens == 3


def test_long_windows_are_not_packed_for_a_few_shared_ids():
    windows = [Window((*range(20), *range(start, start + 600)), (1,)) for start in (1000, 2000)]
    [group] = plan(windows, range(2), packing=True, caching=True)
    assert [len(row) for row in group.rows] == [620, 620]


@pytest.mark.parametrize(("max_tokens", "sizes"), [(1, [1, 1, 1, 1]), (20, [2, 2]), (30, [3, 1]), (1000, [4])])
def test_batches_hold_padded_tokens(max_tokens, sizes):
    windows = [Window((i, *range(10, 10 + 9 - i)), (1,)) for i in range(4)]
    [group] = plan(windows, range(4), packing=True, caching=True)
    found = list(batches_of(group, max_tokens))
    assert [len(batch) for batch in found] == sizes
    lengths = [len(row) for batch in found for row in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_a_row_is_empty_at_first():
    assert len(Row()) == 0
    assert Row().is_chain


def test_padding_comes_after_a_window_and_belongs_to_none():
    row = alone(7, Window((1, 2, 3), (4, 5)))
    row.pad(5, 4)
    assert (row.tokens, row.depths) == ([1, 2, 3, 0, 0], [0, 1, 2, 3, 4])
    assert row.places == [(7, [1, 2], (4, 5)), (PADDING, [0, 0], (0, 0))]
