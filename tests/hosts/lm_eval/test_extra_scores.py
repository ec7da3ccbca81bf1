"""Extra scores in lm-eval: every registered metric with both of our models, and names that would mean two scores."""

import functools
import itertools
import math
import pickle

import pytest
import torch
from lm_eval.api.model import CachingLM
from support.hf_model import TEXT, requests, tiny_model, tiny_tokenizer
from support.lm_eval import BigramLM, ScoredBigramLM, config, evaluate, values
from support.registered import buildable, plugin_of
from torch import nn

from xent_metrics import ExtraScore, RatioMetric, get_metric
from xent_metrics.errors import InvalidInputError, MetricOptionError, MissingScoreError
from xent_metrics.hosts.lm_eval import TorchLM, XentHFLM, XentTask, loaded_models
from xent_metrics.hosts.lm_eval.extra_scores import ask_for, asked_for
from xent_metrics.hosts.lm_eval.models.windows import continuation_window, rolling_windows
from xent_metrics.metrics.pair_metric import PairMetric

MAX_LENGTH = 24
TEXTS = [TEXT[:90], TEXT[100:130], ""]
PAIRS = [("The loss of a language ", "model is the mean"), ("Bytes are ", "counted"), ("Größe is ", "seven bytes")]
DOCUMENTS = {
    "loglikelihood_rolling": [{"text": text} for text in TEXTS],
    "loglikelihood": [{"question": question, "answer": answer} for question, answer in PAIRS],
}


class ByteNet(nn.Module):
    """A causal model: logits of 257 ids from the running sum of random embeddings."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.head = nn.Embedding(257, 8), nn.Linear(8, 257)

    def forward(self, ids):
        return 3 * self.head(torch.tanh(self.embed(ids).cumsum(1)))


@functools.cache
def torch_lm(**options):
    return TorchLM(ByteNet(), tokenizer="bytes", max_length=MAX_LENGTH, device="cpu", **options)


@functools.cache
def hf_lm(**options):
    return XentHFLM(
        pretrained=tiny_model("llama_tied"), tokenizer=tiny_tokenizer(), max_length=MAX_LENGTH, batch_size=4, **options
    )


def metrics():
    """Every registered metric of one model's tokens by name, except those per byte and per word."""
    sizes = {"classwise_calibration_error": {"classes": 384}}
    built = {name: get_metric(name, **sizes.get(name, {})) for name in buildable()}
    return {
        name: metric
        for name, metric in built.items()
        if not isinstance(metric, PairMetric)
        and not metric.requires & {"num_bytes", "num_words"}
        and "binary" not in metric.scoring_options()
    }


def entries():
    return [{"metric": name, **({"classes": 384} if name.startswith("classwise") else {})} for name in metrics()]


def windows_of(lm, output_type):
    """The windows that the model reads and predicts."""
    prefix = lm.prefix_token_id
    if output_type == "loglikelihood_rolling":
        texts = [rolling_windows(lm.tok_encode(text), prefix_token=prefix, max_length=MAX_LENGTH) for text in TEXTS]
        return list(itertools.chain(*texts))
    encoded = [lm._encode_pair(question, answer) for question, answer in PAIRS]
    return [continuation_window(*pair, max_length=MAX_LENGTH) for pair in encoded]


@pytest.mark.parametrize("output_type", sorted(DOCUMENTS))
@pytest.mark.parametrize("make", [torch_lm, hf_lm])
def test_every_metric_has_the_value_that_update_with_logits_gives(make, output_type):
    lm, expected = make(), metrics()
    found = values(evaluate(XentTask(config(output_type, DOCUMENTS[output_type], entries())), lm))
    for window in windows_of(lm, output_type):
        with torch.no_grad():
            output = lm.model(torch.tensor([window.inputs]))
        logits = getattr(output, "logits", output)[0, window.scored]
        for metric in expected.values():
            metric.update(logits, torch.tensor(window.targets))
    assert len(expected) >= 20
    for name, metric in expected.items():
        value = float(metric.compute())
        assert math.isfinite(value), name
        if make is torch_lm:
            assert found[name] == value, name  # the same bits
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("log_tokens", [False, True])
@pytest.mark.parametrize("make", [torch_lm, hf_lm])
def test_no_other_score_changes(make, log_tokens):
    lm = make(log_tokens=log_tokens)
    asked, plain = (requests("loglikelihood_rolling", [(text,) for text in TEXTS]) for _ in range(2))
    ask_for(asked[:1], get_metric("z_loss").extra_scores())
    ask_for(asked[1:], get_metric("top_k_accuracy").extra_scores())
    with_extra = lm.loglikelihood_rolling(asked)
    without = lm.loglikelihood_rolling(plain)  # nothing is left of the earlier requests
    assert [float(result) for result in with_extra] == [float(result) for result in without]
    for first, second in zip(with_extra, without, strict=True):
        assert set(first.scores.extra_scores) == {"squared_log_normaliser", "target_rank"}
        assert not second.scores.extra_scores
        for name, field in second.scores.fields().items():
            assert torch.equal(field, getattr(first.scores, name)), name
        kept = pickle.loads(pickle.dumps(first))  # as --use_cache and a gather send it
        assert torch.equal(kept.scores.extra_scores["target_rank"], first.scores.extra_scores["target_rank"])


