"""A module in training as an lm-eval model, and as it was afterwards."""

import random
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from support.distributed import fake_ranks
from support.lm_eval_requests import request
from torch import nn

from xent_metrics.hosts.lightning.module_lm import ModuleLM, as_it_was


def bigrams():
    """Bigrams of bytes, with dropout that is off in eval mode."""
    return nn.Sequential(nn.Embedding(257, 257), nn.Dropout(0.5))


def test_modes_and_random_generators_are_restored():
    module = bigrams()
    module[0].eval()
    with as_it_was(module):
        expected = random.random(), np.random.rand(), torch.rand(()).item()
    with as_it_was(module):
        module.eval()
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert [m.training for m in (module, *module)] == [True, False, True]
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_modes_are_restored_after_an_error():
    module = bigrams()
    with pytest.raises(AttributeError), as_it_was(module):
        module.eval().missing  # noqa: B018
    assert all(m.training for m in (module, *module))


def model(module=None, *, context=nullcontext, alone=False):
    return ModuleLM(module or bigrams(), context=context, alone=alone, tokenizer="bytes", max_length=8)


def test_every_forward_is_within_the_context():
    inside, seen = [], []

    @contextmanager
    def context():
        inside.append(True)
        yield
        inside.pop()

    module = bigrams()
    module.register_forward_hook(lambda *_: seen.append(bool(inside)))
    lm = model(module, context=context)
    lm.loglikelihood_rolling([request("loglikelihood_rolling", "some text of several windows")])
    assert seen
    assert all(seen)
    assert not inside


def test_alone_it_scores_everything_itself():
    with fake_ranks(1, 2):
        assert [(lm.rank, lm.world_size) for lm in (model(alone=False), model(alone=True))] == [(1, 2), (0, 1)]
