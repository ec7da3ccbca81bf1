"""The corpus of Python's documentation: its splits, and the questions that are made of it."""

import json
import os
import subprocess
import sys
from pydoc_data.topics import topics

from xent_metrics.hosts.lm_eval import python_docs


def test_the_splits_share_no_passage():
    held_out, train = python_docs.documents("validation"), python_docs.documents("train")
    assert set(held_out) | set(train) <= set(topics)
    assert not set(held_out) & set(train)
    assert 10 <= len(held_out) < len(train)
    assert all(held_out[name] == topics[name] for name in held_out)

    def passages(documents):
        return {" ".join(p.split()) for text in documents.values() for p in text.split("\n\n") if p.strip()}

    assert not passages(held_out) & passages(train)


def test_cloze_choices_are_the_true_words_and_three_from_elsewhere():
    rows = python_docs.cloze_dataset()["validation"]
    held_out = {name: " ".join(text.split()) for name, text in python_docs.documents("validation").items()}
    assert len(rows) > 50
    for row in rows:
        true = row["choices"][row["answer"]]
        assert f"{row['context']} {true}" in held_out[row["topic"]]
        assert len(set(row["choices"])) == 4
        assert {len(choice.split()) for choice in row["choices"]} == {8}
        assert not any(
            f"{row['context']} {wrong}" in held_out[row["topic"]] for wrong in row["choices"] if wrong != true
        )
    assert {row["answer"] for row in rows} == {0, 1, 2, 3}


def test_cloze_is_seeded():
    rows = python_docs.cloze_dataset()["validation"].to_list()
    assert python_docs.cloze_dataset(cloze_seed=1)["validation"].to_list() != rows
    code = (
        "import json, sys; from xent_metrics.hosts.lm_eval.python_docs import cloze_dataset; "
        "json.dump(cloze_dataset()['validation'].to_list(), sys.stdout)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "4"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(other.stdout) == rows
