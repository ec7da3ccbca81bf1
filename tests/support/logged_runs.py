"""Small runs of lm-eval written to folders, as its command writes them: plain ones, and ones that log tokens."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from support.lm_eval import TABLE, ScoredBigramLM, config, evaluate, saved
from xent_metrics import score_tokens
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval.models.logged_tokens import LoggedRolling

TEXTS = [f"document {n}: " + "the quick brown fox " * (n % 5 + 1) + chr(97 + n % 26) * n for n in range(24)]
METRICS = [
    {"metric": "bits_per_byte"},
    {"metric": "cross_entropy", "unit": "bits", "name": "bits_per_token"},
    {"metric": "expected_calibration_error", "num_bins": 5},
]
HOSTILE = [
    "</script><script>document.title='broken'</script>",
    "<img src=x onerror=\"document.title='broken'\">",
    "\"><svg onload=document.title='broken'> &lt;b&gt; {{ 7 * 7 }} ${document.title='broken'}",
    "<!--<script> ]]> \u2028 \u202e 🙂 é",
]
TOKEN_TEXTS = HOSTILE + [f"text {n} of many words " * (n + 1) for n in range(6)]
TOKEN_METRICS = [{"metric": "cross_entropy"}, {"metric": "bits_per_byte"}, {"metric": "expected_calibration_error"}]


class WarmerLM(ScoredBigramLM):
    """The bigram model at another temperature."""

    def __init__(self, temperature):
        super().__init__()
        self.temperature = temperature

    def _scored(self, context, text, kind):
        data = list(b"\n" + context.encode() + text.encode())
        size = len(text.encode())
        before, target = torch.tensor(data[:-1])[-size:], torch.tensor(data)[-size:]
        bytes_ = torch.ones(256, dtype=torch.long)
        return kind(score_tokens(TABLE[before] / self.temperature, target, token_bytes=bytes_))


def write_run(folder, temperature=1.0, texts=TEXTS, metric_list=METRICS):
    """Evaluate texts and write lm-eval's files; returns the values."""
    task = XentTask(config("loglikelihood_rolling", [{"text": t} for t in texts], copy.deepcopy(metric_list)))
    return saved(evaluate(task, WarmerLM(temperature)), folder)


def write_pair(base):
    """Runs a and b under `base`, which differ in temperature; returns the values of each."""
    return {name: write_run(base / name, temperature) for name, temperature in (("a", 1.0), ("b", 2.0))}


def listed(scores, texts):
    """Tokens as models log them."""
    columns = zip(texts, scores.target.tolist(), scores.nll.tolist(), strict=True)
    return [
        {"text": text, "id": i, "nll": nll, "alternatives": [["e", 0.5], ["</script>", 0.25]]}
        for text, i, nll in columns
    ]


class LoggingLM(ScoredBigramLM):
    """A bigram model at another temperature that also logs a token for each character."""

    def __init__(self, temperature=1.0):
        super().__init__()
        self.temperature = temperature

    def _scored(self, context, text, kind):
        data = list(b"\n" + context.encode() + text.encode())
        size = len(text.encode())
        before, target = torch.tensor(data[:-1])[-size:], torch.tensor(data)[-size:]
        scores = score_tokens(TABLE[before] / self.temperature, target, token_bytes=torch.ones(256, dtype=torch.long))
        texts = [c if i == len(c.encode()) - 1 else "" for c in text for i in range(len(c.encode()))]
        return LoggedRolling(scores, listed(scores, texts))


def write_token_run(folder: Path, temperature: float = 1.0) -> Path:
    """Evaluate texts, hostile ones among them, with tokens logged; returns the folder."""
    documents = [{"text": text, "kind": "hostile" if text in HOSTILE else "plain"} for text in TOKEN_TEXTS]
    task = XentTask(config("loglikelihood_rolling", documents, [dict(entry) for entry in TOKEN_METRICS]))
    saved(evaluate(task, LoggingLM(temperature)), folder)
    return folder
