"""TrainerMetrics in the real Hugging Face Trainer: shifted, and exact over batches and processes."""

import os

import numpy as np
import pytest
import torch
from support import trainer_jobs as jobs
from support.distributed import run
from support.lightning import V, table
from torch.nn import functional as F

from xent_metrics import TokenMetricCollection, get_metric, score_tokens
from xent_metrics.analysis import StandardError
from xent_metrics.errors import InvalidInputError, InvalidTargetError, UnknownMetricError
from xent_metrics.hosts.transformers import TrainerMetrics

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def expected(logits, labels):
    """The values over all sequences at once; the labels are already shifted."""
    metrics = {
        "cross_entropy": {},
        "perplexity": {},
        "token_accuracy": {},
        "expected_calibration_error": {"num_bins": 5},
    }
    collection = TokenMetricCollection({name: get_metric(name, **options) for name, options in metrics.items()})
    scores = score_tokens(logits, labels)
    collection.update(scores)
    values = {f"eval_{name}": value.item() for name, value in collection.compute().items()}
    for name, metric in collection.members().items():
        error = StandardError(metric)
        error.update(scores)
        values[f"eval_{name}_stderr"] = pytest.approx(error.compute().item(), rel=1e-9)
    return values


def bigrams(count):
    whole = jobs.collate(jobs.examples(count))
    return expected(table()[whole["input_ids"][:, :-1]], whole["labels"][:, 1:])


@pytest.mark.parametrize("options", [{}, {"batch_eval_metrics": True}, {"eval_do_concat_batches": False}], ids=str)
def test_values_are_exact_over_batches(options, tmp_path):
    assert jobs.evaluate(jobs.Bigrams(), jobs.examples(11), tmp_path, **options) == bigrams(11)


def test_values_are_torchs_and_numpys_own(tmp_path):
    found = jobs.evaluate(jobs.Bigrams(), jobs.examples(11), tmp_path)
    whole = jobs.collate(jobs.examples(11))
    labels = whole["labels"][:, 1:]
    nats = F.cross_entropy(table()[whole["input_ids"][:, :-1]].mT.double(), labels, reduction="none").sum(1).numpy()
    tokens = (labels != -100).sum(1).numpy()
    ratio = nats.sum() / tokens.sum()
    error = np.sqrt(10 / 9 * ((nats - ratio * tokens) ** 2).sum()) / tokens.sum()
    assert found["eval_cross_entropy"] == pytest.approx(ratio, rel=1e-6)
    assert found["eval_cross_entropy_stderr"] == pytest.approx(error, rel=1e-5)


def test_two_processes_give_the_bits_of_one(tmp_path):
    """Of 7 sequences in batches of 2 the Trainer repeats one, which must not count."""
    for answer in run(2, jobs.evaluated, str(tmp_path), 7):
        assert answer == {"found": [bigrams(7)] * 2, "collectives": 0}


def test_two_processes_give_the_values_of_one_from_hidden_states(tmp_path):
    whole = jobs.attached(jobs.tiny_llama(), jobs.examples(7), tmp_path)
    for answer in run(2, jobs.attached_in_each_process, str(tmp_path), 7):
        assert jobs.own_values(answer["found"]) == pytest.approx(whole, rel=2e-5, abs=1e-6)
        assert answer["found"]["eval_loss"] == pytest.approx(answer["loss"], rel=1e-6)


def test_a_second_evaluation_of_a_real_model_starts_afresh(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=16, n_embd=8, n_layer=1, n_head=2)).eval()
    seen = []

    def spy(logits, labels):
        seen.append((logits, labels))
        return metrics.preprocess_logits(logits, labels)

    metrics = TrainerMetrics(
        [*jobs.METRICS, {"metric": "bits_per_byte", "token_bytes": torch.ones(V, dtype=torch.long)}]
    )
    found = [jobs.evaluate(model, jobs.examples(5), tmp_path, metrics, spy) for _ in range(2)]
    nats = sum(F.cross_entropy(x[:, :-1].mT.double(), y[:, 1:], reduction="sum").item() for x, y in seen) / 2
    tokens = sum((y[:, 1:] != -100).sum().item() for _, y in seen) / 2
    assert found[0] == found[1]
    assert found[0]["eval_cross_entropy"] == pytest.approx(nats / tokens, rel=1e-6)
    assert found[0]["eval_bits_per_byte"] == pytest.approx(nats / tokens / np.log(2), rel=1e-6)


def test_an_interrupted_evaluation_leaves_nothing_to_the_next(tmp_path):
    metrics = TrainerMetrics(jobs.METRICS)
    trainer = jobs.make_trainer(
        jobs.Bigrams(), jobs.Breaking(jobs.examples(11)), tmp_path, metrics, batch_eval_metrics=True
    )
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.evaluate()
    assert jobs.own_values(trainer.evaluate()) == bigrams(11)


def test_reset_forgets_batches():
    metrics, labels = TrainerMetrics(["perplexity"]), torch.ones(2, 5, dtype=torch.long)
    certain = torch.nn.functional.one_hot(labels.roll(-1, 1), 8) * 100.0
    states = [metrics.preprocess_logits(logits, labels) for logits in (certain, torch.zeros(2, 5, 8))]
    assert metrics((states[0], None), compute_result=False) == {}
    metrics.reset()
    assert metrics((states[1], None))["perplexity"] == pytest.approx(8)
    assert metrics((states[0], None), compute_result=False) == {}
    assert metrics((states[1], None))["perplexity"] == pytest.approx(8**0.5)  # both count otherwise


def test_masked_language_models_are_not_shifted():
    metrics = TrainerMetrics(["cross_entropy"], shift=False, standard_errors=False)
    logits, labels = torch.randn(2, 5, V), torch.randint(V, (2, 5))
    found = metrics((metrics.preprocess_logits((logits, None), labels).numpy(), labels))
    assert found == {"cross_entropy": pytest.approx(F.cross_entropy(logits.mT.double(), labels).item(), rel=1e-6)}


def test_wrong_names_logits_and_targets_raise(tmp_path):
    with pytest.raises(UnknownMetricError):
        TrainerMetrics(["no_such_metric"])
    with pytest.raises(InvalidInputError, match=r"preprocess_logits_for_metrics=metrics\.preprocess_logits"):
        jobs.evaluate(jobs.Bigrams(), jobs.examples(3), tmp_path, preprocess=lambda logits, labels: logits)
    metrics = TrainerMetrics(["cross_entropy"])
    with pytest.raises(InvalidTargetError):
        metrics((metrics.preprocess_logits(torch.zeros(1, 3, V), torch.full((1, 3), V)), None))
