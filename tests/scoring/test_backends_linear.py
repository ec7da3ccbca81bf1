"""The hook `linear_cross_entropy_backend`: when it is called, for which rows, and errors that name the plugin."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from xent_metrics import hookimpl, score_hidden_states
from xent_metrics.errors import PluginError
from xent_metrics.scoring.scores import ExtraScore

pytestmark = pytest.mark.filterwarnings("error:xent-metrics plugin")


class Backend:
    """A plugin module whose backend returns `result`, by default an nll of 7.5, and remembers its arguments."""

    def __init__(self, result=lambda rows: (torch.full((rows,), 7.5), torch.full((rows,), 0.25), torch.ones(rows) > 0)):
        self.asked = []

        @hookimpl
        def linear_cross_entropy_backend(hidden_states, head, target, extra_scores):
            self.asked.append((hidden_states, head, target, extra_scores))
            return result(len(hidden_states)) if callable(result) else result

        self.linear_cross_entropy_backend = linear_cross_entropy_backend


HIDDEN, HEAD = torch.randn(2, 12, 3), torch.randn(7, 3)
TARGET = torch.arange(24).reshape(2, 12) % 7


def expected(hidden=HIDDEN, target=TARGET):
    return F.cross_entropy((hidden @ HEAD.T).mT, target, reduction="none")


def test_a_backend_gives_the_scores_and_the_core_the_rest(install):
    backend = Backend()
    install(backend)
    target = TARGET.clone()
    target[0, 3], target[1, 4] = -100, 99
    scores = score_hidden_states(HIDDEN, HEAD, target)
    valid = (target >= 0) & (target < 7)
    assert torch.equal(scores.nll[valid], torch.full((22,), 7.5))
    assert scores.nll[0, 3] == 0
    assert scores.nll[1, 4].isnan()
    assert torch.equal(scores.correct, valid)
    assert torch.equal(scores.confidence[valid], torch.full((22,), 0.25))
    [(hidden, head, index, extra_scores)] = backend.asked
    assert torch.equal(hidden, HIDDEN.reshape(24, 3))
    assert torch.equal(head.weight, HEAD)
    assert head.plain
    assert extra_scores == {}
    assert torch.equal(index, torch.where(valid, target, 0).reshape(24))


def test_rows_come_in_parts_and_in_order(install, monkeypatch):
    monkeypatch.setattr("xent_metrics.scoring.score.BLOCK_ROWS", 10)
    backend = Backend(lambda rows: (torch.full((rows,), float(rows)), torch.ones(rows), torch.ones(rows) > 0))
    install(backend)
    assert score_hidden_states(HIDDEN, HEAD, TARGET).nll.flatten().tolist() == [10.0] * 20 + [4.0] * 4


def test_none_leaves_the_rows_to_torch_and_the_last_loaded_is_asked_first(install):
    declines, answers = Backend(None), Backend()
    install(declines)
    torch.testing.assert_close(score_hidden_states(HIDDEN, HEAD, TARGET).nll, expected())
    install(answers, declines)
    assert score_hidden_states(HIDDEN, HEAD, TARGET).nll.max() == 7.5
    assert [len(backend.asked) for backend in (declines, answers)] == [2, 1]


def test_a_wrapper_changes_the_scores_of_the_backend_that_it_wraps(install):
    class Wrapper:
        @staticmethod
        @hookimpl(wrapper=True)
        def linear_cross_entropy_backend(head):
            nll, *others = yield
            return nll + head.vocab_size, *others

    install(Backend(), Wrapper)
    assert score_hidden_states(HIDDEN, HEAD, TARGET).nll.max() == 14.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("option", "field"), [("bias", "bias"), ("logit_scale", "scale"), ("logit_softcap", "softcap"), (None, "weight")]
)
def test_it_is_asked_for_every_dtype_and_every_head_with_all_rows(dtype, option, field, install):
    backend, value = Backend(), torch.ones(7) if option == "bias" else 2.0
    install(backend)
    options = {} if option is None else {option: value}
    scores = score_hidden_states(HIDDEN.to(dtype), HEAD.to(dtype), TARGET, **options)
    assert scores.nll.min() == 7.5
    [(hidden, head, _, _)] = backend.asked
    assert (hidden.shape, hidden.dtype, head.weight.dtype) == ((24, 3), dtype, dtype)
    given = {name: getattr(head, name) for name in ("bias", "scale", "softcap")}
    if option:
        assert torch.as_tensor(given.pop(field)).tolist() == torch.as_tensor(value).tolist()
    assert list(given.values()) == [None] * len(given)


def test_hidden_states_come_in_the_dtype_of_the_head(install):
    backend = Backend()
    install(backend)
    score_hidden_states(HIDDEN.bfloat16(), HEAD, TARGET)
    score_hidden_states(HIDDEN, HEAD.bfloat16(), TARGET)
    assert [(hidden.dtype, head.weight.dtype) for hidden, head, _, _ in backend.asked] == [(torch.float32,) * 2] * 2


LARGEST = {"largest": ExtraScore(lambda rows, index: rows.amax(-1), of="logits")}


def gives(**extras):
    """The result of a backend that gives these extra scores."""
    return lambda rows: (*Backend().linear_cross_entropy_backend(torch.ones(rows, 3), None, None, {}), extras)


def test_it_gives_the_extra_scores_or_leaves_all_to_torch(install):
    backend = Backend(gives(largest=torch.arange(24.0)))
    install(backend)
    scores = score_hidden_states(HIDDEN, HEAD, TARGET, extra_scores=LARGEST)
    assert torch.equal(scores.extra_scores["largest"], torch.arange(24.0).reshape(2, 12))
    assert scores.nll.min() == 7.5
    assert backend.asked[0][3] == LARGEST
    install(Backend(None))
    scores = score_hidden_states(HIDDEN, HEAD, TARGET, extra_scores=LARGEST)
    torch.testing.assert_close(scores.extra_scores["largest"], (HIDDEN @ HEAD.T).amax(-1))


def test_a_backend_that_lacks_an_extra_score_is_named(install):
    for backend in (Backend(), Backend(gives())):
        install(backend)
        with pytest.raises(
            PluginError, match="returned no extra score largest; expected largest, or None for a backend"
        ):
            score_hidden_states(HIDDEN, HEAD, TARGET, extra_scores=LARGEST)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"class_weight": torch.ones(7)}])
def test_it_is_not_asked_for_losses(options, install):
    backend = Backend()
    install(backend)
    torch.testing.assert_close(
        score_hidden_states(HIDDEN, HEAD, TARGET, **options).nll, expected(), rtol=1e-5, atol=1e-5
    )
    assert not backend.asked


def test_it_is_not_asked_for_soft_targets_for_nothing_or_for_what_has_no_memory(install):
    backend = Backend()
    install(backend)
    score_hidden_states(HIDDEN, HEAD, torch.full((2, 12, 7), 1 / 7))
    score_hidden_states(HIDDEN[:0], HEAD, TARGET[:0])
    with FakeTensorMode() as mode:
        score_hidden_states(mode.from_tensor(HIDDEN), mode.from_tensor(HEAD), mode.from_tensor(TARGET))
    torch.func.vmap(lambda hidden: score_hidden_states(hidden, HEAD, TARGET[0]).nll)(HIDDEN)
    torch.compile(score_hidden_states, backend="eager")(HIDDEN, HEAD, TARGET)
    assert not backend.asked


def test_under_autocast_it_gets_what_it_gets_without(install):
    backend = Backend()
    install(backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        score_hidden_states(HIDDEN, HEAD, TARGET)
    assert [hidden.dtype for hidden, *_ in backend.asked] == [torch.float32]


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (lambda rows: 1 / 0, "linear_cross_entropy_backend raised ZeroDivisionError"),
        (torch.zeros(24), r"linear_cross_entropy_backend returned \(24,\) of float32 on cpu; expected three"),
        (lambda rows: (torch.zeros(rows), torch.zeros(rows)), "expected three tensors"),
        (
            lambda rows: (torch.zeros(rows - 1), torch.zeros(rows), torch.zeros(rows) > 0),
            r"returned \[\(23,\) of float32",
        ),
        (lambda rows: (torch.zeros(rows).half(), torch.zeros(rows), torch.zeros(rows) > 0), "float16"),
        (lambda rows: (torch.zeros(rows), torch.zeros(rows), torch.zeros(rows)), "correct as bool"),
    ],
)
def test_a_backend_that_breaks_its_contract_is_named(result, says, install):
    install(Backend(result))
    with pytest.raises(PluginError, match=says) as caught:
        score_hidden_states(HIDDEN, HEAD, TARGET)
    assert "a-third-party: linear_cross_entropy_backend" in str(caught.value)
