"""`xent plot`: a loss and runs of lm-eval as PNG, SVG or PDF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from xent_metrics.analysis.runs import TaskRun
    from xent_metrics.metrics import ExpectedCalibrationError

__all__ = ["app"]

app = typer.Typer(help="Plot the cross entropy curve, reliability, or loss by position.", no_args_is_help=True)
_Output = Annotated[
    Path, typer.Option("--output", "-o", help="File to write; its ending sets the format: .png, .svg, .pdf.")
]
_RunFolder = Annotated[Path, typer.Argument(help="lm-eval output folder, written with --log_samples.")]
_Task = Annotated[str | None, typer.Option(help="Task of the run; needed if the run has several.")]


@app.command()
def curve(output: _Output = Path("cross_entropy.png")) -> None:
    """Plot cross entropy against the predicted probability, for both true labels."""
    from xent_metrics.plots import draw_curve, figure

    with figure(output) as drawn:
        draw_curve(drawn.add_subplot())
    print(output)


@app.command()
def reliability(run: _RunFolder, output: _Output = Path("reliability.png"), task: _Task = None) -> None:
    """Plot the reliability diagram of a task with expected_calibration_error in its metric_list."""
    from xent_metrics.plots import draw_reliability, figure, reliability_axes
    from xent_metrics.sums import exact_sum

    found = _read_task(run, task)
    name, metric, total = _calibration(run, found)
    bins = metric.bins(metric.unpack(exact_sum.to_float(total)))
    with figure(output) as drawn:
        draw_reliability(*reliability_axes(drawn), bins, found.rows_of(name))
    print(output)


@app.command()
def position(run: _RunFolder, output: _Output = Path("position.png"), task: _Task = None) -> None:
    """Plot cross entropy by token position in the document, with 95 % intervals; needs a run with log_tokens=true."""
    from xent_metrics.analysis.report_plots import error_bars
    from xent_metrics.analysis.token_view import by_position
    from xent_metrics.plots import draw_by_group, figure

    found = _read_task(run, task)
    labels, intervals = by_position(found)
    with figure(output, (9, 5)) as drawn:
        draw_by_group(
            drawn.add_subplot(),
            labels,
            [interval.value for interval in intervals],
            error_bars(intervals),
            title=f"Loss by position: {found.name}",
            unit="nats per token, with 95 % intervals over documents",
            xlabel="token position in the document",
        )
    print(output)


def _calibration(run: Path, task: TaskRun) -> tuple[str, ExpectedCalibrationError, Tensor]:
    """The name of the task's first calibration error over bins of equal width, it, and its total state."""
    from xent_metrics.errors import ComparisonError
    from xent_metrics.metrics import ExpectedCalibrationError

    for name, metric in task.metrics.items():
        if isinstance(metric, ExpectedCalibrationError) and metric.binning == "width":
            sums = task.sums(name)
            if sums is not None:
                return name, metric, sums.total
    raise ComparisonError(
        f"the samples of task {task.name} in {run} have no expected_calibration_error with bins of equal width; "
        "add it to metric_list and evaluate with --log_samples"
    )


def _read_task(run: Path, name: str | None) -> TaskRun:
    from xent_metrics.analysis.runs import read_run
    from xent_metrics.errors import ComparisonError

    tasks = read_run(run).tasks
    if name is None and len(tasks) == 1:
        return next(iter(tasks.values()))
    if name is None:
        raise ComparisonError(f"{run} has several tasks: {', '.join(tasks)}; choose one with --task")
    if name not in tasks:
        raise ComparisonError(f"{run} has the tasks {', '.join(tasks)}; got --task {name}")
    return tasks[name]
