"""`Forward` takes any causal module: what it may return, and what it runs on."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from support.byte_model import ByteNet, Watched
from torch import nn

from xent_metrics import get_metric
from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval.models.forward import Forward
from xent_metrics.hosts.lm_eval.models.packing import alone
from xent_metrics.hosts.lm_eval.models.windows import Window

WINDOWS = [Window((5, 6, 7), (6, 7, 8)), Window((9, 5), (4,))]
ROWS = [alone(place, window) for place, window in enumerate(WINDOWS)]
CPU = torch.device("cpu")


class Returning(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = ByteNet(), wrap

    def forward(self, ids):
        return self.wrap(self.net(ids))


@pytest.mark.parametrize(
    "wrap", [lambda logits: logits, lambda logits: SimpleNamespace(logits=logits), lambda logits: (logits, "state")]
)
def test_logits_may_come_alone_with_a_name_or_first(wrap):
    forward = Forward(Returning(wrap), device=CPU)
    found = forward.states(ROWS)
    expected = [ByteNet()(torch.tensor([window.inputs]))[0, window.scored] for window in WINDOWS]
    torch.testing.assert_close(found, torch.cat(expected))
    assert not found.requires_grad


@pytest.mark.parametrize("wrap", [lambda logits: logits[0], lambda logits: logits[:, 1:], lambda logits: "logits"])
def test_anything_else_is_refused(wrap):
    with pytest.raises(
        InvalidInputError, match=r"Returning gave .* for ids \(2, 3\); expected logits \(B, T, V\), an obj"
    ):
        Forward(Returning(wrap), device=CPU).states(ROWS)


@pytest.mark.parametrize(("row_length", "length"), [(None, 3), (6, 6)])
def test_rows_are_padded_on_the_right_with_one_id(row_length, length):
    watched = Watched()
    Forward(watched, device=CPU, fill=256, row_length=row_length).states(ROWS)
    padding = [256] * (length - 3)
    assert [ids.tolist() for ids in watched.seen] == [[[5, 6, 7, *padding], [9, 5, 256, *padding]]]


def test_the_module_runs_within_its_context():
    opened = []

    @contextmanager
    def context():
        opened.append("in")
        yield
        opened.append("out")

    watched = Watched()
    watched.register_forward_hook(lambda *given: opened.append("forward"))
    forward = Forward(watched, device=CPU, context=context)
    for _ in range(2):
        forward.states(ROWS)
    assert opened == ["in", "forward", "out"] * 2


def test_extra_scores_change_no_other_score():
    forward = Forward(ByteNet(), device=CPU)
    states, targets = forward.states(ROWS), [6, 7, 8, 4]
    plain = forward.score(states, targets)
    forward.extra_scores = get_metric("mean_reciprocal_rank").extra_scores()
    scores = forward.score(states, targets)
    assert list(scores.extra_scores) == ["target_rank"]
    for name, field in plain.fields().items():
        assert torch.equal(field, getattr(scores, name))
