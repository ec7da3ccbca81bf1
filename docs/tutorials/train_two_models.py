"""Train a tiny GPT-2 on Python's documentation and save it twice: `early`, and `late` after as many steps again."""

import json
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from xent_metrics.hosts.lm_eval.python_docs import documents

tokenizer = GPT2Tokenizer().train_new_from_iterator(documents("train").values(), vocab_size=512)
ids = torch.tensor([i for text in documents("train").values() for i in tokenizer.encode(tokenizer.bos_token + text)])

torch.manual_seed(0)
model = GPT2LMHeadModel(
    GPT2Config(vocab_size=512, n_embd=64, n_layer=1, n_head=4, n_positions=64, initializer_range=0.1,
               bos_token_id=0, eos_token_id=0)
)  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for step in range(1, 81):
    starts = torch.randint(len(ids) - 64, (16,))
    batch = torch.stack([ids[start : start + 64] for start in starts])
    optimizer.zero_grad()
    model(input_ids=batch, labels=batch).loss.backward()
    optimizer.step()
    if step in (40, 80):
        name = "early" if step == 40 else "late"
        model.save_pretrained(name)
        tokenizer.save_pretrained(name)

held_out = {topic: text[:2000] for topic, text in documents("validation").items()}
lines = [json.dumps({"topic": topic, "text": text}) for topic, text in held_out.items()]
Path("topics.jsonl").write_text("\n".join(lines))
print(f"saved early and late, and {len(lines)} documents of {sum(len(t.encode()) for t in held_out.values()):,} bytes")
