"""What this package uses of lm-eval that lm-eval doesn't document, as read in lm-eval 0.4.13: one function for each name.

When a later lm-eval moves one of them, the error names it, and the docstring says what to look for. `make test-lm-eval`
runs the tests with another lm-eval. What stays outside of this file is in `OVERRIDDEN`. Models import this file, too, so
lm-eval's evaluator and tasks, which load pandas and more, are imported where they are used.

Three habits of lm-eval's evaluator are relied on as well. Tests notice when they change:

- `process_results` may emit ``<name>_stderr`` after ``<name>``, and that value replaces the ``N/A`` (test_task.py);
- an aggregation may shorten the list that it gets; the number of samples is counted afterwards (test_empty_ranks.py);
- the standard error of one of lm-eval's metrics is looked up by its aggregation, with ``==`` (test_empty_ranks.py).
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial, wraps
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY, aggregation_registry, metric_registry

from xent_metrics.errors import MissingExtraError

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.tasks import TaskManager

__all__ = [
    "AGGREGATIONS",
    "EMITTED",
    "IS_0_4",
    "METRICS",
    "OVERRIDDEN",
    "SUPPORTED",
    "Configure",
    "aggregate_groups",
    "around_evaluate",
    "around_saving_samples",
    "as_command",
    "batch_size",
    "configurable_task",
    "configure_tasks",
    "default_aggregation",
    "default_metrics",
    "encode_pair",
    "engine_outputs",
    "filter_names",
    "index_tasks",
    "known_keys",
    "load_configuration",
    "num_concurrent",
    "record_provenance",
    "requires_delimiter",
    "rolling_text",
    "sample_line",
    "set_max_length",
    "set_rank",
]

#: The versions that all of this package works with, as in pyproject.toml.
SUPPORTED = "lm_eval>=0.4.13,<0.5"
#: Whether tasks are lm-eval 0.4's, and the result of a rolling request is a number; since 0.5 it is ``(number, is_greedy)``.
IS_0_4 = version("lm_eval").startswith("0.4.")
#: lm-eval's private names that our subclasses give a meaning of their own, where a class is the only place for them.
OVERRIDDEN = {
    "TemplateLM": {"_loglikelihood_tokens"},  # abstract: loglikelihoods of ids
    "HFLM": {"_get_backend"},  # called once the model's configuration is read, before its weights
    "ConfigurableTask": {"_instances"},  # the requests that filters are applied to
}

#: What lm-eval's `process_results` can emit, by output type. It drops every other metric without a word.
#: Read in lm-eval 0.4.13, `ConfigurableTask.process_results`; test_upstream.py compares.
EMITTED = {
    "loglikelihood": {"acc", "perplexity"},
    "loglikelihood_rolling": {"bits_per_byte", "byte_perplexity", "word_perplexity"},
    "multiple_choice": {
        "acc", "acc_bytes", "acc_mutual_info", "acc_norm", "brier_score", "exact_match", "f1", "likelihood", "mcc",
    },
}  # fmt: skip


class _Names(Collection[str]):
    """The names in one of lm-eval's registries, which `lm_eval.api.metrics` fills when it is imported."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def _filled(self) -> Any:
        import lm_eval.api.metrics  # noqa: F401

        return self._registry

    def __contains__(self, name: object) -> bool:
        return name in self._filled()

    def __iter__(self) -> Iterator[str]:
        return iter(self._filled())

    def __len__(self) -> int:
        return len(self._filled())


#: The names of all metrics and aggregations that lm-eval has registered.
METRICS: Collection[str] = _Names(metric_registry)
AGGREGATIONS: Collection[str] = _Names(aggregation_registry)

#: Takes a task's name and its whole configuration, and returns the configuration to build the task from.
Configure = Callable[[str, dict[str, Any]], dict[str, Any]]


def _private(owner: Any, name: str) -> Any:
    """`owner.name`, or an error that says which lm-eval has it."""
    if not hasattr(owner, name):
        raise _other_lm_eval(f"xent-metrics uses {getattr(owner, '__name__', type(owner).__name__)}.{name}")
    return getattr(owner, name)


def _private_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise _other_lm_eval(f"xent-metrics uses {name}") from error


def _set_private(owner: Any, **values: Any) -> None:
    for name, value in values.items():
        _private(owner, name)
        setattr(owner, name, value)


