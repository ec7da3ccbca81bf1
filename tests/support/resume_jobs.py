"""A process that runs an evaluation again and again in children that may be killed; it loads the model once.

For each line that it reads it starts a child, and answers with the child's id, and with its exit status at its end.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from transformers import AutoModelForCausalLM, AutoTokenizer

from xent_metrics.hosts.lm_eval import XentHFLM
from xent_metrics.hosts.lm_eval.journal import Journal
from xent_metrics.hosts.lm_eval.resume import resume
from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager

#: A task of whole texts, one of questions with shared contexts, one of generations.
TASKS = ["pages", "questions", "stories"]
_TASK = """
task: {name}
class: !function xent_metrics.hosts.lm_eval.XentTask
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/{name}.jsonl}}}}
test_split: test
"""
_YAML = {
    "pages": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\nmetric_list:\n"
    "  - metric: bits_per_byte\n  - metric: prediction_entropy\n",
    "questions": "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: gold\n"
    "metric_list:\n  - metric: perplexity\n  - metric: acc\n  - {metric: brier_score, over: choices}\n",
    "stories": "output_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: '{{answer}}'\n"
    "generation_kwargs: {until: [], max_gen_toks: 3, do_sample: false}\nmetric_list:\n  - metric: exact_match\n"
    "  - metric: cross_entropy\n  - {metric: perplexity, over: generated}\n"
    "  - {metric: overconfidence, over: generated, correct: exact_match}\n",
}


def write(folder: Path, documents: dict[str, list[Any]]) -> None:
    """Write the tasks and their documents."""
    for name, yaml in _YAML.items():
        (folder / f"{name}.yaml").write_text(_TASK.format(name=name, folder=folder) + yaml, encoding="utf-8")
        lines = "".join(json.dumps(each) + "\n" for each in documents[name])
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def loaded(folder: str, model_class: Any = XentHFLM, batch_size: int = 4) -> Any:
    """The model of the folder."""
    network = AutoModelForCausalLM.from_pretrained(f"{folder}/model").eval()
    tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")
    return model_class(network, tokenizer=tokenizer, device="cpu", batch_size=batch_size, max_length=96)


def evaluated(folder: str, kept: str | None = None, model: Any = None, **options: Any) -> dict[str, Any]:
    """The results and the responses to all documents, as text with every digit."""
    if model is None:
        model = loaded(folder, **{name: options.pop(name) for name in ("model_class", "batch_size") if name in options})
    with resume(kept) if kept else nullcontext():
        results = simple_evaluate(
            model=model, tasks=options.pop("tasks", TASKS), bootstrap_iters=0, **options,
            task_manager=XentTaskManager(include_path=folder, include_defaults=False),
        )  # fmt: skip
    found = {name: [_text(sample["resps"]) for sample in samples] for name, samples in results["samples"].items()}
    return {"results": {name: repr(value) for name, value in results["results"].items()}, "responses": found}


def _text(response: Any) -> Any:
    """The response with every digit, and with its tokens where they are logged."""
    return list(map(_text, response)) if isinstance(response, list | tuple) else str(response)


def _child(folder: str, kept: str, output: str, model: Any) -> None:
    written: Callable[..., None] = Journal._write

    def slowly(self: Journal, line: str) -> None:
        written(self, line)
        time.sleep(0.01)  # so that kills come between as often as within

    Journal._write = slowly  # type: ignore[method-assign]
    Path(output).write_text(json.dumps(evaluated(folder, kept, model)), encoding="utf-8")


def main(folder: str, kept: str, output: str) -> None:
    """Run the evaluation in a child per line of the input."""
    torch.set_num_threads(1)  # a child of a process with more threads would hang
    model = loaded(folder)
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            status = 1
            try:
                _child(folder, kept, output, model)
                status = 0
            finally:
                os._exit(status)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
