"""Min-k% probability against sorting, per document and in lm-eval; its contract, and the error of its bins."""

from importlib.metadata import entry_points

import numpy as np
import pytest
import torch
from xent_metrics_surprisal import MinKProbability
from xent_metrics_surprisal.min_k import bin_width, nll_bin, tail_mean

from xent_metrics import CrossEntropy, Document, Grouped, StandardError, from_loglikelihoods, in_groups
from xent_metrics.errors import MetricOptionError, MissingScoreError
from xent_metrics.plugins import Plugins, use_plugins
from xent_metrics.testing import check_metric
from xent_metrics.wrappers.standard_error import standard_error


def documents(count, length, seed=0):
    """The nll of tokens as language models have it: many near 0, some of several nats."""
    rng = np.random.default_rng(seed)
    return rng.exponential(1.0, (count, length)) ** 2


def scores_of(nll):
    return from_loglikelihoods(-torch.as_tensor(nll), row_kind="token")


def by_sorting(nll, k):
    """As in the paper, but the last token counts in part if k N isn't whole."""
    wanted = k * len(nll)
    taken = np.clip(wanted - np.arange(len(nll)), 0, 1)
    return -(np.sort(nll)[::-1] * taken).sum() / wanted


def value(nll, **options):
    metric = MinKProbability(**options)
    metric.update(scores_of(nll))
    return float(metric.compute())


@pytest.mark.parametrize("k", [0.2, 1.0])
def test_it_keeps_the_contract(k):
    check_metric(MinKProbability(k=k))


@pytest.mark.parametrize("k", [0.05, 0.1, 0.2, 0.37, 1.0])
@pytest.mark.parametrize("length", [7, 100, 5000])
def test_it_is_the_sorted_mean_up_to_one_bin(k, length):
    (nll,) = documents(1, length)
    edge = np.sort(nll)[::-1][min(int(k * length), length - 1)]
    in_bin = nll_bin(torch.tensor(nll), 256) == nll_bin(torch.tensor([edge]), 256)
    share = min(int(in_bin.sum()) / (k * length), 1)
    width = bin_width(256) * (1 + float(nll[in_bin.numpy()].max()))
    assert abs(value(nll, k=k) - by_sorting(nll, k)) <= share * width + 1e-9


@pytest.mark.parametrize("num_bins", [16, 256, 4096])
def test_more_bins_come_closer(num_bins):
    errors = [abs(value(nll, k=0.2, num_bins=num_bins) - by_sorting(nll, 0.2)) for nll in documents(20, 300)]
    assert max(errors) < 1 / num_bins


def test_it_is_the_papers_where_k_n_is_whole():
    (nll,) = documents(1, 200)
    paper = -np.sort(nll)[::-1][: int(0.2 * 200)].mean()
    assert by_sorting(nll, 0.2) == pytest.approx(paper, rel=1e-12)
    assert value(nll, num_bins=100_000) == pytest.approx(paper, rel=1e-6)


def test_of_all_tokens_it_is_minus_the_cross_entropy():
    (nll,) = documents(1, 500)
    metric = CrossEntropy()
    metric.update(scores_of(nll))
    assert value(nll, k=1.0) == pytest.approx(-float(metric.compute()), rel=1e-12)


def test_any_partition_has_the_same_bits():
    (nll,) = documents(1, 501)
    metric = MinKProbability()
    for part in np.array_split(np.random.default_rng(0).permutation(nll), 7):
        metric.update(scores_of(part))
    assert float(metric.compute()) == value(nll)


def test_infinite_and_huge_nll():
    assert value([0.1, 0.2, np.inf], k=0.5) == -np.inf
    assert value([0.1, 1e6, 3e6, 0.2], k=0.25) == -2e6  # beyond 100 nats there is one bin
    assert value([0.0, 0.0, np.inf], k=0.9) == -np.inf