def test_tasks_that_run_together_ask_for_their_own():
    def task(*names):
        listed = [{"metric": name} for name in names]
        return XentTask(config("loglikelihood_rolling", DOCUMENTS["loglikelihood_rolling"], listed))

    lm = torch_lm()
    alone = [values(evaluate(task(name), lm))[name] for name in ("cross_entropy", "brier_score")]
    together = values(evaluate(task("cross_entropy", "brier_score"), lm))
    assert [together["cross_entropy"], together["brier_score"]] == alone


def test_a_cache_keeps_them_and_one_without_them_is_refused(tmp_path):
    documents = DOCUMENTS["loglikelihood_rolling"]
    plain = XentTask(config("loglikelihood_rolling", documents, [{"metric": "cross_entropy"}]))
    ranked = XentTask(config("loglikelihood_rolling", documents, [{"metric": "mean_reciprocal_rank"}]))
    first = values(evaluate(ranked, CachingLM(torch_lm(), str(tmp_path / "kept.db"))))
    assert values(evaluate(ranked, CachingLM(torch_lm(), str(tmp_path / "kept.db")))) == first
    evaluate(plain, CachingLM(torch_lm(), str(tmp_path / "older.db")))
    with pytest.raises(MissingScoreError, match=r"asked for `target_rank` of each token.*--use_cache"):
        evaluate(ranked, CachingLM(torch_lm(), str(tmp_path / "older.db")))


def test_a_model_that_gives_none_is_refused():
    documents = DOCUMENTS["loglikelihood_rolling"][:2]
    task = XentTask(config("loglikelihood_rolling", documents, [{"metric": "z_loss"}]))
    with pytest.raises(
        MissingScoreError, match=r"metric z_loss: the metric asked for .*extra_scores=asked_for\(requests\)"
    ):
        evaluate(task, ScoredBigramLM())


def test_a_stock_model_is_refused_before_it_runs(monkeypatch):
    monkeypatch.setattr(loaded_models, "LM", BigramLM)
    monkeypatch.delattr(ScoredBigramLM, "gives_token_scores")  # as in a process that has loaded no such model
    task = XentTask(config("loglikelihood", DOCUMENTS["loglikelihood"], [{"metric": "top_k_accuracy"}]))
    lm = BigramLM()
    with pytest.raises(MissingScoreError, match=r"task t: top_k_accuracy .*`xent lm-eval run --model xent-hf …`"):
        evaluate(task, lm)
    assert lm.asked == []


@pytest.mark.parametrize("make", [torch_lm, hf_lm])
def test_a_metric_of_other_classes_than_the_vocabulary_is_refused_at_the_first_batch(make):
    listed = [{"metric": "classwise_calibration_error", "classes": 5}]
    task = XentTask(config("loglikelihood", DOCUMENTS["loglikelihood"], listed))
    with pytest.raises(InvalidInputError, match=r"was built for 5 classes; got (257|384)\. Set classes="):
        evaluate(task, make())


@pytest.mark.parametrize("over", ["gold", "choices"])
def test_every_metric_works_over_gold_and_over_choices(over):
    documents = [{"question": "One", "choices": ["a", "bb"], "gold": 1}, {"question": "Two", "choices": ["d", "e"],
                 "gold": 0}]  # fmt: skip
    listed = [{**entry, "over": over} for entry in entries()]
    found = values(evaluate(XentTask(config("multiple_choice", documents, listed)), torch_lm()))
    assert all(math.isfinite(found[name]) for name in metrics())


class Largest(RatioMetric):
    """The mean of an extra score. Each metric makes its own function for it."""

    name = "largest"

    def extra_scores(self):
        return {"extreme": ExtraScore(lambda log_prob, index: log_prob.amax(-1))}

    def per_token(self, scores):
        return scores.extra_scores["extreme"]


class Smallest(Largest):
    """A different score with the same name."""

    name = "smallest"

    def extra_scores(self):
        return {"extreme": ExtraScore(lambda log_prob, index: log_prob.amin(-1))}


@pytest.fixture
def extremes(install):
    install(plugin_of(Largest, Smallest))


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("over", [None, "gold", "choices"])
def test_two_scores_of_one_name_are_refused_when_the_task_is_made(over, order, extremes):
    def never(**_):
        raise AssertionError("data were loaded")

    names = ["largest", "smallest"][::order]
    listed = [{"metric": name, **({"over": over} if over else {})} for name in names]
    made = config("multiple_choice" if over else "loglikelihood", [], listed) | {"custom_dataset": never}
    with pytest.raises(MetricOptionError, match=rf"task t: {names[0]} and {names[1]} ask for .* both named 'extreme'"):
        XentTask(made)


def test_one_score_of_several_metrics_is_asked_for_once(extremes):
    """Also if each metric makes its own function, or binds a method that reads its options."""
    listed = [
        {"metric": "largest"},
        {"metric": "largest", "name": "again"},
        {"metric": "full_calibration_error"},
        {"metric": "full_calibration_error", "name": "full_again"},
    ]
    task = XentTask(config("loglikelihood", DOCUMENTS["loglikelihood"], listed))
    found = values(evaluate(task, torch_lm()))
    assert found["largest"] == found["again"]
    assert found["full_calibration_error"] == found["full_again"]
    assert len(asked_for(task.instances)) == 2


def test_tasks_that_ask_for_two_scores_of_one_name_do_not_run_together(extremes):
    asked = requests("loglikelihood_rolling", [(text,) for text in TEXTS[:2]])
    ask_for(asked[:1], get_metric("largest").extra_scores())
    ask_for(asked[1:], get_metric("smallest").extra_scores())
    with pytest.raises(InvalidInputError, match=r"two tasks of this run .* both named 'extreme'"):
        torch_lm().loglikelihood_rolling(asked)
