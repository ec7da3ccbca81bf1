"""Models and tasks small enough to know every loglikelihood: a bigram model of bytes, as two lm-eval models."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path

import datasets
import numpy as np
import torch
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate as lm_evals_evaluate
from lm_eval.loggers import EvaluationTracker

from xent_metrics import TokenScores, score_tokens
from xent_metrics.hosts.lm_eval.models.results import ScoredLoglikelihood, ScoredRolling

TEXTS = ["héllo wörld, this is one.", "two  words", "\tand  a third text of several words\n", "四 τέσσερα four 🙂"]
TABLE = torch.randn(256, 256, generator=torch.Generator().manual_seed(3))  # logits of a byte, given the byte before


ONE_EACH: dict[str, int] = {}


def bigram_scores(context: str, text: str, *, token_bytes: dict[str, int] | None = ONE_EACH) -> TokenScores:
    """The scores of the text's bytes after the context. `token_bytes` gives letters other lengths than 1; None, no lengths."""
    data = list(b"\n" + context.encode() + text.encode())
    size = len(text.encode())
    before, target = torch.tensor(data[:-1])[-size:], torch.tensor(data)[-size:]
    table = None
    if token_bytes is not None:
        table = torch.ones(256, dtype=torch.long)
        for letter, count in token_bytes.items():
            table[ord(letter)] = count
    return score_tokens(TABLE[before], target, token_bytes=table)


ROLLING = [{"text": text} for text in TEXTS]
PAIRS = [
    {"question": "Why? ", "answer": "because"},
    {"question": "Who:\n", "answer": "nobody knows"},
    {"question": "", "answer": "é"},
]
SPANS = [("Why?", " because"), ("Who:", "\nnobody knows"), ("", "é")]  # the contexts and texts that are scored of PAIRS
CHOICES = [
    {"question": "One", "choices": ["a", "bb", "c c"], "gold": 1},
    {"question": "Two", "choices": ["d", "ee"], "gold": 0},
    {"question": "Three", "choices": ["f", "gé", "h", "i"], "gold": 3},
]
DOCUMENTS = {"loglikelihood": PAIRS, "loglikelihood_rolling": ROLLING, "multiple_choice": CHOICES}


class BigramLM(LM):
    """Gives one loglikelihood per request, as stock models do."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def loglikelihood(self, requests):
        return [self._continuation(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests):
        return [self._rolling(request.args[0]) for request in requests]

    def generate_until(self, requests):
        raise NotImplementedError

    def _continuation(self, context, continuation):
        self.asked.append((context, continuation))
        space = context[len(context.rstrip()) :]  # what lm-eval's TemplateLM does
        return tuple(self._scored(context.rstrip(), space + continuation, ScoredLoglikelihood))

    def _rolling(self, text):
        self.asked.append((text,))
        return float(self._scored("", text, ScoredRolling))

    def _scored(self, context, text, kind):
        return kind(bigram_scores(context, text))


class ScoredBigramLM(BigramLM):
    """Gives the scores of the bytes with each loglikelihood; `options` are those of `bigram_scores`."""

    gives_token_scores = True

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def _continuation(self, context, continuation):
        self.asked.append((context, continuation))
        space = context[len(context.rstrip()) :]
        return self._scored(context.rstrip(), space + continuation, ScoredLoglikelihood)

    def _rolling(self, text):
        self.asked.append((text,))
        return self._scored("", text, ScoredRolling)

    def _scored(self, context, text, kind):
        return kind(bigram_scores(context, text, **self.options))


class UnusedLM(BigramLM):
    """A model that must not run."""

    def loglikelihood(self, requests):
        raise AssertionError("the model ran")

    loglikelihood_rolling = loglikelihood


def entries(*names):
    """Entries of a metric_list without options."""
    return [{"metric": name} for name in names]


def choice_probabilities(document, delimiter=" "):
    """The softmax of the choices' loglikelihoods under the bigram model."""
    nats = [float(bigram_scores(document["question"], delimiter + c).nll.double().sum()) for c in document["choices"]]
    exp = np.exp(min(nats) - np.array(nats))
    return exp / exp.sum()


def config(output_type, documents, metric_list, **more):
    """The configuration of a task over `documents` (dicts), as its YAML would give it."""

    def dataset(**_):
        return {"test": datasets.Dataset.from_list(documents)}

    texts = {"doc_to_text": "{{question}}", "doc_to_target": "{{answer}}"}
    if output_type == "loglikelihood_rolling":
        texts = {"doc_to_text": "", "doc_to_target": "{{text}}"}
    if output_type == "multiple_choice":
        texts = {"doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"}
    return {"task": "t", "custom_dataset": dataset, "test_split": "test", "output_type": output_type,
            "metric_list": metric_list, **texts, **more}  # fmt: skip


def evaluate(task, model):
    """lm-eval's result for one task object. `simple_evaluate` would spend seconds on describing the machine."""
    return lm_evals_evaluate(model, {"tasks": {"t": task}}, bootstrap_iters=0)


def emitted(task, model):
    """`process_results` of every document, as a rank gathers it, by the steps of lm-eval's evaluator."""
    task.set_config("num_fewshot", 0)
    task.build_all_requests()
    for instance in task.instances:
        instance.resps.append(getattr(model, instance.request_type)([instance])[0])
    task.apply_filters()
    documents = list(task.doc_iterator())
    by_document = itertools.groupby(task.instances, key=lambda instance: instance.doc_id)
    return [task.process_results(doc, [i.filtered_resps["none"] for i in group])
            for (_, doc), (_, group) in zip(documents, by_document, strict=True)]  # fmt: skip


def values(results, task="t"):
    """The task's numbers by metric name, standard errors under `<name>_stderr`."""
    found = results["results"][task]
    return {key.removesuffix(",none"): value for key, value in found.items() if key.endswith(",none")}


def write_jsonl(path: Path, documents) -> Path:
    """A data set for `dataset_path: json`."""
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    return path


def saved(results, folder):
    """Write the files of an evaluation as lm-eval's command does; its values."""
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_name = "bigram"
    tracker.general_config_tracker.model_name_sanitized = "bigram"
    samples = results.pop("samples")
    tracker.save_results_aggregated(results, samples)
    tracker.save_results_samples("t", samples["t"])
    return values(results)


def to_caplog(monkeypatch, caplog):
    """Let `caplog` see what lm-eval logs, also where its command has run before, which changes its logger."""
    lm_evals = logging.getLogger("lm_eval")
    monkeypatch.setattr(lm_evals, "handlers", [caplog.handler])
    monkeypatch.setattr(lm_evals, "propagate", False)
    caplog.set_level(logging.INFO, logger="lm_eval")
