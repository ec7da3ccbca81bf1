"""Results on disk: found again by any process, whole or not at all."""

import os
import zlib

import pytest

from xent_metrics.hosts.lm_eval import journal as module
from xent_metrics.hosts.lm_eval.journal import Journal, is_sampled, request_key

GREEDY, DRAWN = {"until": ["\n"]}, {"until": ["\n"], "temperature": 0.7}


def test_results_are_found_by_another_process(tmp_path):
    first = Journal(tmp_path, 0)
    first.add_partial("loglikelihood", ("a", "b"), (-0.1, True))
    first.add_partial("loglikelihood_rolling", ("a",), -2.0)
    first.add_partial("generate_until", ("a", GREEDY), "é\ud800")
    second = Journal(tmp_path, 1)  # while the first is still at work
    assert second.find("loglikelihood", ["a", "b"]) == (-0.1, True)
    assert second.find("loglikelihood_rolling", ("a",)) == -2.0
    assert second.find("generate_until", ("a", GREEDY)) == "é\ud800"
    assert second.find("generate_until", ("b", GREEDY)) is None
    assert second.find("loglikelihood", ("a",)) is None
    assert (len(first), len(second), len({*tmp_path.iterdir()})) == (3, 3, 2)


def test_a_later_result_replaces_an_earlier_one(tmp_path):
    one = Journal(tmp_path, 0)
    for text in ("first", "first", "second"):
        one.add_partial("generate_until", ("a", GREEDY), text)
    assert one.find("generate_until", ("a", GREEDY)) == "second"
    one.close()
    one.add_partial("generate_until", ("a", GREEDY), "too late")
    [path] = tmp_path.iterdir()
    assert path.read_bytes().count(b"\n") == 2
    assert Journal(tmp_path, 0).find("generate_until", ("a", GREEDY)) == "second"


def test_what_can_not_be_kept(tmp_path, caplog):
    one = Journal(tmp_path, 0)
    one.add_partial("generate_until", ("a", DRAWN), "drawn")
    one.add_partial("generate_until", ("a", {"image": object()}), "of an image")
    one.add_partial("loglikelihood", ("a", "b"), object())
    assert len(one) == 0
    assert "a result of loglikelihood isn't kept" in caplog.text
    assert one.find("generate_until", ("a", {"image": object()})) is None
    assert request_key("generate_until", [object()]) is None
    assert [is_sampled("generate_until", ("a", options)) for options in (GREEDY, DRAWN, {"do_sample": True})] == [
        0,
        1,
        1,
    ]


@pytest.mark.parametrize("size", range(1, 60, 7))
def test_a_line_that_was_cut_anywhere_is_left_out(tmp_path, size):
    one = Journal(tmp_path, 0)
    one.add_partial("loglikelihood_rolling", ("a",), -1.0)
    one.add_partial("loglikelihood_rolling", ("b",), -2.0)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-size])
    again = Journal(tmp_path, 0)
    assert (again.find("loglikelihood_rolling", ("a",)), again.find("loglikelihood_rolling", ("b",))) == (-1.0, None)
    assert again.damaged == 1


def test_a_full_disk_ends_the_keeping_and_not_the_run(tmp_path, monkeypatch, caplog):
    one = Journal(tmp_path, 0)
    one.add_partial("loglikelihood_rolling", ("a",), -1.0)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "write", full)
    one.add_partial("loglikelihood_rolling", ("b",), -2.0)
    monkeypatch.undo()
    one.add_partial("loglikelihood_rolling", ("c",), -3.0)
    assert one.find("loglikelihood_rolling", ("b",)) == -2.0
    assert caplog.text.count("results aren't kept from here on") == 1
    assert len(Journal(tmp_path, 0)) == 1


def test_a_write_may_take_several_calls(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(module.os, "write", lambda file, data: write(file, data[:5]))
    one = Journal(tmp_path, 0)
    one.add_partial("generate_until", ("a", GREEDY), "a long text")
    monkeypatch.undo()
    assert Journal(tmp_path, 0).find("generate_until", ("a", GREEDY)) == "a long text"


@pytest.mark.parametrize("data", [b"no JSON", b"[]", b'{"result": 1}', b"\xff", b""])
def test_a_line_of_somebody_elses_is_left_out(tmp_path, data):
    (tmp_path / "results_a.jsonl").write_bytes(b"%08x %s\n" % (zlib.crc32(data), data))
    found = Journal(tmp_path, 0)
    assert (len(found), found.damaged) == (0, 1)
