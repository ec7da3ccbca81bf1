"""Measure one text with one model in all the ways of docs/guides/why_numbers_differ.md, and print its tables.

lm-eval, torchmetrics and the Trainer are the real packages. nanochat, llama.cpp and Hugging Face's `evaluate` are their
formulas written out, since they can't be installed here or need the network.
"""

import math
import re

import numpy as np
import torch
from lm_eval.api import metrics as lm_eval_metrics
from lm_eval.api.instance import Instance
from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchmetrics.text import Perplexity as TorchmetricsPerplexity
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, PrinterCallback, Trainer, TrainingArguments

from xent_metrics import BitsPerByte, CrossEntropy, Perplexity, functional, score_tokens, token_bytes
from xent_metrics.hosts.lm_eval import XentHFLM
from xent_metrics.hosts.lm_eval.python_docs import documents

CONTEXT = 32
TRAINING, HELD_OUT = [*documents("train").values()], [*documents("validation").values()][:10]


def trained(vocab_size, steps=100):
    """A tokenizer and a GPT-2 of one layer, trained on the training topics."""
    tokenizer = GPT2Tokenizer().train_new_from_iterator(TRAINING, vocab_size=vocab_size)
    tokenizer.pad_token = tokenizer.eos_token
    ids = torch.tensor([i for text in TRAINING for i in [0, *tokenizer.encode(text)]])
    torch.manual_seed(0)
    small = {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": CONTEXT, "initializer_range": 0.1}
    small |= {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "tie_word_embeddings": False}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, bos_token_id=0, eos_token_id=0, **small))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        batch = ids[torch.randint(len(ids) - CONTEXT, (32, 1)) + torch.arange(CONTEXT)]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()
    return tokenizer, model.eval()


def rolling(lm, texts):
    """lm-eval's loglikelihood of each text, with its token scores."""
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]
    return lm.loglikelihood_rolling(requests, disable_tqdm=True)


def value(metric, results):
    """A metric of ours over all texts."""
    for result in results:
        metric.update(result.scores)
    return metric.compute().item()


def row(what, gives, exact, digits=4):
    """A line of a table; the difference is relative."""
    print(f"| {what} | {gives:.{digits}f} | {exact:.{digits}f} | {100 * (gives / exact - 1):+.2f} % |")


def table(first):
    print(f"\n| {first} | gives | exact | off by |\n|---|---|---|---|")


tokenizer, model = trained(512)
lm = XentHFLM(model, tokenizer=tokenizer, device="cpu", batch_size=8)
results = rolling(lm, HELD_OUT)
exact = {m.name: value(m, results) for m in (CrossEntropy(), Perplexity(), BitsPerByte())}
nats, text_bytes = -sum(results), sum(len(text.encode()) for text in HELD_OUT)
num_tokens = sum(result.scores.num_rows for result in results)
print(f"| documents | bytes | tokens | {' | '.join(exact)} |\n|---|---|---|---|---|---|")
numbers = " | ".join(f"{number:.4f}" for number in exact.values())
print(f"| {len(HELD_OUT)} | {text_bytes:,} | {num_tokens:,} | {numbers} |")


# What is divided by what.

table("what is counted")
large_tokenizer, large_model = trained(1024)
large = rolling(XentHFLM(large_model, tokenizer=large_tokenizer, device="cpu", batch_size=8), HELD_OUT)
row("nats per token, vocabulary of 1,024 instead of 512", value(CrossEntropy(), large), exact["cross_entropy"])
row("bits per byte, vocabulary of 1,024 instead of 512", value(BitsPerByte(), large), exact["bits_per_byte"])
characters = sum(map(len, HELD_OUT))
row("bits per character", nats / math.log(2) / characters, exact["bits_per_byte"])


def wikitext_form(text):
    """The text with spaces around punctuation, as WikiText has them."""
    return re.sub(r"(?<=\w)-(?=\w)", " @-@ ", re.sub(r"([.,;:!?])(?=\s)", r" \1", text))


pages = [{"page": wikitext_form(text)} for text in HELD_OUT]
detokenized = rolling(lm, [wikitext_detokenizer(page) for page in pages])
theirs = [
    process_results(*both)["bits_per_byte"] for both in zip(pages, [[float(r)] for r in detokenized], strict=True)
]
row("lm-eval's `wikitext`: bits of the detokenized text, bytes of the page", lm_eval_metrics.bits_per_byte(theirs),
    value(BitsPerByte(), detokenized))  # fmt: skip


# What the model sees.

table("what the model sees (nats per token)")
for stride in (16, 8):
    lm.stride = stride
    row(f"windows of {CONTEXT} tokens that score the last {stride}", value(CrossEntropy(), rolling(lm, HELD_OUT)),
        exact["cross_entropy"])  # fmt: skip
lm.stride = None


@torch.no_grad()
def nll(rows):
    """``(rows, T)`` ids to the nll of each id but the first, ``(rows, T − 1)``."""
    return torch.cat([score_tokens(model(part[:, :-1]).logits, part[:, 1:]).nll for part in rows.split(16)])


