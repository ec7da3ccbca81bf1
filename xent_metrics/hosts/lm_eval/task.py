"""XentTask: any registered metric in an lm-eval task's YAML, under the stock `lm_eval` command and with any model.

    class: !function xent_metrics.hosts.lm_eval.XentTask
    output_type: loglikelihood_rolling
    metric_list:
      - metric: bits_per_byte
      - metric: cross_entropy
        unit: bits

Who syncs: nobody here. Each document's value carries its exact sums, lm-eval gathers the values to rank 0, and the
aggregations add them up there. All documents emit the same keys, `<name>` and after it `<name>_stderr`: lm-eval
computes no standard error for a metric that it doesn't know, and a later key of that name takes the place of its N/A.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lm_eval.api.model import LM

from xent_metrics.errors import InvalidInputError, InvalidTargetError, MissingScoreError, XentMetricsError
from xent_metrics.hosts.lm_eval.documents import (  # fmt: skip
    DOCUMENT,
    DocumentScores,
    DocumentSums,
    DocumentValue,
    attach_text,
    choice_scores,
    requested_text,
    require_scores,
    total_standard_error,
    total_value,
)
from xent_metrics.hosts.lm_eval.empty_ranks import EmptyRankTask, NoValue, PlaceholderDoc
from xent_metrics.hosts.lm_eval.extra_scores import ask_for
from xent_metrics.hosts.lm_eval.metric_list import ADDED, Entry, read_metric_list
from xent_metrics.scoring.scores import TokenScores

__all__ = ["XentTask"]


class XentTask(EmptyRankTask):
    """A YAML task whose `metric_list` may name our metrics (metric_list.py) among lm-eval's own.

    What is checked, and when:
        when the task is made, before its data are loaded: names, options, `over`, the output type, and whether lm-eval
            can give what a metric needs at all;
        when requests are built, before the model runs: gold answers, the number of choices, and whether any model class
            that is loaded gives token scores, where a metric needs them. lm-eval doesn't tell a task which model it has,
            but the model is there by then: under the stock command with `--model hf` an error before the first forward;
        when results come: the same once more, which matters only in a process that has both kinds of model loaded.

    A model class that gives scores (results.py) says so: ``gives_token_scores = True``. What metrics need of each token
    beyond its loss stands on the requests (extra_scores.py).
    """

    def __init__(self, config: Mapping[str, Any], **kwargs: Any) -> None:
        self._entries, theirs, shown = read_metric_list(config)
        self._tried: set[int] = set()
        own = {key: value for key, value in config.items() if key not in ("class", ADDED)}
        super().__init__(config=own | {"metric_list": theirs}, **kwargs)
        self._config.metric_list = shown  # as it was written: what results.json shows
        self._check_golds()
        for entry in self._entries:
            self._aggregation_list[entry.name] = partial(total_value, entry.metric)
            self._aggregation_list[f"{entry.name}_stderr"] = partial(total_standard_error, entry.metric)
            self._higher_is_better[entry.name] = entry.metric.higher_is_better

    def override_metric(self, metric_name: str) -> None:
        """lm-eval's `--predict_only`: no metric is computed, ours neither."""
        self._entries = []
        super().override_metric(metric_name)

    # Before the model runs.

    def build_all_requests(self, **options: Any) -> None:
        """lm-eval's own, once it is clear that the model gives what the metrics need; they ask for it with the requests."""
        if not _a_loaded_model_gives_token_scores():
            for entry in self._entries:
                self._require_of_a_stock_model(entry)
        super().build_all_requests(**options)
        of_tokens = [entry.metric.extra_scores() for entry in self._entries if entry.over != "choices"]
        ask_for(self.instances, {name: score for scores in of_tokens for name, score in scores.items()})

    def _require_of_a_stock_model(self, entry: Entry) -> None:
        if entry.over == "choices":
            return
        try:
            require_scores(DOCUMENT, entry.metric)
        except MissingScoreError as error:
            hint = ". Over the choices it works with any model: `over: choices`" if entry.over else ""
            raise MissingScoreError(f"task {self.config.task}: {error}{hint}") from error

    def construct_requests(self, doc: Any, ctx: Any, **kwargs: Any) -> Any:
        """lm-eval's own; a gold answer that isn't among the choices is found here, and choices that a metric can't take."""
        if self._entries and self.OUTPUT_TYPE == "multiple_choice":
            _, choices = self._gold(doc)
            self._try_choices(choices)
        return super().construct_requests(doc, ctx, **kwargs)

    def _try_choices(self, number: int) -> None:
        """Each metric over the choices, once for every number of them."""
        if number in self._tried:
            return
        self._tried.add(number)
        for entry in self._entries:
            try:
                if entry.over == "choices":
                    entry.metric.exact_sums(choice_scores(entry.metric, [0.0] * number, 0))
            except XentMetricsError as error:
                where = f"task {self.config.task}, metric {entry.name} over {number} choices"
                raise type(error)(f"{where}: {error}") from error

    def _check_golds(self) -> None:
        if self._entries and self.OUTPUT_TYPE == "multiple_choice" and self.multiple_target:
            raise InvalidInputError(
                f"task {self.config.task}: doc_to_target gives a list of gold answers; {self._entries[0].name} needs one. "
                "Leave it out of metric_list, or let doc_to_target choose"
            )

    def _gold(self, doc: Any) -> tuple[int, int]:
        """The index of the gold choice, and of how many.

        Where the choices stand in the contexts, doc_to_text is that index, as lm-eval has it.
        """
        choices = self.doc_to_choice(doc)
        target = self.doc_to_text(doc) if self.multiple_input else self.doc_to_target(doc)
        try:
            gold = choices.index(target) if isinstance(target, str) else operator.index(target)
        except (TypeError, ValueError):
            gold = -1
        if not 0 <= gold < len(choices):
            raise InvalidTargetError(
                f"task {self.config.task}: expected the gold answer as one of the choices {choices!r} "
                f"or an index of them; got {target!r} in {doc!r}. Leave such documents out with process_docs"
            )
        return gold, len(choices)

    # After the model ran.

    def apply_filters(self) -> Any:
        """lm-eval's own, and then the text that was asked for beside each result: `process_results` gets results alone."""
        done = super().apply_filters()
        for instance in self.instances if self._entries else ():
            text = requested_text(instance.request_type, instance.args)
            for name, result in instance.filtered_resps.items():
                instance.filtered_resps[name] = attach_text(result, text)
        return done

    def process_results(self, doc: Any, results: Sequence[Any]) -> dict[str, Any]:
        """lm-eval's metrics of a document, then ours: ``<name>`` and ``<name>_stderr``, each with the exact sums."""
        theirs = self._metric_fn_list or callable(self.config.process_results)
        emitted = dict(super().process_results(doc, results)) if theirs else {}
        if isinstance(doc, PlaceholderDoc):
            ours = {name: value for entry in self._entries for name, value in _nothing(entry).items()}
            return {name: NoValue() for name in emitted} | ours
        if self._entries:
            document = self._document(doc, results)
            for entry in self._entries:
                try:
                    scores = document.scores_for(entry.metric, entry.over)
                    self._require_extra_scores(entry, scores)
                    value = DocumentValue.of(entry.metric, scores)
                except XentMetricsError as error:
                    raise type(error)(
                        f"task {self.config.task}, metric {entry.name}: {error}{_of_a_cache(error, results)}"
                    ) from error
                emitted |= {entry.name: value, f"{entry.name}_stderr": DocumentSums.of(entry.metric, value.sums)}
        return emitted

    def _require_extra_scores(self, entry: Entry, scores: TokenScores) -> None:
        """A model that was asked for extra scores gives them; the results in lm-eval's cache may be older."""
        missing = sorted(entry.metric.extra_scores().keys() - scores.extra_scores.keys())
        if missing and scores.row_kind == "token":
            raise MissingScoreError(
                f"the metric asked for `{missing[0]}` of each token, and the results don't have "
                "it. If --use_cache is set, they were kept by a run without this metric: name another file, or delete this "
                "one. If the model is your own, pass extra_scores=asked_for(requests) to score_tokens, as `xent-torch` does"
            )

    def _document(self, doc: Any, results: Sequence[Any]) -> DocumentScores:
        if not all(hasattr(result, "text") for result in results):
            raise InvalidInputError(
                f"task {self.config.task}: results without their requests; call task.apply_filters() first, and pass "
                "the instances' filtered_resps"
            )
        count = self.count_bytes, self.count_words
        if self.OUTPUT_TYPE != "multiple_choice":
            return DocumentScores(results[0], *count)
        gold, choices = self._gold(doc)
        loglikelihoods = [float(result[0]) for result in results[:choices]]  # behind them acc_mutual_info's
        return DocumentScores(results[gold], *count, loglikelihoods, gold)


def _of_a_cache(error: XentMetricsError, results: Sequence[Any]) -> str:
    """What may be behind a model's missing token scores, though some loaded model gives them."""
    if not isinstance(error, MissingScoreError) or not all(result.scores is None for result in results):
        return ""
    return (
        ". If it was one of these, its results came from a cache that another one wrote: give --use_cache another name"
    )


def _nothing(entry: Entry) -> dict[str, Any]:
    """The values of no document."""
    sums = torch.zeros_like(entry.metric.state)
    return {entry.name: DocumentValue(math.nan, sums), f"{entry.name}_stderr": DocumentSums.of(entry.metric, sums)}


def _a_loaded_model_gives_token_scores() -> bool:
    """Whether any loaded subclass of lm-eval's LM says so; where none does, the model in use doesn't either."""
    classes = [LM]
    for found in classes:  # grows while it is walked
        classes += found.__subclasses__()
    return any(getattr(found, "gives_token_scores", False) for found in classes)
