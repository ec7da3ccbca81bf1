"""Loss on the gold answers of generative tasks, beside their own metrics or instead of them."""

import json

import pytest
from lm_eval.evaluator import evaluate
from support.generative_tasks import (
    CHAT_TEMPLATE,
    PROBLEMS,
    PROGRAMS,
    SHOTS,
    TRIVIA,
    bits_per_byte,
    math_prompt,
    nats,
    write_tasks,
)
from support.hf_model import tiny_model, tiny_tokenizer
from support.lm_eval import BigramLM, ScoredBigramLM, UnusedLM, bigram_scores, config, entries, saved

from xent_metrics.analysis.runs import read_run
from xent_metrics.errors import InvalidTargetError, MetricOptionError, MissingScoreError
from xent_metrics.hosts.lm_eval import XentHFLM, XentTask
from xent_metrics.hosts.lm_eval.documents import is_placeholder
from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama_tied", max_position_embeddings=512)


@pytest.fixture(scope="module")
def tokenizer():
    made = tiny_tokenizer()
    made.chat_template = CHAT_TEMPLATE
    return made


@pytest.fixture(scope="module")
def lm(model, tokenizer):
    """xent-hf, which counts what it generates."""

    class Counting(XentHFLM):
        generated = 0

        def generate_until(self, requests, **options):
            self.generated += len(requests)
            return super().generate_until(requests, **options)

    return Counting(pretrained=model, tokenizer=tokenizer, batch_size=4)


@pytest.fixture
def run(tmp_path, lm):
    """Runs a task of the folder with metrics added; its numbers by name and filter."""

    def found(name, *added, only=False, more="", **options):
        write_tasks(tmp_path, **{name: more})
        manager = XentTaskManager(include_path=str(tmp_path), include_defaults=False, entries=added, only=only)
        lm.generated = 0
        options = {"confirm_run_unsafe_code": True, "bootstrap_iters": 0, **options}
        results = evaluate(lm, manager.load([name]), **options)
        return {key: value for key, value in results["results"][name].items() if "," in key and "stderr" not in key}

    return found


