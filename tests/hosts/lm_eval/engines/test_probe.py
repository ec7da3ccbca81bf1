"""An engine is held to its own generation: what passes, what is refused, and what the message shows."""

from __future__ import annotations

import logging

import pytest

from xent_metrics.errors import EngineError
from xent_metrics.hosts.lm_eval.engines.logprobs import TokenLogprobs
from xent_metrics.hosts.lm_eval.engines.probe import TOLERANCE, Engine, Generated, probe

TRUE = [-0.5, -1.5, -0.3, -3.0, -1.0, -2.0]
PROMPT = [7, 8, 9]


def engine(read, largest=None, *, told=TRUE, known=6):
    """Generates ids 0 to 5 with ln p `told`, of which `known` have known ids, and reads them with ln p `read`."""
    ids = tuple(range(known))

    def generate(prompt, number):
        assert number == 12
        return Generated(TokenLogprobs(ids, tuple(told[:known]), tuple(told[:known])), told, list("abcdef"))

    def reader(prompt):
        assert list(prompt) == [*PROMPT, *ids]
        before = (None, -1.0, -1.0)
        own, top = tuple(read[:known]), tuple((read if largest is None else largest)[:known])
        return TokenLogprobs(tuple(prompt), before + own, before + top)

    return Engine("an engine", generate, reader, lambda token: "abcdefghij"[token])


def test_what_agrees_to_rounding_passes():
    noisy = [value + (-1) ** i * 0.9 * TOLERANCE for i, value in enumerate(TRUE)]
    assert probe(engine(noisy, noisy), [PROMPT]) == [0, 1, 2, 3, 4, 5]


def test_prompts_are_tried_until_enough_tokens_are_compared():
    assert len(probe(engine(TRUE), [PROMPT] * 5)) == 12


@pytest.mark.parametrize(
    ("read", "largest", "message"),
    [
        ([*TRUE[1:], -9.0], None, "off by one place: what it gives for a token that it reads is of the place after it"),
        ([-9.0, -8.0, -7.0, -9.0, -8.0, -7.0], [*TRUE[1:], -1.0], "is of the place after it"),
        ([-9.0, *TRUE[:-1]], None, "is of the place before it"),
        ([value - 1.01 * TOLERANCE for value in TRUE], None, "other log-probabilities than it generated them with"),
        (TRUE, [value + 1 for value in TRUE], "greedy tokens are not the likeliest ones when read"),
        ([0.0] * 6, None, "gives zeros in place of the log-probabilities"),
        ([None] * 6, None, r"gives no log-probabilities of tokens that it reads \(12 are missing\)"),
        (TRUE, [None] * 6, r"\(6 are missing\)"),
    ],
)
def test_what_disagrees_is_named(read, largest, message):
    with pytest.raises(EngineError, match=message):
        probe(engine(read, largest), [PROMPT])


def test_both_rows_are_shown():
    with pytest.raises(EngineError) as raised:
        probe(engine([*TRUE[1:], -9.0], [*TRUE[1:], -1.0]), [PROMPT])
    assert str(raised.value).splitlines()[1:] == [
        "       token    'a'    'b'    'c'    'd'    'e'    'f'",
        "   generated  −0.50  −1.50  −0.30  −3.00  −1.00  −2.00",
        "        read  −1.50  −0.30  −3.00  −1.00  −2.00  −9.00",
        "largest read  −1.50  −0.30  −3.00  −1.00  −2.00  −1.00",
    ]


def test_a_shift_shows_although_one_id_is_known():
    with pytest.raises(EngineError, match="of the place after it"):
        probe(engine([-1.5], known=1), [PROMPT])


def penalised(own, largest):
    """An engine that reads as it generates, and doesn't generate the likeliest tokens."""
    told = TokenLogprobs(tuple(range(len(own))), own, largest)

    def read(prompt):
        before = (None, -1.0, -1.0)
        return TokenLogprobs(tuple(prompt), (*before, *own)[: len(prompt)], (*before, *largest)[: len(prompt)])

    return Engine("an engine", lambda *_: Generated(told, told.own, list("abcdef")), read, str)


def test_generated_tokens_must_be_the_likeliest():
    with pytest.raises(EngineError, match="not the likeliest ones when generated"):
        probe(penalised((-2.0, -3.0), (-0.5, -0.5)), [PROMPT])


def test_tokens_after_one_that_was_penalised_are_not_compared():
    own, largest = (-0.5, -1.5, -0.3, -3.0, -2.0, -1.0), (-0.5, -1.5, -0.3, -3.0, -0.4, -1.0)
    assert probe(penalised(own, largest), [PROMPT]) == [0, 1, 2, 3]


def test_log_probabilities_of_the_prompt_must_be_there():
    whole = engine(TRUE)
    holes = Engine("an engine", whole.generate, lambda prompt: TokenLogprobs(
        tuple(prompt), (None, None, -1.0, *TRUE), (None, None, -1.0, *TRUE)), str)  # fmt: skip
    with pytest.raises(EngineError, match=r"token 1 \(id 8\) of a prompt of 9 has no log-probability"):
        probe(holes, [PROMPT])


def test_another_tokenizer_is_noticed():
    with pytest.raises(EngineError, match=r"only 0 of the 12 tokens .* are tokens of the tokenizer: \['a', 'b', 'c'"):
        probe(engine(TRUE, known=0), [PROMPT, PROMPT])


def test_rows_without_differences_are_reported(caplog):
    flat = [-1.0] * 6
    with caplog.at_level(logging.WARNING):
        probe(engine(flat, told=flat), [PROMPT])
    assert "a shift by one place would not show" in caplog.text
    caplog.clear()
    probe(engine(TRUE), [PROMPT])
    assert not caplog.text
