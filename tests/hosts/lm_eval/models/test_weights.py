"""A digest of a model's weights notices every change."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from xent_metrics.hosts.lm_eval.models import weights
from xent_metrics.hosts.lm_eval.models.weights import attributes_digest, weights_digest


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


def test_the_ends_of_tensors_tell_models_apart():
    """And what lies between them isn't read."""
    module = nn.Linear(100, 100, bias=False)
    seen = {weights_digest(module, ends=40)}
    for place, new in ((0, True), (-1, True), (5000, False)):
        module.weight.data.view(-1)[place] += 1
        assert (weights_digest(module, ends=40) not in seen) is new
        seen.add(weights_digest(module, ends=40))
    assert weights_digest(module, ends=20_000) == weights_digest(module)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_numbers_count():
    """Their bytes can't be viewed."""
    found = set()
    for value in (1.0, 2.0):
        module = nn.Module()
        module.register_buffer("weight", torch.quantize_per_tensor(torch.full((3,), value), 0.1, 0, torch.quint8))
        found.add(weights_digest(module))
    assert len(found) == 2


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


@dataclasses.dataclass
class Options:
    scale: float = 1.0
    call: object = None


class Scaled(nn.Module):
    def __init__(self, options, *, inner=None):
        super().__init__()
        self.options, self.inner = options, inner
        self._hidden = options
        self.other = object()


def test_plain_attributes_of_all_modules_are_seen():
    digests = [
        attributes_digest(module)
        for module in (
            Scaled(Options()), Scaled(Options(2.0)), Scaled({"scale": [torch.ones(2)]}), Scaled({"scale": [torch.zeros(2)]}),
            Scaled(Options(), inner=nn.Dropout(0.1)), Scaled(Options(), inner=nn.Dropout(0.2)),
        )
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    assert digests[0] == attributes_digest(Scaled(Options()))


def test_what_is_no_plain_value_is_not():
    assert attributes_digest(Scaled(object())) == attributes_digest(Scaled(Options(call=len)))


def test_attributes_that_are_data_or_hold_themselves_are_left_out():
    plain = attributes_digest(Scaled(object()))
    loop = [1]
    loop.append(loop)
    for value in (list(range(10_000)), loop, Options.__new__(Options)):
        assert attributes_digest(Scaled(value)) == (
            plain if isinstance(value, list) else attributes_digest(Scaled(Options()))
        )
    for value in (torch.empty(2, device="meta"), torch.eye(2).to_sparse(), np.longdouble(2)):
        assert attributes_digest(Scaled(value)) == attributes_digest(Scaled(value)) != plain
