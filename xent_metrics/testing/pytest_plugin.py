"""A plugin of pytest: ``pytest --xent-plugin NAME`` checks every metric of an installed plugin, promise by promise.

    focal::focal_cross_entropy::exact_merge PASSED
    focal::focal_cross_entropy::two_processes PASSED …

NAME is that of the plugin's entry point or of its distribution. Without paths only these items run; with paths, the tests
there, too. A metric with options that have no default gets them from a function in conftest.py:

    def pytest_xent_options(metric):
        return {"embeddings": torch.eye(11)} if metric == "embedding_distance" else None

pytest imports this module in every run, so torch is imported only if the option is given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xent_metrics.plugins import Plugin
    from xent_metrics.testing.case import Case

__all__ = [
    "ContractItem", "pytest_addhooks", "pytest_addoption", "pytest_collection_modifyitems", "pytest_configure",
]  # fmt: skip


class _Hooks:
    @pytest.hookspec(firstresult=True)
    def pytest_xent_options(self, metric: str) -> Mapping[str, Any] | None:
        """Return the options to build the registered metric with, or None."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hook `pytest_xent_options`."""
    pluginmanager.add_hookspecs(_Hooks)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("xent-metrics").addoption(
        "--xent-plugin", action="append", default=[], metavar="NAME",
        help="check the contract of every metric of this installed xent-metrics plugin (or distribution)",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Without paths, run the contract's items alone."""
    if config.getoption("xent_plugin") and config.args_source is not config.ArgsSource.ARGS:
        config.args = []


@pytest.hookimpl(tryfirst=True)  # so that -k, -m and every conftest.py see these items, too
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Add an item for each metric and promise."""
    for name in session.config.getoption("xent_plugin"):
        items += _items(session, name)


def _items(session: pytest.Session, name: str) -> Iterator[pytest.Item]:
    from xent_metrics.testing.promises import PROMISES
    from xent_metrics.testing.routes import FURTHER_PROMISES

    for plugin in _plugins(name):
        metrics = {metric: _Made(session.config, metric) for metric in sorted(plugin.metrics)}
        for metric, made in metrics.items():
            for promise, check in {**PROMISES, **FURTHER_PROMISES}.items():
                yield ContractItem.of(session, f"{plugin.name}::{metric}::{check.__name__}", made, promise, check)
            check = _TwoProcesses(metrics, metric)
            promise = "two processes have the value of one"
            yield ContractItem.of(session, f"{plugin.name}::{metric}::two_processes", made, promise, check)


def _plugins(name: str) -> list[Plugin]:
    """The loaded plugins of this name or distribution.

    Raises:
        pytest.UsageError: there is none, one is set aside, or none has metrics.
    """
    import warnings

    from xent_metrics.plugins import plugins

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of plugins that are set aside; the error of this one is raised below
        loaded = plugins().plugins
    found = [plugin for plugin in loaded if name in (plugin.name, plugin.distribution)]
    if not found:
        raise pytest.UsageError(f"--xent-plugin {name}: no such plugin; loaded: {', '.join(map(str, loaded))}")
    for plugin in found:
        if plugin.error:
            raise pytest.UsageError(f"--xent-plugin {name}: {plugin} is set aside: {plugin.error}")
    if not any(plugin.metrics for plugin in found):
        raise pytest.UsageError(f"--xent-plugin {name}: {found[0]} registers no metrics, so there is nothing to check")
    return found


class _Made:
    """A registered metric with made-up data, built when its first item runs."""

    def __init__(self, config: pytest.Config, metric: str) -> None:
        self.config, self.metric = config, metric

    @functools.cached_property
    def case(self) -> Case:
        from xent_metrics.errors import XentMetricsError
        from xent_metrics.plugins import get_metric
        from xent_metrics.testing.case import Case

        options = self.config.hook.pytest_xent_options(metric=self.metric) or {}
        try:
            return Case.of(get_metric(self.metric, **options))
        except XentMetricsError as error:
            raise AssertionError(
                f"{self.metric} can't be built with the options {dict(options)}: {error}. Return its options from "
                "pytest_xent_options(metric) in conftest.py"
            ) from error


class _TwoProcesses:
    """All metrics of a plugin go to one pair of processes, when the first of their items runs."""

    def __init__(self, metrics: Mapping[str, _Made], metric: str) -> None:
        self.metrics, self.metric = metrics, metric

    def __call__(self, case: Case) -> None:
        from xent_metrics.testing.processes import check_two_processes

        check_two_processes(case, _answers(tuple(self.metrics.values()))[self.metric])


@functools.cache
def _answers(metrics: tuple[_Made, ...]) -> dict[str, list[Any]]:
    from xent_metrics.testing.processes import on_two_processes

    cases = {}
    for made in metrics:
        try:
            cases[made.metric] = made.case
        except AssertionError:  # raised by this metric's own items
            continue
    return on_two_processes(cases)


class ContractItem(pytest.Item):
    """One promise of one metric."""

    made: _Made
    promise: str
    check: Callable[[Case], None]

    @classmethod
    def of(
        cls, parent: pytest.Session, name: str, made: _Made, promise: str, check: Callable[[Case], None]
    ) -> ContractItem:
        """An item named ``plugin::metric::check``."""
        item: ContractItem = cls.from_parent(parent, name=name, nodeid=name)
        item.made, item.promise, item.check = made, promise, check
        return item

    def runtest(self) -> None:
        """Check the promise."""
        from xent_metrics.testing.contract import check_promise

        check_promise(self.made.case, self.promise, self.check)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show the message of a broken promise; the traceback is of no use unless something else went wrong."""
        if isinstance(excinfo.value, AssertionError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """What the report calls the item."""
        return self.path, None, self.name
