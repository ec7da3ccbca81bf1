"""LMEvalCallback: lm-eval tasks on the module in training, logged beside its validation metrics.

Who syncs: lm-eval. All ranks take part: each scores its share of the documents, rank 0 aggregates, and its values are
broadcast, so that every rank logs the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property, partial
from importlib.util import find_spec
from numbers import Real
from typing import Any

from xent_metrics.errors import InvalidInputError, MetricOptionError, MissingExtraError
from xent_metrics.hosts.config import named_object
from xent_metrics.hosts.lightning.callback import Callback, log_all

__all__ = ["LMEvalCallback", "logged_values"]


class LMEvalCallback(Callback):
    """Run lm-eval tasks at the end of every n-th validation epoch, and log ``lm_eval/<task>/<metric>`` with ``…_stderr``.

    Args:
        tasks: names (ours, plugins', lm-eval's own, those in `include_path`) or task configurations.
        every_n_epochs: 1 is every validation, except the sanity check; in `trainer.validate` it is always run.
        submodule: the attribute of the module that takes ids and gives logits (`TorchLM`); by default the module itself.
        tokenizer: as for `TorchLM`: "bytes", a path of a Hugging Face tokenizer, an object, or an object's import path as
            ``package.module:name``.
        max_length, batch_size: as for `TorchLM`.
        metrics: put on every task, as in a task's `metric_list`: ``[{"metric": "bits_per_byte"}]``.
        include_path: folders of more task YAMLs.
        options: further keywords of `lm_eval.simple_evaluate`: `limit`, `num_fewshot`, `apply_chat_template` …
        replicate: every rank scores all documents, for modules whose forward needs all ranks at once (FSDP, tensor
            parallel). Otherwise (one process, DDP) documents are dealt out.
        prog_bar, logger: where to show them; callbacks can monitor them either way.

    Task names are looked up and tasks loaded before training starts. The module's modes and the random generators are as
    they were afterwards.
    """

    def __init__(
        self,
        tasks: list[str | dict[str, Any]],
        every_n_epochs: int = 1,
        submodule: str | None = None,
        tokenizer: Any = "bytes",
        max_length: int | None = None,
        batch_size: int = 1,
        metrics: list[dict[str, Any]] | None = None,
        include_path: list[str] | None = None,
        options: dict[str, Any] | None = None,
        replicate: bool = False,
        prog_bar: bool = False,
        logger: bool = True,
    ) -> None:
        super().__init__()
        if find_spec("lm_eval") is None:
            raise MissingExtraError("LMEvalCallback needs lm-eval: pip install 'xent-metrics[lm-eval]'")
        if isinstance(tasks, str) or not tasks:
            raise MetricOptionError(f"tasks is a list of names or configurations; got {tasks!r}")
        if every_n_epochs < 1:
            raise MetricOptionError(f"every_n_epochs is at least 1; got {every_n_epochs!r}")
        self.tasks = list(tasks)
        self.every_n_epochs = every_n_epochs
        self.submodule = submodule
        named = isinstance(tokenizer, str) and ":" in tokenizer and not os.path.exists(tokenizer)
        self.tokenizer = named_object(tokenizer) if named else tokenizer
        self.max_length = max_length
        self.batch_size = batch_size
        self.metrics = list(metrics or [])
        self.include_path = list(include_path or [])
        self.options = dict(options or {})
        self.replicate = replicate
        self.prog_bar = prog_bar
        self.logger = logger

    @cached_property
    def _task_manager(self) -> Any:
        from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager

        manager = partial(XentTaskManager, include_path=self.include_path, entries=self.metrics)
        without_theirs = manager(include_defaults=False)  # lm-eval's thousands take seconds to index
        if set(map(str, self.tasks)) <= set(without_theirs.all_subtasks):
            return without_theirs
        return manager()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage not in ("fit", "validate"):
            return
        _submodule(pl_module, self.submodule)
        self._task_manager.load(self.tasks)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        due = trainer.state.fn == "validate" or (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and not trainer.sanity_checking:
            log_all(pl_module, self.evaluate(trainer, pl_module), prog_bar=self.prog_bar, logger=self.logger)

    def evaluate(self, trainer: Any, pl_module: Any) -> dict[str, float]:
        """Run the tasks now, on all ranks; the values that would be logged."""
        import lm_eval

        from xent_metrics.hosts.lightning.module_lm import ModuleLM, as_it_was

        with as_it_was(pl_module):
            model = ModuleLM(
                _submodule(pl_module, self.submodule),
                context=trainer.precision_plugin.forward_context,
                alone=self.replicate,
                tokenizer=self.tokenizer,
                max_length=self.max_length,
                batch_size=self.batch_size,
                device=pl_module.device,
            )
            options = {"log_samples": False, **self.options}
            results = lm_eval.simple_evaluate(model, tasks=self.tasks, task_manager=self._task_manager, **options)
        values: dict[str, float] = trainer.strategy.broadcast(logged_values(results), src=0)
        return values


def _submodule(module: Any, path: str | None) -> Any:
    try:
        for name in (path or "").split(".") if path else ():
            module = getattr(module, name)
    except AttributeError as error:
        raise InvalidInputError(
            f"submodule={path!r}: {error}. Name the attribute of the module that takes ids and gives logits"
        ) from error
    return module


def logged_values(results: Mapping[str, Any] | None) -> dict[str, float]:
    """The numbers in lm-eval's results, by ``lm_eval/<task>/<metric>`` (``…/<metric>_<filter>`` of a named filter).

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
