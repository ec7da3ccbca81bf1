"""lm-eval's own code, as we found it in the version that is installed."""

import contextlib
import pickle
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import lm_eval
import lm_eval.evaluator
import lm_eval.tasks
import pytest
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import aggregation_registry, metric_registry
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from support.hf_model import TEXT, stock, tiny_model, tiny_tokenizer
from support.lm_eval import DOCUMENTS, ScoredBigramLM, config

from xent_metrics import list_metrics
from xent_metrics.errors import MissingExtraError
from xent_metrics.hosts.lm_eval import TorchLM, XentCompletions, XentHFLM, XentSGLang, XentTask, XentVLLM, upstream
from xent_metrics.hosts.lm_eval.upstream import (
    AGGREGATIONS,
    EMITTED,
    METRICS,
    SUPPORTED,
    as_command,
    configure_tasks,
    record_provenance,
)
from xent_metrics.plugins import provenance

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("output_type", sorted(EMITTED))
def test_lm_eval_emits_what_we_think(output_type):
    documents = DOCUMENTS[output_type]
    names = sorted(name for name in metric_registry if name != "bypass")
    task = ConfigurableTask(
        config=config(output_type, documents, [{"metric": name, "aggregation": "mean"} for name in names])
    )
    results = [(-1.0, True)] * 2 * len(documents[0].get("choices", [])) or [(-1.0, True)]
    assert (
        set(task.process_results(documents[0], [-1.0] if "rolling" in output_type else results)) == EMITTED[output_type]
    )


def test_our_names_are_not_in_lm_evals_registry():
    ours = set(list_metrics()) - set().union(*EMITTED.values())
    assert ours
    assert not ours & set(metric_registry)


def test_the_supported_versions_are_those_of_the_extra():
    [extra] = re.findall(r'"lm_eval\[api,hf\](\S+)"', (ROOT / "pyproject.toml").read_text())
    assert f"lm_eval{extra}" == SUPPORTED


def test_it_loads_neither_the_evaluator_nor_what_tasks_need():
    """Models and engines import it, too."""
    script = "import sys, xent_metrics.hosts.lm_eval.upstream; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"lm_eval.evaluator", "lm_eval.tasks", "lm_eval.api.task", "datasets", "sacrebleu"} & set(loaded)


def test_names_of_lm_evals_metrics_and_aggregations():
    for names, one, registry in [(METRICS, "acc", metric_registry), (AGGREGATIONS, "mean", aggregation_registry)]:
        assert one in names
        assert "nothing" not in names
        assert sorted(names) == sorted(registry)
        assert len(names) == len(registry)


def test_a_configured_task_manager_can_be_pickled(tmp_path):
    (tmp_path / "t.yaml").write_text("task: t\noutput_type: loglikelihood\n")
    manager = lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    configure_tasks(manager, _refuse)
    for each in (manager, pickle.loads(pickle.dumps(manager))):
        with pytest.raises(KeyError, match="t of loglikelihood"):
            each.load(["t"])


def _refuse(name, config):
    raise KeyError(f"{name} of {config['output_type']}")


def test_a_task_manager_without_the_factory_that_we_read_is_refused():
    """Otherwise metrics would be added to no task, without a word."""
    manager = lm_eval.tasks.TaskManager(include_defaults=False)
    manager._factory = object()
    with pytest.raises(MissingExtraError, match=r"object\._load_full_config"):
        configure_tasks(manager, lambda name, config: config)
    del manager._factory
    with pytest.raises(MissingExtraError, match=r"TaskManager\._factory"):
        configure_tasks(manager, lambda name, config: config)


#: The private names that each function reads of what it is given.
READ = {
    "filter_names": ("_filters", ()),
    "encode_pair": ("_encode_pair", ("a", "b")),
    "set_max_length": ("_max_length", (3,)),
    "set_rank": ("_rank", (0, 2)),
    "engine_outputs": ("_model_generate", ([],)),
    "batch_size": ("_batch_size", ()),
    "num_concurrent": ("_concurrent", ()),
}


@pytest.mark.parametrize("function", READ)
def test_a_name_that_moved_is_an_error_that_names_both_versions(function):
    name, arguments = READ[function]
    with pytest.raises(MissingExtraError) as error:
        getattr(upstream, function)(SimpleNamespace(), *arguments)
    assert f"SimpleNamespace.{name} of lm-eval 0.4" in str(error.value)
    assert f"lm-eval {version('lm_eval')} doesn't have" in str(error.value)
    assert f"Install '{SUPPORTED}'" in str(error.value)


