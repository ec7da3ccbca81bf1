"""The options of a metric, refused and in the names of its sums."""

from __future__ import annotations

import dataclasses
import functools
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.metric_kinds import used

from xent_metrics import CrossEntropy, TokenAccuracy
from xent_metrics.errors import MetricOptionError
from xent_metrics.sums.options import readable


@pytest.mark.parametrize(
    "other",
    [
        CrossEntropy(ignore_index=0),
        CrossEntropy(label_smoothing=0.1),
        CrossEntropy(class_weight=torch.ones(13)),
        TokenAccuracy(),
    ],
    ids=["ignore_index", "label_smoothing", "class_weight", "another metric"],
)
def test_other_options_are_other_sums(other, batch):
    metric = used(CrossEntropy(), *batch)
    before = metric.state.clone()
    with pytest.raises(MetricOptionError, match=r"can't take the state of .*their sums differ"):
        metric.merge_state(other)
    metric.persistent(True)
    other = other.clone()
    other.persistent(True)
    with pytest.raises(RuntimeError, match=r"holds the sums of a \w+ with other options"):
        other.load_state_dict(metric.state_dict())
    assert torch.equal(metric.state, before)
    assert not other.state.any()


def test_a_class_refuses_an_option_as_its_name_does():
    with pytest.raises(
        MetricOptionError, match=r"cross_entropy has no option 'label_smoothin'. Did you mean 'label_smoothing'"
    ):
        CrossEntropy(label_smoothin=0.1)


@pytest.mark.parametrize("array", [torch.zeros, np.zeros])
def test_an_array_reads_as_its_whole_content(array):
    """`repr` leaves out the middle of a long one, and digits of each number."""
    one, other = array(3000), array(3000)
    assert readable(one) == readable(other)
    other[1500] = 1e-30
    assert readable(one) != readable(other)
    assert re.match(r"float\d\d\(\)#", readable(array(())))
    assert readable([one]) != readable([other])
    assert readable({"table": (one, 1)}) != readable({"table": (other, 1)})


class Table:
    """An array of somebody else's, with a short `repr`."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)

    def __repr__(self):
        return "Table(…)"


def test_options_of_other_content_read_differently_and_alike_in_every_process():
    assert readable(Table([1, 2])) != readable(Table([1, 3]))
    assert readable(torch.tensor([0.0])) != readable(torch.tensor([0]))  # equal bytes, another dtype
    assert readable(torch.tensor(2.0)).startswith("float32()#")
    assert readable(np.float64(0.5)) == "0.5"
    assert readable([0.5, ("a",), {"b": None}]) == "[0.5, ('a',), {'b': None}]"
    assert readable(Table) == "<class 'sums.test_options.Table'>".replace("sums.test_options", Table.__module__)
    assert readable(functools.partial(readable, object())) == "functools.partial(<function readable>, <object object>)"


@dataclasses.dataclass
class Holder:
    content: object
    passing: int = dataclasses.field(default=0, repr=False)


class Plain:
    def __init__(self, content):
        self.content, self._seen = content, 0


class Shown(Plain):
    def __repr__(self):
        return f"Shown({self.content!r})"


@pytest.mark.parametrize("make", [Holder, Plain, Shown, lambda array: functools.partial(readable, array)])
@pytest.mark.parametrize("array", [np.ones, lambda size: torch.ones(size, dtype=torch.float64)])
def test_an_object_reads_as_what_it_holds(make, array):
    one, other = array(3000), array(3000)
    other[1500] += 1e-15
    assert readable(make(one)) == readable(make(array(3000)))
    assert readable(make(one)) != readable(make(other))
    assert len(readable(make(one))) < 1200


def test_objects_of_two_classes_of_one_name_are_told_apart():
    other = type("Plain", (), {"__module__": "elsewhere"})
    assert readable(Plain(1)) == f"{__name__}.Plain(content=1)"
    assert readable(other()) == "elsewhere.Plain()"


def test_what_a_process_only_remembers_is_no_option():
    plain = Plain(1)
    plain._seen = 3
    assert readable(plain) == readable(Plain(1))
    assert readable(Holder(1, passing=2)) == readable(Holder(1)) == "Holder(content=1)"


def test_whatever_an_option_is_it_reads():
    plain, other = Plain(1), Plain(2)
    plain.content, other.content = other, plain
    holder = Holder(1)
    holder.content = holder
    values = [
        plain, holder, torch.empty(2, 3, device="meta"), torch.eye(2).to_sparse(), torch.ones(2, dtype=torch.complex64).conj(),
        np.longdouble(1)
    ]  # fmt: skip
    for value in values:
        assert readable(value) == readable(value)
    assert readable(values[2]) == "float32(2, 3) on meta"


def test_a_set_reads_in_one_order():
    words = [f"word {i}" for i in range(20)]
    assert readable(set(words)) == readable(frozenset(reversed(words))) == f"{{{', '.join(sorted(map(repr, words)))}}}"


def test_a_standard_error_is_called_alike_in_processes_that_made_other_metrics_before():
    """Its sums hold keys that count the metrics that a process has made."""
    program = "from xent_metrics import *; {}print(StandardError('cross_entropy')._state_name)"
    names = [
        subprocess.run(
            [sys.executable, "-c", program.format(before)], check=True, capture_output=True, text=True
        ).stdout
        for before in ("", "TokenAccuracy(); ")
    ]
    assert names[0] == names[1] != ""
