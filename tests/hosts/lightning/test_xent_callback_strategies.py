"""The callbacks under Lightning's DDP and FSDP2 (ModelParallelStrategy) in real processes: the bits of one process."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from support import strategy_jobs as jobs
from support import trackers
from support.distributed import run
from support.lightning import LETTERS, PACKAGES, QUIET, Sequences, bigrams, table
from torch.nn import functional as F

from xent_metrics import TokenMetricCollection, get_metric, score_tokens
from xent_metrics.analysis import StandardError
from xent_metrics.hosts.lightning import XentCallback

KINDS = ("ddp", "fsdp2")


def expected(data, stage, suffix=""):
    """The metrics over all sequences at once, in one process."""
    metrics = {name: get_metric(name) for name in jobs.METRICS}
    metrics |= {f"{name}_stderr": StandardError(metric) for name, metric in metrics.items()}
    collection = TokenMetricCollection(metrics)
    collection.update(score_tokens(table()[data.ids[:, :-1]], data.target))
    return {f"{stage}/{name}{suffix}": value.item() for name, value in collection.compute().items()}


@pytest.mark.parametrize(("kind", "package"), [("ddp", PACKAGES[0]), ("ddp", PACKAGES[1]), ("fsdp2", PACKAGES[0])])
def test_any_number_of_ranks_gives_the_bits_of_one(kind, package):
    """Of 11 sequences Lightning's sampler repeats one on 2 ranks, which must not count twice."""
    want = expected(Sequences(11, 0), "train") | expected(Sequences(11, 1), "val")
    for answer in run(2, jobs.dealt_by_lightning, kind, package, 11):
        assert answer == {"values": want, "collectives": 4, "sharded": kind == "fsdp2"}  # 2 epochs of 2 stages


@pytest.mark.parametrize("kind", KINDS)
def test_only_one_all_reduce_per_stage_is_added(kind):
    """For 2 epochs of 2 stages, by the callback and by `log_dict` of a module's own collection."""
    for plain, callback, own in run(2, jobs.all_collectives, kind, 11):
        more = {"c10d::allreduce_": 4}
        assert callback - plain == more
        assert own - plain == more
        assert not (plain - callback) + (plain - own)


def test_callbacks_monitor_its_values_on_all_ranks(tmp_path):
    best = expected(Sequences(11, 1), "val")["val/cross_entropy"]
    kept = str(tmp_path / "epoch=0.ckpt")
    assert run(2, jobs.watched, 11, str(tmp_path)) == [{"epochs": 2, "best": best, "kept": kept}] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_without_data_syncs_with_the_others(kind):
    want = {}
    for loader in (0, 1):
        want |= expected(Sequences(7, loader), "val", f"/dataloader_idx_{loader}")
    for answer in run(2, jobs.uneven, kind, 7):
        assert answer == {"values": want, "collectives": 1}


def test_a_failed_sync_loses_nothing():
    for found in run(2, jobs.failing_sync, 11):
        assert "failed: RuntimeError: timed out" in found["error"]
        assert found["later"] == expected(Sequences(11), "val")["val/cross_entropy"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_is_resumed_on_any_number_of_ranks(kind, tmp_path):
    count = 20
    want = expected(Sequences(count), "train")
    here = str(tmp_path)
    assert run(2, jobs.resumed, kind, here, count) == [want] * 2
    two, one = (str(tmp_path / f"{kind}{size}-step=2.ckpt") for size in (2, 1))
    drawn = 2 * jobs.BATCH  # by each rank, in two steps
    assert run(2, jobs.resumed, kind, f"{here}/again", count, two, 2 * drawn, 2) == [want] * 2
    assert run(1, jobs.resumed, kind, here, count, two, 2 * drawn, 2) == [want]
    run(1, jobs.resumed, kind, f"{here}/one", count)
    one = str(tmp_path / "one" / Path(one).name)
    assert run(2, jobs.resumed, kind, f"{here}/from_one", count, one, drawn, 2) == [want] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_modules_own_metrics_are_resumed_on_any_number_of_ranks(kind, tmp_path):
    count, here = 20, str(tmp_path)
    want = {name: value for name, value in expected(Sequences(count), "train").items() if "stderr" not in name}
    saves = {1: 0, 2: 2}  # one all_reduce per checkpoint, for all members
    for found in run(2, jobs.own_metrics_resumed, kind, here, count):
        assert found == {"values": want, "collectives": saves[2] + 1}
    two = str(tmp_path / f"{kind}2-step=2.ckpt")
    start = 2 * 2 * jobs.BATCH  # drawn by two ranks in two steps
    for size in (1, 2):
        for found in run(size, jobs.own_metrics_resumed, kind, f"{here}/{size}", count, two, start, 2):
            assert found["values"] == want


def test_loading_unsynced_metrics_says_how_to_sync_them(tmp_path):
    run(2, jobs.own_metrics_resumed, "ddp", str(tmp_path), 20, None, 0, 0, False)
    two = str(tmp_path / "ddp2-step=2.ckpt")
    (error,) = run(1, jobs.own_metrics_resumed, "ddp", str(tmp_path), 20, two, 12, 2, False)
    assert "holds the sums of rank 0 of 2 alone; this is rank 0 of 1. To load it anywhere" in error
    assert "persistent(True, synced=True)" in error


def test_a_sharded_modules_state_dict_has_its_metrics():
    assert run(2, jobs.own_metrics_in_a_sharded_state_dict) == [True, True]


def test_a_checkpoint_of_two_ranks_is_resumed_without_any_group(tmp_path):
    count = 20
    run(2, jobs.resumed, "ddp", str(tmp_path), count)
    callback = XentCallback(jobs.METRICS, stages=["train"])
    trainer = Trainer(accelerator="cpu", callbacks=[callback], max_epochs=1, **QUIET)
    rest = jobs.Rest(Sequences(count), 0, 1, start=4 * jobs.BATCH, done=2)
    trainer.fit(bigrams(), rest, ckpt_path=tmp_path / "ddp2-step=2.ckpt", weights_only=True)
    assert jobs.values(trainer) == expected(Sequences(count), "train")


def test_one_rank_draws_what_all_ranks_added(tmp_path):
    run(1, jobs.pictured, str(tmp_path / "one"), 7)
    assert run(2, jobs.pictured, str(tmp_path / "two"), 7) == [1, 1]  # one all_reduce each
    name = "val/expected_calibration_error_plot"
    one, two = (trackers.tensorboard_picture(tmp_path / folder, name) for folder in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("kind", KINDS)
def test_lm_eval_runs_on_the_module_under_a_strategy(kind, tmp_path):
    texts = ["abcdefgh", "hgpab", "ppooaabbc"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "texts.yaml").write_text(
        "task: texts\nclass: !function xent_metrics.hosts.lm_eval.XentTask\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'texts.jsonl'}}}}}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list:\n  - metric: cross_entropy\n"
    )
    ids = [torch.tensor([LETTERS.bos_token_id, *LETTERS.encode(text)]) for text in texts]
    nats = [F.cross_entropy(table()[i[:-1]].double(), i[1:], reduction="sum").item() for i in ids]
    answers = run(2, jobs.evaluated, kind, str(tmp_path))
    assert answers[0] == answers[1]
    assert set(answers[0]) == {"lm_eval/texts/cross_entropy", "lm_eval/texts/cross_entropy_stderr"}
    assert answers[0]["lm_eval/texts/cross_entropy"] == pytest.approx(sum(nats) / sum(map(len, texts)), rel=1e-6)
