"""Generative tasks with local data, as lm-eval's gsm8k, humaneval and triviaqa are written, and the prompts that they make."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from support.lm_eval import write_jsonl

PROBLEMS = [
    {"question": "What is 2 + 3?", "answer": "2 + 3 = 5\n#### 5"},
    {"question": "Tom has 4 bytes and loses 1.", "answer": "He keeps 4 - 1 = 3.\n#### 3"},
    {"question": "Größe?", "answer": "#### 12"},
]
SHOTS = [{"question": "1 + 1?", "answer": "#### 2"}, {"question": "And 7?", "answer": "It is 7.\n#### 7"}]
PROGRAMS = [
    {"prompt": "def one():\n", "canonical_solution": "    return 1\n", "test": "def check(f):\n    assert f() == 1\n"},
    {
        "prompt": "def two(x):\n",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(f):\n    assert f(1) == 2\n",
    },
]
TRIVIA = [
    {"question": "Who counts alike", "aliases": ["everyone", "a model", "the loss of bytes"]},
    {"question": "Where", "aliases": ["Größe", "here"]},
]

_DATA = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/{name}.jsonl}}}}
test_split: test
output_type: generate_until
"""
MATH = (
    "task: math"
    + _DATA
    + """
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
fewshot_config: {{sampler: first_n, samples: {shots}}}
num_fewshot: 2
repeats: 2
generation_kwargs: {{until: ["Question:"], do_sample: false, max_gen_toks: 4}}
filter_list:
  - name: strict-match
    filter: [{{function: regex, regex_pattern: "#### (\\\\-?[0-9.,]+)"}}, {{function: take_first}}]
  - name: flexible-extract
    filter: [{{function: regex, group_select: -1, regex_pattern: "(-?[0-9]+)"}}, {{function: take_first}}]
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true, regexes_to_ignore: ["(?s).*#### "]}}
  - {{metric: bleu, aggregation: bleu, higher_is_better: true}}
  - {{metric: !function rouge.rouge_l, aggregation: mean, higher_is_better: true}}
"""
)
CODE = (
    "task: code"
    + _DATA
    + """
unsafe_code: true
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{test}}}}\\ncheck()"
generation_kwargs: {{until: ["\\ndef"], do_sample: false, max_gen_toks: 4}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
)
QA = (
    "task: qa"
    + _DATA
    + """
doc_to_text: "Question: {{{{question}}}}?\\nAnswer:"
doc_to_target: "{{{{aliases}}}}"
num_fewshot: 0
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 4}}
filter_list:
  - {{name: remove_whitespace, filter: [{{function: remove_whitespace}}, {{function: take_first}}]}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
)
INSTRUCTIONS = (
    "task: instructions" + _DATA + "doc_to_text: question\ndoc_to_target: 0\nmetric_list: [{{metric: exact_match}}]\n"
)
ROUGE = """from rouge_score.rouge_scorer import RougeScorer


def rouge_l(references, predictions, **_):
    return RougeScorer(["rougeL"]).score(references[0], predictions[0])["rougeL"].fmeasure
"""
OURS = "class: !function xent_metrics.hosts.lm_eval.XentTask\n"
#: Writes every turn between its role and a mark, and begins the assistant's.
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if not loop.last or m.role != 'assistant' %}|{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_tasks(folder: Path, **more: str) -> None:
    """Write the tasks of lm-eval's class and their data; `more` is YAML by the task's name, added to its end."""
    data = {"math": PROBLEMS, "code": PROGRAMS, "qa": TRIVIA, "instructions": PROBLEMS}
    texts = {"math": MATH, "code": CODE, "qa": QA, "instructions": INSTRUCTIONS}
    (folder / "rouge.py").write_text(ROUGE)
    for name, documents in data.items():
        write_jsonl(folder / f"{name}.jsonl", documents)
        text = texts[name].format(folder=folder, name=name, shots=json.dumps(SHOTS))
        (folder / f"{name}.yaml").write_text(text + more.get(name, ""), encoding="utf-8")


def math_prompt(problem: dict[str, str]) -> str:
    """The context of a problem: two examples and the question."""
    shots = "".join(f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in SHOTS)
    return f"{shots}Question: {problem['question']}\nAnswer:"


def nats(model: Any, tokenizer: Any, context: str, text: str) -> float:
    """−ln p(text | context) by the model's own logits; white space that ends the context belongs to the text."""
    whole = tokenizer(context + text)["input_ids"]
    start = len(tokenizer(context.rstrip())["input_ids"])
    with torch.no_grad():
        log_prob = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return -sum(float(log_prob[place - 1, whole[place]]) for place in range(start, len(whole)))


def bits_per_byte(model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> float:
    """Σ bits / Σ bytes over pairs of a context and a text."""
    spans = [context[len(context.rstrip()) :] + text for context, text in pairs]
    num_bytes = sum(len(span.encode()) for span in spans)
    return sum(nats(model, tokenizer, *pair) for pair in pairs) / math.log(2) / num_bytes
