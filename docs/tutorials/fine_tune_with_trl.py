"""Fine-tune a tiny Llama with TRL's SFTTrainer on prompts and completions; measure the completions alone."""

from pydoc_data.topics import topics

from datasets import Dataset
from transformers import GPT2Tokenizer, LlamaConfig, LlamaForCausalLM, PrinterCallback, set_seed
from trl import SFTConfig, SFTTrainer

from xent_metrics.hosts.transformers import TrainerMetrics

texts = [text for _, text in sorted(topics.items())]
split_texts = {"train": texts[20:60], "validation": texts[:20]}
tokenizer = GPT2Tokenizer().train_new_from_iterator(split_texts["train"], vocab_size=512)
tokenizer.pad_token = tokenizer.eos_token


def questions(split):
    """The first words of each paragraph as a prompt, the next ones as its completion."""
    texts = [text.split() for document in split_texts[split] for text in document.split("\n\n")]
    pairs = [(" ".join(words[:8]), " " + " ".join(words[8:40])) for words in texts if len(words) > 8]
    return Dataset.from_list([{"prompt": prompt, "completion": completion} for prompt, completion in pairs])


set_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
                max_position_embeddings=256, initializer_range=0.1,
                bos_token_id=0, eos_token_id=0, pad_token_id=0)
)  # fmt: skip
metrics = TrainerMetrics(["cross_entropy", "token_accuracy", {"metric": "bits_per_byte", "token_bytes": tokenizer}])
arguments = SFTConfig(
    "sft", max_steps=30, learning_rate=1e-2, per_device_train_batch_size=8, per_device_eval_batch_size=8, max_length=192,
    use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
)  # fmt: skip
trainer = SFTTrainer(
    model, arguments, train_dataset=questions("train"), eval_dataset=questions("validation").select(range(100)),
    processing_class=tokenizer,
)  # fmt: skip
metrics.attach(trainer)  # from here on, every evaluation measures them

trainer.remove_callback(PrinterCallback)  # prints every log
trainer.train()
values = trainer.evaluate() | trainer.state.log_history[-1]  # TRL adds its own values to the log
for name in ("loss", "cross_entropy", "mean_token_accuracy", "token_accuracy", "bits_per_byte"):
    error = values.get(f"eval_{name}_stderr")
    print(f"{name:20} {values[f'eval_{name}']:.4f}" + (f" ± {error:.4f}" if error is not None else ""))
