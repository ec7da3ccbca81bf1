"""Whether the model classes that are loaded can score a task's metrics, asked before the model runs.

lm-eval doesn't tell a task which model it has, but the model is loaded when requests are built. If no loaded class gives token
scores, the model in use doesn't either.

Who syncs: nobody.
"""

from __future__ import annotations

import inspect

from lm_eval.api.model import LM

from xent_metrics.errors import MissingScoreError
from xent_metrics.hosts.lm_eval.metric_entry import GENERATED, Entry
from xent_metrics.hosts.lm_eval.requirements import ANY_MODEL_GIVES, ENGINES_GIVE, can_score, require_scores

__all__ = ["require_of_loaded_models"]


def require_of_loaded_models(entry: Entry, *, where: str, has_choices: bool) -> None:
    """Raise if no model in use can score the metric.

    Args:
        entry: the metric.
        where: the task, for error messages.
        has_choices: whether the task is multiple choice, where metrics over the choices work with any model.

    Raises:
        MissingScoreError: it needs token scores or extra scores that no loaded model gives.
    """
    if not _needs_tokens(entry):
        return
    found = _loaded_models()
    try:
        if not found:
            require_scores(ANY_MODEL_GIVES, entry.metric)
            what = "of generated text" if entry.over == GENERATED else "by group"
            ANY_MODEL_GIVES.require((), row_kinds=frozenset({"token"}), metric=f"{entry.name} {what}")
        elif entry.correct is None and not any(getattr(model, "gives_extra_scores", True) for model in found):
            require_scores(ENGINES_GIVE, entry.metric)
    except MissingScoreError as error:
        hint = ". Over the choices it works with any model: `over: choices`" if has_choices else ""
        if found:
            names = ", ".join(sorted(str(getattr(model, "model_name", model.__name__)) for model in found))
            hint = (
                f". {names} gives each token's log-probability and the largest one; `--model xent-hf` gives more{hint}"
            )
        raise MissingScoreError(f"{where}: {error}{hint}") from error


def _needs_tokens(entry: Entry) -> bool:
    """True if one loglikelihood per request isn't enough."""
    if entry.over in ("choices", GENERATED):
        return entry.over == GENERATED
    by_token = entry.by is not None and entry.by.grouping is not None
    return by_token or not can_score(ANY_MODEL_GIVES, entry.metric)


def _loaded_models() -> list[type[LM]]:
    """The loaded subclasses of lm-eval's LM that give token scores."""
    classes = [LM]
    for found in classes:  # grows while it is walked
        classes += found.__subclasses__()
    return [each for each in classes if getattr(each, "gives_token_scores", False) and not inspect.isabstract(each)]
