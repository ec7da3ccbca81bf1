"""Documents in an order, by columns of numbers."""

import math

import numpy as np

from xent_metrics.analysis.runs import read_run
from xent_metrics.view.folder import RunFolder
from xent_metrics.view.ranking import Ranking


def ranking(losses, keys):
    losses, keys = np.array(losses, dtype=float), np.array(keys)
    order = np.argsort(-losses, kind="stable")
    return Ranking(losses[None, order], order[None], keys[order])


def test_the_highest_loss_comes_first(written):
    run = RunFolder(written).snapshot().runs[1]
    task = read_run(run.path).tasks["t"]
    found = Ranking.by_loss(task)
    losses = [task.samples[place].tokens.mean_nll for place in found.places[0]]
    assert found.losses[0].tolist() == losses == sorted(losses, reverse=True)


def test_the_largest_difference_comes_first_and_nan_last():
    a, b = (
        ranking([1.0, 2.0, 5.0, math.nan], [10, 11, 12, 13]),
        ranking([2.5, 5.0, 2.0, 4.0, 9.0], [13, 12, 11, 10, 99]),
    )
    found = Ranking.by_difference(a, b)
    assert found.keys.tolist() == [10, 12, 11, 13]  # 3 higher, 1.5 lower, the same, unknown
    assert found.losses[:, 0].tolist() == [1.0, 4.0]
    assert found.places[:, 0].tolist() == [0, 3]


def test_documents_are_found_by_their_names():
    found = ranking([3.0, 2.0, 1.0], [-(2**63), 2**63 - 1, 5])
    assert [found.rank(found.slug(rank)) for rank in range(3)] == [0, 1, 2]
    for name in ("", "x", "5", "0" * 16, "1" + "0" * 16, "0x" + "0" * 13 + "5", "-000000000000005", "f" * 4000):
        assert found.rank(name) is None


def test_a_key_of_0_is_a_key():
    assert ranking([1.0], [0]).rank("0" * 16) == 0


def test_neighbours_end_where_the_list_does():
    found = ranking([3.0, 2.0, 1.0], [1, 2, 3])
    names = [found.slug(rank) for rank in range(3)]
    assert found.neighbours(0, None) == {"before": "", "after": names[1]}
    assert found.neighbours(2, None) == {"before": names[1], "after": ""}
    assert found.neighbours(1, 2) == {"before": names[0], "after": ""}