stream = torch.tensor([i for text in HELD_OUT for i in tokenizer.encode(text)])
chunks = stream[: len(stream) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
row("chunks without BOS, whose first token isn't scored", nll(chunks).mean().item(), exact["cross_entropy"])
after_bos = nll(F.pad(chunks[:, :-1], (1, 0), value=0))
row("the same chunks, each after a BOS", after_bos.mean().item(), exact["cross_entropy"])


# Tools.

table("tool")
behind_bos = torch.cat([torch.zeros_like(chunks[:, :1]), chunks[:, 1:]], dim=1)  # BOS takes the place of the first id
seen = nll(behind_bos)[:, CONTEXT // 2 :]
row("llama.cpp's perplexity: the second half of each chunk", seen.double().mean().exp().item(), exact["perplexity"], 2)
truncated = torch.stack([nll(torch.tensor([[0, *tokenizer.encode(text)][:CONTEXT]])).mean().exp() for text in HELD_OUT])
row("`evaluate`'s perplexity: mean over documents, truncated", truncated.mean().item(), exact["perplexity"], 2)

byte_table = token_bytes(tokenizer)


def nanochat_bpb(rows):
    """nanochat's `evaluate_bpb` over rows ``(rows, T + 1)``: tokens that stand for no bytes don't count."""
    nats, num_bytes = nll(rows), byte_table[rows[:, 1:]]
    return float((nats * (num_bytes > 0)).sum()) / math.log(2) / int(num_bytes.sum())


encoded = [torch.tensor([0, *tokenizer.encode(text)]) for text in HELD_OUT]
beginnings = torch.stack([ids[: CONTEXT + 1] for ids in encoded])
row("nanochat's bits per byte: rows that begin documents", nanochat_bpb(beginnings), exact["bits_per_byte"])
one_stream = torch.cat(encoded).unfold(0, CONTEXT + 1, CONTEXT)
row("the same formula, rows of one stream", nanochat_bpb(one_stream), exact["bits_per_byte"])

sizes = [len(text.encode()) for text in HELD_OUT]
order = sorted(range(len(HELD_OUT)), key=sizes.__getitem__)
groups = [order[:8], order[8:]]  # short documents and long ones
pairs = [[(float(results[i]), sizes[i]) for i in group] for group in groups]
of_tasks = [lm_eval_metrics.bits_per_byte(p) for p in pairs]
mean = lm_eval_metrics.aggregate_subtask_metrics(of_tasks, [len(p) for p in pairs])
row(
    "lm-eval's bits per byte of one task", lm_eval_metrics.bits_per_byte([*pairs[0], *pairs[1]]), exact["bits_per_byte"]
)
row("lm-eval's bits per byte of a group: 8 short documents and 2 long ones", mean, exact["bits_per_byte"])

texts = [text for document in HELD_OUT for text in document.split("\n\n") if text.strip()][:64]
paragraphs = [torch.tensor([0, *tokenizer.encode(text)][:CONTEXT]) for text in texts]


def collate(batch):
    ids = [example["input_ids"] for example in batch]
    labels = pad_sequence(ids, batch_first=True, padding_value=-100)
    return {"input_ids": pad_sequence(ids, batch_first=True), "labels": labels}


arguments = TrainingArguments("trainer", per_device_eval_batch_size=4, use_cpu=True, report_to=[], disable_tqdm=True)
trainer = Trainer(model, arguments, eval_dataset=[{"input_ids": ids} for ids in paragraphs], data_collator=collate)
trainer.remove_callback(PrinterCallback)  # prints every log
evaluated = trainer.evaluate()
batch = collate([{"input_ids": ids} for ids in paragraphs])
with torch.no_grad():
    logits = model(input_ids=batch["input_ids"]).logits[:, :-1]
labels = batch["labels"][:, 1:]
over_tokens = functional.cross_entropy(logits, labels).item()
row("the Trainer's `eval_loss` over 64 paragraphs, batches of 4", evaluated["eval_loss"], over_tokens)


# Arithmetic.

table("arithmetic")


def both(logits, labels, **options):
    """torchmetrics' perplexity and ours."""
    theirs, ours = TorchmetricsPerplexity(**options), Perplexity()
    theirs.update(logits, labels)
    ours.update(logits, labels)
    return theirs.compute().item(), ours.compute().item()


row("torchmetrics' Perplexity(ignore_index=-100)", *both(logits, labels, ignore_index=-100), 2)
row("torchmetrics' Perplexity(), −100 left in the targets", *both(logits, labels), 2)
row(
    "torchmetrics' Perplexity(ignore_index=-100), bfloat16 logits",
    *both(logits.bfloat16(), labels, ignore_index=-100),
    2,
)
wrong = logits.clone()
wrong[0, 0, labels[0, 0]] -= 120
row(
    "torchmetrics' Perplexity(ignore_index=-100), one target 120 below the rest",
    *both(wrong, labels, ignore_index=-100),
    2,
)
half_nll = F.cross_entropy(logits.bfloat16().flatten(0, 1), labels.flatten(), reduction="none")
row(
    "log-softmax in bfloat16",
    (half_nll.double().sum() / (labels >= 0).sum()).item(),
    functional.cross_entropy(logits.bfloat16(), labels).item(),
)

losses = np.array([float(result.scores.nll.sum()) for result in results], dtype=np.float32)
summed = np.cumsum(np.tile(losses, 100_000))[-1] / 100_000  # one after the other, as a loop adds them
row("nats of a text, by a float32 sum over 100,000 passes", float(summed), float(losses.astype(float).sum()), 1)
counter = TorchmetricsPerplexity()
counter.count += 2**24
for _ in range(1000):  # one token at a time, as in generation
    counter.update(logits[:1, :1], labels[:1, :1])
row("float32 counter after 2^24 tokens and 1,000 more, one at a time", counter.count.item(), 2**24 + 1000, 0)

alone = torch.cat([model(input_ids=batch["input_ids"][i : i + 1]).logits[:, :-1].detach() for i in range(64)])
moved = (score_tokens(alone, labels).nll - score_tokens(logits, labels).nll).abs().max().item()
print(
    f"| a token's nll, its paragraph alone or in a batch of 64 | {'within' if moved < 1e-5 else 'not within'} 0.00001 | | |"
)
