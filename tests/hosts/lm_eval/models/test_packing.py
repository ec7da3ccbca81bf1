"""Rows in which shared beginnings run once, whatever the windows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xent_metrics.hosts.lm_eval.models.packing import Row, batches_of, behind, plan
from xent_metrics.hosts.lm_eval.models.windows import Window

ids = st.integers(0, 2)  # few, so that much is shared


@st.composite
def some_windows(draw, fewest=0, most=0):
    """Windows of which some begin alike, behind `fewest` to `most` ids that all share."""
    common = (7,) * draw(st.integers(fewest, most))
    found = []
    for _ in range(draw(st.integers(1, 12))):
        inputs = (*common, *draw(st.lists(ids, min_size=1, max_size=8)))
        size = draw(st.integers(1, len(inputs) - len(common)))
        found.append(Window(inputs, tuple(draw(st.lists(ids, min_size=size, max_size=size)))))
    return found


def check(windows, families):
    """What every plan must keep: each window is scored once, from its own ids at their own positions, and sees no others."""
    done = []
    for family in families:
        for row in family.rows:
            sees = row.sees()
            for place, columns, targets in row.places:
                window = windows[place]
                done.append(place)
                assert targets == window.targets
                ancestors = sees[columns[-1]].nonzero().squeeze(-1).tolist()
                assert [*family.stem, *(row.tokens[column] for column in ancestors)] == list(window.inputs)
                assert [row.depths[column] for column in ancestors] == list(range(len(family.stem), len(window.inputs)))
                assert columns == ancestors[-len(targets) :]
            if row.is_chain:
                assert torch.equal(sees, torch.ones_like(sees).tril())
    assert sorted(done) == list(range(len(windows)))


@settings(max_examples=150, deadline=None)
@given(some_windows(), st.booleans(), st.booleans())
def test_every_window_is_scored_once_from_its_own_ids(windows, packing, stems):
    families = plan(windows, range(len(windows)), packing=packing, stems=stems)
    check(windows, families)
    if not packing:
        assert all(row.is_chain for family in families for row in family.rows)
    if not stems:
        assert not any(family.stem for family in families)


@settings(max_examples=60, deadline=None)
@given(some_windows(40, 90), st.booleans())
def test_a_long_shared_beginning_never_costs_more_than_running_it_each_time(windows, packing):
    families = plan(windows, range(len(windows)), packing=packing, stems=True)
    check(windows, families)
    apart = plan(windows, range(len(windows)), packing=False, stems=False)
    assert sum(family.cost for family in families) <= sum(family.cost for family in apart)


@settings(max_examples=60, deadline=None)
@given(some_windows(5, 5), st.booleans())
def test_rows_behind_a_stem_keep_their_windows(windows, packing):
    check(windows, [behind(5, windows, packing=packing)])


def test_choices_are_packed_behind_their_context():
    context = tuple(range(100, 250))
    windows = [Window((*context, choice, 1, 2), (choice, 1, 2, 3)) for choice in range(4)]
    [family] = plan(windows, range(4), packing=True, stems=True)
    [row] = family.rows
    assert family.stem == ()
    assert len(row) == 150 + 4 * 3
    assert row.branches == [(0, -1), (153, 149), (156, 149), (159, 149)]


def test_without_packing_the_context_becomes_a_stem():
    context = tuple(range(100, 250))
    windows = [Window((*context, choice, 1, 2), (choice, 1, 2, 3)) for choice in range(4)]
    [family] = plan(windows, range(4), packing=False, stems=True)
    assert family.stem == context[:149]  # the last one predicts the first target
    assert [len(row) for row in family.rows] == [4] * 4


def test_shots_that_documents_share_run_once_and_choices_behind_each_question():
    shots = tuple(range(1000, 1450))
    questions = [tuple(range(2000 + 200 * i, 2150 + 200 * i)) for i in range(6)]
    windows = [Window((*shots, *question, choice, 1), (choice, 1, 2)) for question in questions for choice in range(4)]
    [family] = plan(windows, range(24), packing=True, stems=True)
    assert family.stem == shots
    assert [len(row) for row in family.rows] == [150 + 8] * 6
    assert family.num_tokens == 450 + 6 * 158


def test_equal_inputs_run_once_even_when_nothing_may_be_shared():
    windows = [Window((1, 2, 3), (choice,)) for choice in range(4)]
    [family] = plan(windows, range(4), packing=False, stems=False)
    assert family.num_tokens == 3


def test_long_strangers_are_not_packed_for_a_few_ids_in_common():
    windows = [Window((*range(20), *range(start, start + 600)), (1,)) for start in (1000, 2000)]
    [family] = plan(windows, range(2), packing=True, stems=True)
    assert [len(row) for row in family.rows] == [620, 620]


@pytest.mark.parametrize(("max_tokens", "sizes"), [(1, [1, 1, 1, 1]), (20, [2, 2]), (30, [3, 1]), (1000, [4])])
def test_batches_hold_padded_tokens(max_tokens, sizes):
    windows = [Window((i, *range(10, 10 + 9 - i)), (1,)) for i in range(4)]
    [family] = plan(windows, range(4), packing=True, stems=True)
    found = list(batches_of(family, max_tokens))
    assert [len(batch) for batch in found] == sizes
    lengths = [len(row) for batch in found for row in batch]
    assert lengths == sorted(lengths, reverse=True)


def test_a_row_is_empty_at_first():
    assert len(Row()) == 0
    assert Row().is_chain
