"""`xent` itself: help, version and completion answer without torch, and errors are one message."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.cli import fits, xent
from typer.testing import CliRunner

import xent_metrics
from xent_metrics.cli import app as cli
from xent_metrics.task_folders import task_configs_folder

HEAVY = {"torch", "numpy", "torchmetrics", "lm_eval", "lightning", "transformers", "matplotlib", "scipy", "yaml"}
HOSTS = {"lm_eval", "lightning", "pytorch_lightning", "transformers", "accelerate", "peft", "datasets", "tokenizers"}
BUILT_IN = [
    "metrics", "explain", "plugins", "tasks", "lm-eval", "compare", "compare-models", "intervals", "report", "rescore", "view",
    "new-plugin", "plot",
    "plot curve", "plot reliability", "plot position",
]  # fmt: skip

#: Runs `xent` and prints, last, the packages that are loaded then.
SCRIPT = """
import sys
for dependency in sys.argv.pop(1).split():
    __import__(dependency)
before = {name.partition(".")[0] for name in sys.modules}
sys.argv[0] = "xent"
from xent_metrics.cli import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
print()
print(*{name.partition(".")[0] for name in sys.modules} - before)
"""


def loaded(*arguments, before="", **environment):
    """What a command prints, and the packages that it loads beyond those of `before`."""
    command = [sys.executable, "-c", SCRIPT, before, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True)
    *printed, modules = done.stdout.splitlines()
    return "\n".join(printed), set(modules.split())


@pytest.mark.parametrize("command", ["", *BUILT_IN])
def test_help_loads_nothing_heavy(command):
    printed, modules = loaded(*command.split(), "--help")
    assert f"Usage: xent {command}".strip() in printed
    assert "xent_metrics" in modules
    assert not modules & HEAVY


def test_the_version_loads_nothing_but_typer():
    printed, modules = loaded("--version")
    assert printed.split() == [xent_metrics.__version__]
    assert not modules & {*HEAVY, "rich"}


def test_an_error_is_explained_without_torch():
    printed, modules = loaded("explain", "E005")
    assert "MissingScoreError" in printed
    assert not modules & HEAVY


@pytest.mark.parametrize(
    ("words", "position", "expected"),
    [
        ("xent me", 1, ["metrics"]),
        ("xent comp", 1, ["compare", "compare-models"]),
        ("xent plot ", 2, ["curve", "reliability", "position"]),
        ("xent intervals --", 2, ["--bootstrap", "--num-resamples", "--json", "--help"]),
    ],
)
def test_completion_loads_nothing_heavy(words, position, expected):
    asked = {"_XENT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(position)}
    printed, modules = loaded(**asked)
    assert printed.split() == expected
    assert not modules & HEAVY


def test_completion_of_a_command_that_nobody_has_is_silent(tmp_path):
    asked = {"_XENT_COMPLETE": "complete_bash", "COMP_WORDS": "xent nope --", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ""],
        capture_output=True, text=True, env=os.environ | asked | {"XENT_METRICS_PLUGINS": "not_installed"},
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["xent", "xent-metrics"])
def test_bash_completes_with_the_script_that_is_shown(name):
    script = Path(sys.executable).parent / name
    assert script.exists()
    shown, function = f"{script} --show-completion bash", f"_{name.replace('-', '_')}_completion"
    steps = f'eval "$({shown})"; COMP_WORDS=({name} repo); COMP_CWORD=1; {function} {script}; echo "${{COMPREPLY[@]}}"'
    unasked = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # the shell is named, whatever runs the tests
    done = subprocess.run(["bash", "-c", steps], capture_output=True, text=True, check=True, env=os.environ | unasked)
    assert done.stdout.split() == ["report"]


def test_the_list_of_metrics_loads_no_host():
    """Torchmetrics loads transformers, accelerate and matplotlib where they are installed."""
    _, modules = loaded("metrics", before="numpy torch torchmetrics typer rich")
    assert "xent_metrics" in modules
    assert not modules & {*HOSTS, "matplotlib", "scipy", "pandas", "jinja2"}
    _, modules = loaded("metrics")
    assert "torch" in modules
    assert not modules & {"lm_eval", "lightning", "pytorch_lightning"}


def test_the_help_says_where_plugins_commands_are_listed():
    printed = xent("--help", width=80)
    assert "Plugins may add commands: `xent plugins` lists them." in printed
    assert fits(printed, 80)


def test_an_error_of_ours_is_one_message(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["xent", "compare", str(tmp_path / "a[red]b")])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    printed = capsys.readouterr()
    assert printed.err == "ComparisonError: xent compare takes two or more runs; got 1 [E008]\n"
    assert printed.out == ""


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


def test_without_a_command_the_help_is_shown():
    result = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, [])
    assert "Usage: " in result.output


def test_what_the_terminal_cannot_write_is_replaced():
    script = 'import sys; sys.argv[0] = "xent"; from xent_metrics.cli import main; main()'
    done = subprocess.run(
        [sys.executable, "-c", script, "metrics"],
        capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "cross_entropy" in done.stdout
    assert "?" in done.stdout


def test_a_reader_that_leaves_is_no_error():
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -m xent_metrics.cli metrics | head -1; echo "${{PIPESTATUS[0]}}"'],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 2
