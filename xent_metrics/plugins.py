"""The plugin manager: loads, validates and isolates plugins, lists them, and builds metrics by name.

The built-in metrics come first, through the same hook. A plugin that fails to import, implements a hook wrongly or
registers something invalid is set aside: nothing of it is used, and a warning says why. The other plugins work, and
`get_metric` of an unknown name repeats the error.

The environment variable `XENT_METRICS_PLUGINS` (a,b) loads only the plugins with those entry point names; an empty value
loads only the built-ins.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from xent_metrics import hookspecs, metrics
from xent_metrics.errors import InvalidInputError, MetricOptionError, PluginError, UnknownMetricError
from xent_metrics.sums.metric import TokenMetric
from xent_metrics.version import __version__

__all__ = ["Plugin", "Plugins", "as_metric", "get_metric", "list_metrics", "plugins", "provenance", "use_plugins"]

GROUP = hookspecs.PROJECT
SELECTION = "XENT_METRICS_PLUGINS"
_BUILT_IN = "built-in"
#: Other names that people use; they are suggested in errors and never accepted.
_ALSO_KNOWN_AS = {
    "bpb": "bits_per_byte",
    "ce": "cross_entropy",
    "ece": "expected_calibration_error",
    "nll": "cross_entropy",
    "loss": "cross_entropy",
    "ppl": "perplexity",
    "xent": "cross_entropy",
    "acc": "token_accuracy",
    "accuracy": "token_accuracy",
}


@dataclass
class Plugin:
    """A plugin that was loaded, or set aside with its error."""

    name: str
    distribution: str
    version: str
    metrics: dict[str, type[TokenMetric]] = field(default_factory=dict)
    task_configs: list[Path] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)
    error: Exception | SystemExit | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


class Plugins:
    """The plugins of one load; `plugins()` gives those of the process.

    Args:
        found: the entry points to load, besides the built-ins.
    """

    def __init__(self, found: Iterable[EntryPoint] = ()) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(hookspecs)
        self.plugins: list[Plugin] = []
        self.metrics: dict[str, type[TokenMetric]] = {}
        self._owner: dict[str, Plugin] = {}
        self._contested: dict[str, PluginError] = {}
        self.add(Plugin(_BUILT_IN, "xent-metrics", __version__), metrics)
        for point in sorted(found, key=lambda p: (p.dist.name if p.dist else "", p.name)):
            self._load(point)

    def _load(self, point: EntryPoint) -> None:
        distribution = (point.dist.name, point.dist.version) if point.dist else ("unknown distribution", "")
        plugin = Plugin(point.name, *distribution)
        try:
            module = point.load()
        except (Exception, SystemExit) as error:  # whatever this module does, the others must work
            self._set_aside(plugin, error)
        else:
            self.add(plugin, module)

    def add(self, plugin: Plugin, module: Any) -> None:
        """Register a plugin's module, or set the plugin aside with its error."""
        name = f"{plugin.name} of {plugin.distribution}"
        try:
            _check_hook_version(plugin, module)
            self.manager.register(module, name=name)
            self.manager.check_pending()
            self._check_hooks(plugin, module)
            self._run_register_hooks(plugin, module)
        except (Exception, SystemExit) as error:
            if self.manager.get_plugin(name) is module:  # not the same module, registered before by another plugin
                self.manager.unregister(module)
            self._set_aside(plugin, error)
            return
        plugin.hooks = sorted(caller.name for caller in self.manager.get_hookcallers(module) or ())
        self.plugins.append(plugin)
        self.metrics |= plugin.metrics
        self._owner |= dict.fromkeys(plugin.metrics, plugin)

    def _check_hooks(self, plugin: Plugin, module: Any) -> None:
        """Raise if the module implements no hook at all."""
        if self.manager.get_hookcallers(module):
            return
        unmarked = [name for name in vars(self.manager.hook) if callable(getattr(module, name, None))]
        name = getattr(module, "__name__", repr(module))
        found = f"its function {unmarked[0]} isn't marked" if unmarked else f"no function of {name} is marked"
        raise PluginError(
            f"{plugin} has no hooks: {found} with @hookimpl. Write `from xent_metrics import hookimpl` and @hookimpl above "
            f"`def {unmarked[0] if unmarked else 'register_metrics'}`"
        )

    def _run_register_hooks(self, plugin: Plugin, module: Any) -> None:
        others = set(self.manager.get_plugins()) - {module}
        self.manager.subset_hook_caller("register_metrics", others)(
            register=functools.partial(self._register_metric, plugin)
        )
        self.manager.subset_hook_caller("register_task_configs", others)(
            register=functools.partial(self._register_task_configs, plugin)
        )

    def _register_metric(self, plugin: Plugin, metric: type[TokenMetric]) -> None:
        if not (isinstance(metric, type) and issubclass(metric, TokenMetric)):
            raise PluginError(f"{plugin} registers {metric!r}; expected a subclass of xent_metrics.TokenMetric")
        if inspect.isabstract(metric):
            missing = ", ".join(sorted(metric.__abstractmethods__))
            raise PluginError(f"{plugin} registers {metric.__name__}, which doesn't define {missing}")
        name = getattr(metric, "name", None)
        if not isinstance(name, str) or not name.isidentifier():
            raise PluginError(f"{plugin} registers {metric.__name__} under {name!r}; `name` is a snake_case identifier")
        first = self._owner.get(name) or (plugin if name in plugin.metrics else None)
        if first is not None:
            error = PluginError(
                f"two plugins register the metric {name!r}: {first} and {plugin}. Uninstall or rename one"
            )
            if first.name != _BUILT_IN:
                self._contested[name] = error
                self.metrics.pop(name, None)
                first.metrics.pop(name, None)
            raise error
        plugin.metrics[name] = metric

    def _register_task_configs(self, plugin: Plugin, folder: str | os.PathLike[str]) -> None:
        path = Path(folder)
        if not path.is_dir():
            raise PluginError(f"{plugin} registers the task folder {path}, which is not a folder")
        plugin.task_configs.append(path)

    def _set_aside(self, plugin: Plugin, error: Exception | SystemExit) -> None:
        plugin.metrics.clear()
        plugin.task_configs.clear()
        plugin.error = error
        self.plugins.append(plugin)
        warnings.warn(f"xent-metrics plugin {plugin} is set aside: {type(error).__name__}: {error}", stacklevel=2)

    def metric_class(self, name: str) -> type[TokenMetric]:
        """The class registered under `name`.

        Raises:
            UnknownMetricError: no plugin registers this name.
            PluginError: two plugins register it.
        """
        if not isinstance(name, str):
            raise UnknownMetricError(f"expected a registered name, such as 'cross_entropy'; got {name!r}")
        if name in self._contested:
            raise self._contested[name]
        if name in self.metrics:
            return self.metrics[name]
        raise self._unknown(name)

    def _unknown(self, name: str) -> UnknownMetricError:
        near = [_ALSO_KNOWN_AS[name.lower()]] if name.lower() in _ALSO_KNOWN_AS else []
        near += difflib.get_close_matches(name, self.metrics, n=2)
        text = f"unknown metric {name!r}."
        if near:
            text += f" Did you mean {' or '.join(map(repr, dict.fromkeys(near)))}?"
        broken = [p for p in self.plugins if p.error is not None]
        for plugin in broken:
            text += f" Set aside: {plugin}: {type(plugin.error).__name__}: {plugin.error}."
        loaded = ", ".join(p.name for p in self.plugins if p.error is None) or "none"
        error = UnknownMetricError(f"{text} `xent metrics` lists all {len(self.metrics)}; plugins loaded: {loaded}")
        error.__cause__ = broken[0].error if broken else None
        return error


