"""Values, standard errors and pictures in real trackers, offline."""

import mlflow
import numpy as np
import pytest
import torch
import wandb
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from support import trackers
from support import trainer_jobs as jobs
from support.lightning import bigrams, loader, trainer

from xent_metrics import get_metric
from xent_metrics.hosts.lightning import XentCallback
from xent_metrics.hosts.trackers import pictures, to_trackio
from xent_metrics.hosts.transformers import TrainerMetrics
from xent_metrics.metrics import MeanConfidence

METRICS = ["perplexity", "expected_calibration_error", {"metric": "rms_calibration_error", "binning": "mass"}]
NAMES = ["perplexity", "expected_calibration_error", "rms_calibration_error"]
LIGHTNING = {"tensorboard": trackers.in_tensorboard, "wandb": trackers.in_wandb, "mlflow": trackers.in_mlflow}
READERS = {**LIGHTNING, "trackio": trackers.in_trackio}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    trackers.offline(tmp_path, monkeypatch)


def lightning_logger(name, folder):
    if name == "tensorboard":
        return TensorBoardLogger(folder / name)
    return WandbLogger(save_dir=folder) if name == "wandb" else MLFlowLogger(tracking_uri=trackers.uri(folder))


def finish(name):
    if name == "wandb":
        wandb.finish()
        wandb.teardown()  # it would keep the first folder


@pytest.mark.parametrize("name", LIGHTNING)
def test_lightning(name, tmp_path):
    run = trainer(XentCallback(METRICS), max_epochs=1, num_sanity_val_steps=0, logger=lightning_logger(name, tmp_path))
    run.fit(bigrams(), loader(3), loader(3))
    finish(name)
    values, plots = READERS[name](tmp_path)
    expected = {f"val/{metric}{end}" for metric in NAMES for end in ("", "_stderr")}
    assert {key: values[key] for key in expected} == {
        key: pytest.approx(run.callback_metrics[key].item(), rel=1e-6) for key in expected
    }
    assert plots == {"val/expected_calibration_error_plot"}


@pytest.mark.parametrize(("name", "route"), [("tensorboard", "logits"), *((name, "hidden states") for name in READERS)])
def test_the_trainer(name, route, tmp_path):
    metrics = TrainerMetrics(METRICS)
    model, given = (jobs.Bigrams(), {"metrics": metrics}) if route == "logits" else (jobs.tiny_llama(), {})
    if name == "mlflow":  # the callback keeps one that was set before
        mlflow.set_tracking_uri(trackers.uri(tmp_path))
    run = jobs.make_trainer(
        model, jobs.examples(5), tmp_path, report_to=[name], max_steps=1, eval_strategy="steps", eval_steps=1,
        save_strategy="no", logging_strategy="no", per_device_eval_batch_size=5, **given,
    )  # fmt: skip
    metrics.attach(run)
    run.train()
    mlflow.flush_async_logging()
    finish(name)
    [found] = [entry for entry in run.state.log_history if "eval_perplexity" in entry]
    values, plots = READERS[name](tmp_path)
    start = "eval_" if name == "mlflow" else "eval/"  # as the Trainer's callbacks name them
    expected = {f"{start}{metric}{end}" for metric in NAMES for end in ("", "_stderr")}
    assert {key: values[key] for key in expected} == {
        key: pytest.approx(found[key.replace("/", "_")], rel=1e-6) for key in expected
    }
    assert plots == {"eval/expected_calibration_error_plot"}


def test_a_picture_in_trackio_has_the_step_of_its_values(tmp_path):
    import trackio

    trackio.init(project="project", auto_log_cpu=False)
    picture = np.zeros((2, 2, 3), dtype=np.uint8)
    to_trackio()("own", picture, 7)
    to_trackio("train/global_step")("named", picture, 3)
    trackio.finish()
    (step, _), (_, named) = trackers.trackio_entries(tmp_path)
    assert step == 7
    assert named["train/global_step"] == 3
    assert trackers.in_trackio(tmp_path)[1] == {"own", "named"}


def test_pictures_are_of_metrics_that_draw_something_and_have_data(monkeypatch):
    full, empty, mass = (get_metric("expected_calibration_error", **each) for each in ({}, {}, {"binning": "mass"}))
    scores = full.score(torch.zeros(2, 3), torch.tensor([0, 1]))
    for metric in (full, mass, confidence := MeanConfidence()):
        metric.update(scores)
    drawn = pictures({"full": full, "empty": empty, "mass": mass, "confidence": confidence})
    assert [*drawn] == ["full_plot"]
    assert drawn["full_plot"].std() > 10  # something is drawn
    monkeypatch.setattr("xent_metrics.hosts.trackers.find_spec", lambda name: None)
    assert pictures({"full": full}) == {}


def test_what_cannot_be_drawn_is_left_out_with_a_warning():
    metric = get_metric("expected_calibration_error")
    metric.update(torch.zeros(2, 3), torch.tensor([0, 7]))
    with pytest.warns(UserWarning, match="calibration: no picture for the trackers: .*7|1 targets"):
        assert pictures({"calibration": metric}) == {}
