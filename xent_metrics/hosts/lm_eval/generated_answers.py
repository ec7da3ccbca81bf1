"""Scores of what was generated: `over: generated` in a generative task.

    metric_list:
      - metric: exact_match
      - metric: perplexity
        over: generated
      - metric: expected_calibration_error
        over: generated
        correct: exact_match

A model with token scores scores each generated text after its context (`ScoringLM.generate_until`), as it would a gold answer.
Its result becomes one more result of the document, with the text and, under `log_tokens`, its tokens in the samples.

- A metric of tokens is computed from the text's tokens, of all texts if the task repeats its requests. It is about the text as
  generated, so it appears once, under the filter "none".
- A metric of right answers takes the answer as one row, whose confidence is the geometric mean of its tokens' probabilities. What
  is right differs by filter, so the metric appears under each filter that lm-eval's metric appears under.

Who syncs: nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lm_eval.api.instance import Instance

from xent_metrics.errors import InvalidInputError, MissingScoreError
from xent_metrics.hosts.lm_eval.extra_scores import ask_for, extra_scores_of
from xent_metrics.hosts.lm_eval.gold_answers import NO_FILTER, GoldAnswerTask
from xent_metrics.hosts.lm_eval.metric_entry import GENERATED, GENERATIVE, Entry

__all__ = ["GeneratedAnswerTask", "Results", "is_right"]


class Results(NamedTuple):
    """A document's results under one filter.

    Attributes:
        lm_evals: those for lm-eval's metrics; None if they have none under this filter.
        ours: those for our metrics of requested texts; None likewise.
        generated: those of the generated texts.
    """

    lm_evals: Sequence[Any] | None
    ours: Sequence[Any] | None
    generated: Sequence[Any] = ()


class GeneratedAnswerTask(GoldAnswerTask):
    """A task that may ask for the scores of what is generated."""

    @property
    def scores_generated_text(self) -> bool:
        """True if a metric is computed from the generated text itself."""
        return any(entry.over == GENERATED for entry in self._entries)

    def ask_for_scores_of_generated(self) -> None:
        """Ask, on the requests, for the scores of the texts that will be generated."""
        if self.scores_generated_text:
            wanted = extra_scores_of({entry.name: entry.metric for entry in self._entries if entry.over == GENERATED})
            ask_for((each for each in self.instances if each.request_type == GENERATIVE), wanted)

    def apply_filters(self) -> Any:
        """Apply lm-eval's filters to plain texts, and add the scores of the texts as results of their own."""
        if not self.scores_generated_text:
            return super().apply_filters()
        generations = [each for each in self._instances if each.request_type == GENERATIVE]
        found = [(each, each.resps[: each.repeats]) for each in generations]  # more would be padding for other ranks
        for each in generations:
            each.resps = [str(text) for text in each.resps]
        super().apply_filters()
        for each in generations:
            each.filtered_resps.setdefault(NO_FILTER, each.resps)
        self._instances = [*self._instances, *(self._scored(each, text) for each, texts in found for text in texts)]
        return None

    def _scored(self, generation: Instance, text: Any) -> Instance:
        """A request for the loglikelihood of a generated text, answered."""
        result = getattr(text, "loglikelihood", None)
        if result is None:
            raise MissingScoreError(
                f"task {self.config.task}: the model gave generated texts without token scores, which `over: generated` needs. "
                "Use a model with token scores, such as xent-hf; if it was one, its texts came from the cache of a run without "
                "such metrics: give --use_cache another name"
            )
        metadata = (generation.task_name, generation.doc_id, 1)
        answered = Instance("loglikelihood", generation.doc, (generation.args[0], str(text)), _LAST, metadata=metadata)
        answered.resps = [result]
        answered.filtered_resps = dict.fromkeys(generation.filtered_resps, result)
        return answered

    def split_results(self, results: Sequence[Any]) -> Results:
        """A document's results by what they are for."""
        number = int(self.config.repeats or 1) if self.scores_generated_text else 0
        requested = results[: len(results) - number]
        if not self.scores_gold_answers:
            if not number:
                return Results(requested, requested)
            # The filter "none" may be there for our metrics alone.
            is_lm_evals = results[-1].filter_name in self.filter_names()
            return Results(requested if is_lm_evals else None, None, results[-number:])
        return Results(*self.split_gold_results(requested), results[len(requested) :])

    def shown_here(self, entry: Entry, results: Results) -> bool:
        """True if the metric is shown under the filter of these results."""
        if entry.over != GENERATED:
            return results.ours is not None
        if entry.correct is not None:
            return results.lm_evals is not None
        return bool(results.generated[0].filter_name == NO_FILTER)


#: After all requests of a document.
_LAST = 1 << 30


def is_right(emitted: Mapping[str, Any], name: str, where: str) -> bool:
    """Whether lm-eval's metric calls an answer right.

    Args:
        emitted: what lm-eval emitted for the document, by name.
        name: the metric.
        where: the task and our metric, for error messages.

    >>> is_right({"exact_match": 1.0}, "exact_match", "task a, metric b")
    True

    Raises:
        InvalidInputError: it wasn't emitted, or is neither 0 nor 1.
    """
    value = emitted.get(name)
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise InvalidInputError(
            f"{where}: correct: {name} is to be 1 for a right answer and 0 for a wrong one; got {value!r}"
            + ("" if name in emitted else f". lm-eval computed {', '.join(emitted) or 'nothing'}")
        )
    return bool(value)
