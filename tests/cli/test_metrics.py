"""`xent metrics`: every metric, whole, at any width of the terminal."""

import json
import os
import subprocess
import sys

import pytest
from support.cli import fits, xent

import xent_metrics
from xent_metrics import list_metrics


def test_metrics_are_listed():
    found = {each["name"]: each for each in json.loads(xent("metrics", "--json"))}
    assert sorted(found) == list_metrics()
    assert found["perplexity"]["options"] == {"ignore_index": -100}
    assert found["expected_calibration_error"]["options"]["num_bins"] == 15
    assert found["bits_per_byte"]["requires"] == ["nll", "num_bytes"]
    assert found["brier_score"]["requires"] == ["logits"]
    assert found["full_calibration_error"]["requires"] == ["target", "logits"]
    assert found["kl_divergence"]["requires"] == ["logits of two models"]
    assert all(each["requires"] for each in found.values())
    assert found["bits_per_byte"]["formula"] == xent_metrics.BitsPerByte.formula
    table = xent("metrics")
    assert all(name in table for name in list_metrics())
    assert "num_bins=15" in table
    assert "No room for" not in table


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(60, ["options", "plugin"]), (80, ["plugin"]), (120, [])],
)
def test_names_stay_whole_in_a_narrow_terminal(width, left_out):
    table = xent("metrics", width=width)
    assert fits(table, width)
    assert all(name in table for name in list_metrics())
    note = " ".join(table.rpartition("┘")[2].split())
    assert note == (f"No room for: {', '.join(left_out)}. Use a wider terminal or --json." if left_out else "")


def test_a_pipe_gets_whole_tables():
    """Every metric's plugin is in the last column, and every name on one line."""
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    command = [sys.executable, "-m", "xent_metrics.cli", "metrics"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.count("built-in") >= len(list_metrics()) - 3  # all but the example plugins'
    assert all(name in done.stdout for name in list_metrics())
