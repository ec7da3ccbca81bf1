"""`invariant=true`: a document's scores have the same bits in any batch, order, subset and number of processes."""

from __future__ import annotations

import logging
import random

import pytest
import torch
from sqlitedict import SqliteDict
from support import lm_eval_jobs as jobs
from support.distributed import run
from support.hf_model import TEXT, choices, multiple_choice, requests, rolling, tiny_model
from torch import nn

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.models import invariant
from xent_metrics.hosts.lm_eval.models.transfer import pack
from xent_metrics.hosts.lm_eval.models.windows import Window
from xent_metrics.hosts.lm_eval.resume import resume

PAIRS = multiple_choice()
TEXTS = [TEXT[7 * i : 27 + 26 * i] for i in range(8)]
ALL_PAIRS, ALL_TEXTS = range(len(PAIRS)), range(len(TEXTS))


def scores_of(result):
    tensors = []
    result.scores.map(lambda tensor: tensors.append(tensor) or tensor)
    return (*pack(tensors).tolist(), repr(result))


def bits(lm, pairs=ALL_PAIRS, texts=ALL_TEXTS):
    """The bytes of every score, by question or text."""
    asked = requests("loglikelihood", [PAIRS[i] for i in pairs])
    whole = requests("loglikelihood_rolling", [(TEXTS[i],) for i in texts])
    found = dict(zip(pairs, map(scores_of, lm.loglikelihood(asked, disable_tqdm=True)), strict=True))
    rolled = zip(texts, map(scores_of, lm.loglikelihood_rolling(whole, disable_tqdm=True)), strict=True)
    return found | {f"text {i}": value for i, value in rolled}


def moved(lm, monkeypatch):
    """In how many of 20 batch sizes, each with documents of its own in an order of its own, a bit moves."""
    expected, found = bits(lm), 0
    for size in range(1, 21):
        draw = random.Random(size)
        monkeypatch.setattr(lm, "batch_size_per_gpu", size)
        pairs, texts = (draw.sample(them, draw.randint(1, len(them))) for them in (ALL_PAIRS, ALL_TEXTS))
        found += any(value != expected[name] for name, value in bits(lm, pairs, texts).items())
    backwards = bits(lm, ALL_PAIRS[::-1], ALL_TEXTS[::-1])
    return found + (backwards != expected)


@pytest.mark.parametrize("name", ["llama_tied", "gpt2"])
def test_no_bit_moves_in_twenty_batch_shapes_and_two_orders(build, name, monkeypatch):
    lm = build(pretrained=tiny_model(name), invariant=True)
    assert moved(lm, monkeypatch) == 0
    monkeypatch.setattr(invariant, "_filled", lambda rows, shape, size: rows)
    assert moved(lm, monkeypatch) > 0  # the padding is what keeps them


def test_the_ordinary_route_does_move(lm, monkeypatch):
    assert moved(lm, monkeypatch) > 0


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "mistral_window", "mamba", "phi3_longrope", "gemma2"])
def test_the_values_are_those_of_the_ordinary_route(build, name):
    model = tiny_model(name)
    ordinary, fixed = build(pretrained=model), build(pretrained=model, invariant=True)
    for one, two in zip(choices(ordinary), choices(fixed), strict=True):
        assert two[0] == pytest.approx(one[0], rel=1e-5)
        assert two[1] is one[1]
    assert rolling(fixed, *TEXTS, "") == pytest.approx(rolling(ordinary, *TEXTS, ""), rel=1e-5)


def test_the_number_of_threads_changes_nothing(build):
    lm = build(pretrained=tiny_model("llama_untied").bfloat16(), invariant=True)
    found, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(bits(lm, range(4), range(3)))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


class Shifted(nn.Module):
    """Adds to the hidden states what `shift` gives of them."""

    def __init__(self, shift):
        super().__init__()
        self.shift = shift

    def forward(self, hidden):
        return hidden + self.shift(hidden)


def shifted(shift):
    model = tiny_model("llama_tied")
    model.model.norm = nn.Sequential(model.model.norm, Shifted(shift))
    return model


def test_windows_whose_bits_depend_on_their_neighbours_run_one_by_one(build, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING, logger="xent_metrics"):
        lm = build(pretrained=shifted(lambda hidden: 1e-4 * hidden.mean()), invariant=True, logits_cache=False)
        assert moved(lm, monkeypatch) == 0
    assert "one by one: other rows of a batch change their bits" in caplog.text
    assert set(lm._runner.fixed._rows.values()) == {1}


def test_experts_run_windows_one_by_one(build):
    lm = build(pretrained=tiny_model("mixtral"), invariant=True)
    assert set(lm._runner.fixed._rows.values()) == {1}
    assert bits(lm, [1, 2], [3]).items() <= bits(lm, [2, 5, 1], [3, 0]).items()


