"""YAMLs and names of tasks and groups, read without their data."""

import itertools
import os
import re
from collections import Counter
from pathlib import Path

import lm_eval.tasks
import pytest

from xent_metrics.doctor import tasks
from xent_metrics.doctor.tasks import check_names, check_yaml
from xent_metrics.errors import InvalidInputError
from xent_metrics.task_folders import list_tasks, task_configs_folder

DOCS = Path(__file__).parents[2] / "docs"
SHIPPED = Path(lm_eval.tasks.__file__).parent
EVERY = 1 if os.environ.get("ALL_TASKS") else 200

PAGES = """
task: {name}
dataset_path: json
output_type: loglikelihood_rolling
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: {metric}
"""
GROUP = """
group: pages
task: [one, two]
aggregate_metric_list:
  - metric: {metric}
    weight_by_size: {weighted}
"""


def kinds(found):
    return [(finding.kind, Path(finding.place).name, finding.severity) for finding in found]


def write_group(write, metric="bits_per_byte", weighted="true"):
    for name in ("one", "two"):
        write(f"{name}.yaml", PAGES.format(name=name, metric="bits_per_byte"))
    return write("pages.yaml", GROUP.format(metric=metric, weighted=weighted))


def test_what_a_yaml_includes_is_checked_with_it(write):
    write("_base.yaml", "output_type: multiple_choice\nmetric_list:\n  - metric: acc_nrom\n")
    path = write("t.yaml", "include: _base.yaml\ntask: t\n")
    assert kinds(check_yaml(path)) == [("dropped-metric", "t.yaml", "error")]
    assert kinds(check_yaml(path.with_name("_base.yaml"))) == [("not-a-task", "_base.yaml", "note")]


@pytest.mark.parametrize("text", ["task: [", "- a\n", "task: t\nprocess_docs: !function no_such_file.f\n"])
def test_a_yaml_that_lm_eval_cannot_load_is_an_error(text, write):
    [finding] = check_yaml(write("t.yaml", text))
    assert (finding.kind, finding.severity) == ("not-loadable", "error")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in itertools.pairwise("abcdefghi")
)


@pytest.mark.parametrize("shared", [BOMB, "i: &i [*i]\n", "i: &i {a: *i}\n"])
@pytest.mark.parametrize(
    "text",
    [
        "output_type: *i",
        "metric_list: *i",
        "metric_list: [{metric: *i}]",
        "metric_list: [{metric: cross_entropy, name: *i}]",
        "metric_list: [{metric: cross_entropy, unit: *i}]",
    ],
)
def test_aliases_that_stand_for_a_billion_values_or_for_themselves_are_an_error(text, shared, write):
    own_class = "class: !function xent_metrics.hosts.lm_eval.XentTask\n"
    path = write("t.yaml", f"{shared}task: t\n{own_class}{text}\n")
    [finding] = check_yaml(path)
    assert (finding.kind, finding.severity) == ("not-loadable", "error")
    assert "its aliases stand for more than 100,000 values" in finding.text or "Recursion" in finding.text


def test_keys_that_are_no_names_are_unknown_ones(write):
    path = write("t.yaml", "task: t\nmetric_list: []\n1: a\n2026-11-01: b\nnull: c\nz: d\n")
    assert kinds(check_yaml(path)) == [("unknown-key", "t.yaml", "error")] * 4


def test_the_mean_of_ratios_in_a_group_is_found(write):
    [finding] = check_yaml(write_group(write))
    assert (finding.kind, finding.severity) == ("mean-of-ratios", "warning")
    assert "bits_per_byte is the mean of its tasks' values" in finding.text


def test_a_mean_of_tasks_that_is_asked_for_is_none(write):
    assert check_yaml(write_group(write, weighted="false")) == []


def test_a_metric_that_no_task_of_the_group_has_is_found(write):
    [finding] = check_yaml(write_group(write, metric="acc"))
    assert (finding.kind, finding.severity) == ("group-lacks-metric", "warning")
    assert finding.text.endswith("so it has no value. Name one that they list: bits_per_byte")


def test_a_group_whose_tasks_lie_elsewhere_is_not_judged(write):
    assert check_yaml(write("pages.yaml", GROUP.format(metric="acc", weighted="true"))) == []


def test_a_group_of_a_task_with_such_aliases_is_judged_by_its_others(write):
    path = write_group(write)
    write("one.yaml", f"{BOMB}task: one\nmetric_list: [{{metric: *i}}]\n")
    assert kinds(check_yaml(path)) == [("mean-of-ratios", "pages.yaml", "warning")]


def test_names_stand_for_tasks_groups_and_tags(write, monkeypatch):
    path = write_group(write)
    write("three.yaml", PAGES.format(name="three", metric="acc") + "tag: some\n")
    monkeypatch.setattr(tasks, "task_folders", lambda: [path.parent])
    monkeypatch.setattr(tasks.lm_eval_tasks, "__file__", str(path))  # not all 14,000 shipped ones
    assert kinds(check_names(["pages"])) == [("mean-of-ratios", "pages", "warning")]
    assert kinds(check_names(["some", "three"])) == [("dropped-metric", "three", "error")]
    with pytest.raises(
        InvalidInputError, match=r"no task, group or tag 'pagse', and no such file\. Did you mean 'pages'"
    ):
        check_names(["pagse"])


def test_our_own_tasks_have_no_findings_but_what_plugins_lack():
    found = {task.name: check_yaml(task.path, "xent-hf") for task in list_tasks(task_configs_folder())}
    assert len(found) > 5
    assert {name: each for name, each in found.items() if each} == {}


def test_what_is_known_of_some_shipped_tasks():
    assert kinds(check_yaml(SHIPPED / "wikitext" / "wikitext.yaml")) == [("other-bytes", "wikitext.yaml", "note")]
    assert kinds(check_yaml(SHIPPED / "lambada" / "lambada_openai.yaml")) == [
        ("document-perplexity", "lambada_openai.yaml", "note")
    ]
    assert check_yaml(SHIPPED / "gsm8k" / "gsm8k.yaml") == []


def test_every_shipped_configuration_is_read():
    """A sample of them; `make test-all-tasks` takes all, and holds the counts in docs/command_line.md."""
    paths = sorted(SHIPPED.rglob("*.yaml"))
    counts = Counter(finding.kind for path in paths[::EVERY] for finding in check_yaml(path))
    print(f"{len(paths)} YAMLs", *(f"{count:6,} {kind}" for kind, count in counts.most_common()), sep="\n")
    rows = re.findall(r"^\| `([a-z-]+)` \| ([\d,]+) \|", (DOCS / "command_line.md").read_text(encoding="utf-8"), re.M)
    documented = {kind: int(count.replace(",", "")) for kind, count in rows}
    assert counts
    assert counts.keys() <= documented.keys()
    if EVERY == 1:  # and with the packages that constraints.txt pins
        assert counts == documented


@pytest.mark.parametrize("more", ["process_results: !function no_such_file.f", "class: !function no_such_file.C"])
def test_a_group_whose_tasks_may_emit_other_metrics_is_not_judged(more, write):
    path = write_group(write, metric="acc")
    write("two.yaml", PAGES.format(name="two", metric="bits_per_byte") + more + "\n")
    assert check_yaml(path) == []


def test_a_group_whose_task_lists_a_function_is_not_judged(write):
    path = write_group(write, metric="acc")
    write("two.yaml", PAGES.format(name="two", metric="!function no_such_file.f"))
    assert check_yaml(path) == []
