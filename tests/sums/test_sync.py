"""The same bits on any number of processes, with one all_reduce: real processes over gloo."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import distributed_jobs as jobs
from support.distributed import DIED, run
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.wrappers import MetricTracker

from xent_metrics import CrossEntropy, Perplexity, TokenAccuracy, TokenMetricCollection, from_loglikelihoods
from xent_metrics.errors import MetricOptionError
from xent_metrics.sums import sync
from xent_metrics.sums.canaries import Canary

ALL_REDUCE = "c10d.allreduce_"


@pytest.fixture(scope="module")
def expected():
    return jobs.alone()


def dealt_in_turn(size: int, numbers: range = range(jobs.BATCHES)) -> list[list[int]]:
    return [[n for n in numbers if n % size == rank] for rank in range(size)]


def all_to_the_last(size: int) -> list[list[int]]:
    return [[]] * (size - 1) + [list(range(jobs.BATCHES))]


def shuffled(size: int) -> list[list[int]]:
    rng = random.Random(size)
    deal: list[list[int]] = [[] for _ in range(size)]
    for number in rng.sample(range(jobs.BATCHES), jobs.BATCHES):
        rng.choice(deal[: max(1, size - 1)]).append(number)
    return deal


@pytest.mark.parametrize("deal", [dealt_in_turn, all_to_the_last, shuffled])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_every_metric_has_the_same_bits_however_the_data_is_dealt(size, deal, expected):
    for answer in run(size, jobs.evaluate, deal(size)):
        assert answer.pop("calls") == [ALL_REDUCE]
        assert answer == expected


@pytest.mark.parametrize("size", [1, 3])
def test_metrics_alone_and_in_the_stock_collection(size, expected):
    own = expected["values"]
    for answer in run(size, jobs.evaluate_singly, shuffled(size)):
        assert answer["calls"] == [ALL_REDUCE]
        assert answer["values"] == {
            "cross_entropy": own["cross_entropy"],
            "gathered": own["cross_entropy"],
            "CrossEntropy": own["cross_entropy"],
            "Perplexity": own["perplexity"],
            "TokenAccuracy": own["token_accuracy"],
        }


def test_members_computed_one_by_one_need_one_all_reduce():
    some, all_of_them = jobs.NAMES[:2], jobs.NAMES
    orders = [all_of_them, all_of_them, some, some, all_of_them[::2], all_of_them]
    for epochs in run(3, jobs.one_by_one, orders):
        for epoch in epochs:
            assert epoch["calls"] == 1
            assert epoch["values"] == epoch["together"]


RANKS = 3


each_rank = st.tuples(*[st.integers(0, 3)] * RANKS)


moves = st.one_of(
    st.tuples(st.sampled_from(["update", "forward", "reset", "save and load"]), st.sampled_from("abc"), each_rank),
    st.tuples(
        st.sampled_from(["compute", "compute", "compute all", "sync", "reset all"]), st.sampled_from("abc"), st.none()
    ),
)


def play_by_the_rules(sequence):
    """What every rank should see: the sums of the last sync, or an error where this rank's own have changed since."""
    sums = [dict.fromkeys("abc", (0, 0)) for _ in range(RANKS)]  # (nats, tokens)
    changes = [dict.fromkeys("abc", 0) for _ in range(RANKS)]
    unread, results = {}, [[] for _ in range(RANKS)]

    def total(key):
        nats, tokens = (sum(part) for part in zip(*(own[key] for own in sums), strict=True))
        return nats / tokens if tokens else "nan"

    for kind, key, by_rank in sequence:
        for rank in [r for r in range(RANKS) if by_rank and by_rank[r]]:
            changes[rank][key] += 1
            nats, tokens = sums[rank][key]
            if kind in ("update", "forward"):
                sums[rank][key] = nats + by_rank[rank], tokens + 1
            elif kind == "reset":
                sums[rank][key] = 0, 0
        if kind == "reset all":
            unread, sums = {}, [dict.fromkeys("abc", (0, 0)) for _ in range(RANKS)]
        if by_rank or kind == "reset all":
            continue
        answers, calls = [total(key)] * RANKS, 1
        if kind == "compute all":
            unread, answers = {}, [{k: total(k) for k in "abc"}] * RANKS
        elif kind == "compute" and key in unread:
            value, then = unread.pop(key)
            answers, calls = [value if changes[r][key] == then[r] else "error" for r in range(RANKS)], 0
        elif kind == "compute":
            unread = {k: (total(k), [changes[r][k] for r in range(RANKS)]) for k in "abc" if k != key}
        for rank in range(RANKS):
            results[rank].append((answers[rank], calls))
    return results, sums


def readable(result):
    value, calls = result
    if isinstance(value, dict):
        return {k: readable((v, 0))[0] for k, v in value.items()}, calls
    if isinstance(value, str):
        assert "cross_entropy was updated, reset or loaded after cross_entropy.compute() had synced" in value
        return "error", calls
    return "nan" if value != value else value, calls


@settings(max_examples=60)
@given(st.lists(moves, max_size=25))
def test_any_sequence_keeps_ranks_in_step_and_gives_the_total_or_an_error(sequence):
    results, sums = play_by_the_rules(sequence)
    for rank, answer in enumerate(run(RANKS, jobs.play, sequence)):
        assert [readable(result) for result in answer["results"]] == results[rank]
        assert answer["local"] == {key: list(own) for key, own in sums[rank].items()}


def test_members_may_be_computed_in_another_order_on_each_rank():
    for found in run(3, jobs.in_other_orders):
        assert found["values"] == found["together"]
        assert found["calls"] == 1


