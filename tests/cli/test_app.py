"""`xent`, and lm-eval's own command, as a user runs them."""

import json
import math
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import datasets
import pytest
import torch
from lm_eval.tasks import TaskManager
from support.lm_eval import TEXTS, write_jsonl
from typer.testing import CliRunner

import xent_metrics
from xent_metrics import list_metrics, plugins
from xent_metrics.cli import app as cli
from xent_metrics.errors import InvalidInputError, MetricOptionError, UnknownMetricError
from xent_metrics.hosts.lm_eval import XentTask
from xent_metrics.hosts.lm_eval.command import XentTaskManager, parse_metrics, register_models
from xent_metrics.task_folders import list_tasks, task_configs_folder

ROLLING = """
task: {name}
{made_by}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
{metric_list}
metadata: {{version: 1.0}}
"""
CHOICE = """# Questions with
#   choices.
task: choice
class: !function xent_metrics.hosts.lm_eval.XentTask
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choices.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - metric: acc
  - metric: cross_entropy
    over: choices
  - metric: bits_per_byte
metadata: {{version: 1.0}}
"""
OURS = "class: !function xent_metrics.hosts.lm_eval.XentTask"
GROUP = """
group: both
task: [rolling_stock, rolling_other]
aggregate_metric_list: [{metric: bits_per_byte}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Task YAMLs and their data."""
    folder = tmp_path_factory.mktemp("tasks")
    write_jsonl(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
    questions = [
        {"question": f"Q{i}", "choices": ["yes", "no", "who knows"][: 2 + i % 2], "gold": i % 2} for i in range(5)
    ]
    write_jsonl(folder / "choices.jsonl", questions)
    lengths = "metric_list: [{metric: bits_per_byte}, {metric: byte_perplexity}, {metric: word_perplexity}]"
    for name, made_by, metric_list in [
        ("rolling_ours", OURS, lengths),
        ("rolling_tokens", OURS, "metric_list: [{metric: cross_entropy}]"),
        ("rolling_stock", "", ""),
        ("rolling_other", "", "metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity}]"),
    ]:
        text = ROLLING.format(name=name, made_by=made_by, metric_list=metric_list, folder=folder)
        (folder / f"{name}.yaml").write_text(text)
    (folder / "choice.yaml").write_text(CHOICE.format(folder=folder))
    (folder / "both.yaml").write_text(GROUP)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Llama with random weights and a byte-level BPE tokenizer, as a Hugging Face folder."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = str(tmp_path_factory.mktemp("llama"))
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=300, special_tokens=["<s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="<s>")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **shape)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def command(*arguments, cache):
    """Run a command of this environment offline; the finished process."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "COLUMNS": "200", "OMP_NUM_THREADS": "2"}
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, env=environment)


def numbers(folder):
    """The results.json that lm-eval wrote into a folder: numbers by task and metric."""
    [file] = folder.rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    return {task: {key.removesuffix(",none"): value for key, value in found.items()} for task, found in results.items()}


# lm-eval's own command.


@pytest.mark.slow
def test_the_stock_command_with_a_stock_model(folder, model, tmp_path):
    done = command("lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model}", "--device", "cpu",
                   "--tasks", "rolling_ours,rolling_stock,choice", "--include_path", folder, "--batch_size", 2,
                   "--output_path", tmp_path / "out", "--log_samples", cache=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = numbers(tmp_path / "out")
    ours, stock, choice = (found[task] for task in ("rolling_ours", "rolling_stock", "choice"))
    for name in ("bits_per_byte", "byte_perplexity", "word_perplexity"):
        assert ours[name] == pytest.approx(stock[name], rel=1e-14)
        assert stock[f"{name}_stderr"] == "N/A"
        assert re.search(rf"\|{name} *\|↓ *\|[ 0-9.]*\|± *\|[ 0-9.]+\|", done.stdout)
    assert ours["byte_perplexity_stderr"] == pytest.approx(
        ours["byte_perplexity"] * math.log(2) * ours["bits_per_byte_stderr"], rel=1e-9
    )
    samples = samples_of(tmp_path / "out", "rolling_ours")
    nats = torch.tensor([-float(sample["filtered_resps"][0]) for sample in samples], dtype=torch.float64)
    size = torch.tensor([len(sample["doc"]["text"].encode()) for sample in samples], dtype=torch.float64)
    residual = nats - nats.sum() / size.sum() * size
    per_byte = (residual.square().sum() * len(size) / (len(size) - 1)).sqrt() / size.sum()
    assert ours["bits_per_byte_stderr"] == pytest.approx(per_byte.item() / math.log(2), rel=1e-9)
    lls = [[float(resp[0]) for resp in sample["filtered_resps"]] for sample in samples_of(tmp_path / "out", "choice")]
    golds = [int(sample["target"]) for sample in samples_of(tmp_path / "out", "choice")]
    nll = [
        -torch.log_softmax(torch.tensor(row, dtype=torch.float64), 0)[gold]
        for row, gold in zip(lls, golds, strict=True)
    ]
    assert choice["cross_entropy"] == pytest.approx(sum(nll).item() / len(nll), rel=1e-12)
    assert {"acc", "acc_stderr", "bits_per_byte_stderr"} <= choice.keys()


def samples_of(folder, task):
    [file] = folder.rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_the_stock_command_stops_a_token_metric_before_a_stock_model_runs(folder, model, tmp_path):
    done = command("lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model}", "--device", "cpu",
                   "--tasks", "rolling_tokens", "--include_path", folder, cache=tmp_path)  # fmt: skip
    assert done.returncode != 0
    assert "MissingScoreError: task rolling_tokens: cross_entropy is defined over" in done.stderr
    assert "--model xent-hf" in done.stderr
    assert "Running loglikelihood" not in done.stderr


@pytest.mark.slow
def test_our_command_puts_metrics_on_existing_tasks(folder, model, tmp_path):
    done = command("xent_metrics.cli", "lm-eval", "--model", "hf", "--model_args", f"pretrained={model}", "--device", "cpu",
                   "--tasks", "both", f"--include_path={folder}", "--output_path", tmp_path / "out",
                   "--xent_metrics", "bits_per_byte,byte_perplexity:name=per_byte", cache=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = numbers(tmp_path / "out")
    for task in ("rolling_stock", "rolling_other"):
        assert found[task]["per_byte"] == pytest.approx(2 ** found[task]["bits_per_byte"], rel=1e-12)
        assert found[task]["bits_per_byte_stderr"] > 0
        assert found[task]["word_perplexity_stderr"] == "N/A"  # lm-eval's own still
    assert found["rolling_stock"]["byte_perplexity"] == found["rolling_stock"]["per_byte"]  # by lm-eval, and by us
    assert found["both"]["bits_per_byte"] == pytest.approx(found["rolling_stock"]["bits_per_byte"], rel=1e-15)


# `--xent_metrics`, without the model.


def test_metrics_are_parsed_with_their_options():
    assert parse_metrics("bits_per_byte, cross_entropy:unit=bits;name=bits ,") == [
        {"metric": "bits_per_byte"},
        {"metric": "cross_entropy", "unit": "bits", "name": "bits"},
    ]
    assert parse_metrics(None) == []


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("cross_entropi", UnknownMetricError),
        ("cross_entropy:unti=bits", MetricOptionError),
        ("perplexity:x", MetricOptionError),
    ],
)
def test_metrics_that_are_none(text, error, monkeypatch, capsys):
    with pytest.raises(error):
        parse_metrics(text)
    monkeypatch.setattr(
        sys, "argv", ["xent", "lm-eval", "run", "--model", "none", "--tasks", "none", "--xent_metrics", text]
    )
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    printed = capsys.readouterr()
    assert error.__name__ in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_an_xent_task_keeps_its_own_metrics(folder):
    manager = XentTaskManager(include_path=str(folder), entries=[{"metric": "bits_per_byte"}], include_defaults=False)
    task = manager.load(["rolling_ours"])["tasks"]["rolling_ours"]
    assert [entry.name for entry in task._entries] == ["byte_perplexity", "word_perplexity", "bits_per_byte"]


def test_tasks_that_cannot_take_metrics(tmp_path):
    (tmp_path / "python.yaml").write_text("task: python\nclass: !function datasets.Dataset\n")
    inline = ROLLING.format(name="inline", made_by="", metric_list="", folder=tmp_path).strip().replace("\n", "\n    ")
    (tmp_path / "group.yaml").write_text(f"group: g\ntask:\n  - {inline}\n")
    write_jsonl(tmp_path / "texts.jsonl", [{"text": "a"}])
    manager = XentTaskManager(include_path=tmp_path, entries=[{"metric": "bits_per_byte"}], include_defaults=False)
    with pytest.raises(InvalidInputError, match="on python, which is written in Python"):
        manager.load(["python"])
    with pytest.raises(InvalidInputError, match="on g::inline, which its group makes itself"):
        manager.load(["g"])
    assert datasets.Dataset


def test_task_folders_come_before_the_users(folder, monkeypatch):
    [name] = [path.stem for path in folder.glob("*_ours.yaml")]
    monkeypatch.setattr("xent_metrics.hosts.lm_eval.command.task_folders", lambda: [folder])
    manager = XentTaskManager(include_path=str(folder), include_defaults=False)
    assert isinstance(manager.load([name])["tasks"][name], XentTask)
    assert manager.include_path == [folder]
    assert XentTaskManager(include_defaults=False).include_path == [folder]
    assert issubclass(XentTaskManager, TaskManager)


def test_models_are_registered_once():
    from lm_eval.api.registry import get_model, model_registry

    register_models()
    register_models()
    assert {"hf", "xent-hf", "xent-torch"} <= set(model_registry)
    assert get_model("xent-torch").gives_token_scores
    assert get_model("xent-hf").gives_token_scores


# Lists.


def xent(*arguments):
    result = CliRunner(env={"COLUMNS": "300"}).invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_metrics_are_listed():
    found = {fact["name"]: fact for fact in json.loads(xent("metrics", "--json"))}
    assert sorted(found) == list_metrics()
    assert found["perplexity"]["options"] == {"ignore_index": -100}
    assert found["expected_calibration_error"]["options"]["num_bins"] == 15
    assert found["bits_per_byte"]["requires"] == ["nll", "num_bytes"]
    assert found["brier_score"]["requires"] == ["logits"]
    assert found["full_calibration_error"]["requires"] == ["target", "logits"]
    assert found["kl_divergence"]["requires"] == ["logits of two models"]
    assert all(fact["requires"] for fact in found.values())
    assert found["bits_per_byte"]["formula"] == xent_metrics.BitsPerByte.formula
    table = xent("metrics")
    assert all(name in table for name in list_metrics())
    assert "num_bins=15" in table


def test_a_plugin_that_is_set_aside_is_listed_with_its_error(monkeypatch):
    with pytest.warns(UserWarning, match="set aside"):
        loaded = plugins.Plugins([EntryPoint("broken", "no_such_module_anywhere", plugins.GROUP)])
    monkeypatch.setattr(plugins, "plugins", lambda: loaded)
    found = {fact["name"]: fact for fact in json.loads(xent("plugins", "--json"))}
    assert found["built-in"]["error"] is None
    assert found["built-in"]["version"] == xent_metrics.__version__
    assert "cross_entropy" in found["built-in"]["metrics"]
    assert found["built-in"]["hooks"] == ["register_metrics"]
    assert found["built-in"]["task_configs"] == [str(task_configs_folder())]
    assert found["broken"]["error"] == "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    assert "set aside: ModuleNotFoundError" in xent("plugins")


def test_tasks_are_listed(folder, monkeypatch):
    (folder / "_part.yaml").write_text("dataset_path: someone/else\n")
    (folder / "hub.yaml").write_text("include: _part.yaml\ntask: hub\nmetric_list: [{metric: acc}]\n")
    found = {task.name: task for task in list_tasks(folder)}
    assert sorted(found) == ["choice", "hub", "rolling_other", "rolling_ours", "rolling_stock", "rolling_tokens"]
    assert (found["hub"].needs_network, found["choice"].needs_network) == (True, False)
    assert found["choice"].description == "Questions with choices."
    assert found["choice"].metrics == ["acc", "cross_entropy", "bits_per_byte"]
    monkeypatch.setattr("xent_metrics.task_folders.task_configs_folder", lambda: folder)
    assert "Questions with choices." in xent("tasks")
    assert [task["name"] for task in json.loads(xent("tasks", "--json"))][:2] == ["choice", "hub"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [unclosed\n", "can't be read: while parsing"),
        ("task: {a: b}: c\n", "can't be read"),
        ("- one\n- two\n", "expected keys with values; got list"),
        ("include: missing.yaml\ntask: t\n", "missing.yaml can't be read: .*No such file"),
        ("task: t\nmetric_list: [acc]\n", r"metric_list is a list of entries, `- metric: name`; got \['acc'\]"),
        (b"task: \xff\n", "can't be read: 'utf-8' codec"),
    ],
)
def test_a_yaml_that_cannot_be_read_is_listed_with_its_error(text, message, tmp_path, monkeypatch):
    (tmp_path / "fine.yaml").write_text("# All right.\ntask: fine\n")
    (tmp_path / "broken.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    broken, fine = list_tasks(tmp_path)
    assert (broken.name, fine.name, fine.error) == ("broken", "fine", None)
    assert re.search(message, broken.error)
    assert str(tmp_path) in broken.error
    monkeypatch.setattr("xent_metrics.task_folders.task_configs_folder", lambda: tmp_path)
    table = xent("tasks")
    assert "set aside: " in table
    assert "All right." in table
    assert [task["error"] is None for task in json.loads(xent("tasks", "--json"))][:2] == [False, True]


def test_the_folder_of_tasks_is_printed_alone():
    assert xent("tasks", "--path") == f"{task_configs_folder()}\n"
    assert task_configs_folder().is_dir()


def test_version_and_help():
    assert xent("--version") == f"{xent_metrics.__version__}\n"
    assert "--xent_metrics" in xent("lm-eval", "--help")


def test_without_lm_eval_the_rest_works(tmp_path):
    script = tmp_path / "without.py"
    script.write_text(
        "import sys\n"
        "sys.modules['lm_eval'] = None\n"
        "from xent_metrics import cli\n"
        "for arguments in (['tasks', '--path'], ['lm-eval', 'run', '--tasks', 'x']):\n"
        "    sys.argv = ['xent', *arguments]\n"
        "    try:\n"
        "        cli.main()\n"
        "    except SystemExit as status:\n"
        "        print('status', status.code)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(task_configs_folder()), "status 0", "status 2"]
    assert "pip install 'xent-metrics[lm-eval]'" in done.stderr
    assert Path(done.stdout.splitlines()[0]).is_dir()


def test_our_metric_in_a_task_of_lm_evals_own_is_told(tmp_path):
    """lm-eval would end in a KeyError, or leave it out."""
    text = "task: vanish\ndataset_path: json\noutput_type: loglikelihood_rolling\nmetric_list:\n  - metric: "
    (tmp_path / "vanish.yaml").write_text(text + "cross_entropy\n")
    manager = XentTaskManager(include_path=str(tmp_path), include_defaults=False)
    with pytest.raises(
        MetricOptionError, match=r"task vanish: cross_entropy is a metric of xent-metrics.*class: !function"
    ):
        manager.load(["vanish"])


def test_a_pipe_gets_whole_tables():
    """Every metric's plugin stands in the last column, and every name in one line."""
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    command = [sys.executable, "-m", "xent_metrics.cli", "metrics"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.count("built-in") >= len(list_metrics()) - 3  # the plugins' own aside
    assert all(name in done.stdout for name in list_metrics())
