"""lm-eval finds our models by name: by import in 0.4.13, by entry points later; also under its own command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import lm_eval.api.registry
import pytest
from lm_eval.api.registry import get_model, model_registry
from support.hf_model import tiny_model, tiny_tokenizer
from support.task_yamls import write_tasks

from xent_metrics.hosts.lm_eval.model_names import MODELS, register_models

ROOT = Path(__file__).parents[3]

#: Whether this lm-eval reads other packages' entry points.
READS_ENTRY_POINTS = hasattr(lm_eval.api.registry, "load_plugins")

#: lm-eval's own command and function. Our package is imported first only where lm-eval doesn't find it.
SCRIPT = """
import json, sys
import lm_eval.api.registry
if not hasattr(lm_eval.api.registry, "load_plugins"):
    import xent_metrics.hosts.lm_eval
from lm_eval import simple_evaluate
from lm_eval.__main__ import cli_evaluate
from lm_eval.tasks import TaskManager
folder = sys.argv[1]
arguments = f"pretrained={folder},dtype=float32"
results = simple_evaluate("xent-hf", model_args=arguments, tasks=["rolling_tokens"], device="cpu", bootstrap_iters=0,
                          task_manager=TaskManager(include_path=folder, include_defaults=False))
print("VALUES", json.dumps(results["results"]["rolling_tokens"]["cross_entropy,none"]))
sys.argv = ["lm-eval", "run", "--model", "xent-hf", "--model_args", arguments, "--tasks", "rolling_tokens",
            "--include_path", folder, "--device", "cpu"]
cli_evaluate()
"""


def test_models_are_registered_once():
    register_models()
    register_models()
    assert {"hf", *MODELS} <= set(model_registry)


@pytest.mark.parametrize("name", MODELS)
def test_a_name_leads_to_its_class_where_it_is_defined(name):
    """lm-eval's registry takes a class in place of its name only if the path is the class's own."""
    found = get_model(name)
    assert f"{found.__module__}:{found.__qualname__}" == MODELS[name]
    assert found.model_name == name
    assert found.gives_token_scores


def test_entry_points_are_the_registered_names():
    text = (
        (ROOT / "pyproject.toml")
        .read_text()
        .partition('[project.entry-points."lm_eval.models"]')[2]
        .partition("\n[")[0]
    )
    assert dict(re.findall(r'^([\w-]+) = "(.+)"$', text, re.MULTILINE)) == MODELS


def test_by_itself_lm_eval_finds_our_models_if_it_reads_entry_points():
    script = "from lm_eval.api.registry import get_model; print(get_model('xent-torch'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    if READS_ENTRY_POINTS:
        assert "xent_metrics.hosts.lm_eval.models.torch_lm.TorchLM" in done.stdout
    else:
        assert done.returncode == 1
        assert "xent-torch" in done.stderr


@pytest.mark.slow
def test_lm_evals_own_function_and_command_find_xent_hf(tmp_path):
    tiny_model("llama_tied").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    write_tasks(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    value = json.loads(re.search(r"VALUES (.*)", done.stdout)[1])
    [row] = [line for line in done.stdout.splitlines() if "cross_entropy" in line and "|" in line]
    assert f"{value:.4f}" in row
