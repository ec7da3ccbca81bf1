"""A sound metric has one value on two processes; what goes wrong in a process is told, and spoils no other metric."""

from __future__ import annotations

import pytest
from support.broken_metrics import NeedsMore, NotPicklable

from xent_metrics import CrossEntropy, ExpectedCalibrationError
from xent_metrics.testing.case import Case
from xent_metrics.testing.processes import check_two_processes, on_two_processes

METRICS = {
    "raises": NeedsMore(),
    "not_picklable": NotPicklable(),
    "unsynced": CrossEntropy(sync_on_compute=False),
    "sound": CrossEntropy(),
    "binned": ExpectedCalibrationError(),
}


@pytest.fixture(scope="module")
def cases():
    return {name: Case.of(metric) for name, metric in METRICS.items()}


@pytest.fixture(scope="module")
def answers(cases):
    return on_two_processes(cases)


@pytest.mark.parametrize("name", ["sound", "binned"])
def test_a_sound_metric_has_one_value(name, cases, answers):
    check_two_processes(cases[name], answers[name])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("raises", "process 0 of 2: Traceback.*MissingScoreError: broken needs `moon_phase`"),
        ("not_picklable", "process 0 of 2: it can't be sent to another process: "),
        ("unsynced", "the value on process 0 of 2 and on one differ"),
    ],
)
def test_what_goes_wrong_is_told_and_spoils_no_other(name, text, cases, answers):
    with pytest.raises(AssertionError, match=f"(?s){text}"):
        check_two_processes(cases[name], answers[name])


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda value, state: (value + 1e-9, state), "the value on process 1 of 2 and on one differ"),
        (lambda value, state: (value, 2 * state), "the total on process 1 of 2 and the sums on one differ"),
        (lambda value, state: "the process died", "process 1 of 2: the process died"),
    ],
    ids=["value", "state", "died"],
)
def test_both_processes_are_looked_at(spoil, text, cases, answers):
    first, second = answers["sound"]
    with pytest.raises(AssertionError, match=text):
        check_two_processes(cases["sound"], [first, spoil(*second)])
