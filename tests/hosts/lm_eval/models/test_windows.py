"""Windows of any text: every id is predicted once, from as much context as fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.models.windows import continuation_window, padded, rolling_windows

PREFIX = 1000


@given(size=st.integers(0, 60), max_length=st.integers(1, 12), data=st.data())
def test_every_id_of_a_text_is_predicted_once_after_the_ids_before_it(size, max_length, data):
    stride = data.draw(st.none() | st.integers(1, max_length))
    windows = rolling_windows(range(size), prefix_token=PREFIX, max_length=max_length, stride=stride)
    assert [target for window in windows for target in window.targets] == [*range(size)]
    text = [PREFIX, *range(size)]
    for window in windows:
        last = window.targets[-1] + 1  # the place of the last target in `text`
        assert [*window.inputs] == text[last - len(window.inputs) : last]
        assert len(window.inputs) <= max_length
    for window in windows[1:]:
        assert len(window.targets) <= (stride or max_length)
        assert len(window.inputs) - len(window.targets) >= (0 if stride is None else max_length - stride)


@given(
    context=st.lists(st.integers(0, 9), min_size=1), continuation=st.lists(st.integers(0, 9), min_size=1, max_size=6)
)
def test_a_continuation_is_predicted_after_the_end_of_its_context(context, continuation):
    window = continuation_window(context, continuation, max_length=6)
    assert [*window.inputs] == [*context, *continuation][:-1][-6:]
    assert [*window.targets] == continuation


@pytest.mark.parametrize(
    ("context", "continuation", "message"),
    [
        ([1], [], "1 to max_length=3 tokens; got 0. Check doc_to_target"),
        ([1], [1, 2, 3, 4], "1 to max_length=3 tokens; got 4. Score long texts with a rolling task"),
        ([], [1], "needs a context of at least one id"),
    ],
)
def test_a_continuation_that_cannot_be_predicted_is_refused(context, continuation, message):
    with pytest.raises(InvalidInputError, match=message):
        continuation_window(context, continuation, max_length=3)


def test_targets_are_beside_the_ids_that_predict_them():
    windows = [continuation_window([7, 8], [9, 5], max_length=4), continuation_window([6], [4], max_length=4)]
    ids, targets = padded(windows, length=4, fill=0)
    assert ids.tolist() == [[7, 8, 9, 0], [6, 0, 0, 0]]
    assert targets.tolist() == [[-100, 9, 5, -100], [4, -100, -100, -100]]
