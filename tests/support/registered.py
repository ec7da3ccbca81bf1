"""The registered metrics that can be built by name alone; those with an option of their own to give have tests of their own."""

from __future__ import annotations

from types import ModuleType

from xent_metrics import TokenMetric, hookimpl, list_metrics
from xent_metrics.plugins import plugins


def buildable() -> list[str]:
    """Registered names without a required option."""
    options = {name: plugins().metric_class(name).options().values() for name in list_metrics()}
    return [name for name, taken in options.items() if all(option.default is not option.empty for option in taken)]


def plugin_of(*metrics: type[TokenMetric]) -> ModuleType:
    """A plugin's module that registers these metrics, for the fixture `install`."""
    module = ModuleType("a_plugin")

    @hookimpl
    def register_metrics(register):
        for metric in metrics:
            register(metric)

    module.register_metrics = register_metrics
    return module
