"""Every block of code in the documentation is run, parsed or listed here with the reason why it can't be.

Blocks of ```python and tasks of lm-eval in the README and docs/ are run by test_packaging.py. Those of plugins' READMEs, which
need what a reader has, are parsed, and their imports run.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import shlex
import sys

import pytest
import yaml
from support.documentation import PAGES, ROOT, Block, blocks_of

from xent_metrics import errors

OTHER_PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "plugins").glob("*/README.md"))]

#: The blocks of ```py, which aren't run: as many on each page. Each is marked with the reason, in a comment above it.
NOT_RUN = {
    "README.md": 1,  # a Trainer
    "docs/engines.md": 1,  # gpt2 from the network
    "docs/lightning.md": 1,  # a tokenizer
    "docs/trainer.md": 2,  # a Trainer
}
#: What is done with the blocks of each language. A ```text is no code; ```math is read by tests of the site.
LANGUAGES = {"python", "py", "pycon", "yaml", "toml", "console", "text", "math"}


TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in [*PAGES, *OTHER_PAGES]}
BLOCKS = [block for page, text in TEXTS.items() for block in blocks_of(page, text)]


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def test_every_block_is_of_a_known_language():
    assert [f"{block}: {block.language!r}" for block in BLOCKS if block.language not in LANGUAGES] == []


@pytest.mark.parametrize("page", TEXTS)
def test_no_block_is_overlooked(page):
    """Each begins at the start of its line, and each that begins ends."""
    fences = re.findall(r"^.*```.*$", TEXTS[page], re.MULTILINE)
    blocks = [block for block in BLOCKS if block.page == page]
    inside = sum(len(re.findall(r"^.*```.*$", block.text, re.MULTILINE)) for block in blocks)
    inline = sum(bool(re.search(r"\S.*```|^ +```[^`\s]+```", fence)) for fence in fences)
    assert len(fences) - inside - inline == 2 * len(blocks)
    assert "~~~" not in TEXTS[page]


def test_blocks_that_are_not_run_are_listed_and_say_why():
    pages = [path.relative_to(ROOT).as_posix() for path in PAGES]
    found = {page: sum(block.page == page for block in of("py")) for page in pages}
    assert {page: number for page, number in found.items() if number} == NOT_RUN
    assert [str(b) for b in BLOCKS if b.page in pages and bool(b.reason) != (b.language == "py")] == []


@pytest.mark.parametrize("block", [*of("py"), *(b for b in of("python") if ROOT / b.page in OTHER_PAGES)], ids=str)
def test_what_is_not_run_is_python_and_its_imports_are_there(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(compile(ast.Module([node], []), str(block), "exec"), {})


@pytest.mark.parametrize("block", of("pycon"), ids=str)
def test_sessions_print_what_the_page_shows(block):
    session = doctest.DocTestParser().get_doctest(block.text, {}, str(block), block.page, block.line)
    assert session.examples
    printed: list[str] = []
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    doctest.DocTestRunner(optionflags=options).run(session, out=printed.append)
    assert "".join(printed) == ""


class Loader(yaml.SafeLoader):
    """Knows lm-eval's `!function`."""


Loader.add_constructor("!function", lambda loader, node: _found(loader.construct_scalar(node)))