def test_a_model_that_never_repeats_itself_is_refused(build):
    with pytest.raises(
        InvalidInputError, match="two runs of the same 32 ids by LlamaForCausalLM on cpu gave different"
    ):
        build(pretrained=shifted(lambda hidden: 1e-6 * torch.rand(())), invariant=True)


def test_a_model_whose_bits_depend_on_the_threads_runs_on_one(build, caplog):
    model = shifted(lambda hidden: 1e-4 * torch.get_num_threads())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with caplog.at_level(logging.WARNING, logger="xent_metrics"):
            on_two = bits(build(pretrained=model, invariant=True), [0], [1])
        assert "on one thread: more threads change its bits" in caplog.text
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert bits(build(pretrained=model, invariant=True), [0], [1]) == on_two
    finally:
        torch.set_num_threads(threads)


def test_frequencies_that_depend_on_earlier_windows_are_refused(build):
    with pytest.raises(InvalidInputError, match=r"beyond 48 ids the rotary frequencies.*pass max_length=48 or less"):
        build(pretrained=tiny_model("llama_dynamic"), max_length=96, invariant=True)
    build(pretrained=tiny_model("llama_dynamic"), max_length=48, invariant=True)


def test_padding_reaches_neither_the_switch_of_frequencies_nor_beyond_the_longest_window(build):
    fixed = build(pretrained=tiny_model("phi3_longrope"), max_length=90, invariant=True)._runner.fixed
    fixed.forward.rope_switch = type(fixed.forward.rope_switch)(45, once=True)
    lengths = [fixed.shape(length, 1).length for length in (1, 17, 44, 45, 46, 65, 90)]
    assert lengths == [16, 24, 45, 45, 48, 90, 90]


def test_every_batch_of_a_shape_has_the_same_rows_and_sizes(build):
    fixed = build(invariant=True)._runner.fixed
    windows = [Window(tuple(range(1, 20 + i)), (5,) * (1 + i % 3)) for i in range(30)]
    groups = list(fixed.groups(windows, range(30)))
    assert {(len(group.rows), *map(len, group.rows[:1])) for group in groups} == {(10, 24), (8, 32), (5, 48)}
    for group in groups:
        assert len({len(row) for row in group.rows}) == 1
        assert {sum(len(targets) for *_, targets in row.places) for row in group.rows} == {4}
    kept = [place for group in groups for row in group.rows for place, *_ in row.places if place >= 0]
    assert sorted(kept) == list(range(30))


def test_a_batch_that_does_not_fit_is_an_error(build, monkeypatch):
    lm = build(invariant=True)
    bits(lm)

    def full(rows, cache=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried")

    monkeypatch.setattr(lm.forward, "states", full)
    with pytest.raises(torch.OutOfMemoryError):
        choices(lm)


def test_a_cache_of_the_other_route_is_refused(build, tmp_path):
    made_by, cached = build().made_by(), SqliteDict(str(tmp_path / "cache.db"))
    for lm, known in ((build(invariant=True), made_by), (build(), build(invariant=True).made_by())):
        cached["made by"] = known
        with pytest.raises(InvalidInputError, match="holds results of invariant="):
            lm.results.check_cache(cached, lm.made_by())
    del made_by["invariant"]
    cached["made by"] = made_by  # of a release that didn't have it
    with pytest.raises(InvalidInputError, match="holds results of invariant=None, and this is invariant=True"):
        build(invariant=True).results.check_cache(cached, build(invariant=True).made_by())


def test_it_is_true_or_false(build):
    with pytest.raises(InvalidInputError, match="invariant is true or false; got 'yes'"):
        build(invariant="yes")
    with pytest.raises(InvalidInputError, match="did you mean 'invariant'"):
        build(invarient=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("invariant")
    jobs.write(folder, even=False)
    return folder


def test_two_processes_limits_and_caches_give_the_bits_of_one_process(folder, tmp_path):
    expected = jobs.invariant_samples(str(folder), batch_size=1)
    first, second = run(2, jobs.invariant_in_processes, str(folder))
    assert second is None
    assert first == expected
    cache = {"use_cache": str(tmp_path / "cache")}
    for options in ({"batch_size": 7}, {"batch_size": 3} | cache, {"batch_size": 2} | cache):
        assert jobs.invariant_samples(str(folder), **options) == expected
    kept = tmp_path / "kept"
    assert run(2, jobs.resumed_in_processes, str(folder), str(kept))[0] == expected  # resume.py: in two processes …
    for path in kept.glob("results_*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[: len(lines) // 2]))
    with resume(kept):
        assert jobs.invariant_samples(str(folder), batch_size=7) == expected  # … and on in one
    _, samples = jobs.invariant_samples(str(folder), batch_size=5, limit=2)
    assert samples == {task: found[:2] for task, found in expected[1].items()}
