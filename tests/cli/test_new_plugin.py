"""`xent new-plugin`: what it writes installs, passes ruff and its own tests, and works in three hosts; what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from support.cli import xent
from typer.testing import CliRunner

import xent_metrics
from xent_metrics import get_metric
from xent_metrics.cli.app import app
from xent_metrics.cli.new_plugin import PluginNames, plugin_files, write_files
from xent_metrics.errors import PluginError
from xent_metrics.hosts.lm_eval import TorchLM
from xent_metrics.plugins import Plugins, use_plugins

KINDS = ["metric", "backend", "commands", "tasks"]
NAME, MODULE = "mean-probability", "xent_metrics_mean_probability"
PLUGIN = "xent_metrics.testing.pytest_plugin"  # -p: where xent-metrics was installed before it had this entry point
SOURCE = Path(xent_metrics.__file__).parents[1]


def command(*arguments):
    return CliRunner().invoke(app, ["new-plugin", *map(str, arguments)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A plugin of all kinds, written by the command and installed by pip into a folder of its own; both folders."""
    base = tmp_path_factory.mktemp("made")
    printed = xent("new-plugin", NAME, *(f"--{kind}" for kind in KINDS), "--into", base)
    folder, site = base / f"xent-metrics-{NAME}", base / "site"
    assert f"{folder} has a metric, a scoring backend, a command, an lm-eval task." in printed
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site, folder],
        check=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    return folder, site


@pytest.fixture
def loaded(made, monkeypatch):
    """The installed plugin, and no other, as the plugins of this process."""
    monkeypatch.syspath_prepend(made[1])
    (point,) = entry_points(group="xent_metrics", name=NAME)
    with use_plugins(Plugins([point])) as plugins:
        yield plugins
    for name in [name for name in sys.modules if name.partition(".")[0] == MODULE]:
        del sys.modules[name]


def test_whatever_is_asked_for_passes_ruff(tmp_path):
    """Each kind alone, all together, and names of the smallest and the largest length."""
    names = {"a": KINDS, "x" * 32: KINDS, "n-n-n": KINDS} | {f"only-{kind}": [kind] for kind in KINDS}
    for name, kinds in names.items():
        write_files(tmp_path / name, plugin_files(PluginNames.of(name), kinds))
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "--no-cache", tmp_path], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_its_tests_pass_by_the_command_that_its_readme_says(made):
    """Without the two items that take most of the time: tests/testing has them, with real processes and graphs."""
    folder, site = made
    words = ["pytest", "tests", "--xent-plugin", NAME]
    assert f"$ {' '.join(words)}" in (folder / "README.md").read_text()
    done = subprocess.run(
        [sys.executable, "-m", *words, "-q", "-k", "not two_processes and not one_graph", "-p", PLUGIN, "-p", "no:cacheprovider"],
        cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(SOURCE)]), "XENT_METRICS_PLUGINS": NAME},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "28 passed, 2 deselected" in done.stdout  # 11 tests, and 19 promises


def test_xent_plugins_lists_it(made, loaded):
    found = json.loads(xent("plugins", "--json"))[-1]
    assert (found["name"], found["distribution"], found["error"]) == (NAME, f"xent-metrics-{NAME}", None)
    assert (found["metrics"], found["commands"]) == (["mean_probability"], [NAME])
    assert found["task_configs"] == [str(made[1] / MODULE / "tasks")]
    hooks = ["register_commands", "register_metrics", "register_task_configs", "score_backend"]
    assert found["hooks"] == hooks
    (made[0] / "lines.txt").write_text("-1\n-2\n")
    assert xent(NAME, made[0] / "lines.txt") == "1.5\n"