@pytest.mark.parametrize(
    "by_rank",
    [
        [["cross_entropy"], ["perplexity"], ["cross_entropy"]],
        [["cross_entropy"], ["cross_entropy"], ["expected_calibration_error"]],
        [["cross_entropy", "perplexity"], ["perplexity", "cross_entropy"], ["cross_entropy", "perplexity"]],
        [["cross_entropy", "token_accuracy"], ["cross_entropy"], ["cross_entropy"]],
    ],
)
def test_different_metrics_at_once_are_an_error_on_every_rank_and_the_next_sync_is_right(by_rank):
    for rank, found in enumerate(run(3, jobs.different, by_rank)):
        assert f"rank {rank} of 3: adding up {', '.join(by_rank[rank])} over the processes failed: " in found["error"]
        assert "the processes sent different metrics. Compute the same metrics in the same order" in found["error"]
        assert found["intact"]
        assert found["later"] == found["expected"]


class Copies(TorchDispatchMode):
    """The copies from one device to another inside."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and isinstance(args[0], torch.Tensor) and result.device != args[0].device:
            self.made.append((args[0].device.type, result.device.type))
        return result


def test_states_on_a_device_are_copied_once_each_way():
    with FakeTensorMode(), Copies() as copies:
        states = [torch.zeros(rows, 8, dtype=torch.int64, device="cuda") for rows in (5, 48)]
        packed = sync._packed(states, [False, True], Canary(0, 2, 1, []).row())
        assert (packed.device.type, tuple(packed.shape)) == ("cpu", (128, 8))
        totals = sync._split(packed[1:54], states)
        assert [(total.device.type, len(total)) for total in totals] == [("cuda", 5), ("cuda", 48)]
    assert copies.made == [("cuda", "cpu"), ("cpu", "cuda")]


def test_what_is_sent_has_its_canary_at_both_ends_and_flags_after_the_states():
    states = [torch.full((rows, 8), rows) for rows in (5, 130)]
    canary = Canary(0, 2, 1, []).row()
    with torch.device("meta"):  # a default device, as of `torch.set_default_device("cuda")`
        packed = sync._packed(states, [False, True], canary)
    assert len(packed) == 256
    assert packed[0].tolist() == packed[-1].tolist() == canary
    assert packed[1:136].equal(torch.cat(states))
    assert packed[136:138, 0].tolist() == [0, 1]
    assert not packed[138:-1].any()
    totals = sync._split(packed[1:136], states)
    assert all(total.equal(state) for total, state in zip(totals, states, strict=True))
    assert not {total.untyped_storage().data_ptr() for total in totals} & {packed.untyped_storage().data_ptr()}


def test_another_option_is_another_metric():
    for found in run(2, jobs.different_options, {"num_bins": 10}, {"num_bins": 12}):
        assert "the processes sent different metrics" in found


def test_metrics_of_very_different_sizes_give_nobody_a_total():
    """gloo ends the process that gets more than it expects; see "Faults" in docs/distributed.md."""
    wide, mass = run(2, jobs.different_options, {"binning": "width"}, {"binning": "mass"})
    assert wide == DIED
    assert mass.startswith(
        "rank 1 of 2: adding up expected_calibration_error over the processes failed: RuntimeError: "
    )


def test_a_rank_that_failed_by_itself_is_out_of_step_and_its_next_sums_are_not_added_to_the_others_last():
    for rank, found in enumerate(run(3, jobs.one_ahead)):
        number = 3 if rank == 2 else 2
        assert f"out of step: here this is sync {number} of the group, elsewhere another one" in found["error"]
        assert found["intact"]


def test_groups_after_one_that_failed_are_still_synced():
    assert run(4, jobs.one_group_fails) == [("error", 2), (3.0, 2), ("error", 2), (3.0, 2)]


def test_options_read_alike_in_every_process():
    for one, *others in zip(*run(2, jobs.descriptions), strict=True):
        assert [one] == others


def test_another_member_may_come_first_after_a_reset():
    assert run(2, jobs.another_first) == [[(True, 1), (True, 1)]] * 2


def test_a_tracker_keeps_the_members_together():
    tracker = MetricTracker(TokenMetricCollection([CrossEntropy(), Perplexity()]))
    for value in (1.0, 2.0):
        tracker.increment()
        tracker.update(from_loglikelihoods([-value], row_kind="token"))
    assert tracker.compute_all()["cross_entropy"].tolist() == [1.0, 2.0]
    assert tracker[-1]["cross_entropy"].shared_sync is tracker[-1]["perplexity"].shared_sync
    assert tracker[-1]["cross_entropy"].shared_sync is not tracker[-2]["cross_entropy"].shared_sync


def test_a_metric_added_later_joins_the_others():
    metrics = TokenMetricCollection([CrossEntropy()])
    metrics.add_metrics("perplexity", TokenAccuracy())
    assert {id(metric.shared_sync) for metric in metrics.members().values()} == {id(metrics._shared_sync)}
    assert len(metrics._shared_sync.metrics) == 3


def test_a_cache_of_values_is_refused():
    with pytest.raises(MetricOptionError, match="compute_with_cache=True would keep values on some processes"):
        CrossEntropy(compute_with_cache=True)


def test_groups_are_honoured():
    answers = run(4, jobs.groups)
    world, three = 1111 / 4, 111 / 3
    for rank, answer in enumerate(answers):
        own = 101 / 2 if rank % 2 == 0 else 1010 / 2
        assert answer["own"] == (own, 1000 if rank == 3 else three)
        assert (answer["a"], answer["c"]) == (own, world)
        assert (answer["calls"], answer["one by one"]) == (2, 2)


def test_a_metric_that_does_not_sync_is_left_out():
    assert run(2, jobs.local_only) == [(0.0, 2), (1.0, 2)]
