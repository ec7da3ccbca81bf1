"""TrainerMetrics attached to Trainers: the values of hidden states, for which no logits are made."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import trainer_jobs as jobs
from support.hf_model import tiny_model
from torch import nn
from transformers import EarlyStoppingCallback, T5Config, T5ForConditionalGeneration

from xent_metrics import TokenMetricCollection, get_metric, score_hidden_states
from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.transformers import TrainerMetrics


def close(values):
    return {name: pytest.approx(value, rel=2e-5, abs=1e-6) for name, value in values.items()}


class Heads:
    """Records the shapes of the logits that the layer of a head makes."""

    def __init__(self, model):
        self.shapes = []
        model.get_output_embeddings().register_forward_hook(lambda layer, args, out: self.shapes.append(out.shape))


@pytest.mark.parametrize("name", ["gpt2", "llama_untied", "gemma2", "granite", "cohere"])
def test_values_are_those_of_the_models_own_logits(name, tmp_path):
    model = tiny_model(name)
    expected = jobs.evaluate(model, jobs.examples(7), tmp_path)
    heads = Heads(model)
    assert jobs.attached(model, jobs.examples(7), tmp_path) == close(expected)
    check, *batches = heads.shapes
    assert check[:2] <= (1, 8)
    made = [shape[1] for shape in batches]  # of 4 batches
    assert made == [1] * 4 or (name == "gpt2" and max(made) > 1)  # whose own loss the Trainer counts in another way


def test_values_have_the_bits_of_the_hidden_states(tmp_path):
    model, seen, labels = tiny_model("gemma2"), [], []
    model.model.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    model.register_forward_pre_hook(lambda module, args, kwargs: labels.append(kwargs), with_kwargs=True)
    found = jobs.attached(model, jobs.examples(7), tmp_path)
    collection = TokenMetricCollection({"cross_entropy": get_metric("cross_entropy")})
    data = jobs.examples(7)
    for start, states in zip(range(0, 7, 2), seen[1:], strict=True):
        target = jobs.collate(data[start : start + 2])["labels"]
        collection.update(score_hidden_states(states[:, :-1], model.lm_head.weight, target[:, 1:], logit_softcap=8.0))
    assert found["eval_cross_entropy"] == collection.compute()["cross_entropy"].item()


@pytest.mark.parametrize("options", [{}, {"label_smoothing_factor": 0.1}, {"bf16": True}], ids=str)
def test_the_loss_is_the_trainers_own(options, tmp_path):
    model = tiny_model("llama_untied")
    plain = jobs.make_trainer(model, jobs.examples(7), tmp_path, **options)
    own = plain.evaluate()["eval_loss"]
    trainer = jobs.make_trainer(model, jobs.examples(7), tmp_path, **options)
    TrainerMetrics(["cross_entropy"]).attach(trainer)
    tolerance = 1e-2 if "bf16" in options else 1e-6
    assert trainer.evaluate()["eval_loss"] == pytest.approx(own, rel=tolerance)


def test_callbacks_see_the_values(tmp_path):
    stop = EarlyStoppingCallback(early_stopping_patience=1)
    trainer = jobs.make_trainer(
        jobs.tiny_llama(), jobs.examples(4), tmp_path, callbacks=[stop], learning_rate=0.0, max_steps=5,
        eval_strategy="steps", eval_steps=1, metric_for_best_model="perplexity", greater_is_better=False,
        save_strategy="no",
    )  # fmt: skip
    TrainerMetrics(["perplexity"]).attach(trainer)
    trainer.train()
    logged = [entry["eval_perplexity"] for entry in trainer.state.log_history if "eval_perplexity" in entry]
    assert len(logged) == 2  # it doesn't improve
    assert "eval_perplexity_stderr" in trainer.state.log_history[-2] | trainer.state.log_history[-1]
    assert trainer.predict(jobs.examples(4)).metrics["test_perplexity"] == pytest.approx(logged[0], rel=1e-6)


@pytest.mark.parametrize("options", [None, {"batch_eval_metrics": True}], ids=["hidden", "batches"])
def test_an_interrupted_evaluation_leaves_nothing(options, tmp_path):
    metrics = TrainerMetrics(["perplexity"])
    given = {} if options is None else {"metrics": metrics, **options}
    trainer = jobs.make_trainer(jobs.tiny_llama(), jobs.Breaking(jobs.examples(6)), tmp_path, **given)
    metrics.attach(trainer)
    with pytest.raises(OSError, match="the disk is gone"):
        trainer.evaluate()
    expected = jobs.evaluate(jobs.tiny_llama(), jobs.examples(6), tmp_path, TrainerMetrics(["perplexity"]))
    assert jobs.own_values(trainer.evaluate()) == close(expected)


class Shifted(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.weight = layer, layer.weight

    def forward(self, states):
        return self.layer(states) + torch.arange(len(self.weight))


def test_a_head_that_cannot_be_read_is_refused(tmp_path):
    model = tiny_model("llama_untied")
    model.lm_head = Shifted(model.lm_head)
    with pytest.raises(
        InvalidInputError, match=r"LlamaForCausalLM makes logits that aren't .* compute_metrics=metrics"
    ):
        jobs.attached(model, jobs.examples(3), tmp_path)
    adapted = get_peft_model(
        tiny_model("llama_untied"), LoraConfig(target_modules=["lm_head"], init_lora_weights=False)
    )
    with pytest.raises(InvalidInputError, match="an adapter on the head"):
        jobs.attached(adapted, jobs.examples(3), tmp_path)


def test_adapters_elsewhere_are_measured(tmp_path):
    model = get_peft_model(tiny_model("llama_untied"), LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    expected = jobs.evaluate(model, jobs.examples(5), tmp_path)
    assert jobs.attached(model, jobs.examples(5), tmp_path) == close(expected)


def test_models_and_batches_without_what_it_needs_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="Bigrams has no base model apart from its head"):
        jobs.attached(jobs.Bigrams(), jobs.examples(3), tmp_path)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(InvalidInputError, match="is an encoder-decoder"):
        jobs.attached(t5, jobs.examples(3), tmp_path)
    with pytest.raises(InvalidInputError, match=r"attach takes a transformers\.Trainer"):
        TrainerMetrics(["perplexity"]).attach(jobs.Bigrams())
    unlabelled = [{"input_ids": each["input_ids"][:4]} for each in jobs.examples(3)]
    trainer = jobs.make_trainer(jobs.tiny_llama(), unlabelled, tmp_path)
    trainer.data_collator = torch.utils.data.default_collate
    TrainerMetrics(["perplexity"]).attach(trainer)
    with pytest.raises(InvalidInputError, match="got no labels"):
        trainer.evaluate()
    with pytest.raises(InvalidInputError, match="attached to this Trainer already"):
        TrainerMetrics(["perplexity"]).attach(trainer)
