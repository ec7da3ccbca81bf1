"""The compiled backend for CUDA. There is no GPU here: its graph is traced on fake CUDA tensors and run on the CPU."""

from __future__ import annotations

import pytest
import torch
from support.backends import Backend, assert_same
from torch._subclasses.fake_tensor import FakeTensorMode

from xent_metrics import score_tokens
from xent_metrics.scoring import compiled

# A backend that was set aside unnoticed would show nothing.
pytestmark = pytest.mark.filterwarnings("error:xent-metrics plugin")


def test_the_compiled_backend_leaves_other_devices_alone():
    assert compiled.score_backend(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)) is None


def test_the_compiled_backend_traces_one_full_graph_on_cuda_for_any_number_of_rows():
    graphs = []

    def remember(graph, inputs):
        graphs.append(graph)
        return graph.forward

    traced = torch.compile(compiled.row_scores, fullgraph=True, dynamic=True, backend=remember)
    with FakeTensorMode():
        for rows in (6, 9, 500):
            logits = torch.empty(rows, 300, device="cuda", dtype=torch.bfloat16)
            results = traced(logits, torch.empty(rows, device="cuda", dtype=torch.long))
            assert [(r.device.type, r.shape, r.dtype) for r in results] == [
                ("cuda", (rows,), torch.float32),
                ("cuda", (rows,), torch.float32),
                ("cuda", (rows,), torch.bool),
            ]
    assert len(graphs) == 1


def test_the_hook_takes_a_compiled_function(install, batch):
    logits, target = torch.randn(40, 3000) * 4, torch.randint(3000, (40,))
    logits[::4, 2000] = logits[::4, 1000] = 30.0  # ties
    target[:8] = 1000
    logits[3, 5], logits[4, 5], logits[5, 5] = torch.nan, torch.inf, -torch.inf
    install()
    own = score_tokens(logits, target)
    install(Backend(compiled.row_scores))
    expected = score_tokens(logits, target)
    torch.testing.assert_close(expected.nll, own.nll, equal_nan=True, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(expected.confidence, own.confidence, equal_nan=True, rtol=1e-5, atol=0)
    assert torch.equal(expected.correct, own.correct)
    graph = torch.compile(compiled.row_scores, fullgraph=True, dynamic=True, backend="aot_eager")
    backend = Backend(graph)
    install(backend)
    assert_same(score_tokens(logits, target), expected)
    assert_same(score_tokens(logits[:7].double(), target[:7]), score_tokens(logits[:7].double(), target[:7]))
    assert len(backend.asked) == 3