def _check_hook_version(plugin: Plugin, module: Any) -> None:
    made_for = getattr(module, hookspecs.VERSION_ATTRIBUTE, 1)
    if made_for != hookspecs.HOOK_VERSION:
        raise PluginError(
            f"{plugin} is made for version {made_for!r} of the hooks; xent-metrics {__version__} has version "
            f"{hookspecs.HOOK_VERSION}. Install a version of {plugin.distribution} for these hooks, or another xent-metrics"
        )


_in_use: Plugins | None = None


def plugins() -> Plugins:
    """The plugins in use: those inside `use_plugins`, or else the built-ins and the installed ones, loaded once."""
    return _installed() if _in_use is None else _in_use


@contextmanager
def use_plugins(chosen: Plugins) -> Iterator[Plugins]:
    """Use these plugins in the whole process inside, in place of the installed ones: for tests.

    >>> with use_plugins(Plugins()):
    ...     "focal_cross_entropy" in list_metrics()
    False
    """
    global _in_use
    before, _in_use = _in_use, chosen
    try:
        yield chosen
    finally:
        _in_use = before


@functools.cache
def _installed() -> Plugins:
    """The built-ins and every installed entry point, or those that XENT_METRICS_PLUGINS names."""
    installed = list(entry_points(group=GROUP))
    chosen = os.environ.get(SELECTION)
    if chosen is None:
        return Plugins(installed)
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    missing = sorted(set(names) - {point.name for point in installed})
    if missing:
        raise PluginError(
            f"{SELECTION} names {', '.join(missing)}, not installed; installed: "
            f"{', '.join(sorted(point.name for point in installed)) or 'none'}"
        )
    return Plugins([point for point in installed if point.name in names])


