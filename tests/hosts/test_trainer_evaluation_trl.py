"""TrainerMetrics attached to TRL's SFTTrainer, whose fused head makes no logits."""

import pytest
import torch
from datasets import Dataset
from support import trainer_jobs as jobs
from support.hf_model import tiny_model, tiny_tokenizer
from support.versions import needs_trl

from xent_metrics.hosts.transformers import TrainerMetrics


def sft_trainer(folder, **options):
    from trl import SFTConfig, SFTTrainer

    pairs = [{"prompt": "The loss of", "completion": " a language model is" + " the mean" * n} for n in range(5)]
    arguments = SFTConfig(
        str(folder), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, max_length=48, max_steps=1,
        per_device_eval_batch_size=2, save_strategy="no",
    )  # fmt: skip
    data = Dataset.from_list(pairs)
    model, tokenizer = tiny_model("gemma2"), tiny_tokenizer()
    return SFTTrainer(model, arguments, train_dataset=data, eval_dataset=data, processing_class=tokenizer, **options)


@needs_trl
def test_values_are_those_of_the_logits_that_trl_makes_for_compute_metrics(tmp_path):
    metrics = TrainerMetrics(jobs.METRICS)
    given = {"compute_metrics": metrics, "preprocess_logits_for_metrics": metrics.preprocess_logits}
    with_logits = sft_trainer(tmp_path, **given)
    with pytest.warns(FutureWarning, match="logits"):
        found = with_logits.evaluate()
    trainer = sft_trainer(tmp_path)
    TrainerMetrics(jobs.METRICS).attach(trainer)
    shapes = []
    trainer.model.lm_head.register_forward_hook(lambda layer, args, out: shapes.append(out.shape))
    own = trainer.evaluate()
    names = [
        name for name in found if "cross_entropy" in name or "calibration" in name or name == "eval_token_accuracy"
    ]
    assert len(names) == 5
    assert {name: own[name] for name in names} == {name: pytest.approx(found[name], rel=2e-5) for name in names}
    assert len(shapes) == 1  # the head was checked once, on one sequence; TRL's fused head doesn't call it
    assert shapes[0][:2] <= torch.Size([1, 8])
    assert trainer.state.log_history[-1]["eval_mean_token_accuracy"] >= 0  # TRL's own stay
    assert trainer.state.log_history[-1]["eval_cross_entropy"] == own["eval_cross_entropy"]
