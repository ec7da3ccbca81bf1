"""Pictures in experiment trackers: TensorBoard, Weights & Biases, MLflow and trackio.

Values and standard errors are numbers, which Lightning, the Trainer and lm-eval send by themselves. A metric's picture,
such as a reliability diagram, is sent here, by the call that each tracker has for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from xent_metrics.errors import XentMetricsError
from xent_metrics.metrics.confidence_bins import ConfidenceBins
from xent_metrics.plots import as_pixels
from xent_metrics.sums.metric import TokenMetric

__all__ = ["Send", "log_pictures", "of_lightning_logger", "of_trainer_callback", "pictures", "to_trackio", "to_wandb"]

#: Sends a picture ``(height, width, 3)`` of bytes: ``send(name, picture, step)``.
Send = Callable[[str, Any, Any], Any]


def pictures(members: Mapping[str, TokenMetric], prefix: str = "") -> dict[str, Any]:
    """The picture of each metric that draws one of its own, as ``<prefix><key>_plot``; none without matplotlib.

    Every metric must hold the sums over all processes, since one process draws alone. What a metric can't draw is left out
    with a warning, because the others would wait for a process that raises.
    """
    drawn = {}
    for key, metric in members.items():
        if not _has_picture(metric) or not metric.counts()["counted"] or find_spec("matplotlib") is None:
            continue
        try:
            drawn[f"{prefix}{key}_plot"] = as_pixels(metric.plot)
        except XentMetricsError as error:
            warnings.warn(f"{key}: no picture for the trackers: {error}", stacklevel=2)
    return drawn


def _has_picture(metric: TokenMetric) -> bool:
    """True if `plot` draws more than the value over steps, which trackers draw themselves."""
    own = type(metric).plot is not TokenMetric.plot
    return own and not (isinstance(metric, ConfidenceBins) and metric.binning == "mass")


def log_pictures(trackers: Iterable[Send], drawn: Mapping[str, Any], step: int | None) -> None:
    """Send all pictures to all trackers."""
    for send in trackers:
        for name, picture in drawn.items():
            send(name, picture, step)


# Where the pictures go.


def of_lightning_logger(logger: Any) -> Send | None:
    """The tracker of one of Lightning's loggers; None if it takes no pictures."""
    kinds = _kinds(logger)
    if "TensorBoardLogger" in kinds:
        return _to_tensorboard(logger.experiment)
    if "WandbLogger" in kinds:
        return to_wandb(logger.experiment, "trainer/global_step")
    if "MLFlowLogger" in kinds:
        return _to_mlflow(logger.experiment, logger.run_id)
    return None


def of_trainer_callback(callback: Any) -> Send | None:
    """The tracker of one of the callbacks that transformers makes for `report_to`; None if it takes no pictures."""
    kinds = _kinds(callback)
    if "TensorBoardCallback" in kinds and callback.tb_writer is not None:
        return _to_tensorboard(callback.tb_writer)
    if "WandbCallback" in kinds:
        import wandb

        return None if wandb.run is None else to_wandb(wandb.run, "train/global_step")
    if "MLflowCallback" in kinds:
        import mlflow

        run = mlflow.active_run()
        return None if run is None else _to_mlflow(mlflow.MlflowClient(), run.info.run_id)
    return to_trackio("train/global_step") if "TrackioCallback" in kinds else None


def _kinds(tracker: Any) -> set[str]:
    """The names of its class and of its base classes: `lightning` and `pytorch_lightning` have each logger of their own."""
    return {kind.__name__ for kind in type(tracker).__mro__}


def _to_tensorboard(writer: Any) -> Send:
    return lambda name, picture, step: writer.add_image(name, picture, step, dataformats="HWC")


def _to_mlflow(client: Any, run_id: str) -> Send:
    return lambda name, picture, step: client.log_image(run_id, picture, key=name, step=step)


def to_wandb(run: Any, step_name: str | None = None) -> Send:
    """Send to a run of Weights & Biases.

    Args:
        run: the run.
        step_name: the name under which the host logs the step beside its values; None if it sets the run's own step.
    """
    import wandb

    def send(name: str, picture: Any, step: int | None) -> None:
        named = {name: wandb.Image(picture)}
        run.log(named, step=step) if step_name is None else run.log({**named, step_name: step})

    return send


def to_trackio(step_name: str | None = None) -> Send:
    """Send to the current run of trackio; `step_name` as for `to_wandb`."""
    import trackio

    def send(name: str, picture: Any, step: int | None) -> None:
        named = {name: trackio.Image(picture)}
        trackio.log(named, step=step) if step_name is None else trackio.log({**named, step_name: step})

    return send