def provenance() -> dict[str, Any]:
    """What values come from: the version of xent-metrics, and the name, distribution and version of each loaded plugin.

    >>> with use_plugins(Plugins()):
    ...     provenance()["plugins"]
    []
    """
    loaded = [plugin for plugin in plugins().plugins if plugin.error is None and plugin.name != _BUILT_IN]
    named = [{"name": p.name, "distribution": p.distribution, "version": p.version} for p in loaded]
    return {"version": __version__, "plugins": named}


def list_metrics() -> list[str]:
    """The registered names, sorted.

    >>> "bits_per_byte" in list_metrics()
    True
    """
    return sorted(plugins().metrics)


def get_metric(name: str, **options: Any) -> TokenMetric:
    """Build a registered metric by name.

    Args:
        name: the registered name, such as "cross_entropy".
        options: those of the metric.

    Raises:
        UnknownMetricError: an unknown name; the message has the nearest names and the loaded plugins.
        MetricOptionError: an option that the metric doesn't have, or an invalid value.

    >>> get_metric("cross_entropy", unit="bits")
    CrossEntropy(unit='bits', label_smoothing=0.0, class_weight=None, ignore_index=-100)
    """
    metric = plugins().metric_class(name)
    try:
        return metric(**options)
    except TypeError as error:
        if isinstance(error, MetricOptionError):
            raise
        raise MetricOptionError(f"{name}({', '.join(f'{k}={v!r}' for k, v in options.items())}): {error}") from error


def as_metric(given: Any) -> TokenMetric:
    """A metric from a metric, a registered name, or ``{"metric": name, **options}``.

    `name` in such a dict is the key that the metric gets elsewhere; it is ignored here.

    >>> as_metric({"metric": "cross_entropy", "unit": "bits"})
    CrossEntropy(unit='bits', label_smoothing=0.0, class_weight=None, ignore_index=-100)
    """
    if isinstance(given, TokenMetric):
        return given
    if isinstance(given, str):
        return get_metric(given)
    if isinstance(given, Mapping) and isinstance(given.get("metric"), str):
        options = {str(key): value for key, value in given.items() if key not in ("metric", "name")}
        return get_metric(given["metric"], **options)
    if isinstance(given, type) and issubclass(given, TokenMetric):
        raise InvalidInputError(f"expected a metric; got the class {given.__name__}. Write {given.__name__}()")
    raise InvalidInputError(
        f"expected registered names, dicts with `metric` and its options, or TokenMetric objects; got {type(given).__name__}. "
        "torchmetrics' own metrics go into a torchmetrics.MetricCollection"
    )
