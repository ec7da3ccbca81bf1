"""TorchLM against lm-eval's own `hf` model, and what it promises besides: token scores, batches, loading, ranks, errors."""

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from xent_metrics import BitsPerByte, CrossEntropy, TokenScores
from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval import TorchLM
from xent_metrics.hosts.lm_eval.models.tokenizers import ByteTokenizer
from xent_metrics.hosts.lm_eval.models.windows import Window, padded, rolling_windows

TEXTS = [
    "The assert statement is a convenient way to insert debugging assertions into a program.",
    "Short.",
    "naïve café – 日本語 🎉 and then a longer tail of plain words so that it spans several windows of the model.",
    "",
]
PAIRS = [
    ("The assert statement is", " a convenient way"),
    ("The assert statement is", " a convenient day"),
    ("Trailing space ", "moves over"),
    ("", "No context at all"),
    ("x" * 300 + " a long context is cut from the left", " but the end stays"),
    ("One token follows", "."),
    ("One token follows", "!"),
]


def rolling(*texts):
    return [Instance("loglikelihood_rolling", {}, (text,), 0) for text in texts]


def pairs(*requests):
    return [Instance("loglikelihood", {"id": i}, request, 0) for i, request in enumerate(requests)]


def byte_bpe(adds_bos):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "adds_bos"])
def tokenizer(request):
    return byte_bpe(request.param)


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=320, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config).eval()


class ByteNet(nn.Module):
    """Causal: the running sum of the embeddings."""

    max_length = 16

    def __init__(self, vocab_size=257, size=8):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embed = nn.Embedding.from_pretrained(torch.randn(vocab_size, size, generator=generator))
        self.head = nn.Linear(size, vocab_size)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(vocab_size, size, generator=generator))
            self.head.bias.zero_()

    def forward(self, ids):
        return self.head(torch.tanh(self.embed(ids).cumsum(1)))


class LightningByteNet(pl.LightningModule):
    def __init__(self, size=8):
        super().__init__()
        self.save_hyperparameters()
        self.net = ByteNet(size=size)

    def forward(self, ids):
        return (self.net(ids), "a state that nobody asked for")


# The same numbers as lm-eval's own model.


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("keep_order", [False, True])
def test_rolling_agrees_with_hf(gpt2, tokenizer, batch_size, keep_order):
    stock = HFLM(pretrained=gpt2, tokenizer=tokenizer, device="cpu", batch_size=1)
    ours = TorchLM(gpt2, tokenizer=tokenizer, batch_size=batch_size, keep_order=keep_order, device="cpu")
    expected = stock.loglikelihood_rolling(rolling(*TEXTS[:3]), disable_tqdm=True)
    found = ours.loglikelihood_rolling(rolling(*TEXTS[:3]))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_loglikelihood_agrees_with_hf(gpt2, tokenizer, batch_size):
    stock = HFLM(pretrained=gpt2, tokenizer=tokenizer, device="cpu", batch_size=1)
    ours = TorchLM(gpt2, tokenizer=tokenizer, batch_size=batch_size, device="cpu")
    expected = stock.loglikelihood(pairs(*PAIRS), disable_tqdm=True)
    found = ours.loglikelihood(pairs(*PAIRS))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_samples_list_tokens_and_the_likeliest_when_asked(gpt2, tokenizer):
    plain, logged = (TorchLM(gpt2, tokenizer=tokenizer, log_tokens=log, log_alternatives=3) for log in (False, True))
    [text] = logged.loglikelihood_rolling(rolling(TEXTS[0]))
    assert [text] == plain.loglikelihood_rolling(rolling(TEXTS[0]))
    tokens = json.loads(str(text))["tokens"]
    assert "".join(token["text"] for token in tokens).removeprefix("<s>") == TEXTS[0]
    assert math.fsum(token["nll"] for token in tokens) == -text
    greedy = [token["alternatives"][0][0] == token["text"] for token in tokens]
    assert greedy == [bool(correct) for correct in text.scores.correct]
    for token in tokens:
        shares = [share for _, share in token["alternatives"]]
        assert len(shares) == 3
        assert shares == sorted(shares, reverse=True)
    assert pickle.loads(pickle.dumps(text)).tokens == text.tokens
    nothing = json.loads(str(logged.loglikelihood_rolling(rolling(""))[0]))["tokens"]
    assert [token["text"] for token in nothing] in ([], ["<s>"])
    with pytest.raises(InvalidInputError, match="log_alternatives is a whole number, 0 for none; got -1"):
        TorchLM(gpt2, tokenizer=tokenizer, log_tokens=True, log_alternatives=-1)


