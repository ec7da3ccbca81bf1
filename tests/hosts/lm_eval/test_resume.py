"""A killed run goes on with the same bits, and results of another run are refused."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from support import resume_jobs as jobs
from support.hf_model import TEXT, tiny_model, tiny_tokenizer

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval import XentHFLM
from xent_metrics.hosts.lm_eval.models.logged_tokens import Results

TESTS = Path(__file__).parents[2]
KILLS = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tasks, and the model in a folder."""
    path = tmp_path_factory.mktemp("resume")
    words = TEXT.split()
    pages = [{"text": " ".join(words[i : i + 5 + 3 * i])} for i in range(14)]
    questions = [
        {"text": " ".join(words[i : i + 6]), "choices": [f" {word}" for word in words[20 + i : 23 + i]], "gold": i % 3}
        for i in range(10)
    ]
    stories = [{"text": " ".join(words[i : i + 4]), "answer": f" {words[i + 4]}"} for i in range(10)]
    jobs.write(path, {"pages": pages, "questions": questions, "stories": stories})
    tiny_model("llama_tied").save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "model")
    return path


@pytest.fixture(scope="module")
def whole(folder):
    """The run that nobody killed."""
    return jobs.evaluated(str(folder))


@pytest.fixture(scope="module")
def lm(folder):
    return counting(folder)


def counting(folder, **options):
    """xent-hf that counts the ids that it scores, and the texts that it generates."""

    class Counting(XentHFLM):
        generated = 0

        def _model_generate(self, context, *args, **kwargs):
            self.generated += len(context)
            return super()._model_generate(context, *args, **kwargs)

    made = Counting(
        tiny_model("llama_tied"), tokenizer=tiny_tokenizer(), device="cpu", batch_size=4, max_length=96, **options
    )
    made.ids = 0
    states = made.forward.states

    def counted(rows, cache=None):
        made.ids += sum(map(len, rows))
        return states(rows, cache)

    made.forward.states = counted
    return made


