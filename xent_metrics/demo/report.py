"""The demo's table: the values of both hosts in full precision, and their differences."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.table import Table

from xent_metrics.demo.harness import Evaluation
from xent_metrics.demo.model import METRICS
from xent_metrics.plugins import get_metric

__all__ = ["comparison", "differences"]


def differences(lightning: Mapping[str, float], lm_eval: Evaluation) -> dict[str, float]:
    """Lightning − lm-eval by metric; 0 means equal to the last bit."""
    return {name: lightning[name] - lm_eval.values[name] for name in METRICS}


def comparison(lightning: Mapping[str, float], lm_eval: Evaluation) -> Table:
    """A table of both hosts' values with all digits, 80 characters wide."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("held-out documents", width=18)
    for header in ("Lightning", "lm-eval", "diff.", "± s.e."):
        table.add_column(header, justify="right", no_wrap=True)
    for name, difference in differences(lightning, lm_eval).items():
        table.add_row(
            f"{name.replace('_', ' ')}\n[dim]{get_metric(name).value_unit}[/]",
            f"{lightning[name]!r}",
            f"{lm_eval.values[name]!r}",
            "[bold green]0[/]" if difference == 0 else f"[bold red]{difference:.0e}[/]",
            f"{lm_eval.standard_errors[name]:.4f}",
        )
    return table
