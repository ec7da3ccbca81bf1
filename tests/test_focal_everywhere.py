"""The focal plugin, once installed, works in an lm-eval YAML and in a LightningModule, with the same bits in both."""

from __future__ import annotations

import json

import lightning.pytorch as pl
import pytest
import torch
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from torch import nn

from xent_metrics import TokenMetricCollection, get_metric
from xent_metrics.errors import MetricOptionError
from xent_metrics.hosts.lm_eval import TorchLM

TEXTS = ["héllo wörld, this is one.", "two  words", "\tand a third text of several words\n", "四 τέσσερα four 🙂"]
GAMMA = 1.5

ROLLING = """
task: focal_rolling
class: !function xent_metrics.hosts.lm_eval.XentTask
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: focal_cross_entropy
    gamma: 1.5
  - metric: cross_entropy
"""

CHOICES = """
task: focal_choices
class: !function xent_metrics.hosts.lm_eval.XentTask
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - metric: focal_cross_entropy
    {option}: 1.5
    over: choices
"""


class Bigrams(pl.LightningModule):
    """A table of logits, whose bits don't depend on the batch. It logs the metric as any module would."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.randn(257, 257, generator=torch.Generator().manual_seed(3)))
        self.focal = get_metric("focal_cross_entropy", gamma=GAMMA)
        self.others = TokenMetricCollection(
            {"cross_entropy": "cross_entropy", "unfocused": get_metric("focal_cross_entropy", gamma=0.0)}, prefix="val/"
        )

    def forward(self, ids):
        return self.table(ids)

    def validation_step(self, batch, batch_idx):
        logits, target = self(batch[:, :-1]), batch[:, 1:]
        self.focal(logits, target)
        self.others.update(logits, target)
        self.log("val/focal", self.focal)
        self.log_dict(self.others)


@pytest.fixture(scope="module")
def module():
    return Bigrams()


def task_of(folder, yaml, documents, **more):
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    (folder / "task.yaml").write_text(yaml.format(data=data, **more))
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return manager.load([yaml.split()[1]])


def values(tasks, module):
    (results,) = evaluate(TorchLM(module, max_length=64), tasks, bootstrap_iters=0)["results"].values()
    return {key.removesuffix(",none"): value for key, value in results.items() if key.endswith(",none")}


def test_yaml_and_lightning_log_the_same_bits(module, tmp_path):
    by_yaml = values(task_of(tmp_path, ROLLING, [{"text": text} for text in TEXTS]), module)
    prefix = TorchLM(module, max_length=64).prefix_token_id
    batches = [torch.tensor([[prefix, *text.encode()]]) for text in TEXTS]
    trainer = pl.Trainer(
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    (logged,) = trainer.validate(module, torch.utils.data.DataLoader(batches, batch_size=None), verbose=False)
    assert logged["val/focal"] == by_yaml["focal_cross_entropy"]
    assert logged["val/cross_entropy"] == logged["val/unfocused"] == by_yaml["cross_entropy"]
    assert by_yaml["focal_cross_entropy"] < by_yaml["cross_entropy"]
    logits = torch.cat([module(batch[0, :-1]) for batch in batches]).double()
    p = logits.softmax(-1).gather(-1, torch.cat([batch[0, 1:] for batch in batches])[:, None])
    assert by_yaml["focal_cross_entropy"] == pytest.approx(((1 - p) ** GAMMA * -p.log()).mean().item(), rel=1e-6)
    assert 0 < by_yaml["focal_cross_entropy_stderr"] < by_yaml["focal_cross_entropy"]


def test_over_choices_it_is_the_formula_of_the_choices(module, tmp_path):
    documents = [
        {"question": "One", "choices": ["a", "bb", "c c"], "gold": 1},
        {"question": "Two", "choices": ["d", "ee"], "gold": 0},
    ]
    found = values(task_of(tmp_path, CHOICES, documents, option="gamma"), module)
    terms = []
    for document in documents:
        ids = [list(f"{document['question']} {choice}".encode()) for choice in document["choices"]]
        sums = [
            -nn.functional.cross_entropy(module(torch.tensor(i[:-1])), torch.tensor(i[1:]), reduction="none")[
                len(document["question"]) - 1 :
            ].sum()
            for i in ids
        ]
        p = torch.stack(sums).double().softmax(0)[document["gold"]]
        terms.append((1 - p) ** GAMMA * -p.log())
    assert found["focal_cross_entropy"] == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_a_misspelt_option_is_an_error_before_anything_runs(tmp_path):
    with pytest.raises(MetricOptionError, match=r"focal_cross_entropy has no option 'gama'. Did you mean 'gamma'"):
        task_of(tmp_path, CHOICES, [{"question": "One", "choices": ["a", "b"], "gold": 1}], option="gama")
