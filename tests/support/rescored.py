"""Runs of a model that logs its tokens, as `xent-hf` does, with few metrics and with all that are asked of their logs."""

from __future__ import annotations

import copy

import torch

from support.lm_eval import DOCUMENTS, TABLE, ScoredBigramLM, config, evaluate, saved
from xent_metrics import score_tokens
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval.models.logged_tokens import Results
from xent_metrics.hosts.lm_eval.models.results import ScoredRolling
from xent_metrics.hosts.lm_eval.models.tokenizers import ByteTokenizer

ASKED = [
    {"metric": "cross_entropy", "unit": "bits"},
    {"metric": "perplexity"},
    {"metric": "bits_per_byte"},
    {"metric": "word_perplexity"},
    {"metric": "token_accuracy"},
    {"metric": "expected_calibration_error", "num_bins": 5},
    {"metric": "calibration_weighted_cross_entropy"},
    {"metric": "overconfidence"},
    {"metric": "focal_cross_entropy", "name": "focal"},
]
OVER_CHOICES = [
    {"metric": "brier_score"},
    {"metric": "cross_entropy", "over": "choices", "name": "of_choices"},
    {"metric": "expected_calibration_error", "over": "choices", "name": "ece_of_choices"},
]


class LoggingLM(ScoredBigramLM):
    """The bigram model, whose results list their tokens, in float32 or float64."""

    def __init__(self, dtype=torch.float32, num_bytes=True, in_parquet=False):
        super().__init__()
        self.dtype, self.num_bytes = dtype, num_bytes
        self.results = Results(ByteTokenizer(), in_parquet=in_parquet)

    def _scored(self, context, text, kind):
        data = list(b"\n" + context.encode() + text.encode())
        size = len(text.encode())
        before, target = torch.tensor(data[:-1])[-size:], torch.tensor(data)[-size:]
        lengths = torch.ones(256, dtype=torch.long) if self.num_bytes else None
        scores = score_tokens(TABLE[before].to(self.dtype), target, token_bytes=lengths)
        return self.results.rolling(scores) if kind is ScoredRolling else self.results.loglikelihood(scores)


def write_run(folder, output_type, metric_list, model=None, **more):
    """Evaluate the documents of an output type, write lm-eval's files, and return the folder."""
    task = XentTask(config(output_type, DOCUMENTS[output_type], copy.deepcopy(metric_list), **more))
    saved(evaluate(task, model or LoggingLM()), folder)
    return folder
