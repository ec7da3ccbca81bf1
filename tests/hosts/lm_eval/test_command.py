"""`xent lm-eval run --model xent-hf` as a user runs it: with samples, in one process and by `accelerate launch`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
from sqlitedict import SqliteDict
from support.hf_model import tiny_model, tiny_tokenizer

from xent_metrics.errors import MetricOptionError, UnknownMetricError
from xent_metrics.hosts.lm_eval.command import parse_metrics

TASKS = ["xent_python_docs_tokens", "xent_python_docs_cloze"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model and its tokenizer."""
    path = tmp_path_factory.mktemp("hf")
    tiny_model("llama_tied").save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "model")
    return path


def run(folder, name, launcher, *options, **variables):
    """The results and samples of a run."""
    command = [
        *launcher, "-m", "xent_metrics.cli", "lm-eval", "run", "--model", "xent-hf", "--tasks", ",".join(TASKS),
        "--model_args", f"pretrained={folder / 'model'},dtype=float32,log_tokens=true", "--device", "cpu",
        "--batch_size", "auto", "--limit", "3", "--log_samples", "--output_path", str(folder / name),
        "--xent_metrics", "mean_reciprocal_rank,z_loss", *options,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(folder / "home"),
    } | variables
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    found = folder / name
    [results] = found.rglob("results_*.json")
    samples = {
        task: [
            json.loads(line)
            for path in found.rglob(f"samples_{task}_*.jsonl")
            for line in path.read_text().strip().split("\n")
        ]
        for task in TASKS
    }
    return json.loads(results.read_text())["results"], samples, done


def numbers(results):
    return {
        (task, key): value
        for task, found in results.items()
        for key, value in found.items()
        if isinstance(value, float) and "stderr" not in key
    }


@pytest.mark.slow
def test_two_processes_give_what_one_gives(folder):
    """`--multi_gpu` makes it two: `accelerate launch --cpu` starts one process, whatever number it is given."""
    one, samples, done = run(folder, "one", [sys.executable], "--use_cache", str(folder / "cache_one"))
    assert "cross_entropy" in done.stdout  # the table
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", str(port)]
    cache = ["--use_cache", str(folder / "cache_two")]
    two, more, _ = run(folder, "two", [sys.executable, "-m", *launch], *cache, ACCELERATE_USE_CPU="true")

    shares = [kept(folder / f"cache_two_rank{rank}.db") for rank in (0, 1)]
    assert all(shares)  # each process ran some requests,
    assert not shares[0] & shares[1]  # none of them ran one that the other ran,
    assert shares[0] | shares[1] == kept(folder / "cache_one_rank0.db")  # and between them they ran all
    assert numbers(one) == pytest.approx(numbers(two), rel=1e-6)
    assert numbers(one)[TASKS[0], "cross_entropy,none"] > 0
    assert all(0 < numbers(one)[task, "mean_reciprocal_rank,none"] < 1 for task in TASKS)
    assert numbers(one)[TASKS[0], "z_loss,none"] > 0
    for task in TASKS:
        alone, together = (sorted(found[task], key=lambda sample: sample["doc_id"]) for found in (samples, more))
        assert [sample["doc_id"] for sample in alone] == [0, 1, 2]
        for first, second in zip(alone, together, strict=True):
            check_sample_equal(first, second)
    check_samples(samples)
    check_samples(more)


def kept(path):
    """The keys of a cache, without the entry that names its model."""
    with SqliteDict(str(path)) as found:
        return set(found) - {"made by"}


def check_sample_equal(one, two):
    """The same requests and tokens, and numbers that differ by rounding in another batch only."""
    assert one["arguments"] == two["arguments"]
    for first, second in zip(one["resps"], two["resps"], strict=True):
        (first, *greedy), (second, *also) = ([x] if isinstance(x, str) else x for x in (first[0], second[0]))
        assert greedy == also
        pairs = zip(json.loads(first)["tokens"], json.loads(second)["tokens"], strict=True)
        for token, other in pairs:
            assert (token["text"], token["id"]) == (other["text"], other["id"])
            assert token["nll"] == pytest.approx(other["nll"], rel=1e-5)


def check_samples(samples):
    """The samples contain the text and the nll of every token."""
    rolled, choice = samples[TASKS[0]][0], samples[TASKS[1]][0]
    logged = json.loads(rolled["resps"][0][0])
    assert "".join(token["text"] for token in logged["tokens"]) == rolled["arguments"]["gen_args_0"]["arg_0"]
    assert logged["loglikelihood"] == pytest.approx(-sum(token["nll"] for token in logged["tokens"]), rel=1e-9)
    for number, ((first, _),) in enumerate(choice["resps"]):
        tokens = json.loads(first)["tokens"]
        assert "".join(token["text"] for token in tokens) == choice["arguments"][f"gen_args_{number}"]["arg_1"]


def test_metrics_are_parsed_with_their_options():
    assert parse_metrics("bits_per_byte, cross_entropy:unit=bits;name=bits ,") == [
        {"metric": "bits_per_byte"},
        {"metric": "cross_entropy", "unit": "bits", "name": "bits"},
    ]
    assert parse_metrics(None) == []
    assert parse_metrics("bits_per_byte:doc_to_gold={{answer}};gold=all") == [
        {"metric": "bits_per_byte", "doc_to_gold": "{{answer}}", "gold": "all"}
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("cross_entropi", UnknownMetricError),
        ("cross_entropy:unti=bits", MetricOptionError),
        ("perplexity:x", MetricOptionError),
        ("cross_entropy:unit=[", MetricOptionError),
        ("cross_entropy:unit=\0", MetricOptionError),
        ("expected_calibration_error:num_bins=2026-13-45", MetricOptionError),
    ],
)
def test_mistakes_in_the_option_are_found_by_parsing_it(text, error):
    with pytest.raises(error):
        parse_metrics(text)
