"""lm-eval task YAMLs with their data: rolling ones of ours and of lm-eval's own, multiple choice, a group."""

from __future__ import annotations

from pathlib import Path

from support.lm_eval import TEXTS, write_jsonl

ROLLING = """
task: {name}
{made_by}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
{metric_list}
metadata: {{version: 1.0}}
"""
CHOICE = """# Questions with
#   choices.
task: choice
class: !function xent_metrics.hosts.lm_eval.XentTask
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choices.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - metric: acc
  - metric: cross_entropy
    over: choices
  - metric: bits_per_byte
metadata: {{version: 1.0}}
"""
OURS = "class: !function xent_metrics.hosts.lm_eval.XentTask"
GROUP = """
group: both
task: [rolling_stock, rolling_other]
aggregate_metric_list: [{metric: bits_per_byte}]
"""


def write_tasks(folder: Path) -> None:
    """Write the YAMLs and their data into a folder."""
    write_jsonl(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
    questions = [
        {"question": f"Q{i}", "choices": ["yes", "no", "who knows"][: 2 + i % 2], "gold": i % 2} for i in range(5)
    ]
    write_jsonl(folder / "choices.jsonl", questions)
    lengths = "metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}, {metric: word_perplexity}]"
    for name, made_by, metric_list in [
        ("rolling_ours", OURS, lengths),
        ("rolling_tokens", OURS, "metric_list: [{metric: cross_entropy}]"),
        ("rolling_stock", "", ""),
        ("rolling_other", "", "metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity}]"),
    ]:
        text = ROLLING.format(name=name, made_by=made_by, metric_list=metric_list, folder=folder)
        (folder / f"{name}.yaml").write_text(text)
    (folder / "choice.yaml").write_text(CHOICE.format(folder=folder))
    (folder / "both.yaml").write_text(GROUP)