def test_greedy_continuation_is_found(gpt2, tokenizer):
    lm = TorchLM(gpt2, tokenizer=tokenizer, device="cpu")
    context = [0, 300, 40]
    best = gpt2(torch.tensor([context])).logits[0, -1].argmax().item()
    scores = lm.score([Window(tuple(context), (best,)), Window(tuple(context), ((best + 1) % 320,))])
    assert [bool(s.correct) for s in scores] == [True, False]


# Token scores.


def test_scores_are_those_of_the_tokens():
    net = ByteNet()
    lm = TorchLM(net, max_length=16)
    [found] = lm.loglikelihood_rolling(rolling(TEXTS[2]))
    ids = list(TEXTS[2].encode())
    expected = []
    for window in rolling_windows(ids, prefix=256, max_length=16):
        logits = net(torch.tensor([window.inputs]))[0, -len(window.targets) :]
        expected.append(nn.functional.cross_entropy(logits, torch.tensor(window.targets), reduction="none"))
    torch.testing.assert_close(found.scores.nll, torch.cat(expected), rtol=1e-5, atol=1e-6)
    assert found.scores.target.tolist() == ids
    assert found.scores.num_bytes.tolist() == [1] * len(ids)
    assert float(found) == -math.fsum(found.scores.nll.tolist())


def test_metrics_of_the_scores():
    lm = TorchLM(nn.Embedding.from_pretrained(torch.zeros(257, 257)), max_length=8)
    found = lm.loglikelihood_rolling(rolling(*TEXTS))
    scores = TokenScores.cat([value.scores for value in found])
    cross_entropy, bits_per_byte = CrossEntropy(), BitsPerByte()
    cross_entropy.update(scores)
    bits_per_byte.update(scores)
    assert cross_entropy.compute().item() == pytest.approx(math.log(257), rel=1e-7)
    assert bits_per_byte.compute().item() == pytest.approx(math.log2(257), rel=1e-7)
    assert len(scores) == len("".join(TEXTS).encode())


def test_num_bytes_with_a_real_tokenizer(gpt2, tokenizer):
    lm = TorchLM(gpt2, tokenizer=tokenizer, device="cpu")
    found = lm.loglikelihood_rolling(rolling(*TEXTS))
    assert [int(value.scores.num_bytes.sum()) for value in found] == [len(text.encode()) for text in TEXTS]


def test_a_tokenizer_that_cannot_count_gives_no_bytes():
    plain = SimpleNamespace(encode=lambda text: [ord(c) % 250 for c in text], decode=lambda ids: "", bos_token_id=250)
    [found] = TorchLM(ByteNet(), tokenizer=plain).loglikelihood_rolling(rolling("abc"))
    assert found.scores.num_bytes is None
    assert found.scores.target.tolist() == [97, 98, 99]


def test_other_tokenizers(tokenizer):
    import tiktoken

    ranks = {bytes([i]): i for i in range(256)}
    encoding = tiktoken.Encoding(
        "bytes", pat_str=r"(?s).", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 256}
    )
    by_bytes = TorchLM(ByteNet()).loglikelihood_rolling(rolling(TEXTS[2], "a <|endoftext|> spelt out"))
    by_tiktoken = TorchLM(ByteNet(), tokenizer=encoding).loglikelihood_rolling(
        rolling(TEXTS[2], "a <|endoftext|> spelt out")
    )
    assert by_tiktoken == by_bytes
    fast = TorchLM(ByteNet(vocab_size=320), tokenizer=tokenizer.backend_tokenizer, prefix_token_id=0)
    assert fast.tok_encode("Short.", add_special_tokens=False) == tokenizer.encode("Short.", add_special_tokens=False)


def test_values_pickle_with_their_scores():
    [value] = TorchLM(ByteNet()).loglikelihood_rolling(rolling("abc"))
    [pair] = TorchLM(ByteNet()).loglikelihood(pairs(("a", "b")))
    for result in (value, pair):
        again = pickle.loads(pickle.dumps(result))
        assert again == result
        assert torch.equal(again.scores.nll, result.scores.nll)


