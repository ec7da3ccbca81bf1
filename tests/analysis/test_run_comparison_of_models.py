"""Two models of the demo, one trained for longer: evaluated by lm-eval, compared and reported by the commands."""

from __future__ import annotations

import json

import pytest
import torch
from lm_eval.evaluator import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from typer.testing import CliRunner

from xent_metrics.cli.app import app
from xent_metrics.demo.data import Crops
from xent_metrics.demo.model import ByteLSTM
from xent_metrics.hosts.lm_eval import TorchLM
from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager

TASK = "xent_python_docs_tokens"


def trained(steps):
    """The demo's model after that many steps of 8 crops of 64 bytes."""
    torch.manual_seed(0)
    model = ByteLSTM(hidden=32, steps=steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    crops = Crops(8 * steps)
    for step in range(steps):
        batch = [crops[i] for i in range(8 * step, 8 * step + 8)]
        inputs, targets = (torch.stack(column)[:, :64] for column in zip(*batch, strict=True))
        loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory):
    """Their output folders: A after 10 steps, B after 60."""
    root = tmp_path_factory.mktemp("trained")
    for name, steps in (("a", 10), ("b", 60)):
        lm = TorchLM(
            trained(steps), tokenizer="bytes", max_length=256, batch_size=16, log_tokens=True, log_alternatives=2
        )
        results = simple_evaluate(
            lm, tasks=[TASK], task_manager=XentTaskManager(include_defaults=False), limit=12, bootstrap_iters=0
        )
        tracker = EvaluationTracker(output_path=str(root / name))
        tracker.general_config_tracker.model_name = tracker.general_config_tracker.model_name_sanitized = (
            f"{steps}steps"
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results, samples)
        tracker.save_results_samples(TASK, samples[TASK])
    return root / "a", root / "b"


def test_the_longer_trained_model_is_found_better(trained_runs):
    result = CliRunner().invoke(app, ["compare", *map(str, trained_runs), "--json"])
    assert result.exit_code == 0, result.output
    [compared] = json.loads(result.stdout)
    rows = {row["metric"]: row for row in compared["comparisons"]}
    for name in ("cross_entropy", "perplexity", "bits_per_byte", "byte_perplexity", "token_accuracy"):
        row = rows[name]
        assert (row["better"], row["documents"]) == ("B", 12), name
        assert row["p_value"] < 0.01
        unit = row["value_a"] if row["relative"] else 1.0
        assert row["relative"] == name.endswith("perplexity")
        assert row["value_b"] - row["value_a"] == pytest.approx(row["difference"] * unit, rel=1e-9)
    assert rows["cross_entropy"]["high"] < 0 < rows["token_accuracy"]["low"]
    reversed_order = CliRunner().invoke(app, ["compare", str(trained_runs[1]), str(trained_runs[0]), "--json"])
    [back] = json.loads(reversed_order.stdout)
    assert {row["better"] for row in back["comparisons"] if row["metric"] == "cross_entropy"} == {"A"}


def test_no_model_is_better_than_itself(trained_runs):
    [compared] = json.loads(
        CliRunner().invoke(app, ["compare", str(trained_runs[0]), str(trained_runs[0]), "--json"]).stdout
    )
    assert {(row["better"], row["difference"], row["p_value"]) for row in compared["comparisons"]} == {(None, 0.0, 1.0)}


def test_a_report_shows_both_runs(trained_runs, tmp_path):
    path = tmp_path / "report.html"
    result = CliRunner().invoke(app, ["report", *map(str, trained_runs), "-o", str(path)])
    assert result.exit_code == 0, result.output
    page = path.read_text(encoding="utf-8")
    assert "<b>B</b> 60steps" in page
    for picture in ("Reliability of A", "Reliability of B", "Loss by position", "Loss by token frequency"):
        assert f'aria-label="{picture}"' in page
