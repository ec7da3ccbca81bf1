"""The gold answers of a generative task, each asked for as a loglikelihood beside the generation, or without it.

A gold answer is scored where the few-shot examples have theirs: after the context and the task's `target_delimiter`. Without
examples, a delimiter is left out that would only double white space. After a chat template there is none. A `gen_prefix` is
followed by one space if it needs one, as in the examples. What ends a generation (`until`) is no part of the answer.

Filters are for generated text. Our metrics appear once, under the filter "none", whatever filters the task has.

Who syncs: nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from xent_metrics.errors import InvalidTargetError
from xent_metrics.hosts.lm_eval.empty_ranks import EmptyRankTask
from xent_metrics.hosts.lm_eval.metric_entry import GENERATIVE, Entry
from xent_metrics.hosts.lm_eval.upstream import filter_names, requires_delimiter

__all__ = ["NO_FILTER", "GoldAnswerTask"]

#: The filter under which metrics appear that don't depend on one.
NO_FILTER = "none"


class GoldAnswerTask(EmptyRankTask):
    """A task that may ask for the loglikelihoods of its gold answers, if its output is generated.

    A subclass sets `_entries`, the metrics that are computed from them, and `_needs_text`: whether any other metric needs
    the generated text.
    """

    _entries: list[Entry]
    _instances: list[Instance]
    _needs_text = True

    @property
    def scores_gold_answers(self) -> bool:
        """True if gold answers are asked for beside a generation, or instead of it."""
        return self.OUTPUT_TYPE == GENERATIVE and any(entry.over == "gold" for entry in self._entries)

    # Which answers.

    def gold_answers(self, doc: Any, entry: Entry) -> list[str]:
        """The texts of the gold answers that the metric is computed from: the first, or all to choose from.

        Raises:
            InvalidTargetError: the document has none.
        """
        target = self._target(doc, entry)
        found = target if isinstance(target, list) else [target]
        texts = [str(answer) for answer in found if isinstance(answer, str | int | float)]
        answers = list(dict.fromkeys(text for text in texts if text.strip()))
        if not answers or len(texts) < len(found):
            raise InvalidTargetError(
                f"task {self.config.task}, metric {entry.name}: expected a gold answer, a text or a list of texts; got "
                f"{target!r} in {doc!r}. Remove such documents with process_docs, or name the field or the template of the "
                "answer: `doc_to_gold: …`"
            )
        return answers[:1] if entry.gold == "first" else answers

    def _target(self, doc: Any, entry: Entry) -> Any:
        """The gold answers as lm-eval reads them: a list is several only if the first document has several, too."""
        if entry.doc_to_gold is not None:
            return self.doc_to_target(doc, entry.doc_to_gold)
        target = self.doc_to_target(doc)
        if self.config.doc_to_choice is not None and isinstance(target, int):
            return self.doc_to_choice(doc)[target]
        return str(target) if isinstance(target, list) and not self.multiple_target else target

    def answers_by_entry(self, doc: Any) -> dict[str, list[str]]:
        """The texts of the gold answers by the metric's name."""
        return {entry.name: self.gold_answers(doc, entry) for entry in self._entries if entry.over == "gold"}

    # Requests.

    def build_all_requests(self, *, cache_requests: bool = False, **options: Any) -> None:
        """Build the requests. lm-eval's cache of them has no gold answers, and a run without them must not find any."""
        super().build_all_requests(cache_requests=cache_requests and not self.scores_gold_answers, **options)

    def construct_requests(self, doc: Any, ctx: Any, **kwargs: Any) -> Any:
        """Construct a request per gold answer, once each, and the generation if a metric needs its text."""
        generation = super().construct_requests(doc, ctx, **kwargs)
        if not self.scores_gold_answers:
            return generation
        in_chat = bool(kwargs.get("apply_chat_template"))
        texts = _distinct(self.answers_by_entry(doc))
        name, doc_id, _ = kwargs["metadata"]
        golds = [
            Instance(
                "loglikelihood",
                doc,
                (ctx, self._delimiter(doc, ctx, text, in_chat=in_chat) + text, *generation.arguments[2:]),
                idx,
                metadata=(name, doc_id, 1),  # `repeats` is for generations
            )
            for idx, text in enumerate(texts, 1)
        ]
        return (
            [*golds, generation] if self._needs_text else golds
        )  # a model that can't score says so before it generates

    def _delimiter(self, doc: Any, context: str, answer: str, *, in_chat: bool) -> str:
        if prefix := self.doc_to_prefix(doc):
            return " " if requires_delimiter(prefix, answer) else ""
        if in_chat:
            return ""
        delimiter = str(self.config.target_delimiter)
        doubled = not delimiter.strip() and not requires_delimiter(context, answer)
        return "" if doubled and not self.config.num_fewshot else delimiter

    # Results.

    def apply_filters(self) -> Any:
        """Apply lm-eval's filters to generated texts alone; gold answers have their results under "none"."""
        if not self.scores_gold_answers:
            return super().apply_filters()
        every = self._instances
        generated = [instance for instance in every if instance.request_type == GENERATIVE]
        if generated:
            self._instances = generated
            super().apply_filters()
            self._instances = every
        for instance in generated:
            instance.filtered_resps.setdefault(NO_FILTER, instance.resps)
        others = dict.fromkeys(generated[0].filtered_resps if generated else ())
        for instance in every:
            if instance.request_type != GENERATIVE:
                instance.filtered_resps = others | {NO_FILTER: instance.resps[0]}
        return None

    def split_gold_results(self, results: Sequence[Any]) -> tuple[Sequence[Any] | None, Sequence[Any] | None]:
        """The results for lm-eval's metrics, and those of gold answers; None where there are none under this filter."""
        generated, golds = (results[:1], results[1:]) if self._needs_text else (None, results)
        if golds[0] is None:
            return generated, None
        return generated if NO_FILTER in self.filter_names() else None, golds

    def filter_names(self) -> list[str]:
        """The names of lm-eval's filters of the task."""
        return filter_names(self)

    def results_by_answer(self, answers: Mapping[str, Sequence[str]], golds: Sequence[Any]) -> dict[str, Any]:
        """The result of each gold answer by its text."""
        return dict(zip(_distinct(answers), golds, strict=True))


def _distinct(answers: Mapping[str, Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(text for texts in answers.values() for text in texts))
