"""Logged tokens read back."""

from __future__ import annotations

import json
import math

import pytest

from xent_metrics.analysis.logged import choices_in, context_in, text_in
from xent_metrics.analysis.runs import read_run
from xent_metrics.analysis.samples import Sample


def test_tokens_are_read_back(token_runs):
    task = read_run(token_runs[0]).tasks["t"]
    for sample in task.samples:
        assert sample.tokens.text == sample.raw["doc"]["text"]
        assert list(sample.tokens.alternatives) == [[("e", 0.5), ("</script>", 0.25)]] * len(sample.tokens)
        assert math.fsum(sample.tokens.nll) == pytest.approx(sample.raw["cross_entropy_stderr"]["nats"])


def test_tokens_of_another_schema_are_ignored(token_runs):
    sample = read_run(token_runs[0]).tasks["t"].samples[0]
    other = json.loads(json.dumps(sample.raw).replace('\\"nll\\"', '\\"loss\\"'))
    with pytest.warns(UserWarning, match=r"aren't read: KeyError\('nll'\)"):
        assert Sample("x", other).tokens is None
    assert len(sample.tokens) > 0


def test_a_generated_text_that_looks_like_tokens_is_a_text(recwarn):
    assert Sample("x", {"resps": [['{"tokens": ["a", "b"]}']]}).tokens is None
    assert not recwarn


def test_the_text_of_a_generative_sample_is_its_gold_answer():
    """The generation, whose second argument holds options, is no choice."""
    generation = {"arg_0": "Why?", "arg_1": {"until": ["\n"]}}
    gold = {"arg_0": "Why?", "arg_1": " because"}
    raw = {"arguments": {"gen_args_0": generation, "gen_args_1": gold}, "resps": [["who knows"], [["-1.5", "True"]]]}
    assert (context_in(raw), text_in(raw), choices_in(raw)) == ("Why?", " because", [])
    alone = {"arguments": {"gen_args_0": generation}, "resps": [["7"]], "doc": "d"}
    assert (context_in(alone), text_in(alone), choices_in(alone)) == ("Why?", "d", [])
