"""XentTask: an lm-eval task whose YAML may list any registered metric, with any model and under the stock `lm_eval`.

    class: !function xent_metrics.hosts.lm_eval.XentTask
    output_type: loglikelihood_rolling
    metric_list:
      - metric: bits_per_byte
      - metric: cross_entropy
        unit: bits

Who syncs: nobody here. Each document's value carries its exact sums, lm-eval gathers the values to rank 0, and the
aggregations add the sums there. Every document emits the same keys, ``<name>`` and then ``<name>_stderr``. lm-eval writes
"N/A" as the standard error of a metric that it doesn't know, and our later key replaces that.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from xent_metrics.errors import InvalidInputError, InvalidTargetError, MissingScoreError, XentMetricsError
from xent_metrics.hosts.lm_eval.document_scores import DocumentScores, answer_scores, choice_scores
from xent_metrics.hosts.lm_eval.documents import DocumentSums, DocumentValue, total_standard_error, total_value
from xent_metrics.hosts.lm_eval.extra_scores import ask_for, extra_scores_of
from xent_metrics.hosts.lm_eval.generated_answers import GeneratedAnswerTask, Results, is_right
from xent_metrics.hosts.lm_eval.groups import with_exact_values
from xent_metrics.hosts.lm_eval.loaded_models import require_of_loaded_models
from xent_metrics.hosts.lm_eval.metric_entry import GENERATED, GENERATIVE, Entry
from xent_metrics.hosts.lm_eval.metric_groups import By, DocumentGroups, MetricGroups
from xent_metrics.hosts.lm_eval.metric_list import ADDED, ONLY, read_metric_list
from xent_metrics.hosts.lm_eval.names_in_results import tidy_names
from xent_metrics.hosts.lm_eval.requested_text import attach_text, requested_text
from xent_metrics.hosts.lm_eval.sample_files import save_samples
from xent_metrics.hosts.lm_eval.upstream import aggregate_groups, around_saving_samples, record_provenance
from xent_metrics.plugins import provenance
from xent_metrics.scoring.scores import TokenScores

__all__ = ["XentTask"]

_MOST_GROUPS = 256

record_provenance("xent_metrics", provenance, tidy_names)
around_saving_samples(save_samples)
aggregate_groups(with_exact_values)  # a group has no class of ours: whichever command builds it, it holds tasks of ours


class XentTask(GeneratedAnswerTask):
    """A YAML task whose `metric_list` may name our metrics (see metric_list.py) among lm-eval's own.

    Mistakes are found as early as they can be:

    - When the task is made, before its data load: names, options, `over`, the output type, and scores that no lm-eval
      model can give.
    - When requests are built, before the model runs: gold answers, the number of choices, and metrics of tokens if no
      loaded model class gives token scores. lm-eval doesn't tell a task which model it has, but the model is loaded by
      then, so under the stock command with `--model hf` the error comes before the first forward pass.
    - When results come: token scores again, for a process in which another model than the one in use gives them.

    A model class that gives token scores (see models/results.py) sets ``gives_token_scores = True``, and
    ``gives_extra_scores = False`` if it has no distribution for others than those. What metrics need of each token beyond
    its loss is written on the requests (see extra_scores.py).
    """

    def __init__(self, config: Mapping[str, Any], **kwargs: Any) -> None:
        metrics = read_metric_list(config)
        self._entries = metrics.ours
        self._tried_choices: set[int] = set()
        own = {key: value for key, value in config.items() if key not in ("class", ADDED, ONLY)}
        if config.get(ONLY):
            own["process_results"] = None
        others_need_text = metrics.lm_evals is None or bool(metrics.lm_evals) or callable(own.get("process_results"))
        self._needs_text = others_need_text or self.scores_generated_text
        super().__init__(config=own | {"metric_list": metrics.lm_evals}, **kwargs)
        self.set_config("metric_list", metrics.shown)
        self._check_one_gold_answer()
        self._groups = {
            entry.name: MetricGroups(entry.name, entry.metric, entry.by, self._labels(entry.by))
            for entry in self._entries
            if entry.by is not None
        }

    def override_metric(self, metric_name: str) -> None:
        """Replace all metrics, ours too, as lm-eval's `--predict_only` asks."""
        self._entries, self._groups = [], {}
        self._needs_text = True
        super().override_metric(metric_name)

    def aggregation_by_name(self) -> dict[str, Any]:
        """Return lm-eval's aggregations and ours."""
        values = {entry.name: partial(total_value, entry.metric, meaning=entry.meaning) for entry in self._entries}
        errors = {f"{entry.name}_stderr": partial(total_standard_error, entry.metric) for entry in self._entries}
        found = {**super().aggregation_by_name(), **values, **errors}
        for entry in self._entries:
            if entry.name in self._groups:
                found |= self._groups[entry.name].aggregations(entry.meaning)
        return found

    def higher_is_better(self) -> dict[str, Any]:
        """Return the direction of each metric, for the arrow in lm-eval's table."""
        found = {**super().higher_is_better(), **{entry.name: entry.metric.higher_is_better for entry in self._entries}}
        for groups in self._groups.values():
            found |= dict.fromkeys([*groups.names, groups.macro], groups.metric.higher_is_better)
        return found

    def _labels(self, by: By) -> list[str]:
        """The labels of all documents of the task, which don't depend on this process's share or on `--limit`."""
        labels = sorted({self._label(doc, by) for doc in self.task_docs}) if by.field is not None else []
        if len(labels) > _MOST_GROUPS:
            raise InvalidInputError(
                f"task {self.config.task}: by field {by.field!r} has {len(labels)} values; expected at most {_MOST_GROUPS}, "
                "since each is a name in the results. Take a template that puts several together"
            )
        return labels

    def _label(self, doc: Any, by: By) -> str:
        """The document's label; lm-eval would take a field that isn't there for a template."""
        if by.field is None:
            return ""
        if "{" not in by.field and by.field not in doc:
            raise InvalidInputError(f"task {self.config.task}: by field: no field {by.field!r} in {doc!r}")
        return str(self.resolve_field(doc, by.field))

    # Before the model runs.

    def build_all_requests(self, **options: Any) -> None:
        """Build the requests, once it is clear that the model can score the metrics, and ask for extra scores on them."""
        for entry in self._entries:
            has_choices = self.OUTPUT_TYPE == "multiple_choice"
            require_of_loaded_models(entry, where=f"task {self.config.task}", has_choices=has_choices)
        super().build_all_requests(**options)
        of_tokens = {e.name: e.metric for e in self._entries if e.over not in ("choices", GENERATED)}
        ask_for((each for each in self.instances if each.request_type != GENERATIVE), extra_scores_of(of_tokens))
        self.ask_for_scores_of_generated()

    def construct_requests(self, doc: Any, ctx: Any, **kwargs: Any) -> Any:
        """Construct lm-eval's requests; raise if the gold answer is no choice, or if a metric can't take the choices."""
        if self._entries and self.OUTPUT_TYPE == "multiple_choice":
            _, choices = self._gold(doc)
            self._try_choices(choices)
        return super().construct_requests(doc, ctx, **kwargs)

    def _try_choices(self, number: int) -> None:
        """Try each metric over so many choices, once for each number."""
        if number in self._tried_choices:
            return
        self._tried_choices.add(number)
        for entry in self._entries:
            try:
                if entry.over == "choices":
                    entry.metric.exact_sums(choice_scores(entry.metric, [0.0] * number, 0))
            except XentMetricsError as error:
                where = f"task {self.config.task}, metric {entry.name} over {number} choices"
                raise type(error)(f"{where}: {error}") from error

    def _check_one_gold_answer(self) -> None:
        if self._entries and self.OUTPUT_TYPE == "multiple_choice" and self.multiple_target:
            raise InvalidInputError(
                f"task {self.config.task}: doc_to_target gives a list of gold answers; {self._entries[0].name} needs one. "
                "Remove it from metric_list, or let doc_to_target choose one answer"
            )

    def _gold(self, doc: Any) -> tuple[int, int]:
        """The index of the gold choice, and the number of choices.

        If the choices are contexts (`multiple_input`), lm-eval takes the index from doc_to_text.
        """
        choices = self.doc_to_choice(doc)
        target = self.doc_to_text(doc) if self.multiple_input else self.doc_to_target(doc)
        try:
            gold = choices.index(target) if isinstance(target, str) else operator.index(target)
        except (TypeError, ValueError):
            gold = -1
        if not 0 <= gold < len(choices):
            raise InvalidTargetError(
                f"task {self.config.task}: expected the gold answer to be one of the choices {choices!r} or the index of "
                f"one; got {target!r} in {doc!r}. Remove such documents with process_docs"
            )
        return gold, len(choices)

    # After the model ran.

    def apply_filters(self) -> Any:
        """Apply lm-eval's filters, then attach the text to each result, since `process_results` gets bare results."""
        done = super().apply_filters()
        for instance in self.instances if self._entries else ():
            if instance.request_type == GENERATIVE:
                continue
            text = requested_text(instance.request_type, instance.args)
            for name, result in instance.filtered_resps.items():
                instance.filtered_resps[name] = result if result is None else attach_text(result, text, name)
        return done

    def process_results(self, doc: Any, results: Sequence[Any]) -> dict[str, Any]:
        """Compute lm-eval's metrics of a document, then ours: ``<name>`` and ``<name>_stderr`` with the exact sums."""
        emitted: dict[str, Any] = {}
        found = self.split_results(results)
        if found.lm_evals is not None and self._needs_text:
            emitted |= super().process_results(doc, found.lm_evals)
        if self.on_empty_rank:
            emitted = dict.fromkeys(emitted, DocumentValue.placeholder())
        entries = [entry for entry in self._entries if self.shown_here(entry, found)]
        for entry, value in zip(entries, self._values(entries, doc, found, dict(emitted)), strict=True):
            emitted |= {entry.name: value, f"{entry.name}_stderr": DocumentSums.of(entry.metric, value.sums)}
            if isinstance(value, DocumentGroups):
                emitted |= self._groups[entry.name].emitted(value)
        return emitted

    def _placeholder(self, entry: Entry) -> DocumentValue:
        groups = self._groups.get(entry.name)
        return DocumentValue.placeholder(entry.metric) if groups is None else groups.placeholder()

    def _values(
        self, entries: Sequence[Entry], doc: Any, results: Results, emitted: Mapping[str, Any]
    ) -> list[DocumentValue]:
        """The values of the metrics; `emitted` is what lm-eval's own gave."""
        if self.on_empty_rank or not entries:
            return [self._placeholder(entry) for entry in entries]
        requested = [*(results.ours or ()), *results.generated]
        self._check_texts(requested)
        texts = self._texts(doc, results)
        return [self._value(entry, texts(entry), doc, requested, emitted) for entry in entries]

    def _texts(self, doc: Any, results: Results) -> Callable[[Entry], Sequence[DocumentScores]]:
        """Finds the scores of the texts that a metric is computed from."""
        generated = [DocumentScores(result, self.count_bytes, self.count_words) for result in results.generated]
        if self.scores_gold_answers and results.ours is not None:
            golds = self._scores_of_gold_answers(doc, results.ours)
        elif self.OUTPUT_TYPE != GENERATIVE and results.ours is not None:
            document = self._document(doc, results.ours)
            golds = {entry.name: [document] for entry in self._entries}
        else:
            golds = {}
        return lambda entry: generated if entry.over == GENERATED else golds[entry.name]

    def _scores_of_gold_answers(self, doc: Any, results: Sequence[Any]) -> dict[str, list[DocumentScores]]:
        """The scores of the gold answers that each metric is computed from, by its name."""
        answers = self.answers_by_entry(doc)
        found = self.results_by_answer(answers, results)
        scores = {text: DocumentScores(result, self.count_bytes, self.count_words) for text, result in found.items()}
        chosen: dict[str, list[DocumentScores]] = {}
        for entry in self._entries:
            if entry.name in answers:
                texts = [scores[text] for text in answers[entry.name]]
                chosen[entry.name] = [max(texts, key=lambda t: t.loglikelihood)] if entry.gold == "best" else texts
        return chosen

    def _value(
        self,
        entry: Entry,
        texts: Sequence[DocumentScores],
        doc: Any,
        results: Sequence[Any],
        emitted: Mapping[str, Any],
    ) -> DocumentValue:
        """The metric of a document from its text's scores, or from those of several texts together."""
        try:
            if entry.correct is not None:
                correct = is_right(emitted, entry.correct, f"task {self.config.task}, metric {entry.name}")
                scores = [answer_scores(text.scores_of_tokens(entry.metric), correct=correct) for text in texts]
            else:
                scores = [text.scores_for(entry.metric, entry.over) for text in texts]
            for each in scores:
                _require_extra_scores(entry, each)
            value = DocumentValue.of(entry.metric, *scores)
            return self._in_groups(entry, value, texts, doc)
        except XentMetricsError as error:
            text = f"task {self.config.task}, metric {entry.name}: {error}{_cache_hint(error, results)}"
            raise type(error)(text) from error

    def _in_groups(
        self, entry: Entry, value: DocumentValue, texts: Sequence[DocumentScores], doc: Any
    ) -> DocumentValue:
        if entry.by is None:
            return value
        scores = [text.scores_of_tokens(entry.metric) for text in texts] if entry.by.grouping is not None else []
        return self._groups[entry.name].of(value, scores, self._label(doc, entry.by))

    def _check_texts(self, results: Sequence[Any]) -> None:
        if not all(hasattr(result, "text") for result in results):
            raise InvalidInputError(
                f"task {self.config.task}: expected results with their texts; got plain ones. Call task.apply_filters() "
                "first, and pass the instances' filtered_resps"
            )

    def _document(self, doc: Any, results: Sequence[Any]) -> DocumentScores:
        lengths = self.count_bytes, self.count_words
        if self.OUTPUT_TYPE != "multiple_choice":
            return DocumentScores(results[0], *lengths)
        gold, choices = self._gold(doc)
        loglikelihoods = [
            float(result[0]) for result in results[:choices]
        ]  # acc_mutual_info's requests come after them
        return DocumentScores(results[gold], *lengths, loglikelihoods, gold)


def _require_extra_scores(entry: Entry, scores: TokenScores) -> None:
    """Raise if the token scores lack an extra score: a model gives what it is asked for, but a cache may be older."""
    missing = sorted(entry.metric.extra_scores().keys() - scores.extra_scores.keys())
    if missing and scores.row_kind == "token":
        raise MissingScoreError(
            f"the metric asked for `{missing[0]}` of each token, which the results don't have. With --use_cache, they may "
            "come from a run without this metric: name another cache, or delete this one. If the model is your own, pass "
            "extra_scores=asked_for(requests) to score_tokens, as `xent-torch` does"
        )


def _cache_hint(error: XentMetricsError, results: Sequence[Any]) -> str:
    """Why results may lack token scores although a loaded model gives them."""
    if not isinstance(error, MissingScoreError) or any(result.scores is not None for result in results):
        return ""
    return ". If the model was one of these, its results came from the cache of another model: give --use_cache another name"