def test_tail_mean_of_bins():
    tokens, nats = torch.tensor([2.0, 0.0, 2.0]), torch.tensor([2.0, 0.0, 10.0])
    assert tail_mean(tokens, nats, 0.25) == 5
    assert tail_mean(tokens, nats, 0.75) == pytest.approx((10 + 1) / 3)
    assert tail_mean(torch.zeros(3), torch.zeros(3), 0.5).isnan()


class TestDocuments:
    def test_grouped_has_each_documents_value_and_their_mean(self):
        nll = documents(6, 40)
        metric = Grouped(MinKProbability(), by=Document(6), average="macro")
        for part in (slice(0, 17), slice(17, 40)):  # a document may come in parts
            metric.update(in_groups(scores_of(nll[:, part]), range(6)))
        found = [float(each) for each in metric.by_group().values()]
        assert found == [value(document) for document in nll]
        assert float(metric.compute()) == pytest.approx(np.mean(found), rel=1e-12)

    def test_the_standard_error_is_that_of_documents(self):
        nll = documents(40, 60)
        error = StandardError(MinKProbability(num_bins=64))
        error.update(scores_of(nll))
        states = error.metric.exact_sums_by_sequence(scores_of(nll))
        assert float(error.compute()) == pytest.approx(standard_error(error.metric, states), rel=1e-6)
        total = states.sum(0)
        left_out = torch.stack([error.metric.value_of(total - state) for state in states])
        assert float(error.compute()) == pytest.approx(
            float(((left_out - left_out.mean()).square().sum() * 39 / 40).sqrt()), rel=0.1
        )

    def test_lm_evals_samples_have_each_documents_own(self):
        import datasets
        from lm_eval.evaluator import evaluate

        from xent_metrics.hosts.lm_eval import TorchLM, XentTask

        torch.manual_seed(1)
        model = torch.nn.Embedding(257, 257)
        texts = ["héllo wörld, this is one.", "two  words", "a third text of several words"]
        task = {
            "task": "t", "output_type": "loglikelihood_rolling", "test_split": "test", "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "min_k_probability", "k": 0.3}, {"metric": "word_surprisal"}],
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list([{"text": text} for text in texts])},
        }  # fmt: skip
        (point,) = entry_points(group="xent_metrics", name="surprisal")
        with use_plugins(Plugins([point])):
            lm = TorchLM(model, tokenizer="bytes", max_length=64)
            found = evaluate(lm, {"tasks": {"t": XentTask(task)}}, bootstrap_iters=0, log_samples=True)
        nll = []
        for text in texts:
            ids = torch.tensor([lm.prefix_token_id, *text.encode()])
            log_prob = torch.log_softmax(model(ids[:-1]).double(), -1)
            nll.append(-log_prob.gather(-1, ids[1:, None])[:, 0].detach().numpy())
        samples = sorted(found["samples"]["t"], key=lambda sample: sample["doc_id"])
        for sample, document in zip(samples, nll, strict=True):
            assert sample["min_k_probability"] == pytest.approx(value(document, k=0.3), rel=1e-5)
            assert sample["min_k_probability"] == pytest.approx(by_sorting(document, 0.3), abs=0.01)
        results = found["results"]["t"]
        assert results["min_k_probability,none"] == pytest.approx(value(np.concatenate(nll), k=0.3), rel=1e-5)
        assert results["min_k_probability_stderr,none"] > 0
        words = sum(len(text.split()) for text in texts)
        assert results["word_surprisal,none"] == pytest.approx(
            sum(each.sum() for each in nll) / np.log(2) / words, rel=1e-5
        )


def test_it_needs_tokens():
    with pytest.raises(MissingScoreError, match="min_k_probability is defined over token scores; got document scores"):
        MinKProbability().update(from_loglikelihoods([-3.0]))


@pytest.mark.parametrize("options", [{"k": 0}, {"k": 1.5}, {"k": float("nan")}, {"num_bins": 0}])
def test_bad_options_are_errors(options):
    with pytest.raises(MetricOptionError, match=r"min_k_probability: (k is a share of the tokens|num_bins is a whole)"):
        MinKProbability(**options)
