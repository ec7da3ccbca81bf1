"""The distance against a transport problem solved by scipy, the contract of every metric, and the command."""

import numpy as np
import pytest
import torch
import typer
from scipy.optimize import linprog
from typer.testing import CliRunner
from xent_metrics_emd import nearest_tokens, register_commands, unit_embeddings

from xent_metrics import get_metric
from xent_metrics.errors import InvalidInputError, MetricOptionError, MissingScoreError
from xent_metrics.testing import check_metric

V, D = 9, 4


@pytest.fixture
def embeddings():
    return torch.randn(V, D, generator=torch.Generator().manual_seed(0))


def transport_cost(p, q, cost):
    """min Σ f_vw c_vw with Σ_w f_vw = p_v and Σ_v f_vw = q_w."""
    size = len(p)
    rows = [np.kron(np.eye(size)[v], np.ones(size)) for v in range(size)]
    columns = [np.kron(np.ones(size), np.eye(size)[w]) for w in range(size)]
    return linprog(cost.reshape(-1), A_eq=np.array(rows + columns), b_eq=np.concatenate([p, q]), bounds=(0, None)).fun


def test_it_is_the_cheapest_transport_to_the_target(embeddings):
    generator = torch.Generator().manual_seed(1)
    logits, target = 2 * torch.randn(5, V, generator=generator), torch.randint(V, (5,), generator=generator)
    unit = (embeddings / embeddings.norm(dim=1, keepdim=True)).double().numpy()
    costs = [
        transport_cost(p, np.eye(V)[t], 1 - unit @ unit.T)
        for p, t in zip(torch.softmax(logits.double(), -1).numpy(), target.tolist(), strict=True)
    ]
    metric = get_metric("embedding_distance", embeddings=embeddings)
    metric.update(logits, target)
    assert float(metric.compute()) == pytest.approx(np.mean(costs), rel=1e-6)


def test_a_file_gives_the_same(embeddings, tmp_path):
    torch.save(embeddings, tmp_path / "embeddings.pt")
    logits, target = torch.zeros(3, V), torch.tensor([1, -100, 2])
    values = []
    for given in (embeddings, str(tmp_path / "embeddings.pt")):
        metric = get_metric("embedding_distance", embeddings=given)
        metric.update(logits, target)
        values.append(metric.compute())
    assert values[0] == values[1]


def test_it_keeps_the_contract(embeddings):
    check_metric(get_metric("embedding_distance", embeddings=embeddings), vocab_size=V)


def test_other_embeddings_are_another_sum(embeddings):
    first, second = (get_metric("embedding_distance", embeddings=e) for e in (embeddings, embeddings.flip(0)))
    assert first.state_name != second.state_name


def test_an_lm_eval_task_measures_it(tmp_path):
    """As in the README, with a model of bytes; the choices of a question have no embeddings."""
    pytest.importorskip("lm_eval")
    import datasets
    from lm_eval.evaluator import evaluate

    from xent_metrics.hosts.lm_eval import TorchLM, XentTask

    torch.manual_seed(2)
    model = torch.nn.Sequential(torch.nn.Embedding(257, D), torch.nn.Linear(D, 257))  # sees the last byte only
    table = model[0].weight.detach().clone()
    torch.save(table, tmp_path / "embeddings.pt")
    entry = {"metric": "embedding_distance", "embeddings": str(tmp_path / "embeddings.pt")}
    task = {
        "task": "t", "output_type": "loglikelihood_rolling", "test_split": "test", "doc_to_text": "",
        "doc_to_target": "{{text}}", "metric_list": [entry],
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list([{"text": "héllo"}, {"text": "wörld!"}])},
    }  # fmt: skip
    lm = TorchLM(model, tokenizer="bytes", max_length=32, device="cpu")
    found = evaluate(lm, {"tasks": {"t": XentTask(task)}}, bootstrap_iters=0)["results"]["t"]
    metric = get_metric("embedding_distance", embeddings=table)
    for text in ("héllo", "wörld!"):
        ids = torch.tensor([256, *text.encode()])
        metric.update(model(ids[:-1]), ids[1:])
    assert found["embedding_distance,none"] == pytest.approx(float(metric.compute()), rel=1e-6)
    assert found["embedding_distance_stderr,none"] > 0
    choices = task | {"output_type": "multiple_choice", "metric_list": [entry | {"over": "choices"}]}
    with pytest.raises(MissingScoreError, match=r"defined over token scores; got choice scores .*over: gold has it"):
        XentTask(choices)


