"""A digest of a model's weights notices every change."""

import torch
from torch import nn

from xent_metrics.hosts.lm_eval.models import weights
from xent_metrics.hosts.lm_eval.models.weights import weights_digest


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2).to(torch.bfloat16))


def test_every_change_is_noticed():
    seen = {weights_digest(network())}
    assert weights_digest(network()) in seen
    for name, _ in [*network().named_parameters(), *network().named_buffers()]:
        changed = network()
        tensor = dict([*changed.named_parameters(), *changed.named_buffers()])[name]
        tensor.data.view(-1)[-1:] += 1
        seen.add(weights_digest(changed))
    assert len(seen) == 1 + 4 + 5
    moved = network()
    moved[0].weight.data = moved[0].weight.data[[1, 0, 2, 3, 4]]
    assert weights_digest(moved) not in seen
    assert weights_digest(network().double()) not in seen
    assert weights_digest(nn.Sequential(*network(), nn.Identity())) in seen  # no weights of its own


def test_chunks_do_not_matter(monkeypatch):
    found = weights_digest(network())
    monkeypatch.setattr(weights, "_CHUNK", 7)
    assert weights_digest(network()) == found


def test_tensors_of_any_layout():
    plain, turned = nn.Linear(4, 3), nn.Linear(4, 3)
    turned.weight.data = plain.weight.data.t().contiguous().t()
    turned.bias.data = plain.bias.data.clone()
    assert weights_digest(turned) == weights_digest(plain)
    assert weights_digest(nn.ParameterList([nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.empty(0))]))
    assert weights_digest(nn.Linear(4, 3, device="meta"))
