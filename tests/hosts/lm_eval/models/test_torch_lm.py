"""TorchLM beside lm-eval's own `hf` model, its arguments, and what it refuses."""

from __future__ import annotations

import json
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string
from support.byte_model import TEXTS, ByteNet, byte_bpe, pairs, rolling
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from xent_metrics import BitsPerByte, CrossEntropy, TokenScores
from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval import TorchLM
from xent_metrics.hosts.lm_eval.models.windows import Window, rolling_windows

PAIRS = [
    ("The assert statement is", " a convenient way"),
    ("The assert statement is", " a convenient day"),
    ("Trailing space ", "moves over"),
    ("", "No context at all"),
    ("x" * 300 + " a long context is cut from the left", " but the end stays"),
    ("One token follows", "."),
    ("One token follows", "!"),
]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "adds_bos"])
def tokenizer(request):
    return byte_bpe(request.param)


@pytest.fixture(scope="module")
def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=320, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config).eval()


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


def test_scores_are_those_of_the_tokens():
    net = ByteNet()
    lm = TorchLM(net, max_length=16)
    [found] = lm.loglikelihood_rolling(rolling(TEXTS[2]))
    ids = list(TEXTS[2].encode())
    expected = []
    for window in rolling_windows(ids, prefix_token=256, max_length=16):
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


def test_bfloat16_scores_in_float32():
    [found] = TorchLM(ByteNet(), dtype="bfloat16").loglikelihood_rolling(rolling(TEXTS[0]))
    [wide] = TorchLM(ByteNet()).loglikelihood_rolling(rolling(TEXTS[0]))
    assert found.scores.nll.dtype == torch.float32
    assert found == pytest.approx(wide, rel=0.05)


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
        (lambda: TorchLM("torch.nn.Linear:"), "Expected an import path, package.module:name"),
        (lambda: TorchLM("torch.nn"), "expected a torch.nn.Module, or a class or function that makes one; got <module"),
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
        (
            "batch_size=4",
            {"batch_size": 1},
            "batch_size is given in --model_args and as --batch_size; give it once, as --b",
        ),
    ],
)
def test_arguments_that_it_does_not_take_are_named(arguments, additional, message):
    with pytest.raises(InvalidInputError, match=message):
        TorchLM.create_from_arg_string(arguments, additional)
    with pytest.raises(InvalidInputError, match=message):
        TorchLM.create_from_arg_obj(dict(pair.split("=") for pair in arguments.split(",")), additional)


def test_it_does_not_generate():
    with pytest.raises(NotImplementedError, match="--model xent-hf"):
        TorchLM(ByteNet()).generate_until([])


def test_what_results_depend_on(tmp_path):
    """The content of the weights and the options, whatever the checkpoint is called."""

    class Scaled(nn.Module):
        max_length = 8

        def __init__(self, scale=1.0, table=None):
            super().__init__()
            self.scale = scale
            self.table = nn.Embedding.from_pretrained(torch.zeros(257, 257))

        def forward(self, ids):
            return self.scale * self.table(ids)

    plain = TorchLM(Scaled(), tokenizer="bytes").made_by()
    assert TorchLM(Scaled(), tokenizer="bytes").made_by() == plain
    other = Scaled()
    other.table.weight.data[3, 3] = 1
    assert TorchLM(other, tokenizer="bytes").made_by() != plain
    globals()["Scaled"] = Scaled
    named = {"module": f"{__name__}:Scaled", "tokenizer": "bytes"}
    scaled = [TorchLM(**named, module_options={"scale": scale}).made_by() for scale in (1.0, 2.0)]
    assert scaled[0] != scaled[1]
    assert TorchLM(Scaled(2.0), tokenizer="bytes").made_by() != plain  # the same class and weights
    tables = [np.ones(2000), np.ones(2000)]
    tables[1][1000] = 2  # in the middle, which `repr` leaves out
    scaled = [TorchLM(**named, module_options={"scale": 1.0, "table": table}).made_by() for table in tables]
    assert scaled[0]["options"] != scaled[1]["options"]


def test_requests_make_no_other_model_of_a_module():
    class Remembering(ByteNet):
        last = None

        def forward(self, ids):
            self.last = ids
            return super().forward(ids)

    lm = TorchLM(Remembering())
    lm.loglikelihood_rolling(rolling(*TEXTS))
    assert lm.made_by() == TorchLM(Remembering()).made_by() | {"weights": lm.made_by()["weights"]}
