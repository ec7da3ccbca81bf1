"""LMEvalCallback: lm-eval tasks on the module during training, logged beside its validation metrics.

Who syncs: lm-eval. Each rank scores its share of the documents, rank 0 aggregates, and its values are broadcast, so that
every rank logs the same values.
"""

from __future__ import annotations

import difflib
import inspect
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from importlib.util import find_spec
from numbers import Real
from typing import Any

from xent_metrics.errors import InvalidInputError, MetricOptionError, MissingExtraError
from xent_metrics.hosts.config import named_object
from xent_metrics.hosts.lightning.callback import Callback, log_all, trackers_of
from xent_metrics.hosts.trackers import log_pictures

__all__ = ["LMEvalCallback", "logged_values"]


class LMEvalCallback(Callback):
    """Run lm-eval tasks after every n-th validation epoch, and log ``lm_eval/<task>/<metric>`` with ``…_stderr``.

    Tasks are loaded, options are checked and the module is tried on two ids before training starts. Evaluation leaves the
    module's training modes and all random generators as they were. With `Trainer(fast_dev_run=n)` the tasks run on their
    first n documents, whatever `every_n_epochs` is.

    Args:
        tasks: names (ours, plugins', lm-eval's own, or from `include_path`) or task configurations.
        every_n_epochs: 1 runs in every validation except the sanity check. `trainer.validate` always runs the tasks.
        submodule: the attribute of the module that maps ids to logits, as for `TorchLM`; by default the module itself.
        tokenizer: as for `TorchLM`: "bytes", the path of a Hugging Face tokenizer, an object, or the import path of an object,
            ``package.module:name``.
        max_length: as for `TorchLM`.
        prefix_token_id: as for `TorchLM`.
        batch_size: as for `TorchLM`.
        metrics: entries added to every task's `metric_list`: ``[{"metric": "bits_per_byte"}]``.
        include_path: additional folders of task YAMLs.
        options: further arguments of `lm_eval.simple_evaluate`: `limit`, `num_fewshot`, `apply_chat_template` …
        replicate: let every rank score all documents, for modules whose forward needs all ranks at once (FSDP, tensor
            parallel). By default (one process, DDP) the documents are distributed over the ranks.
        prog_bar: show the values in the progress bar, without their standard errors.
        logger: send the values to the trainer's loggers, with reliability diagrams as `XentCallback` does. Other callbacks can
            monitor the values in any case.

    Raises:
        MissingExtraError: lm-eval is not installed.
        MetricOptionError: `tasks` isn't a list, `every_n_epochs` is less than 1, or lm-eval has no such option.
    """

    def __init__(
        self,
        tasks: list[str | dict[str, Any]],
        every_n_epochs: int = 1,
        submodule: str | None = None,
        tokenizer: Any = "bytes",
        max_length: int | None = None,
        prefix_token_id: int | None = None,
        batch_size: int = 1,
        metrics: list[dict[str, Any]] | None = None,
        include_path: list[str] | None = None,
        options: dict[str, Any] | None = None,
        replicate: bool = False,
        prog_bar: bool = False,
        logger: bool = True,
    ) -> None:
        super().__init__()
        _check_options(tasks, every_n_epochs)
        self.tasks = list(tasks)
        self.every_n_epochs = every_n_epochs
        self.submodule = submodule
        self.tokenizer = _tokenizer(tokenizer)
        self.max_length, self.prefix_token_id = max_length, prefix_token_id
        self.batch_size = batch_size
        self.metrics = list(metrics or [])
        self.include_path = list(include_path or [])
        self.options = dict(options or {})
        self.replicate = replicate
        self.prog_bar, self.logger = prog_bar, logger
        self._results: Mapping[str, Any] | None = None

    @cached_property
    def _task_manager(self) -> Any:
        from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager

        manager = partial(XentTaskManager, include_path=self.include_path, entries=self.metrics)
        without_defaults = manager(include_defaults=False)  # indexing lm-eval's own tasks takes seconds
        if set(map(str, self.tasks)) <= set(without_defaults.all_subtasks):
            return without_defaults
        return manager()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage in ("fit", "validate"):
            _check_evaluate_options(self.options)
            self._task_manager.load(self.tasks)

    # In `setup` layers may not exist yet, or be on another device.

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        with self._as_model(trainer, pl_module):
            pass

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "validate":
            with self._as_model(trainer, pl_module):
                pass

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        always = trainer.state.fn == "validate" or trainer.fast_dev_run
        due = always or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and not trainer.sanity_checking:
            log_all(pl_module, self.evaluate(trainer, pl_module), prog_bar=self.prog_bar, logger=self.logger)
            self._log_pictures(trainer)

    def evaluate(self, trainer: Any, pl_module: Any) -> dict[str, float]:
        """Run the tasks now; every rank must call this. Returns the values that `on_validation_epoch_end` logs."""
        import lm_eval

        with self._as_model(trainer, pl_module) as model, _forks.ending_on_sigterm():
            options = self._evaluate_options(trainer)
            results = lm_eval.simple_evaluate(model, tasks=self.tasks, task_manager=self._task_manager, **options)
        self._results = results  # None on all ranks but the first
        values: dict[str, float] = trainer.strategy.broadcast(logged_values(results), src=0)
        return values

    def _log_pictures(self, trainer: Any) -> None:
        from xent_metrics.hosts.lm_eval.loggers import result_pictures

        results, self._results = self._results, None
        if results and self.logger and (trackers := trackers_of(trainer)):
            log_pictures(trackers, result_pictures(results, "lm_eval/"), trainer.global_step)

    @contextmanager
    def _as_model(self, trainer: Any, pl_module: Any) -> Iterator[Any]:
        """The module as a model of lm-eval, which is tried on two ids; raises `InvalidInputError` if it can't be one."""
        from xent_metrics.hosts.lightning.module_lm import ModuleLM, as_it_was

        with as_it_was(pl_module):
            yield ModuleLM(
                _submodule(pl_module, self.submodule),
                context=trainer.precision_plugin.forward_context,
                alone=self.replicate,
                tokenizer=self.tokenizer,
                max_length=self.max_length,
                prefix_token_id=self.prefix_token_id,
                batch_size=self.batch_size,
                device=pl_module.device,
            )

    def _evaluate_options(self, trainer: Any) -> dict[str, Any]:
        options = {"log_samples": False, **self.options}
        if trainer.fast_dev_run:
            options |= {"limit": int(trainer.fast_dev_run), "samples": None}  # lm-eval takes one of them
        return options