def test_few_shot_problems_beside_metrics_of_the_text(run, lm, model, tokenizer):
    own = run("math")
    found = run("math", {"metric": "bits_per_byte"}, {"metric": "cross_entropy"})
    assert lm.generated == 2 * len(PROBLEMS)  # `repeats`, and once for all metrics
    expected = bits_per_byte(model, tokenizer, [(math_prompt(each), f" {each['answer']}") for each in PROBLEMS])
    assert found["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
    assert {key: value for key, value in found.items() if not key.endswith(",none")} == own
    filters = "strict-match", "flexible-extract"
    assert own.keys() == {f"{name},{each}" for name in ("exact_match", "bleu", "rouge_l") for each in filters}


def test_nothing_is_generated_where_no_metric_needs_text(run, lm, model, tokenizer):
    expected = bits_per_byte(model, tokenizer, [(math_prompt(each), f" {each['answer']}") for each in PROBLEMS])
    found = run("math", {"metric": "bits_per_byte"}, only=True)
    assert (found.keys(), lm.generated) == ({"bits_per_byte,none"}, 0)
    assert found["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("multiturn", [False, True])
def test_a_chat_template(run, lm, model, tokenizer, multiturn):
    """The answer begins the assistant's turn, without the delimiter."""

    def prompt(problem):
        if not multiturn:
            return f"<user>{math_prompt(problem)}|<assistant>"
        turns = [f"<user>Question: {s['question']}\nAnswer:|<assistant>{s['answer']}|" for s in SHOTS]
        return "".join(turns) + f"<user>Question: {problem['question']}\nAnswer:|<assistant>"

    found = run(
        "math", {"metric": "bits_per_byte"}, only=True, apply_chat_template=True, fewshot_as_multiturn=multiturn
    )
    expected = bits_per_byte(model, tokenizer, [(prompt(each), each["answer"]) for each in PROBLEMS])
    assert found["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(("prefix", "space"), [("So:", " "), ("So:\\n", "")])
def test_a_prefix_of_the_generation(run, model, tokenizer, prefix, space, chat):
    """One space follows the prefix if it needs one, as lm-eval joins them in a few-shot example."""
    seen = prefix.replace("\\n", "\n")

    def prompt(problem):
        question = f"Question: {problem['question']}\nAnswer:"
        return f"<user>{question}|<assistant>{seen}" if chat else f"{question} {seen}"

    more = f'gen_prefix: "{prefix}"\n'
    found = run(
        "math", {"metric": "bits_per_byte"}, only=True, more=more + "num_fewshot: 0\n", apply_chat_template=chat
    )
    pairs = [(prompt(each), space + each["answer"]) for each in PROBLEMS]
    assert found["bits_per_byte,none"] == pytest.approx(bits_per_byte(model, tokenizer, pairs), rel=1e-5)


def test_a_program_is_the_reference_solution_and_not_its_test(run, model, tokenizer):
    with pytest.raises(MissingScoreError, match=r"task code, metric bits_per_byte: the task runs code .*doc_to_gold"):
        run("code", {"metric": "bits_per_byte"})
    for gold in ("canonical_solution", "{{canonical_solution}}"):
        found = run("code", {"metric": "bits_per_byte", "doc_to_gold": gold})
        pairs = [(each["prompt"], each["canonical_solution"]) for each in PROGRAMS]  # no space: one is there
        assert found["bits_per_byte,none"] == pytest.approx(bits_per_byte(model, tokenizer, pairs), rel=1e-5)
        assert "exact_match,none" in found


def test_several_gold_answers(run, lm, model, tokenizer):
    kinds = [{"metric": "bits_per_byte", "gold": gold, "name": gold} for gold in ("first", "best", "all")]
    found = run("qa", *kinds)
    pairs = [[(f"Question: {each['question']}?\nAnswer:", f" {text}") for text in each["aliases"]] for each in TRIVIA]
    best = [min(each, key=lambda pair: nats(model, tokenizer, *pair)) for each in pairs]
    assert best != [each[0] for each in pairs]
    expected = {"first": [each[0] for each in pairs], "best": best, "all": [pair for each in pairs for pair in each]}
    for name, chosen in expected.items():
        assert found[f"{name},none"] == pytest.approx(bits_per_byte(model, tokenizer, chosen), rel=1e-5)
    assert "exact_match,remove_whitespace" in found
    assert lm.generated == len(TRIVIA)


class Answering(ScoredBigramLM):
    """Answers every question alike."""

    def generate_until(self, requests):
        self.asked.append("generated")
        return ["because" for _ in requests]


GOLDS = [{"question": "Why?", "answer": ["because", "é", "because"]}, {"question": "Who?", "answer": ["nobody knows"]}]


def test_requests_are_shared_and_the_error_is_over_documents():
    """All golds of a document are one sample of the standard error: they aren't independent."""
    listed = [*entries("bits_per_byte"), {"metric": "bits_per_byte", "gold": "all", "name": "all"}]
    lm = Answering()
    task = XentTask(config("generate_until", GOLDS, listed, repeats=3))
    found = evaluate(lm, {"tasks": {"t": task}}, bootstrap_iters=0)
    assert sorted(lm.asked) == sorted([("Why?", " because"), ("Why?", " é"), ("Who?", " nobody knows")])
    of_all = [sample["all_stderr"]["num_bytes"] for sample in found["samples"]["t"]]
    assert of_all == [len(b" because") + len(" é".encode()), len(b" nobody knows")]
    assert found["n-samples"]["t"]["effective"] == 2


def test_any_model_scores_bits_per_byte():
    documents = [{"question": "Why?", "answer": "because"}, {"question": "Who: ", "answer": "é"}]
    task = XentTask(config("generate_until", documents, entries("bits_per_byte")))
    found = evaluate(BigramLM(), {"tasks": {"t": task}}, bootstrap_iters=0)["results"]["t"]
    scores = [bigram_scores("Why?", " because"), bigram_scores("Who:", " é")]  # one space, not two
    bits = sum(float(each.nll.double().sum()) for each in scores) / 0.6931471805599453
    assert found["bits_per_byte,none"] == pytest.approx(bits / (8 + 3), rel=1e-12)


def test_a_task_without_gold_answers_is_refused_by_name(run):
    with pytest.raises(
        MissingScoreError, match=r"task instructions, metric bits_per_byte: the task has no gold answer .*: 0\)"
    ):
        run("instructions", {"metric": "bits_per_byte"})


@pytest.mark.parametrize("answer", ["", "  ", [], [["a", "b"]], None])
def test_a_document_without_a_gold_answer_before_the_model_runs(answer):
    documents = [{"question": "Who?", "answer": "me"}, {"question": "Why?", "answer": answer}]
    made = config("generate_until", [], entries("bits_per_byte")) | {
        "custom_dataset": lambda **_: {"test": Documents(documents)},
        "doc_to_target": lambda doc: doc["answer"],
    }
    task = XentTask(made)
    task.multiple_target = int(isinstance(answer, list))
    with pytest.raises(InvalidTargetError, match=r"task t, metric bits_per_byte: expected a gold answer.*'Why\?'"):
        evaluate(UnusedLM(), {"tasks": {"t": task}}, bootstrap_iters=0)


class Documents(list):
    """Documents whose fields have no common type, which a Dataset can't hold."""

    @property
    def features(self):
        return dict.fromkeys(self[0])


@pytest.mark.parametrize(
    ("output_type", "options", "error", "said"),
    [
        ("generate_until", {"gold": "last"}, MetricOptionError, "gold is first, best or all; got 'last'"),
        (
            "generate_until",
            {"over": "choices"},
            MetricOptionError,
            "over is gold or generated in output_type generate_until",
        ),
        ("loglikelihood", {"gold": "best"}, MetricOptionError, "gold belongs to output_type generate_until"),
        ("loglikelihood", {"doc_to_gold": "answer"}, MetricOptionError, "doc_to_gold belongs to"),
    ],
)
def test_mistakes_in_an_entry(output_type, options, error, said):
    with pytest.raises(error, match=rf"^task t, metric bits_per_byte.*{said}"):
        XentTask(config(output_type, GOLDS, [{"metric": "bits_per_byte", **options}]))


def test_only_with_no_metric_of_ours(run):
    with pytest.raises(MetricOptionError, match="task math: --xent_only leaves it without a metric; add some by"):
        run("math", only=True)


def test_predict_only_asks_for_no_gold_answer():
    task = XentTask(config("generate_until", GOLDS, entries("bits_per_byte")))
    task.override_metric("bypass")
    lm = Answering()
    evaluate(lm, {"tasks": {"t": task}}, bootstrap_iters=0)
    assert lm.asked == ["generated"]


def test_lm_evals_cache_of_requests_is_left_alone(monkeypatch):
    """It knows a task by its name: a run without our metrics would find requests that its filters can't take."""
    monkeypatch.setattr("lm_eval.api.task.save_to_cache", lambda **_: pytest.fail("saved"))
    listed = [{"metric": "exact_match"}, {"metric": "bits_per_byte"}]
    found = evaluate(
        Answering(),
        {"tasks": {"t": XentTask(config("generate_until", GOLDS, listed))}},
        cache_requests=True,
        bootstrap_iters=0,
    )
    assert found["results"]["t"]["exact_match,none"] == 0.5


def test_a_rank_without_documents_emits_the_same_names_and_counts_nothing():
    """It sends the first document's requests."""
    listed = [{"metric": "exact_match", "aggregation": "mean"}, {"metric": "bits_per_byte"}]
    filters = [{"name": "twice", "filter": [{"function": "take_first"}]}]
    names, samples = [], []
    for rank in (0, 1):
        lm, task = Answering(), XentTask(config("generate_until", GOLDS, listed, filter_list=filters))
        task.set_config("num_fewshot", 0)
        task.build_all_requests(rank=rank, world_size=2, limit=1)
        for instance in task.instances:
            instance.resps = getattr(lm, instance.request_type)([instance])
        task.apply_filters()
        [(_, doc)] = task.doc_iterator(rank=rank, world_size=2, limit=1)
        by_idx = sorted(task.instances, key=lambda instance: instance.idx)
        for name in task.instances[0].filtered_resps:
            emitted = task.process_results(doc, [instance.filtered_resps[name] for instance in by_idx])
            names.append((name, list(emitted)))
            samples += [value for value in emitted.values() if rank and not is_placeholder(value)]
    assert names[:2] == names[2:] == [("twice", ["exact_match"]), ("none", ["bits_per_byte", "bits_per_byte_stderr"])]
    assert not samples


def test_a_saved_run_is_read_back_with_each_documents_sums(tmp_path):
    filters = [{"name": "twice", "filter": [{"function": "take_first"}]}]
    listed = [{"metric": "exact_match", "aggregation": "mean"}, {"metric": "bits_per_byte", "gold": "all"}]
    task = XentTask(config("generate_until", GOLDS, listed, filter_list=filters))
    values = saved(evaluate(Answering(), {"tasks": {"t": task}}, bootstrap_iters=0), tmp_path)
    read = read_run(tmp_path).tasks["t"]
    assert read.values["bits_per_byte"] == values["bits_per_byte"]
    assert float(read.metrics["bits_per_byte"].value_of(read.states("bits_per_byte").sum(0))) == pytest.approx(
        values["bits_per_byte"], rel=1e-12
    )
    assert read.values["exact_match,twice"] == 0.5
    json.dumps(read.values)
