"""Canaries: only the sum over each process once, of the same sums, in the same sync, passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xent_metrics.sums.canaries import Canary


def total(canaries):
    return [sum(column) for column in zip(*(canary.row() for canary in canaries), strict=True)]


def of_all(size, **different):
    return [
        Canary(rank, size, different.get("number", 3), different.get("contents", ["a", "b"])) for rank in range(size)
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 1024])
def test_the_sum_over_all_passes_on_each(size):
    whole = total(of_all(size))
    assert all(canary.fault_in([whole, whole]) == "" for canary in of_all(size))


@given(st.lists(st.integers(0, 4), max_size=7))
def test_no_other_processes_pass(ranks):
    everyone = of_all(5)
    row = total([everyone[0], *(everyone[rank] for rank in ranks)])
    whole = total(everyone)
    if sorted([0, *ranks]) != list(range(5)):
        for rows in ([row, row], [row, whole], [whole, row]):
            assert "not the sum over 5 processes" in everyone[0].fault_in(rows)


def test_another_sync_is_told_on_all():
    canaries = [*of_all(3)[:2], of_all(3, number=4)[2]]
    for canary in canaries:
        fault = canary.fault_in([total(canaries)] * 2)
        assert fault.startswith(f"the processes are out of step: here this is sync {canary.number} of the group")


@pytest.mark.parametrize("contents", [["b", "a"], ["a"], ["a", "b", "c"], ["ab"], []])
def test_other_sums_are_told_on_all(contents):
    canaries = [*of_all(3)[:2], of_all(3, contents=contents)[2]]
    for canary in canaries:
        assert canary.fault_in([total(canaries)] * 2).startswith("the processes sent different metrics")


def test_a_last_row_that_was_not_added_up_is_seen():
    canaries = of_all(3)
    whole, own = total(canaries), canaries[1].row()
    assert "it has 3 and 1 of them" in canaries[1].fault_in([whole, own])
    mixed = [*whole[:4], *total(of_all(3, contents=["c"]))[4:]]
    assert canaries[1].fault_in([whole, mixed]).startswith("the processes sent different metrics")


def test_no_sum_over_a_million_processes_wraps():
    row = Canary(2**20, 2**20, 2**40, ["a"]).row()
    assert all(abs(entry) * 2**20 < 2**63 for entry in (row[0], *row[4:]))


def test_every_word_is_its_own_part_of_the_hash():
    words = Canary(0, 1, 0, ["a"]).row()[4:]
    assert len(set(words)) == len(words) == 4
    assert all(2**32 < word < 2**40 for word in words)