def _other_lm_eval(what: str) -> MissingExtraError:
    return MissingExtraError(
        f"{what} of lm-eval 0.4, which lm-eval {version('lm_eval')} doesn't have. Install '{SUPPORTED}'"
    )


def _unwrapped(function: Any) -> Any:
    """The function without what an earlier call of ours put around it."""
    return getattr(function, "__wrapped__", function)


# Tasks.


def configurable_task() -> type[Any]:
    """The class of all tasks in YAML: `ConfigurableTask`, read in lm-eval 0.4.13.

    In lm-eval 0.5.0.dev1 the name means the base class `Task`, each output type has a class of its own, and what a task
    computes is up to its scorers.

    Raises:
        MissingExtraError: this lm-eval has no such class.
    """
    if not IS_0_4:
        raise _other_lm_eval("XentTask and `xent lm-eval` are built on ConfigurableTask")
    from lm_eval.api.task import ConfigurableTask

    found: type[Any] = ConfigurableTask
    return found


def default_metrics(output_type: str) -> list[str]:
    """The metrics that lm-eval computes for a task without a `metric_list`."""
    return list(DEFAULT_METRIC_REGISTRY.get(output_type, []))


def default_aggregation(metric: str) -> str | None:
    """The name of the aggregation of a metric whose entry names none; without one, lm-eval can't build the task."""
    import lm_eval.api.metrics  # fills the registries
    import lm_eval.api.registry

    aggregations = _private(lm_eval.api.registry, "metric_agg_registry")
    if metric not in aggregations:
        return None
    function = aggregations.get(metric)
    return next((name for name in AGGREGATIONS if aggregation_registry.get(name) == function), None)


def known_keys() -> set[str]:
    """The keys that a task's configuration may have, with those that lm-eval's loader takes out of it.

    `TaskFactory._build_task` passes the rest to `TaskConfig`, which raises on any other, as read in lm-eval 0.4.13.
    """
    from lm_eval.config.task import TaskConfig

    return {field.name for field in fields(TaskConfig)} | {"tag", "group", "task_list", "class", "include"}


def index_tasks(folders: Sequence[Path]) -> dict[str, Any]:
    """The tasks, groups and tags of folders by name: `TaskIndex.build`, read in lm-eval 0.4.13 (lm_eval/tasks/_index.py)."""
    found: dict[str, Any] = _private_module("lm_eval.tasks._index").TaskIndex.build(folders)
    return found


def load_configuration(source: Any) -> dict[str, Any]:
    """The configuration of the YAML at a path, or of an entry of the index, with what it includes and its functions, but no data.

    `TaskFactory._load_full_config`, read in lm-eval 0.4.13 (lm_eval/tasks/_factory.py). It imports the Python files that
    the YAML names, so it may raise anything.
    """
    if isinstance(source, Path):
        index = _private_module("lm_eval.tasks._index")
        source = index.Entry(source.stem, index.Kind.TASK, source.expanduser().resolve())
    factory = _private_module("lm_eval.tasks._factory").TaskFactory()
    found: dict[str, Any] = _private(factory, "_load_full_config")(source)
    return found


def filter_names(task: Any) -> list[str]:
    """The names of a task's filters: `ConfigurableTask._filters`, read in lm-eval 0.4.13."""
    return [each.name for each in _private(task, "_filters")]


def requires_delimiter(before: str, after: str) -> bool:
    """Whether lm-eval parts two texts by a delimiter: `lm_eval.api.utils.requires_delimiter`, read in lm-eval 0.4.13."""
    from lm_eval.api.utils import requires_delimiter

    return bool(requires_delimiter(before, after))


class _LoadAndConfigure:
    """In place of a factory's `_load_full_config`: pass the configuration of every task, but of no group, through a function."""

    def __init__(self, factory: Any, configure: Configure) -> None:
        self._factory, self._configure = factory, configure

    def __call__(self, entry: Any, overrides: Any = None) -> dict[str, Any]:
        """The YAML with its overrides and metadata, by `TaskFactory._load_full_config`, read in lm-eval 0.4.13."""
        config: dict[str, Any] = type(self._factory)._load_full_config(self._factory, entry, overrides)
        return config if entry.kind.name == "GROUP" else self._configure(entry.name, config)


