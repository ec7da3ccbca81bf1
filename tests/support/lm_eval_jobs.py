"""What the processes of test_empty_ranks.py and test_invariant.py run: one small model under three names of lm-eval's."""

import contextlib
import json
import os

import torch
from accelerate.state import AcceleratorState
from lm_eval import simple_evaluate
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from support.distributed import launched
from xent_metrics.hosts.lm_eval import TorchLM
from xent_metrics.hosts.lm_eval.model_names import register_models
from xent_metrics.hosts.lm_eval.resume import resume
from xent_metrics.hosts.lm_eval.task_manager import XentTaskManager

MODELS = ("hf", "xent-hf", "xent-torch")
END = 256

TASK = """
task: {name}
class: !function xent_metrics.hosts.lm_eval.XentTask
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/{name}.jsonl}}}}
test_split: test
"""
ROLLING = TASK + "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{{{text}}}}'\n"
CHOICES = (
    TASK
    + "output_type: multiple_choice\ndoc_to_text: '{{{{text}}}}'\ndoc_to_choice: '{{{{choices}}}}'\ndoc_to_target: gold\n"
)
GOLDS = (
    TASK + "output_type: generate_until\ndoc_to_text: '{{{{text}}}}'\ndoc_to_target: '{{{{choices[0]}}}}'\n"
    "generation_kwargs: {{until: [], max_gen_toks: 2, do_sample: false}}\n"
)
#: By task: its YAML, its metrics, and whether a stock model can score them.
TASKS = {
    "texts": (ROLLING, ["bits_per_byte", "word_perplexity"], True),
    "tokens": (ROLLING, ["cross_entropy", "perplexity", "token_accuracy", "expected_calibration_error"], False),
    "golds": (GOLDS, ["bits_per_byte", "cross_entropy"], False),
    "choices": (CHOICES, ["cross_entropy", "expected_calibration_error", "acc"], True),
}  # fmt: skip


def write(folder, even=True):
    """Write the model, its tokenizer of bytes, and five documents per task, all of one length if `even`.

    The bits of a model's matmul may depend on the shape of its batch. So documents have one length, batches have one
    document, and xent-hf must not pack several into one row (logits_cache=False).
    """
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab | {"<|end|>": END}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|end|>")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **end).save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=END + 1, n_positions=64, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5, bos_token_id=END
    )
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    words = ["one two three four", "fünf sechs sieben", "a  bc def ghij klm", "«quotes» and more", "0 1 22 333 4444 55"]
    words = [text + "." * (20 - len(text.encode()) if even else 9 * i) for i, text in enumerate(words)]
    choices = [[" abcd", " efgh", " ijkl"], [" mnop", " qrst", " uvwx"], [" yzab", " cdef", " ghij"]]
    choices = choices if even else [[choice * (i + 1) for i, choice in enumerate(three)] for three in choices]
    for name, (yaml, metrics, _) in TASKS.items():
        documents = [{"text": text, "choices": choices[i % 3], "gold": i % 2} for i, text in enumerate(words)]
        lines = "".join(json.dumps(document) + "\n" for document in documents)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        listed = "".join(
            f"  - metric: {metric}\n" + "    over: choices\n" * (name == "choices" and metric != "acc")
            for metric in metrics
        )
        (folder / f"{name}.yaml").write_text(f"{yaml.format(name=name, folder=folder)}metric_list:\n{listed}")


class Logits(nn.Module):
    max_length = 64

    def __init__(self, folder):
        super().__init__()
        self.model = GPT2LMHeadModel.from_pretrained(f"{folder}/model")

    def forward(self, ids):
        return self.model(ids).logits


def model_of(name, folder):
    if name != "xent-torch":
        arguments = {"pretrained": f"{folder}/model", "dtype": "float32", "logits_cache": False}
        return {"model": name, "model_args": arguments, "device": "cpu"}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(f"{folder}/model")
    return {"model": TorchLM(Logits(folder), tokenizer=tokenizer, device="cpu")}


def evaluate(model, folder, limit=None, tasks=None):
    """lm-eval's results, on rank 0."""
    register_models()
    known = [name for name, (_, _, stock) in TASKS.items() if stock or model != "hf"]
    results = simple_evaluate(
        **model_of(model, folder), tasks=tasks or known, limit=limit, batch_size=1, bootstrap_iters=0,
        task_manager=XentTaskManager(include_path=str(folder), include_defaults=False),
    )  # fmt: skip
    return results and {
        "results": results["results"],
        "samples": {task: sorted(sample["doc_id"] for sample in found) for task, found in results["samples"].items()},
    }


@contextlib.contextmanager
def accelerated(rank, size):
    """This process as one of those that `accelerate launch` starts."""
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    counted = torch.cuda.device_count
    with launched(rank, size):
        # accelerate would take more threads, and the bits of a model's matmul depend on their number.
        os.environ.update(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
        torch.cuda.device_count = lambda: size  # `hf` deals documents out only if it counts as many GPUs
        try:
            yield
        finally:
            torch.cuda.device_count = counted
    AcceleratorState._reset_state(reset_partial_state=True)


def evaluated(rank, size, folder):
    """Every model on all documents, and on the first document alone, which leaves the other ranks empty."""
    found = {}
    with accelerated(rank, size):
        for model in MODELS:
            found[model] = evaluate(model, folder)
            found[model, 1] = evaluate(model, folder, 1)
    return found


def invariant_samples(folder, **options):
    """The values of xent-hf with `invariant=true`, and each document's responses, in order; None on the other ranks."""
    register_models()
    results = simple_evaluate(
        model="xent-hf", model_args={"pretrained": f"{folder}/model", "dtype": "float32", "invariant": True},
        device="cpu", tasks=[*TASKS], bootstrap_iters=0, **options,
        task_manager=XentTaskManager(include_path=str(folder), include_defaults=False),
    )  # fmt: skip
    if not results:
        return None
    samples = {
        task: [repr(sample["filtered_resps"]) for sample in sorted(found, key=lambda sample: sample["doc_id"])]
        for task, found in results["samples"].items()
    }
    return results["results"], samples


def resumed_in_processes(rank, size, folder, kept):
    """`invariant_samples` with results kept in a folder, as one of the processes."""
    with accelerated(rank, size), resume(kept):
        return invariant_samples(folder, batch_size=4)


def invariant_in_processes(rank, size, folder):
    """`invariant_samples` as one of the processes."""
    with accelerated(rank, size):
        return invariant_samples(folder, batch_size=4)