class Bigrams(pl.LightningModule):
    """A table of logits that logs the metric, as any module would."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(257, 257)
        self.metric = get_metric("mean_probability", power=2.0)

    def forward(self, ids):
        return self.table(ids)

    def validation_step(self, batch, batch_idx):
        self.metric(self(batch[:, :-1]), batch[:, 1:])
        self.log("value", self.metric)


def test_three_hosts_have_the_same_bits_of_it(made, loaded, tmp_path):
    """The task that it ships, with an option; a LightningModule; and plain PyTorch."""
    torch.manual_seed(0)
    module = Bigrams()
    yaml = (made[1] / MODULE / "tasks" / "task.yaml").read_text()
    entry = "  - metric: mean_probability\n"
    assert entry in yaml
    (tmp_path / "task.yaml").write_text(yaml.replace(entry, f"{entry}    power: 2.0\n"))
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False).load(["mean_probability"])
    lm = TorchLM(module, tokenizer="bytes", max_length=256)
    found = evaluate(lm, tasks, bootstrap_iters=0)["results"]["mean_probability"]
    lines = (made[1] / MODULE / "tasks" / "documents.jsonl").read_text().splitlines()
    batches = [torch.tensor([[lm.prefix_token_id, *json.loads(line)["text"].encode()]]) for line in lines]
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", **quiet)
    (logged,) = trainer.validate(module, torch.utils.data.DataLoader(batches, batch_size=None), verbose=False)
    metric = get_metric("mean_probability", power=2.0)
    for batch in batches:
        metric.update(module(batch[:, :-1]), batch[:, 1:])
    assert found["mean_probability,none"] == logged["value"] == float(metric.compute())
    assert 0 < found["mean_probability_stderr,none"] < found["mean_probability,none"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Mean_Probability",
            r"expected a plugin's name .*; got 'Mean_Probability'\. Did you mean 'mean-probability'\?",
        ),
        ("2nd", r"got '2nd'\. Did you mean 'nd'\?"),
        ("a--b", r"got 'a--b'\. Did you mean 'a-b'\?"),
        ("../evil", r"got '\.\./evil'\. Did you mean 'evil'\?"),
        ("é", r"got 'é'\. \["),
        ("", r"got ''\. \["),
        ("lambda", "'lambda' is a keyword of Python"),
        ("x" * 33, "at most 32 characters; 'x+' has 33"),
        ("cross-entropy", r"built-in \(xent-metrics .*\) has a metric 'cross_entropy' already"),
        ("focal", r"the plugin focal \(xent-metrics-focal .*\) is installed already"),
        ("xent-metrics-focal", r"the plugin focal \(xent-metrics-focal .*\) is installed already"),
        ("native", "a module xent_metrics_native is installed already"),
    ],
)
def test_a_name_that_cannot_be_is_an_error(name, message, tmp_path):
    result = command(name, "--into", tmp_path)
    assert isinstance(result.exception, PluginError)
    with pytest.raises(PluginError, match=message):
        raise result.exception
    assert list(tmp_path.iterdir()) == []


def test_a_commands_name_is_its_own(tmp_path):
    result = command("compare", "--commands", "--into", tmp_path)
    with pytest.raises(PluginError, match="xent has a command 'compare' already"):
        raise result.exception
    assert command("compare", "--into", tmp_path).exit_code == 0  # as a metric it may be called so


def test_nothing_is_overwritten_and_no_folder_made_on_the_way(tmp_path):
    (tmp_path / "xent-metrics-mine").mkdir()
    with pytest.raises(PluginError, match="xent-metrics-mine exists already, and nothing is overwritten"):
        raise command("mine", "--into", tmp_path).exception
    with pytest.raises(PluginError, match=r"the folder .*nowhere doesn't exist; make it first"):
        raise command("mine", "--into", tmp_path / "nowhere").exception
    assert [path.name for path in tmp_path.rglob("*")] == ["xent-metrics-mine"]


def test_without_a_kind_it_is_a_metric():
    assert PluginNames.of("xent-metrics-mine") == PluginNames.of("mine")
    paths = {str(path) for path in plugin_files(PluginNames.of("mine"), ["metric"])}
    assert paths == {
        ".github/workflows/test.yml", ".gitignore", "README.md", "pyproject.toml", "tests/test_metric.py",
        "xent_metrics_mine/__init__.py", "xent_metrics_mine/metric.py",
    }  # fmt: skip


def test_the_documentation_shows_the_commands_that_are_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = command("mean-probability").stdout.splitlines()[1:]
    page = (SOURCE / "docs" / "plugins.md").read_text(encoding="utf-8")
    shown = [line.split("   #")[0].rstrip() for line in page.splitlines()]
    assert len(printed) == 3
    assert {f"$ {line.strip()}" for line in printed} <= set(shown)


def test_a_plugin_that_cannot_be_written_whole_is_not_there(tmp_path):
    """The second file's folder is a file by then."""
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        write_files(tmp_path / "new", {Path("a"): "a file", Path("a/b"): "a file in it"})
    assert list(tmp_path.iterdir()) == []
