"""XentTaskManager: where it finds tasks, and the metrics that it adds to them."""

from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from support.hf_model import tiny_model, tiny_tokenizer
from support.lm_eval import write_jsonl
from support.task_yamls import OURS, ROLLING

from xent_metrics.errors import InvalidInputError, MetricOptionError
from xent_metrics.hosts.lm_eval import XentHFLM, XentTask
from xent_metrics.hosts.lm_eval import task_manager as task_manager_module
from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager


@pytest.fixture
def write_task(tmp_path):
    """Writes a task's YAML into `tmp_path`, where its data are."""
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "a"}])

    def write(name, made_by="", metrics="[{metric: byte_perplexity}]"):
        text = ROLLING.format(name=name, made_by=made_by, metric_list=f"metric_list: {metrics}", folder=tmp_path)
        (tmp_path / f"{name}.yaml").write_text(text)
        return text

    return write


def manager(folder, *names):
    entries = [{"metric": name} for name in names]
    return XentTaskManager(include_path=str(folder), entries=entries, include_defaults=False)


def test_an_xent_task_keeps_its_own_metrics(write_task, tmp_path):
    write_task("ours", OURS, "[{metric: bits_per_byte}, {metric: byte_perplexity}, {metric: word_perplexity}]")
    task = manager(tmp_path, "bits_per_byte").load(["ours"])["tasks"]["ours"]
    assert list(task.aggregation()) == [
        *("byte_perplexity", "word_perplexity", "bits_per_byte"),
        *("byte_perplexity_stderr", "word_perplexity_stderr", "bits_per_byte_stderr"),
    ]


def test_a_task_of_lm_evals_keeps_lm_evals_metrics_beside_ours(write_task, tmp_path):
    write_task("stock", metrics="[{metric: byte_perplexity}, {metric: bits_per_byte}]")
    task = manager(tmp_path, "bits_per_byte").load(["stock"])["tasks"]["stock"]
    assert isinstance(task, XentTask)
    assert task.aggregation().keys() == {"byte_perplexity", "bits_per_byte", "bits_per_byte_stderr"}


def test_a_metric_of_ours_in_a_task_of_lm_evals_class_is_refused(write_task, tmp_path):
    """lm-eval would raise a KeyError, or drop the metric silently."""
    write_task("stock", metrics="[{metric: cross_entropy}]")
    with pytest.raises(
        MetricOptionError, match=r"task stock: cross_entropy is a metric of xent-metrics.*class: !function"
    ):
        manager(tmp_path).load(["stock"])


def test_a_metric_that_lm_eval_has_too_is_said_to_be_lm_evals(write_task, tmp_path, caplog):
    write_task("stock", metrics="[{metric: bits_per_byte}]")
    write_task("meant", metrics="[{metric: bits_per_byte, aggregation: bits_per_byte}]")
    write_task("ours", OURS, "[{metric: bits_per_byte}]")
    for added in ([], ["cross_entropy"]):
        manager(tmp_path, *added).load(["stock", "meant", "ours"])
    [warning] = [record.getMessage() for record in caplog.records if record.name.startswith("xent_metrics")]
    assert warning == (
        "task stock: bits_per_byte is lm-eval's own metric. For that of xent-metrics: Add "
        "`class: !function xent_metrics.hosts.lm_eval.XentTask` to its YAML"
    )


def test_a_task_that_comes_with_lm_eval_means_lm_evals_metrics(caplog):
    wikitext = Path(lm_eval.tasks.__file__).parent / "wikitext"  # alone: all of them take seconds to index
    index = XentTaskManager(include_path=[wikitext], include_defaults=False)
    assert index._is_lm_evals("wikitext")
    assert not index._is_lm_evals("xent_wikitext")
    config = {"metric_list": [{"metric": "bits_per_byte"}]}
    assert index._configure("wikitext", config) == config
    assert not caplog.records


def test_a_misspelt_name_suggests_the_nearest(write_task, tmp_path):
    write_task("texts")
    index = manager(tmp_path)
    assert index.match_tasks(["texts", "te*", "nothing*", str(tmp_path)]) == ["texts"]
    for find in (index.load, index.match_tasks):
        with pytest.raises(InvalidInputError, match=r"no task, group or tag is called 'text'\. Did you mean 'texts'\?"):
            find(["text"])


def test_tasks_that_cannot_take_metrics(write_task, tmp_path):
    (tmp_path / "python.yaml").write_text("task: python\nclass: !function datasets.Dataset\n")
    inline = write_task("inline").strip().replace("\n", "\n    ")
    (tmp_path / "inline.yaml").unlink()
    (tmp_path / "group.yaml").write_text(f"group: g\ntask:\n  - {inline}\n")
    with pytest.raises(InvalidInputError, match="to python, which is written in Python"):
        manager(tmp_path, "bits_per_byte").load(["python"])
    with pytest.raises(InvalidInputError, match="to g::inline, which is defined inside its group"):
        manager(tmp_path, "bits_per_byte").load(["g"])


def test_task_folders_come_before_the_users(write_task, tmp_path, monkeypatch):
    write_task("ours", OURS)
    monkeypatch.setattr(task_manager_module, "task_folders", lambda: [tmp_path])
    assert isinstance(manager(tmp_path).load(["ours"])["tasks"]["ours"], XentTask)
    assert manager(tmp_path).include_path == [tmp_path]
    assert XentTaskManager(include_defaults=False).include_path == [tmp_path]
    assert issubclass(XentTaskManager, TaskManager)


def test_predict_only_gives_samples_without_metrics():
    lm = XentHFLM(pretrained=tiny_model("llama_tied"), tokenizer=tiny_tokenizer(), batch_size=8, log_tokens=True)
    found = simple_evaluate(
        model=lm, tasks=["xent_python_docs_cloze"], task_manager=XentTaskManager(), limit=2, predict_only=True,
        bootstrap_iters=0,
    )  # fmt: skip
    samples = found["samples"]["xent_python_docs_cloze"]
    assert len(samples) == 2
    assert all(len(response[0].scores) > 0 for sample in samples for response in sample["resps"])
    assert "cross_entropy,none" not in found["results"]["xent_python_docs_cloze"]