@pytest.mark.slow
def test_killed_at_twenty_random_moments(folder, whole, tmp_path):
    """By SIGKILL, some moments after the run began to write; every start reads what all before it wrote."""
    kept, output, draw = tmp_path / "kept", tmp_path / "output.json", random.Random(0)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    server = subprocess.Popen(
        [sys.executable, "-m", "support.resume_jobs", str(folder), str(kept), str(output)], env=environment, text=True, cwd=TESTS,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert server.stdin
    assert server.stdout
    lines_before, statuses = [], []
    with server:
        while not output.exists():
            lines_before.append(num_lines(kept))
            print(file=server.stdin, flush=True)
            child = int(server.stdout.readline())
            if len(statuses) < KILLS:
                began = wait_for(lambda: num_lines(kept) > lines_before[-1])
                assert began, "the run wrote nothing"
                time.sleep(draw.uniform(0, 0.03))
                os.kill(child, signal.SIGKILL)
            statuses.append(int(server.stdout.readline()))
        server.stdin.close()
    assert statuses == [signal.SIGKILL] * KILLS + [0]
    assert lines_before == sorted(set(lines_before))  # every start got further
    assert json.loads(output.read_text(encoding="utf-8")) == whole


def num_lines(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("results_*.jsonl"))


def wait_for(condition):
    for _ in range(60_000):
        if condition():
            return True
        time.sleep(0.001)
    return False


def cut(kept, keep):
    """Leave the lines out whose numbers `keep` says no to."""
    for path in kept.glob("results_*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for number, line in enumerate(lines) if keep(number)))


@pytest.fixture(scope="module")
def finished(folder, lm, whole, tmp_path_factory):
    """A run's folder when it is done, and the ids that it scored and the texts that it generated."""
    kept = tmp_path_factory.mktemp("finished") / "kept"
    lm.ids = lm.generated = 0
    assert jobs.evaluated(str(folder), str(kept), lm) == whole
    return kept, lm.ids, lm.generated


@pytest.fixture
def kept(finished, lm, tmp_path):
    """A copy of the folder."""
    lm.ids = lm.generated = 0
    return Path(shutil.copytree(finished[0], tmp_path / "kept"))


@pytest.mark.parametrize(
    ("keep", "fewer_ids", "fewer_texts"),
    [
        (lambda number: number % 2, False, True),
        (lambda number: number < 20, True, False),
        (lambda number: True, True, True),
    ],
    ids=["every other", "the first", "all"],
)
def test_only_batches_with_unknown_results_run(folder, whole, lm, finished, kept, keep, fewer_ids, fewer_texts):
    cut(kept, keep)
    assert jobs.evaluated(str(folder), str(kept), lm) == whole
    assert lm.generated < finished[2] if fewer_texts else lm.generated == finished[2]
    assert lm.ids < finished[1] if fewer_ids else lm.ids <= finished[1]
    if fewer_ids and fewer_texts:
        assert (lm.ids, lm.generated) == (0, 0)


def test_torn_and_damaged_lines_are_left_out(folder, whole, lm, kept, caplog):
    [path] = kept.glob("results_*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3].replace(b"A", b"B", 1)
    path.write_bytes(b"".join(lines)[:-9])
    assert jobs.evaluated(str(folder), str(kept), lm) == whole
    assert "resume: 2 lines in" in caplog.text


def test_stock_models_go_on_too(folder, tmp_path):
    def run():
        options = {"model_class": HFLM, "batch_size": 1, "tasks": ["texts"]}
        return jobs.evaluated(str(folder), str(tmp_path / "kept"), **options)

    yaml = (folder / "pages.yaml").read_text(encoding="utf-8").replace("task: pages", "task: texts")
    (folder / "texts.yaml").write_text(yaml.replace("  - metric: prediction_entropy\n", ""), encoding="utf-8")
    first = run()
    cut(tmp_path / "kept", lambda number: number % 2)
    assert run() == first
    assert num_lines(tmp_path / "kept") == 14


def test_logged_tokens_are_kept(folder, lm, tmp_path):
    plain, lm.results = lm.results, Results(lm.tokenizer, 2)
    try:
        first = jobs.evaluated(str(folder), str(tmp_path / "kept"), lm)
        lm.ids = 0
        again = jobs.evaluated(str(folder), str(tmp_path / "kept"), lm)
    finally:
        lm.results = plain
    assert "alternatives" in first["responses"]["pages"][0][0][0]
    assert (again, lm.ids) == (first, 0)


def doubled(lm):
    with torch.no_grad():
        lm.model.lm_head.weight.mul_(2)


def halved(lm):
    with torch.no_grad():
        lm.model.lm_head.weight.div_(2)


def nothing(lm):
    pass


CHANGES = {
    "weights": (doubled, halved, {}, r'model\.weights: was "\w+", is "\w+"'),
    "batch size": (
        lambda lm: setattr(lm, "batch_size_per_gpu", 2), lambda lm: setattr(lm, "batch_size_per_gpu", 4), {},
        r'model\.batch_size: was "4", is "2"',
    ),
    "limit": (nothing, nothing, {"limit": 3}, r"options\.limit: was null, is 3"),
    "tasks": (nothing, nothing, {"tasks": ["pages"]}, r"tasks\.questions: was .*, is null"),
    "shots": (nothing, nothing, {"num_fewshot": 1}, r"tasks\.questions\.config\.num_fewshot: was 0, is 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_another_run_is_refused(folder, lm, kept, name):
    change, undo, options, said = CHANGES[name]
    change(lm)
    try:
        with pytest.raises(InvalidInputError, match=rf"(?s)belongs to another run.*{said}"):
            jobs.evaluated(str(folder), str(kept), lm, **options)
    finally:
        undo(lm)
    assert lm.ids == 0


def test_other_documents_are_refused(folder, lm, kept):
    path = folder / "pages.jsonl"
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace("language", "longuage", 1), encoding="utf-8")
    try:
        with pytest.raises(InvalidInputError, match=r"tasks\.pages\.digest"):
            jobs.evaluated(str(folder), str(kept), lm)
    finally:
        path.write_text(before, encoding="utf-8")


def test_folders_that_are_no_runs(folder, tmp_path, lm):
    (tmp_path / "results_a.jsonl").write_text("")
    with pytest.raises(InvalidInputError, match=r"holds results without run\.json"):
        jobs.evaluated(str(folder), str(tmp_path), lm, tasks=["pages"])
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InvalidInputError, match=r"run\.json can't be read"):
        jobs.evaluated(str(folder), str(tmp_path), lm, tasks=["pages"])


def test_lm_evals_cache_is_refused(folder, tmp_path, lm):
    with pytest.raises(InvalidInputError, match="leave --use_cache out"):
        jobs.evaluated(str(folder), str(tmp_path / "kept"), lm, tasks=["pages"], use_cache=str(tmp_path / "cache"))


def test_nothing_of_it_stays_behind(folder, whole, lm, kept):
    jobs.evaluated(str(folder), str(kept), lm)
    assert lm.ids == 0
    assert jobs.evaluated(str(folder), None, lm) == whole
    assert lm.ids > 0