def test_bfloat16_scores_in_float32():
    [found] = TorchLM(ByteNet(), dtype="bfloat16").loglikelihood_rolling(rolling(TEXTS[0]))
    [wide] = TorchLM(ByteNet()).loglikelihood_rolling(rolling(TEXTS[0]))
    assert found.scores.nll.dtype == torch.float32
    assert found == pytest.approx(wide, rel=0.05)


# Batches.


class Shapes(nn.Module):
    """Remembers the shapes of what it is run on."""

    def __init__(self):
        super().__init__()
        self.net = ByteNet()
        self.seen = []

    def forward(self, ids):
        self.seen.append(ids.clone())
        return self.net(ids)


def test_sorted_batches_are_padded_to_their_own_longest_and_share_rows():
    shapes = Shapes()
    lm = TorchLM(shapes, max_length=16, batch_size=2)
    shapes.seen.clear()
    found = lm.loglikelihood(pairs(("ab", "c"), ("abcdef", "gh"), ("ab", "d"), ("abcd", "e")))
    assert [tuple(ids.shape) for ids in shapes.seen] == [(2, 7), (1, 2)]  # "ab" is read once for two continuations
    assert len({value for value, _ in found}) == 4


def test_in_order_batches_are_a_data_loader_s():
    texts = [TEXTS[0], TEXTS[0], TEXTS[2]]
    shapes = Shapes()
    lm = TorchLM(shapes, max_length=16, batch_size=4, keep_order=True)
    shapes.seen.clear()
    found = lm.loglikelihood_rolling(rolling(*texts))
    windows = [w for text in texts for w in rolling_windows(list(text.encode()), prefix=256, max_length=16)]
    loader = torch.utils.data.DataLoader(
        windows, batch_size=4, collate_fn=lambda rows: padded(rows, length=16, fill=256)
    )
    metric = CrossEntropy()
    expected = list(loader)
    assert len(shapes.seen) == len(expected)
    for seen, (ids, target) in zip(shapes.seen, expected, strict=True):
        assert torch.equal(seen, ids)
        with torch.no_grad():
            metric.update(shapes.net(ids), target)
    other = CrossEntropy()
    for value in found:
        other.update(value.scores)
    assert metric.compute().item() == other.compute().item()
    assert metric.counts()["counted"] == other.counts()["counted"] == sum(len(text.encode()) for text in texts)


def test_in_order_pads_short_windows_to_the_same_shape():
    shapes = Shapes()
    lm = TorchLM(shapes, max_length=16, batch_size=2, keep_order=True)
    shapes.seen.clear()
    lm.loglikelihood_rolling(rolling("ab", "c", "d"))
    assert [tuple(ids.shape) for ids in shapes.seen] == [(2, 16), (1, 16)]


def test_the_order_of_requests_only_orders_the_answers():
    lm = TorchLM(ByteNet(), batch_size=3)
    forward = lm.loglikelihood_rolling(rolling(*TEXTS))
    backward = lm.loglikelihood_rolling(rolling(*reversed(TEXTS)))
    assert forward == backward[::-1]
    assert forward[3] == 0.0


# Loading.


def test_lightning_checkpoint_and_state_dict_give_the_same_bits(tmp_path):
    module = LightningByteNet(size=12)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "lightning.ckpt")
    torch.save(module.net.state_dict(), tmp_path / "weights.pt")
    expected = TorchLM(module, max_length=16).loglikelihood_rolling(rolling(*TEXTS))
    by_lightning = TorchLM(LightningByteNet, checkpoint=tmp_path / "lightning.ckpt", max_length=16)
    by_state_dict = TorchLM(ByteNet, checkpoint=str(tmp_path / "weights.pt"), module_options={"size": 12})
    assert by_lightning.model.hparams.size == 12
    assert by_lightning.loglikelihood_rolling(rolling(*TEXTS)) == expected
    assert by_state_dict.loglikelihood_rolling(rolling(*TEXTS)) == expected


