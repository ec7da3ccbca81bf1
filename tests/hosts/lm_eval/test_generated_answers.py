"""Scores of what a model generated, beside lm-eval's metrics of its text."""

import math
import pickle

import pytest
from lm_eval.evaluator import evaluate
from support.generative_tasks import PROBLEMS, TRIVIA, bits_per_byte, math_prompt, nats, write_tasks
from support.hf_model import tiny_model, tiny_tokenizer
from support.lm_eval import BigramLM, config
from support.lm_eval_requests import request

from xent_metrics.errors import InvalidInputError, MetricOptionError, MissingScoreError
from xent_metrics.hosts.lm_eval import XentHFLM, XentTask
from xent_metrics.hosts.lm_eval.generated_answers import is_right
from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager

PERPLEXITY = {"metric": "perplexity", "over": "generated", "name": "sureness"}
ERROR = {"metric": "expected_calibration_error", "over": "generated", "correct": "exact_match"}
EXACT = {"metric": "exact_match"}


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama_tied", max_position_embeddings=512)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


class Recording(XentHFLM):
    """xent-hf, which keeps what it was asked to generate and gave."""

    def generate_until(self, requests, disable_tqdm=False):
        found = super().generate_until(requests, disable_tqdm=disable_tqdm)
        self.generated = [(request.args[0], str(text)) for request, text in zip(requests, found, strict=True)]
        return found


@pytest.fixture(scope="module")
def lm(model, tokenizer):
    return Recording(pretrained=model, tokenizer=tokenizer, batch_size=4)


@pytest.fixture
def run(tmp_path, lm):
    """Runs a task of the folder with metrics added; its results by name and filter."""

    def found(name, *added, only=False, more="", lm=lm, **options):
        write_tasks(tmp_path, **{name: more})
        manager = XentTaskManager(include_path=str(tmp_path), include_defaults=False, entries=added, only=only)
        return evaluate(lm, manager.load([name]), bootstrap_iters=0, **options)

    return found


def values(results, name):
    return {key: value for key, value in results["results"][name].items() if "," in key and "stderr" not in key}


def test_perplexity_of_what_was_generated(run, lm, model, tokenizer):
    found = values(run("qa", PERPLEXITY, {"metric": "bits_per_byte", "over": "generated"}), "qa")
    assert len(lm.generated) == len(TRIVIA)
    assert all(text for _, text in lm.generated)
    num_tokens = sum(len(tokenizer(text)["input_ids"]) for _, text in lm.generated)
    expected = math.exp(sum(nats(model, tokenizer, *pair) for pair in lm.generated) / num_tokens)
    assert found["sureness,none"] == pytest.approx(expected, rel=1e-5)
    assert found["bits_per_byte,none"] == pytest.approx(bits_per_byte(model, tokenizer, lm.generated), rel=1e-5)
    assert "exact_match,remove_whitespace" in found
    assert "sureness,remove_whitespace" not in found


def test_beside_gold_answers_and_without_lm_evals_metrics(run, lm, model, tokenizer):
    found = values(run("qa", PERPLEXITY, {"metric": "cross_entropy"}, only=True), "qa")
    alone = values(run("qa", {"metric": "cross_entropy"}, only=True), "qa")
    assert found.keys() == {"sureness,none", "cross_entropy,none"}
    assert found["cross_entropy,none"] == alone["cross_entropy,none"]


def test_all_repeats_count(run, lm, model, tokenizer):
    run("math", PERPLEXITY)
    assert len(lm.generated) == 2 * len(PROBLEMS)
    assert [context for context, _ in lm.generated[::2]] == [math_prompt(each) for each in PROBLEMS]
    results = run(
        "math", {"metric": "token_accuracy", "over": "generated", "correct": "exact_match"}, more="repeats: 1\n"
    )
    assert values(results, "math")["token_accuracy,strict-match"] == values(results, "math")["exact_match,strict-match"]


DOCUMENTS = [{"question": f"{i} + {i} =", "answer": str(2 * i)} for i in range(8)]


@pytest.fixture
def answers(monkeypatch, model, tokenizer):
    """A model that answers with the given texts, and scores them by itself."""

    def made(*texts):
        lm = XentHFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)
        given = dict(zip([each["question"] for each in DOCUMENTS], texts, strict=False))
        monkeypatch.setattr(
            "lm_eval.models.huggingface.HFLM.generate_until",
            lambda self, requests, disable_tqdm=False: [given[request.args[0]] for request in requests],
        )
        return lm

    return made


def evaluated(lm, listed, documents=DOCUMENTS, **options):
    task = XentTask(config("generate_until", documents, listed, **options))
    return evaluate(lm, {"tasks": {"t": task}}, bootstrap_iters=0)


def test_calibration_of_answers_by_each_filter(answers, model, tokenizer):
    """The confidence is exp(mean ln p) of the answer; right is what exact_match says under the filter."""
    texts = [f"{'it is ' if i % 3 == 0 else ''}{2 * i if i % 2 == 0 else 'none'}" for i in range(8)]
    filters = [
        {"name": "strict", "filter": [{"function": "take_first"}]},
        {"name": "loose", "filter": [{"function": "regex", "regex_pattern": "([0-9]+)"}, {"function": "take_first"}]},
    ]
    lm = answers(*texts)
    options = {"filter_list": filters, "num_fewshot": 0}
    found = values(evaluated(lm, [EXACT, {**ERROR, "num_bins": 4}, PERPLEXITY], **options), "t")

    def confidence(question, text):
        size = len(tokenizer(question + text)["input_ids"]) - len(tokenizer(question)["input_ids"])
        return math.exp(-nats(model, tokenizer, question, text) / size)

    sure = [confidence(each["question"], text) for each, text in zip(DOCUMENTS, texts, strict=True)]
    for name in ("strict", "loose"):
        right = [i % 2 == 0 and (name == "loose" or i % 3 != 0) for i in range(8)]
        bins = {}
        for p, hit in zip(sure, right, strict=True):
            bins.setdefault(math.ceil(p * 4), []).append(hit - p)
        expected = sum(abs(sum(gaps)) for gaps in bins.values()) / 8
        assert found[f"exact_match,{name}"] == sum(right) / 8
        assert found[f"expected_calibration_error,{name}"] == pytest.approx(expected, rel=1e-5)
    assert "expected_calibration_error,none" not in found


