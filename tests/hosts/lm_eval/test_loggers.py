"""`--wandb_args` and `--trackio_args` of lm-eval's command: values, standard errors, pictures and samples of our metrics."""

import json
from functools import partial

import pytest
import wandb
from support import trackers
from support.hf_model import tiny_model, tiny_tokenizer

from xent_metrics.hosts.lm_eval.command import run
from xent_metrics.hosts.lm_eval.loggers import sample_columns
from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager

TASK = "xent_python_docs_cloze"
METRICS = "bits_per_byte,expected_calibration_error:num_bins=5,cross_entropy:name=nats_per_token"
NAMES = ["bits_per_byte", "expected_calibration_error", "nats_per_token"]


def test_values_errors_pictures_and_samples_arrive(tmp_path, monkeypatch):
    trackers.offline(tmp_path, monkeypatch)
    quick = partial(XentTaskManager, include_defaults=False)  # indexing lm-eval's own tasks takes seconds
    monkeypatch.setattr("xent_metrics.hosts.lm_eval.command.XentTaskManager", quick)
    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    try:
        run(
            ["run", "--model", "xent-hf", "--model_args", f"pretrained={tmp_path / 'model'},dtype=float32", "--tasks", TASK,
             "--device", "cpu", "--limit", "2", "--log_samples", "--output_path", str(tmp_path / "out"),
             "--wandb_args", "project=p", "--trackio_args", "project=p"],
            METRICS,
        )  # fmt: skip
    finally:
        wandb.teardown()
    [path] = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())["results"][TASK]
    expected = {f"{TASK}/{name}{end}": results[f"{name}{end},none"] for name in NAMES for end in ("", "_stderr")}
    for values, plots in (trackers.in_wandb(tmp_path), trackers.in_trackio(tmp_path)):
        assert {name: values[name] for name in expected} == expected
        assert plots == {f"{TASK}/expected_calibration_error_plot"}
    [table] = tmp_path.rglob(f"{TASK}_eval_results*.table.json")  # of the samples
    columns = json.loads(table.read_text())["columns"]
    assert {"bits_per_byte of the document", "expected_calibration_error", "nats_per_token"} <= set(columns)
    samples = trackers.trackio_samples(tmp_path)
    assert [name for name, _ in samples] == [f"{TASK}/sample"] * 2
    assert all(isinstance(sample[name], float) for _, sample in samples for name in NAMES)


def test_where_results_cannot_be_written_is_said_before_the_model_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    path = str(tmp_path / "file" / "runs")
    model = ["--model", "xent-hf", "--model_args", f"pretrained={tmp_path / 'nowhere'}"]
    with pytest.raises(NotADirectoryError) as error:
        run(["run", *model, "--tasks", TASK, "--output_path", path])
    assert error.value.filename == path


def test_columns_of_lm_evals_own_metrics_stay():
    samples = [
        {"metrics": ["bits_per_byte", "acc", "nats_sums"], "bits_per_byte": (-3.0, 4), "acc": 1.0, "nats_sums": {}}
    ]
    assert sample_columns(samples) == (["bits_per_byte", "acc"], samples)
    assert sample_columns([]) == ([], [])
