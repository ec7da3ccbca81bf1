"""lm-eval's loggers as our command takes them: `command_loggers`, with our metrics' pictures for W&B and trackio.

lm-eval sends the values and standard errors by itself, since they are numbers in its results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xent_metrics.files import require_writable
from xent_metrics.hosts.lm_eval.documents import DocumentValue, TotalValue
from xent_metrics.hosts.lm_eval.upstream import EMITTED
from xent_metrics.hosts.trackers import Send, log_pictures, pictures, to_trackio, to_wandb

__all__ = ["command_loggers", "result_pictures", "sample_columns"]


def result_pictures(results: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The pictures of our metrics in lm-eval's results, as ``<prefix><task>/<metric>_plot``."""
    metrics = {
        f"{task}/{key.removesuffix(',none')}": value.filled_metric()
        for task, found in results["results"].items()
        for key, value in found.items()
        if isinstance(value, TotalValue)
    }
    return pictures(metrics, prefix)


def command_loggers() -> dict[str, type]:
    """Our classes of lm-eval's loggers, by the names under which lm-eval's command looks them up."""
    from lm_eval.loggers import EvaluationTracker, TrackioLogger, WandbLogger

    class Tracker(EvaluationTracker):  # type: ignore[misc]  # lm-eval is untyped
        """lm-eval's writer of results and samples. It is made before the model is, and says then where it can't write."""

        def __init__(self, output_path: str | None = None, **others: Any) -> None:
            if output_path:
                require_writable(output_path)
            super().__init__(output_path=output_path, **others)

    class Wandb(_WithPictures, WandbLogger):  # type: ignore[misc]
        """lm-eval's logger for Weights & Biases."""

        def tracker(self) -> Send:
            return to_wandb(self.run)

        def _generate_dataset(self, data: list[dict[str, Any]], config: dict[str, Any]) -> Any:
            """The table of a task's samples: `WandbLogger._generate_dataset`, read in lm-eval 0.4.13, of what they hold."""
            names, data = sample_columns(data)
            return super()._generate_dataset(data, {**config, "metric_list": [{"metric": name} for name in names]})

    class Trackio(_WithPictures, TrackioLogger):  # type: ignore[misc]
        """lm-eval's logger for trackio."""

        def tracker(self) -> Send:
            return to_trackio()

    return {"EvaluationTracker": Tracker, "WandbLogger": Wandb, "TrackioLogger": Trackio}


def sample_columns(samples: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """The metrics that all samples of a task have, and the samples, for lm-eval's table of them.

    lm-eval reads the names from the YAML, where an entry of ours may have a `name` of its own, and expects pairs under the
    names of its own metrics per byte and per word. Ours of these names become ``<name> of the document``.
    """
    first = samples[0]["metrics"] if samples else ()
    names = [name for name in first if not name.endswith("_sums") and all(name in sample for sample in samples)]
    shown = {name: f"{name} of the document" for name in names if isinstance(samples[0][name], DocumentValue)}
    shown = {name: new for name, new in shown.items() if name in EMITTED["loglikelihood_rolling"]}
    return [shown.get(name, name) for name in names], [
        {**sample, **{new: sample[name] for name, new in shown.items()}} for sample in samples
    ]


class _WithPictures:
    """Sends pictures after the values; mixed into one of lm-eval's loggers."""

    step: int | None

    def tracker(self) -> Send:
        """Where the pictures go."""
        raise NotImplementedError

    def post_init(self, results: dict[str, Any]) -> None:
        self._pictures = result_pictures(results)  # lm-eval keeps a copy, in which our values are plain numbers
        super().post_init(results)  # type: ignore[misc]  # the class that this is mixed into

    def log_eval_result(self) -> None:
        super().log_eval_result()  # type: ignore[misc]
        log_pictures([self.tracker()], self._pictures, self.step)