def test_an_empty_answer_has_no_tokens(answers):
    lm = answers("", "2", "", "", "", "", "", "")
    alone = answers("", "2", "", "", "", "", "", "")
    confidence = {"metric": "mean_confidence", "over": "generated"}
    found = values(evaluated(lm, [EXACT, PERPLEXITY, confidence, ERROR]), "t")
    expected = values(evaluated(alone, [EXACT, PERPLEXITY, confidence, ERROR], DOCUMENTS[1:2]), "t")
    assert {**found, "exact_match,none": None} == {**expected, "exact_match,none": None}


def test_scores_survive_a_cache(answers, tmp_path):
    from lm_eval.api.model import CachingLM

    def cached():
        return CachingLM(answers(*map(str, range(8))), str(tmp_path / "cache.db"))

    first = values(evaluated(cached(), [EXACT, PERPLEXITY]), "t")
    assert values(evaluated(cached(), [EXACT, PERPLEXITY]), "t") == first
    lm = CachingLM(answers(*map(str, range(8))), str(tmp_path / "plain.db"))
    evaluated(lm, [EXACT])
    with pytest.raises(MissingScoreError, match=r"generated texts without token scores.*give --use_cache another name"):
        evaluated(CachingLM(answers(*map(str, range(8))), str(tmp_path / "plain.db")), [EXACT, PERPLEXITY])


def test_a_scored_text_is_pickled_with_its_scores(answers):
    from xent_metrics.hosts.lm_eval.extra_scores import ask_for

    asked = request("generate_until", DOCUMENTS[0]["question"], {})
    lm = answers("two")
    [plain] = lm.generate_until([asked])
    ask_for([asked], {})
    [text] = lm.generate_until([asked])
    copy = pickle.loads(pickle.dumps(text))
    assert (type(plain), copy, copy.loglikelihood) == (str, "two", text.loglikelihood)
    assert copy.loglikelihood.scores.nll.tolist() == text.loglikelihood.scores.nll.tolist()


def test_the_tokens_are_in_the_samples(answers, model, tokenizer):
    lm = answers(*["two"] * 8)
    lm.results.tokenizer = tokenizer
    results = evaluated(lm, [EXACT, PERPLEXITY])
    [sample, *_] = results["samples"]["t"]
    assert sample["arguments"][-1] == (DOCUMENTS[0]["question"], "two")
    assert "".join(token["text"] for token in sample["resps"][-1][0][0].tokens) == "two"


def test_a_model_without_token_scores(monkeypatch):
    lm = BigramLM()
    lm.generate_until = lambda requests: ["a"] * len(requests)
    with pytest.raises(MissingScoreError, match=r"generated texts without token scores, which `over: generated` needs"):
        evaluated(lm, [EXACT, PERPLEXITY])
    monkeypatch.setattr("xent_metrics.hosts.lm_eval.loaded_models._loaded_models", list)
    with pytest.raises(MissingScoreError, match="task t: perplexity is defined over choice or token scores"):
        evaluated(BigramLM(), [EXACT, PERPLEXITY])
    with pytest.raises(MissingScoreError, match="task t: bits of generated text is defined over token scores"):
        evaluated(BigramLM(), [EXACT, {"metric": "bits_per_byte", "over": "generated", "name": "bits"}])


def test_thinking_is_refused_before_anything_is_generated(answers):
    lm = answers(*["two"] * 8)
    lm.enable_thinking = True
    with pytest.raises(InvalidInputError, match="enable_thinking=True leaves the thinking out"):
        evaluated(lm, [EXACT, PERPLEXITY])


@pytest.mark.parametrize(
    ("entry", "options", "said"),
    [
        ({"metric": "token_accuracy", "over": "generated"}, {}, "over: generated needs `correct: exact_match`"),
        (
            {**ERROR, "correct": "exact_mtach"},
            {},
            "correct: exact_mtach is none of lm-eval's.*Did you mean 'exact_match'",
        ),
        (ERROR, {"repeats": 2}, "correct needs one answer per document, and repeats is 2"),
        ({**PERPLEXITY, "correct": "exact_match"}, {}, "correct belongs to metrics of right answers"),
        ({**PERPLEXITY, "gold": "best"}, {}, "gold belongs to over: gold"),
        ({**ERROR, "by": "position"}, {}, "by and correct don't go together"),
        ({"metric": "token_accuracy", "correct": "exact_match"}, {}, "correct belongs to metrics of right answers"),
    ],
)
def test_mistakes_in_an_entry(entry, options, said):
    with pytest.raises(MetricOptionError, match=rf"^task t, metric {entry['metric']}.*{said}"):
        XentTask(config("generate_until", DOCUMENTS, [EXACT, entry], **options))


@pytest.mark.parametrize(
    ("emitted", "said"), [({"a": 0.5}, r"got 0\.5 \["), ({"b": 1}, r"got None\. lm-eval computed b \[")]
)
def test_right_or_wrong(emitted, said):
    assert is_right({"a": 1}, "a", "task t")
    assert not is_right({"a": 0.0}, "a", "task t")
    with pytest.raises(InvalidInputError, match=said):
        is_right(emitted, "a", "task t")
