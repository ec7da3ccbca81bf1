"""What pip installs: with a compiler, without one, without OpenMP, with half of it; and what it then does by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from support import native as native_build

from xent_metrics.plugins import Plugins
from xent_metrics.scoring.linear import LMHead

native, SITE = native_build.build(), native_build.SITE

PROGRAM = """
import json, os, torch
from xent_metrics import TokenMetricCollection, score_tokens
from xent_metrics.plugins import plugins
torch.set_num_threads(2)
torch.manual_seed(0)
logits, target = torch.randn(8, 40, 5000) * 4, torch.randint(5000, (8, 40))
target[0, :9] = -100
names = ["cross_entropy", "perplexity", "token_accuracy", "expected_calibration_error", "calibration_weighted_cross_entropy"]
metrics = TokenMetricCollection(names)
(torch.randn(512, 512) @ torch.randn(512, 512)).sum()
before = len(os.listdir("/proc/self/task"))
scores = score_tokens(logits, target)
metrics.update(scores)
print(json.dumps({
    "values": {name: value.item() for name, value in metrics.compute().items()},
    "nll": scores.nll.flatten().tolist(),
    "loaded": [plugin.name for plugin in plugins().plugins],
    "new threads": len(os.listdir("/proc/self/task")) - before,
}))
"""


def test_installed_it_scores_by_itself_agrees_with_pure_torch_and_makes_no_second_thread_pool():
    """The same program in two processes, with the plugin and with XENT_METRICS_PLUGINS empty."""
    ours, pure = run(), run(XENT_METRICS_PLUGINS="")
    assert "native" in ours["loaded"]
    assert pure["loaded"] == ["built-in"]
    assert ours["nll"] != pure["nll"]
    assert ours["nll"] == pytest.approx(pure["nll"], rel=1e-6, abs=4e-6)  # torch's own error is the larger one
    assert ours["values"] == pytest.approx(pure["values"], rel=1e-6)
    assert ours["values"]["token_accuracy"] == pure["values"]["token_accuracy"]
    assert ours["new threads"] == 0


def run(**chosen: str) -> dict:
    environment = {k: v for k, v in os.environ.items() if k != "XENT_METRICS_PLUGINS"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(SITE), os.environ.get("PYTHONPATH", "")]), **chosen}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_without_a_compiler_there_is_no_kernel_and_the_plugin_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "/no/such/compiler")
    package = native_build.copy_package(tmp_path)
    assert native_build.hatch_build().compile_all(native_build.PACKAGE, package) == set()
    says = "is set aside: ImportError: .* installed without a C compiler"
    with native_build.importable_from(tmp_path), pytest.warns(UserWarning, match=says):
        loaded = Plugins([native_build.POINT])
    assert "pip install --force-reinstall" in str(loaded.plugins[-1].error)
    assert not loaded.manager.hook.score_backend.get_hookimpls()


def test_a_compiler_without_openmp_makes_a_kernel_with_one_thread_and_the_same_bits(monkeypatch, tmp_path):
    compiler = tmp_path / "plain-cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *-fopenmp\\ *) exit 1;; esac\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert native_build.hatch_build().compile_all(native_build.PACKAGE, tmp_path)
    library = tmp_path / "_kernel.so"
    assert b"GOMP_parallel" not in library.read_bytes()
    logits, target = torch.randn(9, 5003) * 3, torch.randint(5003, (9,))
    expected = native.score_backend(logits, target)
    monkeypatch.setattr(native.logits, "_score", native.logits.xent_score(native.libraries.load_kernel(library)))
    found = native.score_backend(logits, target)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_the_scores_work_where_the_layers_could_not_be_compiled(monkeypatch, tmp_path):
    compiler = tmp_path / "some-cc"
    compiler.write_text('#!/bin/sh\ncase "$*" in *layers.c*) exit 1;; esac\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    package = native_build.copy_package(tmp_path)
    assert native_build.hatch_build().compile_all(native_build.PACKAGE, package) == {"_kernel.so"}
    half = native_build.load(tmp_path)
    target = torch.zeros(64, dtype=torch.long)
    states, weight = torch.randn(64, 8), torch.randn(5, 8)
    assert half.score_backend(torch.zeros(64, 3), target) is not None
    assert half.linear_cross_entropy_backend(states, LMHead(weight), target, {}) is None
    assert half.forward_context(torch.nn.Linear(2, 2)) is None
    assert half.attention.causal_attention(*torch.randn(3, 1, 2, 64, 8), 1.0) is None
    assert half.rms_norm.rms_norm(states, torch.ones(8), 1e-6) is None
    assert half.products.gated_products(torch.randn(128, 8), weight, weight) is None
