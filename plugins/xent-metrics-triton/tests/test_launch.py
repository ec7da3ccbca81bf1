"""What the plugin says, once, where it can't work; and that torch then scores."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch
import triton
import xent_metrics_triton as plugin
from support.triton_interpreter import PACKAGE
from xent_metrics_triton import launch, rows

from xent_metrics import score_tokens

LOGITS, TARGET = torch.zeros(3, 5), torch.tensor([0, 1, 4])


@pytest.fixture(autouse=True)
def fresh():
    """Triton's version wasn't looked at yet."""
    launch._is_ready.cache_clear()
    yield
    launch._is_ready.cache_clear()


@pytest.mark.usefixtures("loaded")
def test_a_kernel_that_does_not_compile_is_tried_once_and_torch_scores(monkeypatch):
    calls = []

    def broken(*given):
        calls.append(given)
        raise triton.CompilationError("def kernel(): …", None, "no such instruction on sm_50")

    monkeypatch.setattr(rows, "score_rows", broken)
    with pytest.warns(
        UserWarning, match="score_backend is off .* torch computes .* CompilationError.*\n?.*sm_50"
    ) as said:
        first, second = score_tokens(LOGITS, TARGET), score_tokens(LOGITS, TARGET)
    assert len(said) == len(calls) == 1
    torch.testing.assert_close(first.nll, torch.full((3,), 5.0).log())
    assert torch.equal(first.nll, second.nll)
    assert plugin.exact_sums_backend(torch.ones(1, 2), None, 1) is not None  # the others go on


def test_memory_that_runs_out_is_no_reason_to_give_up(monkeypatch):
    def full(*given):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(rows, "score_rows", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        plugin.score_backend(LOGITS, TARGET, {})
    monkeypatch.undo()
    assert plugin.score_backend(LOGITS, TARGET, {}) is not None


def test_an_old_triton_is_named_once(monkeypatch):
    monkeypatch.setattr(triton, "__version__", "2.1.0")
    with pytest.warns(UserWarning, match=r"needs Triton 3\.\d+ or newer and found 2\.1\.0"):
        assert plugin.score_backend(LOGITS, TARGET, {}) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert plugin.exact_sums_backend(LOGITS, None, 1) is None


@pytest.mark.parametrize("version", ["3.10.0", "3.9.0+git1234", "4.0.0"])
def test_a_new_triton_is_taken(version, monkeypatch):
    monkeypatch.setattr(triton, "__version__", version)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert plugin.score_backend(LOGITS, TARGET, {}) is not None


PROGRAM = """
import importlib.util, sys, warnings
find = importlib.util.find_spec
if "without" in sys.argv:
    importlib.util.find_spec = lambda name, *more: None if name == "triton" else find(name, *more)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch, xent_metrics_triton as plugin
    before = "triton" in sys.modules
    logits, target = torch.zeros(3, 5), torch.tensor([0, 1, 4])
    for _ in range(2):
        assert plugin.score_backend(logits, target, {}) is None
        assert plugin.exact_sums_backend(logits, None, 1) is None
print(before, "triton" in sys.modules, *[str(each.message) for each in said if "triton" in str(each.message)])
"""


def run(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(PACKAGE), str(PACKAGE.parents[1]), environment.get("PYTHONPATH", "")]
    )
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_without_a_gpu_nothing_is_said_and_triton_is_not_even_imported():
    assert run() == "False False"


def test_without_triton_one_warning_says_so():
    says = "xent-metrics-triton has no Triton, so torch scores. `pip install triton`, or uninstall xent-metrics-triton"
    assert run("without") == f"False False {says}"
