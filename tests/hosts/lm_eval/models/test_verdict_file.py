"""What was found of a model's shortcuts holds for its next start, and for nothing that differs from it."""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
from pathlib import Path

import pytest
import torch
import transformers
from support.hf_model import TEXT, choices, context_plugin, rolling, switched_off, tiny_model
from transformers.models.llama import modeling_llama

from xent_metrics.hosts import lm_head
from xent_metrics.hosts.lm_eval import XentHFLM
from xent_metrics.hosts.lm_eval.models import verdict_file
from xent_metrics.hosts.lm_eval.models.hf_forward import HFForward
from xent_metrics.hosts.lm_eval.models.verify import Verdict


@pytest.fixture
def assets(tmp_path, monkeypatch):
    """The folder of the verdicts."""
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


@pytest.fixture(autouse=True)
def precision():
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def save(tmp_path, tokenizer):
    """Saves a model with the tokenizer; gives the folder."""

    def save(model):
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return str(tmp_path / "model")

    return save


@pytest.fixture
def start(assets, caplog, monkeypatch):
    """Loads a model and checks its shortcuts; `forwards` counts what ran for it, `said` has our lines of the log."""

    def start(pretrained, **options):
        caplog.clear()
        forwards, run = [], HFForward._run
        with monkeypatch.context() as patched, caplog.at_level(logging.INFO, logger="xent_metrics"):
            patched.setattr(HFForward, "_run", lambda *args, **more: forwards.append(1) or run(*args, **more))
            lm = XentHFLM(pretrained, **{"device": "cpu", "batch_size": 4, "max_length": 88} | options)
            assert lm.forward  # checked on first use
        lm.forwards = len(forwards)
        records = (record for record in caplog.records if record.name.startswith("xent_metrics"))
        lm.said = [record.getMessage() for record in records]
        return lm

    return start