def configure_tasks(manager: TaskManager, configure: Configure) -> None:
    """Make a task manager pass every task's configuration through `configure`.

    Replaces `_load_full_config` of the `TaskManager._factory`, read in lm-eval 0.4.13 (lm_eval/tasks/_factory.py). If it
    moves, replace the method that merges the YAML with its overrides just before a task is built. Inline tasks of a group
    don't come through it in that version: `XentTaskManager.load` finds them.

    Raises:
        MissingExtraError: this lm-eval has no such factory. Without it, nothing would be configured, without a word.
    """
    factory = _private(manager, "_factory")
    _set_private(factory, _load_full_config=_LoadAndConfigure(factory, configure))


def aggregate_groups(exact: Callable[[Group, dict[str, Any], Mapping[str, Any]], dict[str, Any]]) -> None:
    """Let `exact` replace values in the results of every group, under any command.

    lm-eval makes its groups itself, and has no hook for what they compute. So `Group.aggregate`, read in lm-eval 0.4.13
    (lm_eval/api/group.py), is wrapped, once in a process. If it moves, wrap whatever turns the results of tasks, by
    name, into those of a group.

    Args:
        exact: takes the group, its results as lm-eval has them, and the results of all tasks.
    """
    from lm_eval.api.group import Group

    lm_evals = _unwrapped(_private(Group, "aggregate"))

    @wraps(lm_evals)
    def aggregate(group: Group, task_metrics: dict[str, Any]) -> dict[str, Any]:
        return exact(group, lm_evals(group, task_metrics), task_metrics)

    Group.aggregate = aggregate


def record_provenance(
    name: str,
    provenance: Callable[[], Mapping[str, Any]],
    tidy: Callable[[dict[str, Any]], None] = lambda results: None,
) -> None:
    """Let every results.json say `provenance` under `name`, beside lm-eval's own version, and `tidy` it, under any command.

    `lm_eval.evaluator.add_env_info`, read in lm-eval 0.4.13 (lm_eval/evaluator.py), which adds the versions to the results,
    is wrapped, once in a process. If it moves, wrap whatever does.
    """
    import lm_eval.evaluator

    lm_evals = _unwrapped(_private(lm_eval.evaluator, "add_env_info"))

    @wraps(lm_evals)
    def add_env_info(storage: dict[str, Any]) -> None:
        lm_evals(storage)
        storage[name] = dict(provenance())
        tidy(storage)

    lm_eval.evaluator.add_env_info = add_env_info


def around_saving_samples(instead: Callable[[Path, Sequence[dict[str, Any]], Callable[[], None]], None]) -> None:
    """Call `instead` with the path of a samples file, the samples, and what saves them, where lm-eval saves them.

    `EvaluationTracker.save_results_samples`, read in lm-eval 0.4.13 (lm_eval/loggers/evaluation_tracker.py), is wrapped, once
    in a process. It makes the path of `output_path`, the model's name and `date_id`, makes its folder, and may push the file. If
    it moves, wrap whatever writes the samples.
    """
    from lm_eval.loggers.evaluation_tracker import EvaluationTracker  # not a subclass of ours, see `as_command`

    lm_evals = _unwrapped(_private(EvaluationTracker, "save_results_samples"))

    @wraps(lm_evals)
    def save_results_samples(self: Any, task_name: str, samples: Any) -> None:
        save = partial(lm_evals, self, task_name=task_name, samples=samples)
        if not self.output_path or (self.api and self.push_samples_to_hub):
            save()
            return
        path = Path(self.output_path)
        folder = path.parent if path.suffix == ".json" else path / str(self.general_config_tracker.model_name_sanitized)
        instead(folder / f"samples_{task_name}_{self.date_id}.jsonl", samples, save)

    EvaluationTracker.save_results_samples = save_results_samples


def sample_line(sample: Mapping[str, Any]) -> str:
    """A sample as lm-eval writes it: `EvaluationTracker.save_results_samples`, read in lm-eval 0.4.13."""
    from lm_eval.utils import handle_non_serializable, sanitize_list

    arguments = {
        f"gen_args_{i}": {f"arg_{j}": value for j, value in enumerate(given)}
        for i, given in enumerate(sample["arguments"])
    }
    results = {name: sanitize_list(sample[name]) for name in ("resps", "filtered_resps")}
    saved = {**sample, **results, "arguments": arguments, "target": str(sample["target"])}
    return json.dumps(saved, default=handle_non_serializable, ensure_ascii=False)


