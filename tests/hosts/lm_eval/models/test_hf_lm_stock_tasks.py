"""Under lm-eval's own tasks, our models give what `hf` gives: what must work with any lm-eval, whatever its tasks are."""

from __future__ import annotations

import json

import pytest
from lm_eval import simple_evaluate
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from support.hf_model import stock
from support.task_yamls import write_tasks

from xent_metrics.hosts.lm_eval import TorchLM, XentHFLM

CHOICE = """
task: stock_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choices.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.fixture(scope="module")
def evaluate(tmp_path_factory):
    """Evaluate a model on a rolling task and a multiple-choice task; the values, and the loglikelihoods in the samples."""
    folder = tmp_path_factory.mktemp("tasks")
    write_tasks(folder)
    (folder / "stock_choice.yaml").write_text(CHOICE.format(folder=folder))

    def evaluate(lm):
        found = simple_evaluate(
            lm, tasks=["rolling_stock", "stock_choice"], bootstrap_iters=0, log_samples=True,
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        )  # fmt: skip
        numbers = {
            (task, key): value
            for task, values in found["results"].items()
            for key, value in values.items()
            if isinstance(value, float)
        }
        return numbers, _written(found, folder / type(lm).__name__)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "a machine")  # takes seconds
        yield evaluate


def _written(found, folder):
    """The loglikelihoods in the files that lm-eval's command writes."""
    tracker = EvaluationTracker(output_path=str(folder))
    tracker.general_config_tracker.model_name = tracker.general_config_tracker.model_name_sanitized = "tiny"
    samples = found.pop("samples")
    tracker.save_results_aggregated(found, samples)
    for task, documents in samples.items():
        tracker.save_results_samples(task, documents)
    lines = [line for path in sorted(folder.rglob("samples_*.jsonl")) for line in path.read_text().splitlines()]
    resps = [resp for line in lines for request in json.loads(line)["resps"] for resp in request]
    return [float(resp[0] if isinstance(resp, list) else resp) for resp in resps]


@pytest.fixture(scope="module")
def of_hf(evaluate, model, tokenizer):
    return evaluate(stock(model, tokenizer))


@pytest.mark.parametrize("ours", [XentHFLM, TorchLM])
def test_our_models_give_what_hf_gives(ours, evaluate, of_hf, model, tokenizer):
    values, loglikelihoods = evaluate(ours(model, tokenizer=tokenizer, batch_size=4))
    assert {"word_perplexity,none", "acc,none"} <= {key for _, key in values}
    assert values == pytest.approx(of_hf[0], rel=1e-5)
    assert len(loglikelihoods) > 10
    assert loglikelihoods == pytest.approx(of_hf[1], rel=1e-5)