def test_from_the_command_line_s_arguments(tmp_path, monkeypatch):
    (tmp_path / "their_model.py").write_text(
        "import torch\nfrom torch import nn\n\n\n"
        "def make(size):\n    return nn.Embedding.from_pretrained(torch.zeros(size, size))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    torch.save({"weight": torch.ones(257, 257).triu()}, tmp_path / "w.pt")
    kind = get_model("xent-torch")
    assert kind is TorchLM
    text = f"module=their_model:make,checkpoint={tmp_path / 'w.pt'},tokenizer=bytes,max_length=32,keep_order=true"
    from_cli = {"batch_size": "2", "device": "cuda:0", "max_batch_size": None, "module_options": {"size": 257}}
    lm = kind.create_from_arg_string(text, from_cli)
    assert (lm.batch_size, lm.max_length, lm.keep_order, lm.device.type) == (2, 32, True, "cpu")
    assert lm.get_model_info()["module"] == "torch.nn.modules.sparse:Embedding"
    direct = TorchLM(nn.Embedding.from_pretrained(torch.ones(257, 257).triu()), max_length=32)
    assert lm.loglikelihood_rolling(rolling("abc")) == direct.loglikelihood_rolling(rolling("abc"))
    assert kind.create_from_arg_obj(simple_parse_args_string(text), from_cli).max_length == 32


# Several processes.

_RANKS = """
import sys, torch
from lm_eval.api.instance import Instance
from xent_metrics.hosts.lm_eval import TorchLM

rank, path = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
torch.manual_seed(0)
lm = TorchLM(torch.nn.Embedding(257, 257), max_length=8)
assert (lm.rank, lm.world_size) == (rank, 2)
assert lm.all_gather(torch.tensor(rank + 5)).tolist() == [5, 6]
[value] = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("ab" * (rank + 1),), 0)])
gathered = lm.gather_object([value])
lm.barrier()
if rank == 0:
    print([len(part[0].scores) for part in gathered])
else:
    assert gathered is None
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_ranks_gather_scores(tmp_path):
    command = [sys.executable, "-c", _RANKS]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "rendezvous")], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0].strip().endswith("[2, 4]")


_EVALUATE = """
import json, sys, torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from xent_metrics.hosts.lm_eval import TorchLM

rank, world_size, path, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if world_size > 1:
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world_size)
torch.set_num_threads(1)
torch.manual_seed(0)
lm = TorchLM(torch.nn.Embedding(257, 257), max_length=64, keep_order=True)
manager = TaskManager(include_path=folder, include_defaults=False)
tasks = ["xent_python_docs_tokens", "xent_python_docs_cloze"]
results = simple_evaluate(lm, tasks=tasks, task_manager=manager, limit=5, bootstrap_iters=0)
if rank == 0:
    print("RESULTS", json.dumps(results["results"], sort_keys=True))
else:
    assert results is None
if world_size > 1:
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_evaluate_to_the_same_bits_as_one(tmp_path):
    folder = Path(__file__).parents[4] / "task_configs"

    def evaluate(world_size):
        arguments = [str(world_size), str(tmp_path / f"rendezvous{world_size}"), str(folder)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _EVALUATE, str(rank), *arguments], stdout=subprocess.PIPE, text=True
            )
            for rank in range(world_size)
        ]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * world_size
        return json.loads(outputs[0].rpartition("RESULTS")[2])

    one, two = evaluate(1), evaluate(2)
    for task in one:
        values = {key for key in one[task] if not key.partition(",")[0].endswith("_stderr")}
        assert {key: two[task][key] for key in values} == {key: one[task][key] for key in values}
        errors = {key for key in one[task] if isinstance(one[task][key], float)} - values
        assert {key: two[task][key] for key in errors} == pytest.approx({key: one[task][key] for key in errors})
    assert one["xent_python_docs_tokens"]["cross_entropy,none"] > 0
    assert one["xent_python_docs_cloze"]["cross_entropy_stderr,none"] > 0


def test_one_process_is_rank_0_of_1():
    lm = TorchLM(ByteNet())
    assert (lm.rank, lm.world_size, lm.gather_object("x")) == (0, 1, ["x"])


# Errors, before the model runs.


