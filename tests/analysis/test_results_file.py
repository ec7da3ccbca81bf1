"""Results files are read as lm-eval writes them; other files are named."""

import json
import math
import subprocess
import sys

import pytest

from xent_metrics.analysis.results_file import load_results, reported_values
from xent_metrics.errors import ComparisonError


def test_values_and_errors_go_by_metric_and_filter():
    found = {"alias": "t", "acc,none": 1, "acc_stderr,none": 0.5, "acc,strict": 0.25, "acc_stderr,strict": "N/A"}
    values, errors = reported_values(found)
    assert (values, errors) == ({"acc": 1.0, "acc,strict": 0.25}, {"acc": 0.5})


def test_all_that_a_file_says_is_loaded(tmp_path):
    path = tmp_path / "results_1.json"
    path.write_text('{"results": {"t": {"acc,none": NaN}}, "configs": {}, "more": 1}')
    results = load_results(path)
    assert math.isnan(results["results"]["t"]["acc,none"])
    assert results["more"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "got nothing"),
        (json.dumps({"results": {}, "lm_eval_version": "9.9"}), r"got results, lm_eval_version.*this file: 9\.9"),
    ],
)
def test_another_file_is_named(tmp_path, text, message):
    path = tmp_path / "results_1.json"
    path.write_text(text)
    with pytest.raises(ComparisonError, match=message):
        load_results(path)


def test_it_needs_no_torch():
    script = "import sys, xent_metrics.analysis.results_file; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "False\n"
