"""YAMLs with a value of any kind where another belongs, and text that is hardly YAML: findings, never an exception."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from xent_metrics.doctor.mending import mend_yaml
from xent_metrics.doctor.tasks import check_yaml
from xent_metrics.errors import InvalidInputError
from xent_metrics.task_folders import list_tasks

WORDS = st.one_of(
    st.sampled_from(
        ["acc", "acc_nrom", "perplexity", "cross_entropy", "choices", "mean", "{{text}}", "", "../x", "\0", "é"]
    ),
    st.text(max_size=6),
)
KEYS = st.one_of(
    st.sampled_from(["metric", "name", "over", "aggregation", "higher_is_better", "unit", "num_bins", "correct", "by"]),
    WORDS,
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=5,
)
ENTRIES = st.one_of(st.dictionaries(KEYS, VALUES, max_size=4).map(lambda entry: {"metric": "acc"} | entry), VALUES)
CONFIGURATIONS = st.fixed_dictionaries(
    {"task": st.one_of(st.just("t"), VALUES)},
    optional={
        "output_type": st.one_of(st.sampled_from(["loglikelihood_rolling", "multiple_choice", "generate_until"]), VALUES),
        "metric_list": st.one_of(st.lists(ENTRIES, max_size=3), VALUES),
        "group": VALUES, "aggregate_metric_list": VALUES, "include": VALUES, "tag": VALUES, "doc_to_text": VALUES,
        "doc_to_target": VALUES, "doc_to_choice": VALUES, "dataset_path": VALUES, "process_results": VALUES,
        "filter_list": VALUES, "generation_kwargs": VALUES, "metadata": VALUES, "dataset_kwargs": VALUES,
    },
)  # fmt: skip
OURS = "class: !function xent_metrics.hosts.lm_eval.XentTask\n"
PARTS = ["task: t\n", "- ", "a: ", "&a ", "*a", "!function ", "!!python/object:os.system ", "{", "[", "\t", "<<: "]
NO_YAML = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8")).map(str.encode),
    st.binary(),
    st.lists(st.sampled_from(PARTS)).map("".join).map(str.encode),
)


def survives(text: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.yaml"
        path.write_bytes(text)
        found = check_yaml(path)
        list_tasks(path.parent)
        before = path.read_bytes()
        try:
            changed = mend_yaml(path, found)
        except InvalidInputError:
            changed = ""
        assert (path.read_bytes() == before) is not bool(changed)


@given(CONFIGURATIONS, st.sampled_from(["", OURS]))
def test_whatever_a_task_says(config, made_by):
    survives((made_by + "".join(f"{key}: {json.dumps(value)}\n" for key, value in config.items())).encode())


@given(NO_YAML)
def test_whatever_the_text_is(text):
    survives(text)
