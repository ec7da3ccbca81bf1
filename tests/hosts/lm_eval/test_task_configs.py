"""Every YAML in task_configs loads, builds the requests of lm-eval's own task, and runs under the stock `lm_eval` command."""

import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import datasets
import pytest
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from xent_metrics.errors import InvalidInputError
from xent_metrics.hosts.lm_eval import XentTask, python_docs

FOLDER = Path(__file__).parents[3] / "task_configs"
TASKS = sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("_"))
OFFLINE = [task for task in TASKS if task.startswith("xent_python_docs")]

#: A few rows with the columns of each data set, which the tests may not download.
ROWS = {
    "EleutherAI/wikitext_document_level": [
        {"page": " = Robert = \n\n He said , \" it 's 1 @,@ 000 ° \" ( twice ) . \n"},
        {"page": " = Titan @-@ class = \n\n Ships ; built in N .\n"},
    ],
    "EleutherAI/lambada_openai": [
        {"text": "She turned to her oldest friend and only then saw the dog"},
        {"text": "one two"},
    ],
    "Rowan/hellaswag": [
        {
            "activity_label": "Baking cookies", "ctx_a": "A tray is [title] taken out.", "ctx_b": "the woman",
            "endings": ["eats  it.", "[step] sits.", "runs.", "laughs."], "label": "3", "ind": 1,
        },
        {
            "activity_label": "Rowing", "ctx_a": "A boat.", "ctx_b": "they",
            "endings": ["row.", "sink.", "swim.", "fly."], "label": "0", "ind": 2,
        },
    ],
    "allenai/ai2_arc": [
        {"question": "What melts?", "choices": {"text": ["ice", "fire", "air"], "label": ["A", "B", "C"]}, "answerKey": "A"},
        {"question": "What burns?", "choices": {"text": ["sea", "wood"], "label": ["1", "2"]}, "answerKey": "2"},
    ],
    "cais/mmlu": [
        {"question": " How many bones? ", "subject": "human_aging", "choices": ["1", "2", "3", "4"], "answer": 2},
        {"question": "Which nerve?", "subject": "human_aging", "choices": ["a", "b", "c", "d"], "answer": 0},
    ],
}  # fmt: skip
#: Our task, and lm-eval's own on the same data.
THEIRS = {
    "xent_wikitext": "wikitext",
    "xent_lambada": "lambada_openai",
    "xent_hellaswag": "hellaswag",
    "xent_arc_easy": "arc_easy",
    "xent_mmlu": "mmlu_human_aging",
}


@pytest.fixture
def local_data(monkeypatch):
    """`datasets.load_dataset` without the download; records its arguments."""
    asked = []

    def load_dataset(path, name=None, **kwargs):
        asked.append((path, name))
        rows = datasets.Dataset.from_list(ROWS[path])
        return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test", "dev"), rows))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.fixture(scope="module")
def manager():
    return TaskManager(include_path=str(FOLDER))


def load(manager, name):
    return manager.load([name])["tasks"][name]


def requests(task):
    task.build_all_requests(rank=0, world_size=1)
    return [instance.args for instance in task.instances]


# Every file.


def test_every_file_is_yaml_and_every_task_is_listed(manager):
    assert {path.suffix for path in FOLDER.iterdir()} == {".yaml"}
    assert set(TASKS) <= set(manager.all_tasks)
    assert set(TASKS) == {*OFFLINE, *THEIRS}
    for path in FOLDER.glob("_*.yaml"):
        assert "\ntask:" not in path.read_text(), f"{path.name} is an include, not a task"


@pytest.mark.parametrize("name", TASKS)
def test_it_loads_with_our_class_and_metrics(manager, local_data, name):
    task = load(manager, name)
    assert isinstance(task, XentTask)
    assert task.config.metadata["version"] == 1.0
    names = {entry["metric"] for entry in task.config.metric_list}
    assert names <= set(task.aggregation())
    assert "bits_per_byte" in names