def files(assets):
    return sorted(path for path in assets.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["llama_tied", "gpt_neo_local", "mamba"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_next_start_runs_no_forward_and_scores_with_the_same_bits(start, save, assets, name, dtype):
    path = save(tiny_model(name))
    first, second = start(path, dtype=dtype), start(path, dtype=dtype)
    assert first.forwards >= 10
    assert second.forwards == 0
    assert switched_off(second) == switched_off(first)
    assert second.forward.rounding == first.forward.rounding
    [file] = files(assets)
    assert second.said == [*first.said, f"xent-hf: that was found at an earlier start ({file})"]
    assert (choices(second), rolling(second, TEXT)) == (choices(first), rolling(first, TEXT))


def test_a_plugin_that_ran_runs_again(start, save, install):
    uses = []

    class Counted(torch.no_grad):
        def __enter__(self):
            uses.append(1)
            super().__enter__()

    install(context_plugin(lambda model: Counted()))
    path = save(tiny_model("llama_tied"))
    assert start(path).forward.context_on
    uses.clear()
    again = start(path)
    assert (again.forward.context_on, again.forwards, uses) == (True, 0, [])
    rolling(again, TEXT)
    assert uses


@pytest.mark.parametrize("first", [True, False])
def test_a_plugin_that_gives_another_answer_is_asked_again(start, save, install, first):
    given = [first]
    install(context_plugin(lambda model: torch.no_grad() if given[0] else None))
    path = save(tiny_model("llama_tied"))
    assert start(path).forward.context_on is first
    given[0] = not first
    again = start(path)
    assert (again.forward.context_on, again.forward.hidden) == (not first, True)
    assert again.forwards >= 10
    assert any("is checked again: " in line and "gives a forward_context" in line for line in again.said)


def test_a_plugin_that_fails_once_is_asked_again(start, save, install):
    working = []

    def give(model):
        if not working:
            raise OSError("no space left")
        return torch.no_grad()

    install(context_plugin(give))
    path = save(tiny_model("llama_tied"))
    assert not start(path).forward.context_on
    working.append(1)
    assert start(path).forward.context_on


def other_weights(path, save, monkeypatch):
    model = tiny_model("llama_tied")
    model.model.norm.weight.data[-1] += 1e-3
    save(model)


def other_configuration(path, save, monkeypatch):
    model = tiny_model("llama_tied")
    model.config.rms_norm_eps *= 2
    save(model)


def other_version(path, save, monkeypatch):
    monkeypatch.setattr(verdict_file.transformers, "__version__", "5.99.0")


def other_installation(path, save, monkeypatch):
    """As of a library of kernels that transformers uses where it is installed."""
    (Path(path).parent / "site-packages/causal_conv1d-1.0.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(Path(path).parent / "site-packages"))


def other_forward(path, save, monkeypatch):
    """As libraries with kernels of their own put it there."""
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", lambda self, x: x)


def other_code(path, save, monkeypatch):
    files = [*verdict_file._code([])]
    edited = Path(path) / "edited.py"
    edited.write_text("")
    monkeypatch.setattr(verdict_file, "_code", lambda modules: [*files[1:], edited])


def other_precision(path, save, monkeypatch):
    torch.set_float32_matmul_precision("medium")


def other_variable(path, save, monkeypatch):
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")


CHANGES = [
    other_weights,
    other_configuration,
    other_version,
    other_installation,
    other_forward,
    other_code,
    other_precision,
    other_variable,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_checked_again(start, save, assets, monkeypatch, change):
    path = save(tiny_model("llama_tied"))
    start(path)
    change(path, save, monkeypatch)
    assert start(path).forwards >= 10
    assert len(files(assets)) == 2


def test_all_code_counts_that_a_forward_runs(install):
    """Ours, what transformers' models share, and the model's own."""
    install()
    code = {*verdict_file._code(tiny_model("llama_tied").modules())}
    folder, shared = Path(lm_head.__file__).parents[1], Path(transformers.__file__).parent
    for file in (
        folder / "hosts/lm_head.py",
        folder / "scoring/score.py",
        folder / "hosts/lm_eval/models/masks.py",
        shared / "masking_utils.py",
        shared / "integrations/sdpa_attention.py",
        Path(modeling_llama.__file__),
    ):
        assert file in code


def test_a_file_counts_by_its_name_size_and_time(tmp_path):
    file, other = tmp_path / "a.py", tmp_path / "b.py"
    file.write_text("1")
    seen = {verdict_file._digest([file])}
    assert verdict_file._digest([file]) in seen
    os.utime(file, ns=(1, 1))
    seen.add(verdict_file._digest([file]))
    file.write_text("22")
    os.utime(file, ns=(1, 1))
    seen.add(verdict_file._digest([file]))
    file.rename(other)
    seen.add(verdict_file._digest([other]))
    assert len(seen) == 4


OPTIONS = [
    ("llama_tied", {"dtype": "bfloat16"}),
    ("llama_tied", {"mixed_precision_dtype": "bfloat16"}),
    ("llama_tied", {"attn_implementation": "eager"}),
    ("llama_tied", {"max_length": 60}),
    ("mixtral", {"experts_implementation": "eager"}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_other_options_are_checked_again(start, save, name, options):
    path = save(tiny_model(name))
    start(path)
    assert start(path, **options).forwards >= 10
    assert start(path, **options).forwards == 0


def test_the_size_of_batches_does_not_matter(start, save):
    path = save(tiny_model("llama_tied"))
    start(path)
    assert start(path, batch_size=7, logits_cache=False).forwards == 0


def test_another_plugin_is_checked_again(start, save, install):
    path = save(tiny_model("llama_tied"))
    start(path)
    install(context_plugin(lambda model: None))
    assert start(path).forwards >= 10
    assert start(path).forwards == 0


@pytest.mark.parametrize("name", ["fast_kernels", "acme.kernels"])  # the latter in a namespace
def test_an_edited_plugin_is_checked_again(start, save, install, tmp_path, monkeypatch, name):
    source = "import torch\nfrom xent_metrics import hookimpl\n@hookimpl\ndef forward_context(model): return torch.no_grad()\n"
    folder = tmp_path / name.replace(".", "/")
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    install(importlib.import_module(name))
    path = save(tiny_model("llama_tied"))
    start(path)
    (folder / "cache.bin").write_bytes(b"no code")
    assert start(path).forwards == 0
    (folder / "kernels.so").write_bytes(b"compiled")
    assert start(path).forwards >= 10


def test_a_plugin_without_a_file_is_always_checked(start, save, install, assets):
    """As in a notebook."""
    plugin = context_plugin(lambda model: torch.no_grad())
    plugin.forward_context.__module__ = "__nowhere__"
    install(plugin)
    path = save(tiny_model("llama_tied"))
    assert [start(path).forwards >= 10 for _ in range(2)] == [True, True]
    assert not files(assets)


CODE = """from transformers import LlamaConfig, LlamaForCausalLM
from .helper import SCALE
class OursConfig(LlamaConfig):
    model_type = "ours"
class Ours(LlamaForCausalLM):
    config_class = OursConfig
"""


def test_edited_code_of_a_model_is_checked_again(start, save, tmp_path, monkeypatch):
    """Of what a model folder brings with it, the modules that its code imports count, too."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = tiny_model("llama_tied")
    model.config.auto_map = {"AutoConfig": "ours.OursConfig", "AutoModelForCausalLM": "ours.Ours"}
    model.config.model_type = "ours"
    path = save(model)
    (tmp_path / "model/config.json").write_text(json.dumps(model.config.to_dict() | {"architectures": ["Ours"]}))
    (tmp_path / "model/ours.py").write_text(CODE)
    for helper, seen in (("SCALE = 1", 10), ("SCALE = 1", 0), ("SCALE = 2", 10)):
        (tmp_path / "model/helper.py").write_text(helper)
        lm = start(path, trust_remote_code=True)
        assert type(lm.model).__name__ == "Ours"
        assert (lm.forwards >= 10) is (seen >= 10)


def test_a_model_that_cannot_be_described_is_always_checked(start, save, assets, monkeypatch):
    monkeypatch.setattr(verdict_file, "weights_digest", lambda *args, **options: 1 / 0)
    path = save(tiny_model("llama_tied"))
    assert [start(path).forwards >= 10 for _ in range(2)] == [True, True]
    assert not files(assets)


def test_an_object_is_always_checked(start, model, tokenizer, assets):
    for _ in range(2):
        assert start(model, tokenizer=tokenizer).forwards >= 10
    assert not files(assets)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "null",
        lambda text: text.replace('"rounding"', '"rounded"'),
        lambda text: text.replace('"off": {}', '"off": []'),
        lambda text: text.replace('"on": [', '"on": 1, "was": ['),
        lambda text: json.dumps(json.loads(text) | {"key": {}}),
        lambda text: json.dumps({**json.loads(text), "verdict": "yes"}),
    ],
)
def test_a_damaged_file_is_replaced(start, save, assets, damage):
    path = save(tiny_model("llama_tied"))
    start(path)
    [file] = files(assets)
    whole = file.read_text()
    file.write_text(damage(whole))
    assert file.read_text() != whole
    assert start(path).forwards >= 10
    assert file.read_text() == whole


def test_a_shortcut_that_is_unknown_is_no_error(start, save, assets):
    path = save(tiny_model("llama_tied"))
    start(path)
    [file] = files(assets)
    file.write_text(file.read_text().replace('"off": {}', '"off": {"teleport": "no"}'))
    assert start(path).forwards >= 10


def test_a_folder_that_cannot_be_made_is_no_error(start, save, assets):
    assets.write_text("a file")
    path = save(tiny_model("llama_tied"))
    for _ in range(2):
        lm = start(path)
        assert lm.forwards >= 10
        assert any("is checked again at its next start, because its verdict can't be kept" in line for line in lm.said)


ERRORS = [
    (torch.OutOfMemoryError, False),
    (OSError, False),
    (ImportError, False),
    (TypeError, True),
    (ValueError, True),
]


@pytest.mark.parametrize(("error", "kept"), ERRORS)
def test_too_little_memory_is_not_remembered(start, save, assets, monkeypatch, error, kept):
    def fail(*args):
        raise error("full")

    path = save(tiny_model("llama_tied"))
    with monkeypatch.context() as patched:
        patched.setattr(HFForward, "prefix_cache", fail)
        assert not start(path).forward.caching
    assert start(path).forward.caching is not kept


def test_too_little_memory_for_a_batch_is_not_remembered(start, save, assets, monkeypatch):
    """It leaves the rounding unknown."""
    path = save(tiny_model("llama_tied"))
    states = HFForward.states

    def fail(self, rows, cache=None):
        if len(rows) > 1:
            raise torch.OutOfMemoryError("full")
        return states(self, rows, cache)

    with monkeypatch.context() as patched:
        patched.setattr(HFForward, "states", fail)
        assert start(path, dtype="bfloat16").forward.rounding == 0
    assert not files(assets)
    assert start(path, dtype="bfloat16").forward.rounding > 0


def test_every_figure_survives(tmp_path, assets):
    """A model that can't run a batch has no figure for it."""
    file = verdict_file.VerdictFile.__new__(verdict_file.VerdictFile)
    file.key, file.name, file.kind = {"model": "ö"}, "a.json", "Ours"
    verdict = Verdict(("hidden",), {"packing": "it raises KeyError: 'é'"}, 1 / 3, math.nan)
    file.write(verdict)
    found = file.read()
    assert (found.on, found.off, found.rounding, found.lasting) == (verdict.on, verdict.off, 1 / 3, True)
    assert math.isnan(found.moved)