@contextmanager
def around_evaluate(instead: Callable[..., Any]) -> Iterator[None]:
    """Within it, `simple_evaluate` calls `instead` with lm-eval's `evaluate` and its arguments, which it passes by name.

    `simple_evaluate`, read in lm-eval 0.4.13 (lm_eval/evaluator.py), looks up `lm_eval.evaluator.evaluate` when it has made the
    model and loaded the tasks. If it moves, wrap whatever gets both.
    """
    import lm_eval.evaluator

    lm_evals = _private(lm_eval.evaluator, "evaluate")
    lm_eval.evaluator.evaluate = partial(instead, lm_evals)
    try:
        yield
    finally:
        lm_eval.evaluator.evaluate = lm_evals


@contextmanager
def as_command(
    arguments: Sequence[str], task_manager: Any, loggers: Mapping[str, type] = MappingProxyType({})
) -> Iterator[Callable[[], None]]:
    """lm-eval's command, to be called, with `arguments`, our task manager, and our loggers by the names of lm-eval's.

    The command looks up `lm_eval.tasks.TaskManager` and the names of `lm_eval.loggers` each time it makes one, and reads
    `sys.argv`, as read in lm-eval 0.4.13 (lm_eval/_cli). All are put back afterwards. If the command comes to bind the
    names when it is imported, replace them in the module that binds them.
    """
    import lm_eval.loggers
    import lm_eval.tasks
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv, lm_eval.tasks.TaskManager, {name: getattr(lm_eval.loggers, name) for name in loggers}
    sys.argv, lm_eval.tasks.TaskManager = ["lm-eval", *arguments], task_manager
    vars(lm_eval.loggers).update(loggers)
    try:
        yield cli_evaluate
    finally:
        sys.argv, lm_eval.tasks.TaskManager, theirs = before
        vars(lm_eval.loggers).update(theirs)


# Models.


def rolling_text(arguments: Sequence[Any]) -> str:
    """The text that a rolling request asks the loglikelihood of: ``(text,)``, and in lm-eval 0.5 ``("", text)``."""
    return str(arguments[-1])


def encode_pair(lm: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of a context and of its continuation, which takes over the spaces that end the context.

    `TemplateLM._encode_pair`, read in lm-eval 0.4.13. If it moves, look at where `TemplateLM.loglikelihood` splits the ids.
    """
    before, after = _private(lm, "_encode_pair")(context, continuation)
    return list(before), list(after)


def set_max_length(lm: Any, max_length: int) -> None:
    """Fix the most ids that an `HFLM` reads at once.

    `HFLM._max_length`, read in lm-eval 0.4.13. If it moves, look at the property `HFLM.max_length`.
    """
    _set_private(lm, _max_length=max_length)


def set_rank(lm: Any, rank: int, world_size: int) -> None:
    """Say which share of the documents this process scores.

    `LM._rank` and `LM._world_size`, read in lm-eval 0.4.13. If they move, look at the properties `LM.rank` and `LM.world_size`.
    """
    _set_private(lm, _rank=rank, _world_size=world_size)


def engine_outputs(lm: Any, prompts: Iterable[Sequence[int]], **options: Any) -> list[Any]:
    """What an engine gives for prompts: `VLLM._model_generate` and `SGLangLM._model_generate`, read in lm-eval 0.4.13.

    With ``generate=False``, `VLLM` asks for `prompt_logprobs`; with True it takes vLLM's own `SamplingParams`. `SGLangLM`
    passes all options on to SGLang's engine. If they move, look at what `generate_until` calls.
    """
    return list(_private(lm, "_model_generate")(requests=[list(prompt) for prompt in prompts], **options))


def batch_size(lm: Any) -> int:
    """How many prompts `TemplateAPI` puts into a request: `TemplateAPI._batch_size`, read in lm-eval 0.4.13."""
    return int(_private(lm, "_batch_size"))


def num_concurrent(lm: Any) -> int:
    """How many requests `TemplateAPI` sends at once: `TemplateAPI._concurrent`, read in lm-eval 0.4.13."""
    return int(_private(lm, "_concurrent"))
