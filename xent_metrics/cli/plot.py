"""`xent plot`: pictures of a loss and of runs of lm-eval, as PNG, SVG or PDF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from xent_metrics.analysis.runs import TaskRun

__all__ = ["app"]

app = typer.Typer(
    help="Pictures: what a loss makes of a probability, reliability, loss by position.", no_args_is_help=True
)
_Output = Annotated[
    Path, typer.Option("--output", "-o", help="The file; its ending says the format: .png, .svg, .pdf.")
]
_RunFolder = Annotated[Path, typer.Argument(help="An lm-eval output folder, written with --log_samples.")]
_Task = Annotated[str | None, typer.Option(help="Which of the run's tasks; not needed where there is one.")]


@app.command()
def curve(output: _Output = Path("cross_entropy.png")) -> None:
    """Cross entropy against the predicted probability, for both true labels."""
    from xent_metrics.plots import draw_curve, figure

    with figure(output) as drawn:
        draw_curve(drawn.add_subplot())
    print(output)


@app.command()
def reliability(run: _RunFolder, output: _Output = Path("reliability.png"), task: _Task = None) -> None:
    """The reliability diagram of a task that has expected_calibration_error in its metric_list."""
    from xent_metrics.errors import ComparisonError
    from xent_metrics.metrics import ExpectedCalibrationError
    from xent_metrics.plots import draw_reliability, figure, reliability_axes
    from xent_metrics.sums import exact_sum

    found = _task(run, task)
    for name, metric in found.metrics.items():
        states = (
            found.states(name) if isinstance(metric, ExpectedCalibrationError) and metric.binning == "width" else None
        )
        if states is not None:
            assert isinstance(metric, ExpectedCalibrationError)
            bins = metric.bins(metric.unpack(exact_sum.to_float(exact_sum.merge(states))))
            with figure(output) as drawn:
                draw_reliability(*reliability_axes(drawn), bins)
            print(output)
            return
    raise ComparisonError(
        f"task {found.name} of {run} has no expected_calibration_error of equal-width bins in its samples; "
        "put it in metric_list and evaluate with --log_samples"
    )


@app.command()
def position(run: _RunFolder, output: _Output = Path("position.png"), task: _Task = None) -> None:
    """Cross entropy by the token's place in its document, with 95 % intervals over documents (needs log_tokens=true)."""
    from xent_metrics.analysis.token_view import by_position
    from xent_metrics.plots import draw_by_group, figure

    found = _task(run, task)
    labels, intervals = by_position(found)
    with figure(output, (9, 5)) as drawn:
        draw_by_group(
            drawn.add_subplot(),
            labels,
            [interval.value for interval in intervals],
            [interval.high - interval.value for interval in intervals],
            title=f"Loss by position: {found.name}",
            unit="nats per token",
            xlabel="the token's place in its document",
        )
    print(output)


def _task(run: Path, name: str | None) -> TaskRun:
    from xent_metrics.analysis.runs import read_run
    from xent_metrics.errors import ComparisonError

    tasks = read_run(run).tasks
    if name is None and len(tasks) == 1:
        return next(iter(tasks.values()))
    if name not in tasks:
        raise ComparisonError(f"{run} has the tasks {', '.join(tasks)}; got --task {name}")
    return tasks[name]
