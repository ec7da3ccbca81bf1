"""`import xent_metrics` brings in no host, no plotting and no command line; the core imports no host."""

from __future__ import annotations

import subprocess
import sys

import xent_metrics

HOSTS = ["lm_eval", "lightning", "pytorch_lightning", "transformers", "accelerate", "peft", "datasets", "tokenizers"]
OTHERS = [
    "matplotlib",
    "typer",
    "rich",
    "scipy",
    "pandas",
    "sklearn",
    "jinja2",
    "starlette",
    "tiktoken",
    "sentencepiece",
]


#: Prints what our import and ordinary use load beyond what our dependencies load by themselves.
SCRIPT = """
import sys, numpy, pluggy, torch, torchmetrics
before = set(sys.modules)
import xent_metrics as x
metrics = x.TokenMetricCollection(["cross_entropy", "perplexity", x.get_metric("token_accuracy")])
metrics.update(torch.zeros(2, 3), torch.tensor([0, 1]))
metrics.compute(), x.list_metrics()
print(*sorted(set(sys.modules) - before))
print(*sorted(set(sys.modules)))
"""


def test_the_core_loads_no_host_and_no_tool():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    added, loaded = ({name.partition(".")[0] for name in line.split()} for line in run.stdout.splitlines())
    assert "xent_metrics" in added
    # Torchmetrics brings transformers, accelerate and matplotlib where they are installed.
    assert not added & {*HOSTS, *OTHERS}
    assert not loaded & {"lm_eval", "lightning", "pytorch_lightning", "typer"}


#: Imports a host as if nothing optional were installed.
WITHOUT_EXTRAS = """
import importlib.machinery as machinery, sys, torchmetrics
from xent_metrics.errors import MissingExtraError
find = machinery.PathFinder.find_spec
hidden = {"lm_eval", "lightning", "pytorch_lightning", "matplotlib", "scipy", "tqdm", "jinja2", "starlette"}
machinery.PathFinder.find_spec = lambda name, *more: None if name.split(".")[0] in hidden else find(name, *more)
for name in [name for name in sys.modules if name.split(".")[0] in hidden]:
    del sys.modules[name]
for statement in (
    "from xent_metrics.hosts.lm_eval import XentTask",
    "from xent_metrics.hosts.lightning import XentCallback",
    "from xent_metrics.analysis.report import write_report; write_report([], 'report.html')",
    "from xent_metrics.hosts.model_pair import compare_models",
    "from xent_metrics.view.server import serve",
):
    try:
        exec(statement)
    except MissingExtraError as error:
        print(error)
"""


def test_a_missing_extra_is_named_with_the_command_that_installs_it():
    run = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, check=True)
    lm_eval, lightning, report, models, view = run.stdout.splitlines()
    assert lm_eval == "xent_metrics.hosts.lm_eval needs lm-eval: pip install 'xent-metrics[lm-eval]' [E013]"
    assert lightning == "xent_metrics.hosts.lightning needs Lightning: pip install 'xent-metrics[lightning]' [E013]"
    assert report == "the report needs jinja2: pip install 'xent-metrics[analysis,plots]' [E013]"
    assert view == "the page needs Starlette and uvicorn: pip install 'xent-metrics[view]' [E013]"
    assert models == "comparing models needs tqdm: pip install 'xent-metrics[analysis,lm-eval]' [E013]"


def test_the_public_names_are_there_and_no_others():
    for name in xent_metrics.__all__:
        assert hasattr(xent_metrics, name), name
    promised = """
        TokenScores score_tokens score_hidden_states TokenMetric RatioMetric TokenMetricCollection CrossEntropy Perplexity
        BitsPerByte TokenAccuracy ExpectedCalibrationError CalibrationWeightedCrossEntropy token_bytes get_metric
        list_metrics hookimpl
    """
    assert set(promised.split()) <= set(xent_metrics.__all__)
    assert len(xent_metrics.__all__) == len(set(xent_metrics.__all__)) <= 40
