"""Train a tiny Llama with the Hugging Face Trainer; report cross entropy and bits per byte beside `eval_loss`."""

from pydoc_data.topics import topics

from transformers import (
    DataCollatorForLanguageModeling,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from xent_metrics.hosts.transformers import TrainerMetrics

texts = [text for _, text in sorted(topics.items())]
split_texts = {"train": texts[20:60], "validation": texts[:20]}
tokenizer = GPT2Tokenizer().train_new_from_iterator(split_texts["train"], vocab_size=512)
tokenizer.pad_token = tokenizer.eos_token


def paragraphs(split):
    """The ids of each paragraph after the id that begins a text; at most 128 of them."""
    texts = [text for document in split_texts[split] for text in document.split("\n\n") if text.strip()]
    return [{"input_ids": tokenizer.encode(tokenizer.bos_token + text)[:128]} for text in texts]


set_seed(0)
model = LlamaForCausalLM(
    LlamaConfig(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
                max_position_embeddings=128, initializer_range=0.1,
                bos_token_id=0, eos_token_id=0, pad_token_id=0)
)  # fmt: skip
metrics = TrainerMetrics(["cross_entropy", {"metric": "bits_per_byte", "token_bytes": tokenizer}])


def trainer(batch_size):
    arguments = TrainingArguments(
        "trainer", max_steps=40, learning_rate=1e-2, per_device_train_batch_size=16, per_device_eval_batch_size=batch_size,
        use_cpu=True, report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
    )  # fmt: skip
    made = Trainer(
        model, arguments, train_dataset=paragraphs("train"), eval_dataset=paragraphs("validation")[:200],
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False), processing_class=tokenizer,
        compute_metrics=metrics, preprocess_logits_for_metrics=metrics.preprocess_logits,
    )  # fmt: skip
    made.remove_callback(PrinterCallback)  # prints every log
    return made


trainer(16).train()
for batch_size in (16, 4, 64):
    values = trainer(batch_size).evaluate()
    print(f"batch size {batch_size}: eval_loss {values['eval_loss']:.4f}, " + ", ".join(
        f"{name} {values[f'eval_{name}']:.4f} ± {values[f'eval_{name}_stderr']:.4f}"
        for name in ("cross_entropy", "bits_per_byte")
    ))  # fmt: skip