def _found(path: str) -> object:
    """The object of an import path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_is_a_task_or_a_configuration_whose_classes_take_it(block):
    config = yaml.load(block.text, Loader=Loader)
    classes = list(_classes(config))
    assert "metric_list" in config or classes  # a task is checked by test_packaging.py
    for path, arguments in classes:
        assert set(arguments) <= set(inspect.signature(_found(path)).parameters)


def _classes(config: object):
    """The `class_path` and `init_args` of a configuration, as jsonargparse reads them."""
    if isinstance(config, dict):
        if "class_path" in config:
            yield config["class_path"], config.get("init_args", {})
        for inside in config.values():
            yield from _classes(inside)
    elif isinstance(config, list):
        for inside in config:
            yield from _classes(inside)


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_toml_can_be_read(block):
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "pip._vendor.tomli")
    assert tomllib.loads(block.text)


def commands_of(text: str) -> list[list[str]]:
    """The words of each command after a $, without comments, variables that are set for it, and what … stands for."""
    found = []
    for line in re.findall(r"^\$ (.*)$", text.replace("\\\n", ""), re.MULTILINE):
        for command in re.split(r" && ", line):
            words = [word for word in shlex.split(command, comments=True) if word != "…"]
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            found.append(words)
    return found


COMMANDS = [(block, words) for block in of("console") for words in commands_of(block.text)]


@pytest.mark.parametrize(
    ("block", "words"), COMMANDS, ids=[f"{block} {' '.join(words)[:50]}" for block, words in COMMANDS]
)
def test_commands_are_ones_that_exist(block, words):
    CHECKS[words[0]](words[1:])
    for script in (word for word in words if word.endswith(".py")):
        folders = (ROOT, (ROOT / block.page).parent, ROOT / "docs" / "tutorials")
        assert any((folder / script).exists() for folder in folders)


def _make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert words[0] in targets


def _pip(words: list[str]) -> None:
    assert words[0] == "install"
    for word in words[1:]:
        path, _, extras = word.partition("[")
        if word.endswith(".txt") or path.startswith((".", "plugins/")):
            assert (ROOT / path).exists()
        if path == ".":
            declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("optional-dependencies]")[2]
            assert all(re.search(rf"^{extra} = ", declared, re.MULTILINE) for extra in extras.rstrip("]").split(","))


def _xent(words: list[str]) -> None:
    """What `xent` itself takes is checked by test_packaging.py; here what goes on to lm-eval."""
    if words[:1] == ["lm-eval"]:
        _lm_eval(words[1:])


def _lm_eval(words: list[str]) -> None:
    """By lm-eval's own parser; with our options, models and tasks."""
    from lm_eval._cli.harness import HarnessCLI
    from lm_eval.api.registry import model_registry
    from typer.main import get_command

    from xent_metrics.cli.app import app
    from xent_metrics.hosts.lm_eval.command import parse_metrics
    from xent_metrics.task_folders import list_tasks, task_configs_folder

    if "--xent_metrics" in words:
        assert parse_metrics(words[words.index("--xent_metrics") + 1])
    for option in get_command(app).commands["lm-eval"].params:
        for name in set(option.opts) & set(words):
            place = words.index(name)
            words = words[:place] + words[place + (1 if option.is_flag else 2) :]
    if "--tasks" not in words:
        return  # an outline, `lm-eval run …`
    given = HarnessCLI()._parser.parse_args(words)
    assert given.model in model_registry
    ours = {task.name for task in list_tasks(task_configs_folder())}
    assert {task for task in given.tasks if task.startswith("xent_")} <= ours


def _pytest(words: list[str]) -> None:
    """Without paths of this repository; the option is the plugin kit's."""
    assert "--xent-plugin" in words


def _python(words: list[str]) -> None:
    assert words[0].endswith(".py") or (words[0] == "-m" and importlib.util.find_spec(words[1]))


CHECKS = {
    "make": _make,
    "pip": _pip,
    "xent": _xent,
    "lm_eval": _lm_eval,
    "pytest": _pytest,
    "python": _python,
    # Of other programs, of which nothing here can be checked.
    **dict.fromkeys(["accelerate", "cd", "export", "git", "sed", "torchrun"], lambda words: None),
}


def test_blocks_are_found_with_their_reasons():
    text = "a\n<!-- not run: no network -->\n```py\nf(x)\n```\n\n```console\n$ A=1 make demo && cd x   # comment\nout\n"
    text += "$ xent \\\n  plot …\n```\n"
    py, console = blocks_of("p.md", text)
    assert (py.language, py.text, py.reason, str(py)) == ("py", "f(x)\n", "no network", "p.md:4")
    assert (console.language, console.reason) == ("console", "")
    assert commands_of(console.text) == [["make", "demo"], ["cd", "x"], ["xent", "plot"]]


def test_errors_are_raised_by_the_page_of_errors():
    [page] = [block.text for block in of("pycon") if 'get_metric("perplexty")\nTraceback' in block.text]
    assert "UnknownMetricError" in page
    assert sum(block.page == "docs/errors.md" for block in of("pycon")) == len(errors.__all__)