@pytest.mark.parametrize(("ours", "theirs"), THEIRS.items())
def test_it_asks_what_lm_eval_asks(manager, local_data, ours, theirs):
    assert requests(load(manager, ours)) == requests(load(manager, theirs))
    (path, name), (their_path, their_name) = local_data
    assert path == their_path
    if ours != "xent_mmlu":  # one task of all subjects; theirs is a subject
        assert name == their_name


@pytest.mark.parametrize("name", [name for name in THEIRS if name not in ("xent_wikitext", "xent_lambada")])
def test_it_has_the_answers_that_lm_eval_has(manager, local_data, name):
    ours, theirs = load(manager, name), load(manager, THEIRS[name])
    for our_doc, their_doc in zip(ours.eval_docs, theirs.eval_docs, strict=True):
        assert (
            ours.doc_to_choice(our_doc)[ours.doc_to_target(our_doc)]
            == (theirs.doc_to_choice(their_doc)[theirs.doc_to_target(their_doc)])
        )


# The Python documentation.


def test_the_corpus_hash_is_that_of_the_text_and_is_in_the_results(manager):
    expected = hashlib.sha256(json.dumps(sorted(topics.items())).encode()).hexdigest()
    for name in OFFLINE:
        assert load(manager, name).dump_config()["metadata"]["corpus_sha256"] == expected


def test_another_corpus_hash_is_refused():
    manager = TaskManager(include_path=str(FOLDER), include_defaults=False, metadata={"corpus_sha256": "0" * 64})
    for name in OFFLINE:
        with pytest.raises(InvalidInputError, match=f"hash {'0' * 64}; this Python ships {python_docs.CORPUS_SHA256}"):
            load(manager, name)


def test_the_model_s_arguments_are_for_the_model():
    manager = TaskManager(
        include_path=str(FOLDER), include_defaults=False, metadata={"pretrained": "x", "module": "y", "batch_size": 3}
    )
    assert len(load(manager, "xent_python_docs").eval_docs) == len(python_docs.documents("validation"))


def test_rolling_asks_for_the_held_out_texts_as_they_are(manager):
    task = load(manager, "xent_python_docs")
    assert requests(task) == [(text,) for text in python_docs.documents("validation").values()]
    by_token = load(manager, "xent_python_docs_tokens")
    assert [(by_token.doc_to_target(doc),) for doc in by_token.eval_docs] == requests(task)


# The stock command.


@pytest.fixture(scope="module")
def local_model(tmp_path_factory):
    """A GPT-2 of two layers over bytes, as Hugging Face saves it."""
    folder = tmp_path_factory.mktemp("gpt2")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, "<s>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>").save_pretrained(folder)
    GPT2LMHeadModel(GPT2Config(vocab_size=257, n_positions=256, n_embd=16, n_layer=1, n_head=1)).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_stock_command_runs_them_with_a_stock_model(local_model, tmp_path):
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={local_model}",
        "--tasks", "xent_python_docs,xent_python_docs_cloze", "--include_path", str(FOLDER), "--limit", "3",
        "--batch_size", "4", "--device", "cpu", "--output_path", str(tmp_path),
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())
    rolling, cloze = results["results"]["xent_python_docs"], results["results"]["xent_python_docs_cloze"]
    assert rolling["bits_per_byte,none"] == pytest.approx(math.log2(rolling["byte_perplexity,none"]))
    assert 7 < rolling["bits_per_byte,none"] < 9  # an untrained model: about log2(257)
    assert rolling["bits_per_byte_stderr,none"] > 0
    assert {"acc,none", "cross_entropy,none", "expected_calibration_error,none"} <= set(cloze)
    for task in ("xent_python_docs", "xent_python_docs_cloze"):
        assert results["configs"][task]["metadata"]["corpus_sha256"] == python_docs.CORPUS_SHA256


def test_the_yaml_says_no_hash_of_its_own():
    """The text differs between Python versions: a hash written into a YAML would be wrong in most."""
    for path in FOLDER.iterdir():
        assert "!function xent_metrics.hosts.lm_eval.python_docs.CORPUS_SHA256" in path.read_text() or (
            "corpus_sha256" not in path.read_text()
        )
