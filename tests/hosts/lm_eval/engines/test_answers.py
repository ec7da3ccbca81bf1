"""Answers of completions servers: their forms, and what they lack."""

from __future__ import annotations

import pytest

from xent_metrics.errors import EngineError
from xent_metrics.hosts.lm_eval.engines.answers import Listed, aligned, choices_of, first_listed, listed
from xent_metrics.hosts.lm_eval.engines.token_texts import TokenTexts
from xent_metrics.hosts.lm_eval.models.tokenizers import ByteTokenizer

IDS = list(b"abca")
TEXTS = TokenTexts(ByteTokenizer())


def choice(tokens, own, top):
    return {"logprobs": {"tokens": list(tokens), "token_logprobs": own, "top_logprobs": top}}


def row(tokens, first=None):
    """A choice whose tokens have ln p −1, −2 …, and the largest half of that."""
    own = [first, *(-float(i) for i in range(1, len(tokens)))]
    return choice(tokens, own, [None, *({"x": value / 2, "y": value} for value in own[1:])])


@pytest.mark.parametrize("tokens", ["abca", "abcaz"])
@pytest.mark.parametrize("first", [None, 0.0, -7.0])
def test_the_generated_token_and_the_first_number_do_not_matter(tokens, first):
    found = listed(row(tokens, first))
    assert first_listed(IDS, found, TEXTS) == 0
    prompt = aligned(IDS, found, TEXTS, first=0)
    assert (prompt.tokens, prompt.own[1:]) == (tuple(IDS), (-1.0, -2.0, -3.0))
    assert prompt.largest[1:] == (-0.5, -1.0, -1.5)


@pytest.mark.parametrize("tokens", ["abca", "abcaz"])
def test_the_first_entry_may_be_missing_from_the_numbers(tokens):
    answer = row(tokens)
    for name in ("token_logprobs", "top_logprobs"):
        del answer["logprobs"][name][0]
    assert aligned(IDS, listed(answer), TEXTS, first=0).own == (None, -1.0, -2.0, -3.0)


@pytest.mark.parametrize("generated", ["", "z", "a"])
def test_the_first_token_may_be_left_out(generated):
    found = listed(
        choice("bca" + generated, [-1.0, -2.0, -3.0, -4.0][: 3 + len(generated)], [{"x": -0.1}] * (3 + len(generated)))
    )
    assert first_listed(IDS, found, TEXTS) == 1
    assert aligned(IDS, found, TEXTS, first=1).own == (None, -1.0, -2.0, -3.0)


def test_a_server_is_held_to_the_place_that_it_began_with():
    """Of equal tokens, both places would fit."""
    found = Listed(["a"] * 4, [None, -1.0, -2.0, -3.0], [None, -1.0, -1.0, -1.0])
    same = list(b"aaaa")
    assert aligned(same, found, TEXTS, first=0).own == (None, -1.0, -2.0, -3.0)
    assert aligned(same, found, TEXTS, first=1).own == (None, None, -1.0, -2.0)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            "abxa",
            r"a prompt of 4 tokens it lists 4\. From token 0 on it has \['a', 'b', 'x', 'a'\]; expected \['a', 'b', 'c'",
        ),
        ("aabca", "it lists 5"),
        ("ab", "it lists 2"),
        ("z", r"doesn't echo the prompt: it lists \['z'\], and the prompt has 4 tokens"),
    ],
)
def test_other_tokens_are_an_error(tokens, message):
    found = listed(row(tokens))
    with pytest.raises(EngineError, match=message):
        first_listed(IDS, found, TEXTS)
    with pytest.raises(EngineError, match=message):
        aligned(IDS, found, TEXTS, first=0)


@pytest.mark.parametrize(
    ("logprobs", "message"),
    [
        (None, "gives no log-probabilities"),
        ({}, "gives no log-probabilities"),
        ({"content": []}, r"no list tokens and no list token_logprobs and no list top_logprobs.*got \['content'\]"),
        ({"tokens": ["a"], "token_logprobs": [None], "top_logprobs": None}, "no list top_logprobs"),
        ({"tokens": ["a"], "token_logprobs": [None, -1.0], "top_logprobs": [None]}, "lists 1 tokens, 2 token_logprobs"),
        (
            {"tokens": ["a", "b"], "token_logprobs": [None, "-1"], "top_logprobs": [None, {}]},
            "gives '-1' as a log-prob",
        ),
        ({"tokens": ["a", "b"], "token_logprobs": [None, -1.0], "top_logprobs": [None, ["b"]]}, r"gives \['b'\] as a"),
    ],
)
def test_missing_lists_are_named(logprobs, message):
    with pytest.raises(EngineError, match=message):
        listed({"logprobs": logprobs})


@pytest.mark.parametrize("answer", [{"choices": []}, {"error": "no"}, None, {"choices": [{}, {}]}])
def test_each_prompt_has_its_choice(answer):
    with pytest.raises(EngineError, match="expected 1 choices, one for each prompt; got"):
        choices_of(answer, 1)
