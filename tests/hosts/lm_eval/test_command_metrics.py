"""`--xent_metrics` and the task manager of `xent lm-eval`, without a model."""

import datasets
import pytest
from lm_eval.tasks import TaskManager
from support.lm_eval import write_jsonl
from support.task_yamls import ROLLING, write_tasks

from xent_metrics.errors import InvalidInputError, MetricOptionError, UnknownMetricError
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval.command import XentTaskManager, parse_metrics, register_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    return folder


def test_metrics_are_parsed_with_their_options():
    assert parse_metrics("bits_per_byte, cross_entropy:unit=bits;name=bits ,") == [
        {"metric": "bits_per_byte"},
        {"metric": "cross_entropy", "unit": "bits", "name": "bits"},
    ]
    assert parse_metrics(None) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("cross_entropi", UnknownMetricError),
        ("cross_entropy:unti=bits", MetricOptionError),
        ("perplexity:x", MetricOptionError),
    ],
)
def test_metrics_that_do_not_exist_are_refused(text, error):
    with pytest.raises(error):
        parse_metrics(text)


def test_an_xent_task_keeps_its_own_metrics(folder):
    manager = XentTaskManager(include_path=str(folder), entries=[{"metric": "bits_per_byte"}], include_defaults=False)
    task = manager.load(["rolling_ours"])["tasks"]["rolling_ours"]
    assert [entry.name for entry in task._entries] == ["byte_perplexity", "word_perplexity", "bits_per_byte"]


def test_tasks_that_cannot_take_metrics(tmp_path):
    (tmp_path / "python.yaml").write_text("task: python\nclass: !function datasets.Dataset\n")
    inline = ROLLING.format(name="inline", made_by="", metric_list="", folder=tmp_path).strip().replace("\n", "\n    ")
    (tmp_path / "group.yaml").write_text(f"group: g\ntask:\n  - {inline}\n")
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "a"}])
    manager = XentTaskManager(include_path=tmp_path, entries=[{"metric": "bits_per_byte"}], include_defaults=False)
    with pytest.raises(InvalidInputError, match="on python, which is written in Python"):
        manager.load(["python"])
    with pytest.raises(InvalidInputError, match="on g::inline, which its group makes itself"):
        manager.load(["g"])
    assert datasets.Dataset


def test_task_folders_come_before_the_users(folder, monkeypatch):
    [name] = [path.stem for path in folder.glob("*_ours.yaml")]
    monkeypatch.setattr("xent_metrics.hosts.lm_eval.command.task_folders", lambda: [folder])
    manager = XentTaskManager(include_path=str(folder), include_defaults=False)
    assert isinstance(manager.load([name])["tasks"][name], XentTask)
    assert manager.include_path == [folder]
    assert XentTaskManager(include_defaults=False).include_path == [folder]
    assert issubclass(XentTaskManager, TaskManager)


def test_models_are_registered_once():
    from lm_eval.api.registry import get_model, model_registry

    register_models()
    register_models()
    assert {"hf", "xent-hf", "xent-torch"} <= set(model_registry)
    assert get_model("xent-torch").gives_token_scores
    assert get_model("xent-hf").gives_token_scores


def test_our_metric_in_a_task_of_lm_evals_own_is_told(tmp_path):
    """lm-eval would end in a KeyError, or leave it out."""
    text = "task: vanish\ndataset_path: json\noutput_type: loglikelihood_rolling\nmetric_list:\n  - metric: "
    (tmp_path / "vanish.yaml").write_text(text + "cross_entropy\n")
    manager = XentTaskManager(include_path=str(tmp_path), include_defaults=False)
    with pytest.raises(
        MetricOptionError, match=r"task vanish: cross_entropy is a metric of xent-metrics.*class: !function"
    ):
        manager.load(["vanish"])