class LooksAhead(ByteNet):
    def forward(self, ids):
        return self.head(self.embed(ids).mean(1, keepdim=True).expand(-1, ids.shape[1], -1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TorchLM(ByteNet(vocab_size=256)), "doesn't take the id 256"),
        (lambda: TorchLM(nn.Embedding(257, 100), max_length=4), "gives 100 logits; bytes needs 257"),
        (lambda: TorchLM(nn.Embedding(257, 257)), "pass max_length"),
        (lambda: TorchLM(LooksAhead()), "looks ahead"),
        (lambda: TorchLM(nn.Flatten(), max_length=4), r"gave \(2, 2\) for ids \(2, 2\); expected logits \(B, T, V\)"),
        (lambda: TorchLM(ByteNet(), batch_size="auto"), "batch_size is a whole number"),
        (lambda: TorchLM(ByteNet(), max_length=-1), "max_length is a whole number"),
        (lambda: TorchLM(ByteNet(), dtype="floaty"), "dtype is a torch dtype"),
        (lambda: TorchLM(ByteNet(), tokenizer=object()), "an object with encode and decode"),
        (lambda: TorchLM(ByteNet(), tokenizer=SimpleNamespace(encode=list, decode=list)), "pass prefix_token_id"),
        (lambda: TorchLM(ByteNet(), checkpoint="missing.ckpt"), "there is no such file"),
        (lambda: TorchLM(ByteNet(), module_options={"size": 3}), "is a module already"),
        (lambda: TorchLM(checkpoint=__file__), "doesn't say its class"),
        (lambda: TorchLM("no_such_package.model:Net"), "PYTHONPATH"),
        (lambda: TorchLM("torch.nn:Nothing"), "Nothing"),
        (lambda: TorchLM("torch.nn.Linear"), "expected package.module:Class"),
        (lambda: TorchLM("torch.nn:Embedding"), "can't be made with module_options none: .* 'num_embeddings'"),
        (lambda: TorchLM(list), "expected a torch.nn.Module"),
    ],
)
def test_what_cannot_be_a_model_is_said_at_once(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()


@pytest.mark.parametrize(
    ("arguments", "additional", "message"),
    [
        ("module=torch.nn:Linear,max_lenght=5", {}, r"xent-torch takes no 'max_lenght'\. Did you mean 'max_length'\?"),
        ("pretrained=gpt2", {"device": None}, r"takes no 'pretrained'\..* It takes: module, tokenizer, "),
        ("module=torch.nn:Linear", {"max_batch_size": 8}, "takes no 'max_batch_size'"),
        ("batch_size=4", {"batch_size": 1}, "batch_size stands in --model_args, and the command gives it too: use --b"),
    ],
)
def test_arguments_that_it_does_not_take_are_named(arguments, additional, message):
    with pytest.raises(InvalidInputError, match=message):
        TorchLM.create_from_arg_string(arguments, additional)
    with pytest.raises(InvalidInputError, match=message):
        TorchLM.create_from_arg_obj(dict(pair.split("=") for pair in arguments.split(",")), additional)


def test_a_checkpoint_of_something_else(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InvalidInputError, match="doesn't fit ByteNet"):
        TorchLM(ByteNet, checkpoint=tmp_path / "linear.pt")
    with pytest.raises(InvalidInputError, match="holds a list; expected a state dict"):
        TorchLM(ByteNet, checkpoint=tmp_path / "list.pt")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (("context", ""), "an empty continuation"),
        (("", ""), "an empty continuation"),
        (("a", "b" * 17), "1 to max_length=16 tokens; got 17"),
    ],
)
def test_continuations_that_cannot_be_scored(request_, message):
    shapes = Shapes()
    lm = TorchLM(shapes, max_length=16)
    shapes.seen.clear()
    with pytest.raises(InvalidInputError, match=message):
        lm.loglikelihood(pairs(("fine", "too"), request_))
    assert shapes.seen == []


def test_it_does_not_generate():
    with pytest.raises(NotImplementedError, match="--model xent-hf"):
        TorchLM(ByteNet()).generate_until([])


def test_quiet_when_not_a_terminal(capsys):
    lm = TorchLM(ByteNet())
    lm.loglikelihood(pairs(("a", "b")))
    lm.loglikelihood_rolling(rolling("abc"))
    assert capsys.readouterr().err == ""


def test_bytes_tokenizer_is_lossless():
    tokenizer = ByteTokenizer()
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS
