"""lm-evaluation-harness: tasks with our metrics (`XentTask`) and models with token scores (`TorchLM`, `XentHFLM`, engines).

Importing this package registers the names of the models, such as ``xent-hf``, with lm-eval.

Who syncs: lm-eval gathers the values of all documents to rank 0 and aggregates them there. Each value carries packed
sums, which rank 0 adds. The task side starts no collective of its own.

    task.py          XentTask                         documents.py        values that lm-eval gathers, and totals
    metric_list.py   a task's metrics, checked        document_scores.py  from a model's results to scores
    metric_entry.py  one of them, checked             requested_text.py   the text that a result belongs to
    task_manager.py  metrics on existing tasks        requirements.py     scores that each kind of model gives
    empty_ranks.py   ranks without documents          loaded_models.py    what the loaded models can score
    gold_answers.py  what generations should be       generated_answers.py  what they were
    metric_groups.py a metric by groups               extra_scores.py     scores that metrics ask a model for
    command.py       `xent lm-eval`                   groups.py           exact values of groups
    resume.py        its `--resume`                   journal.py          results on disk
    rescore.py       `xent rescore`                   rescored_run.py     a rescored run's files
    model_names.py   the models' names, for lm-eval   loggers.py          pictures and samples in trackers
    python_docs.py   an offline corpus                upstream.py         lm-eval's private names
    models/, engines/   the models
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from xent_metrics.errors import MissingExtraError

if find_spec("lm_eval") is None:
    raise MissingExtraError("xent_metrics.hosts.lm_eval needs lm-eval: pip install 'xent-metrics[lm-eval]'")

from xent_metrics.hosts.lm_eval.model_names import register_models

if TYPE_CHECKING:
    from xent_metrics.hosts.lm_eval.engines.completions import XentCompletions
    from xent_metrics.hosts.lm_eval.engines.sglang import XentSGLang
    from xent_metrics.hosts.lm_eval.engines.vllm import XentVLLM
    from xent_metrics.hosts.lm_eval.models.hf_lm import XentHFLM
    from xent_metrics.hosts.lm_eval.models.torch_lm import TorchLM
    from xent_metrics.hosts.lm_eval.task import XentTask

__all__ = ["TorchLM", "XentCompletions", "XentHFLM", "XentSGLang", "XentTask", "XentVLLM"]

_HOME = {
    "TorchLM": ".models.torch_lm",
    "XentCompletions": ".engines.completions",
    "XentHFLM": ".models.hf_lm",
    "XentSGLang": ".engines.sglang",
    "XentTask": ".task",
    "XentVLLM": ".engines.vllm",
}

register_models()


def __getattr__(name: str) -> Any:
    """Import a class on first use: transformers is slow to import, and a task doesn't need it."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name], __name__), name)
