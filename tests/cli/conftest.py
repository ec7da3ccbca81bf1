"""Two small runs of lm-eval for the commands that read them."""

import copy

import pytest
import torch
from support.lm_eval import TABLE, ScoredBigramLM, config, evaluate, saved
from support.logged_runs import write_pair

from xent_metrics import score_tokens
from xent_metrics.hosts.lm_eval import XentTask

TEXTS = [f"document {n}: " + "the quick brown fox " * (n % 5 + 1) for n in range(24)]
METRICS = [
    {"metric": "cross_entropy"},
    {"metric": "calibration_weighted_cross_entropy"},
    {"metric": "expected_calibration_error", "num_bins": 5},
    {"metric": "overconfidence"},
]


class FlatterLM(ScoredBigramLM):
    """The bigram model at a higher temperature."""

    def _scored(self, context, text, kind):
        data = list(b"\n" + context.encode() + text.encode())
        size = len(text.encode())
        before, target = torch.tensor(data[:-1])[-size:], torch.tensor(data)[-size:]
        return kind(score_tokens(TABLE[before] / 2, target, token_bytes=torch.ones(256, dtype=torch.long)))


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """The output folders of a model and of its flatter twin."""
    base = tmp_path_factory.mktemp("runs")
    for name, model in (("a", ScoredBigramLM()), ("b", FlatterLM())):
        task = XentTask(config("loglikelihood_rolling", [{"text": t} for t in TEXTS], copy.deepcopy(METRICS)))
        saved(evaluate(task, model), base / name)
    return base / "a", base / "b"


@pytest.fixture(scope="session")
def valued_runs(tmp_path_factory):
    """A folder with the runs a and b, and the values of each."""
    base = tmp_path_factory.mktemp("valued_runs")
    return base, write_pair(base)