def test_without_the_function_that_adds_versions_to_results_it_says_so(monkeypatch):
    monkeypatch.delattr(lm_eval.evaluator, "add_env_info")
    with pytest.raises(MissingExtraError, match=r"lm_eval\.evaluator\.add_env_info"):
        record_provenance("ours", dict)


def test_tasks_of_lm_eval_0_5_are_refused(monkeypatch):
    assert upstream.configurable_task() is ConfigurableTask
    monkeypatch.setattr(upstream, "IS_0_4", False)
    with pytest.raises(MissingExtraError, match=rf"XentTask and `xent lm-eval`.*Install '{SUPPORTED}'"):
        upstream.configurable_task()


def test_what_models_use():
    tokenizer = tiny_tokenizer()
    lm = stock(tiny_model("llama_tied"), tokenizer)
    assert upstream.encode_pair(lm, "A context ", "and more") == (
        tokenizer.encode("A context"),
        tokenizer.encode("A context and more")[len(tokenizer.encode("A context")) :],
    )
    assert upstream.encode_pair(lm, "  ", TEXT) == ([], tokenizer.encode("  " + TEXT))
    upstream.set_max_length(lm, 17)
    assert lm.max_length == 17
    upstream.set_rank(lm, 2, 3)
    assert (lm.rank, lm.world_size) == (2, 3)
    assert upstream.rolling_text((TEXT,)) == upstream.rolling_text(("", TEXT)) == TEXT


@pytest.mark.parametrize("ours", [TorchLM, XentCompletions, XentHFLM, XentSGLang, XentTask, XentVLLM])
def test_private_names_of_lm_evals_that_our_classes_have_by_their_own_are_known(ours):
    """Another is an accident, or one that isn't looked for when lm-eval changes."""
    theirs = {name for c in ours.__mro__ if c.__module__.startswith("lm_eval.") for name in vars(c)}
    here = {name for c in ours.__mro__ if c.__module__.startswith("xent_metrics.") for name in vars(c)}
    private = {name for name in theirs & here if re.match(r"_[a-z]", name)}
    assert private - {"_abc_impl"} <= set().union(*upstream.OVERRIDDEN.values())


def test_what_our_classes_override_is_there():
    assert "_loglikelihood_tokens" in TemplateLM.__abstractmethods__
    assert callable(HFLM._get_backend)
    task = ConfigurableTask(config=config("loglikelihood", DOCUMENTS["loglikelihood"], [{"metric": "acc"}]))
    task.set_config("num_fewshot", 0)
    task.build_all_requests()
    assert task._instances is task.instances
    assert set().union(*upstream.OVERRIDDEN.values()) == {"_loglikelihood_tokens", "_get_backend", "_instances"}


def test_results_say_where_they_come_from_once(monkeypatch):
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda storage: storage.update(lm_eval_version="1"))
    record_provenance("ours", lambda: {"version": "0"})
    record_provenance("theirs", lambda: {"version": "2"})
    found: dict = {}
    lm_eval.evaluator.add_env_info(found)
    assert found == {"lm_eval_version": "1", "theirs": {"version": "2"}}


def test_an_evaluation_with_a_task_of_ours_says_our_version_and_plugins(monkeypatch):
    monkeypatch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a machine")  # takes seconds
    task = XentTask(config("loglikelihood_rolling", DOCUMENTS["loglikelihood_rolling"], [{"metric": "bits_per_byte"}]))
    found = lm_eval.simple_evaluate(ScoredBigramLM(), tasks=[task], bootstrap_iters=0, log_samples=False)
    assert found["xent_metrics"] == provenance()
    assert "focal" in [plugin["name"] for plugin in found["xent_metrics"]["plugins"]]
    assert found["lm_eval_version"]


def test_what_the_command_reads_is_put_back():
    before = sys.argv, lm_eval.tasks.TaskManager
    with contextlib.suppress(KeyError), as_command(["run", "--tasks", "t"], dict):
        assert (sys.argv, lm_eval.tasks.TaskManager) == (["lm-eval", "run", "--tasks", "t"], dict)
        raise KeyError
    assert (sys.argv, lm_eval.tasks.TaskManager) == before
