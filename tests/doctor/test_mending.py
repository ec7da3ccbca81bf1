"""YAMLs mended in place: only the lines that are wrong change."""

import pytest

from xent_metrics.doctor import mending
from xent_metrics.doctor.mending import mend_yaml
from xent_metrics.doctor.tasks import check_yaml
from xent_metrics.errors import InvalidInputError, MissingExtraError

WRONG = """\
# What this task is.
task:   "mine"    # in quotes, with blanks

output_type: multiple_choice
process_docs: !function helper.process
num_fewshots: 3   # the wrong key
doc_to_text: 'Question: {{question}}   {% if a %}a long line that goes on and on, and on, beyond eighty columns{% endif %}'
metric_list:
    # the list
    -   metric: acc_nrom   # the wrong name
        aggregation: mean
        higher_is_better: yes
    -   metric: acc
        aggregation: mean
        weight_by_size: true
    - {metric: f1,   agregation: 'f1'}
"""
RIGHT = WRONG.replace("num_fewshots: 3", "num_fewshot: 3 ")  # the comment stays in its column
RIGHT = RIGHT.replace("acc_nrom", "acc_norm")
RIGHT = RIGHT.replace("        weight_by_size: true\n", "").replace(
    "    - {metric: f1,   ag", "    -   {metric: f1, agg"
)


@pytest.fixture
def mine(write):
    write("helper.py", "def process(docs):\n    return docs\n")
    return write("mine.yaml", WRONG)


def test_only_the_wrong_lines_change(mine):
    diff = mend_yaml(mine, check_yaml(mine))
    assert mine.read_text() == RIGHT
    changed = [line for line in diff.splitlines()[2:] if line[0] in "+-"]
    assert len(changed) == 7
    assert "-        weight_by_size: true" in changed
    assert check_yaml(mine) == []
    assert mend_yaml(mine, check_yaml(mine)) == ""


def test_a_task_gets_our_class_after_its_name(write):
    text = "task: t  # mine\noutput_type: loglikelihood\nmetric_list:\n- metric: cross_entropy\n"
    path = write("t.yaml", text)
    mend_yaml(path, check_yaml(path))
    head, rest = text.split("\n", 1)
    assert path.read_text() == f"{head}\nclass: !function xent_metrics.hosts.lm_eval.XentTask\n{rest}"
    assert check_yaml(path) == []


def test_what_another_file_holds_stays(write):
    write("_base.yaml", "output_type: multiple_choice\nmetric_list:\n  - metric: acc_nrom\n")
    path = write("t.yaml", "include: _base.yaml\ntask: t\n")
    assert mend_yaml(path, check_yaml(path)) == ""
    assert path.read_text() == "include: _base.yaml\ntask: t\n"


@pytest.mark.parametrize(
    "text",
    [
        "task: t\ndoc_to_text: a text\n  in two lines\noutput_type: multiple_choice\nmetric_list: [{metric: acc_nrom}]\n",
        "task: t\noutput_type: multiple_choice\nmetric_list:\n- metric: acc\n  average: x\n# of the end\n",
    ],
    ids=["lines", "a comment after what is removed"],
)
def test_a_file_whose_other_lines_would_change_is_refused_and_stays(text, write):
    path = write("t.yaml", text)
    with pytest.raises(InvalidInputError, match="make them by hand"):
        mend_yaml(path, check_yaml(path))
    assert path.read_text() == text


def test_without_ruamel_the_extra_is_named(mine, monkeypatch):
    monkeypatch.setattr(mending, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'xent-metrics\[doctor\]'"):
        mend_yaml(mine, [])


def test_a_text_that_is_no_yaml_is_left_to_its_findings(write):
    path = write("t.yaml", "task: [{\n")
    found = check_yaml(path)
    assert [finding.kind for finding in found] == ["not-loadable"]
    assert mend_yaml(path, found) == ""