def test_bad_input_is_an_error_that_says_what_to_do(embeddings, tmp_path):
    with pytest.raises(MetricOptionError, match=r"got .*nowhere\.pt: .*No such file.* Write one: torch\.save\(model"):
        get_metric("embedding_distance", embeddings=tmp_path / "nowhere.pt")
    (tmp_path / "text.pt").write_text("no tensor")
    with pytest.raises(MetricOptionError, match=r"got .*text\.pt: "):
        get_metric("embedding_distance", embeddings=str(tmp_path / "text.pt"))
    (tmp_path / "empty.pt").touch()
    with pytest.raises(MetricOptionError, match=r"got .*empty\.pt: "):
        get_metric("embedding_distance", embeddings=str(tmp_path / "empty.pt"))
    with pytest.raises(MetricOptionError, match=r"a float tensor \(V, D\) or a file's path; got 3"):
        get_metric("embedding_distance", embeddings=3)
    with pytest.raises(MetricOptionError, match=r"a float tensor \(V, D\); got \(9,\)"):
        get_metric("embedding_distance", embeddings=embeddings[:, 0])
    with pytest.raises(MetricOptionError, match="1 embeddings are zero"):
        get_metric("embedding_distance", embeddings=embeddings * torch.arange(V)[:, None])
    with pytest.raises(InvalidInputError, match="9 embeddings for 5 classes"):
        get_metric("embedding_distance", embeddings=embeddings).update(torch.zeros(1, 5), torch.tensor([0]))


def test_the_nearest_tokens_are_those_of_the_largest_cosine(embeddings):
    found = nearest_tokens(unit_embeddings(embeddings), 3, count=4)
    cosine = torch.nn.functional.cosine_similarity(embeddings, embeddings[3][None])
    expected = sorted((1 - cosine[v].item(), v) for v in range(V) if v != 3)[:4]
    assert [token_id for token_id, _ in found] == [v for _, v in expected]
    assert [distance for _, distance in found] == pytest.approx([d for d, _ in expected], abs=1e-6)
    assert len(nearest_tokens(unit_embeddings(embeddings), 3, count=100)) == V - 1


@pytest.mark.parametrize("token_id", [-1, V])
def test_a_token_outside_the_table_has_no_neighbours(embeddings, token_id):
    with pytest.raises(InvalidInputError, match=f"from 0 to 8; got {token_id}"):
        nearest_tokens(unit_embeddings(embeddings), token_id, count=1)


def test_the_command_lists_them(embeddings, tmp_path):
    torch.save(embeddings, tmp_path / "embeddings.pt")
    app = typer.Typer()
    register_commands(app)
    result = CliRunner().invoke(app, [str(tmp_path / "embeddings.pt"), "--id", "3", "--count", "2"])
    assert result.exit_code == 0, result.output
    expected = nearest_tokens(unit_embeddings(embeddings), 3, count=2)
    assert [line.split() for line in result.stdout.splitlines()] == [
        [f"{distance:.4f}", str(token_id)] for token_id, distance in expected
    ]


def test_the_command_shows_tokens(tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    vocabulary = {"red": 0, "crimson": 1, "seven": 2}
    wrapped = Tokenizer(models.WordLevel(vocabulary, unk_token="seven"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=wrapped).save_pretrained(tmp_path / "words")
    torch.save(torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 1.0]]), tmp_path / "embeddings.pt")
    app = typer.Typer()
    register_commands(app)
    arguments = [str(tmp_path / "embeddings.pt"), "--id", "0", "--tokenizer", str(tmp_path / "words")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert [line.split()[1:] for line in result.stdout.splitlines()] == [["1", "'crimson'"], ["2", "'seven'"]]