class _Forks:
    """Makes processes that lm-eval forks end on SIGTERM, as lm-eval expects.

    For standard errors by bootstrap it forks a pool, ends it by SIGTERM and waits for it. In `Trainer.fit` the processes would
    inherit Lightning's handler, which only notes the signal, and be waited for forever.
    """

    def __init__(self) -> None:
        self._active = False
        if hasattr(os, "register_at_fork"):  # on POSIX
            os.register_at_fork(after_in_child=self._restore_default)

    @contextmanager
    def ending_on_sigterm(self) -> Iterator[None]:
        """Within it, processes that this one forks have the system's default for SIGTERM."""
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def _restore_default(self) -> None:
        if self._active:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


_forks = _Forks()


def _check_options(tasks: Any, every_n_epochs: int) -> None:
    if find_spec("lm_eval") is None:
        raise MissingExtraError("LMEvalCallback needs lm-eval: pip install 'xent-metrics[lm-eval]'")
    if isinstance(tasks, str) or not tasks:
        raise MetricOptionError(f"tasks is a list of names or configurations; got {tasks!r}")
    if every_n_epochs < 1:
        raise MetricOptionError(f"every_n_epochs is at least 1; got {every_n_epochs!r}")


def _check_evaluate_options(options: Mapping[str, Any]) -> None:
    import lm_eval

    known = inspect.signature(lm_eval.simple_evaluate).parameters.keys() - {"model", "tasks", "task_manager"}
    for name in sorted(options.keys() - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise MetricOptionError(
            f"options has no {name!r}.{hint} It takes the arguments of lm_eval.simple_evaluate: {', '.join(sorted(known))}"
        )


def _tokenizer(given: Any) -> Any:
    """The object of an import path ``package.module:name``; everything else is for `TorchLM` to read."""
    is_import_path = isinstance(given, str) and ":" in given and not os.path.exists(given)
    return named_object(given) if is_import_path else given


def _submodule(module: Any, path: str | None) -> Any:
    try:
        for name in (path or "").split(".") if path else ():
            module = getattr(module, name)
    except AttributeError as error:
        raise InvalidInputError(
            f"submodule={path!r}: {error}. Pass the name of the attribute that maps ids to logits"
        ) from error
    return module


def logged_values(results: Mapping[str, Any] | None) -> dict[str, float]:
    """The numbers in lm-eval's results by ``lm_eval/<task>/<metric>``, with ``_<filter>`` appended for a named filter.

    >>> logged_values({"results": {"wiki": {"alias": "wiki", "cross_entropy,none": 2.5, "acc_stderr,none": "N/A"}}})
    {'lm_eval/wiki/cross_entropy': 2.5}
    """
    values = {}
    for task, found in (results or {"results": {}})["results"].items():
        for key, value in found.items():
            metric, comma, filter_name = key.partition(",")
            if comma and isinstance(value, Real):
                values[f"lm_eval/{task}/{metric}{'' if filter_name == 'none' else f'_{filter_name}'}"] = float(value)
    return values
