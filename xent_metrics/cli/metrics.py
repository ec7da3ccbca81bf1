"""`xent metrics`: what is registered."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from xent_metrics.cli.output import AsJson, print_json
from xent_metrics.cli.plugin_commands import loaded_plugins, print_set_aside

if TYPE_CHECKING:
    from xent_metrics.sums.metric import TokenMetric

__all__ = ["metrics"]


def metrics(as_json: AsJson = False) -> None:
    """List the registered metrics: formula, unit, options, the scores they need, and their plugin."""
    loaded = loaded_plugins()
    found = [
        _describe(metric) | {"plugin": plugin.name, "distribution": plugin.distribution, "version": plugin.version}
        for plugin in loaded.plugins
        for metric in plugin.metrics.values()
    ]
    if as_json:
        print_json(found)
        return
    _print(sorted(found, key=lambda each: str(each["name"])))
    print_set_aside(loaded)


def _describe(metric: type[TokenMetric]) -> dict[str, Any]:
    from xent_metrics.explain.metrics import needed_scores

    return {
        "name": metric.name,
        "summary": (inspect.getdoc(metric) or "").partition("\n")[0],
        "formula": metric.formula,
        "value_unit": metric.value_unit,
        "options": {name: _default(option) for name, option in metric.options().items()},
        "requires": needed_scores(metric),
        "row_kinds": sorted(metric.row_kinds),
        "higher_is_better": metric.higher_is_better,
        "reference": metric.reference,
    }


def _default(option: inspect.Parameter) -> Any:
    return "required" if option.default is option.empty else option.default


def _print(found: list[dict[str, Any]]) -> None:
    from xent_metrics.cli.tables import Column, print_table

    columns = [
        Column("metric, formula, unit", bold=True),
        Column("options", drop=2),
        Column("needs", drop=1),
        Column("plugin", drop=3),
    ]
    rows = [
        [
            f"{each['name']}\n{each['formula']}\n{each['value_unit']}".strip(),
            "\n".join(f"{option}={default}" for option, default in each["options"].items()),
            f"{', '.join(each['requires'])}\n{' or '.join(each['row_kinds'])} scores",
            f"{each['plugin']}\n{each['distribution']} {each['version']}",
        ]
        for each in found
    ]
    print_table(columns, rows)
