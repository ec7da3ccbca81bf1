"""Jobs that tests of strategies run in each process: real Trainers in an existing gloo group."""

import importlib
from collections import Counter
from unittest import mock

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import CombinedLoader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy, one_hot
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, default_collate

from support.distributed import counted, launched
from support.lightning import QUIET, Sequences, V, bigrams
from xent_metrics import TokenMetricCollection
from xent_metrics.errors import InvalidInputError, SyncError
from xent_metrics.hosts.lightning import LMEvalCallback, XentCallback

METRICS = ["cross_entropy", "perplexity", "token_accuracy", "expected_calibration_error"]
BATCH = 3


def trainer(size, kind, *callbacks, package="lightning.pytorch", **options):
    strategies = importlib.import_module(f"{package}.strategies")
    strategy = "ddp" if kind == "ddp" else strategies.ModelParallelStrategy(size, 1)
    given = {"callbacks": list(callbacks), "max_epochs": 1, "num_sanity_val_steps": 0, **QUIET, **options}
    return importlib.import_module(package).Trainer(accelerator="cpu", devices=size, strategy=strategy, **given)


def module(kind, package="lightning.pytorch", **steps):
    def configure_model(self):
        if not isinstance(self.table.weight, DTensor):
            fully_shard(self.table, mesh=self.device_mesh["data_parallel"])
            fully_shard(self, mesh=self.device_mesh["data_parallel"])

    return bigrams(package, **steps, **({} if kind == "ddp" else {"configure_model": configure_model}))


def values(run):
    return {name: value.item() for name, value in run.callback_metrics.items()}


def dealt_by_lightning(rank, size, kind, package, count):
    """Train and validate for two epochs with Lightning's own sampler, which repeats samples."""
    callback = XentCallback(METRICS, stages=["train", "val"])
    with launched(rank, size), counted() as calls:
        run = trainer(size, kind, callback, package=package, max_epochs=2)
        net = module(kind, package)
        run.fit(net, *(DataLoader(Sequences(count, seed), batch_size=BATCH) for seed in (0, 1)))
    return {"values": values(run), "collectives": len(calls), "sharded": isinstance(net.table.weight, DTensor)}


def logs_in_validation(self, batch, batch_idx):
    self.val_metrics.update(self(batch["ids"]), batch["targets"])
    self.log_dict(self.val_metrics)


class Collectives(TorchDispatchMode):
    """Counts every collective called within it."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional"):
            self.calls[func.name()] += 1
        return func(*args, **(kwargs or {}))


def all_collectives(rank, size, kind, count):
    """Collectives of two epochs by name: without metrics, with the callback, and with metrics that the module logs."""
    found = []
    logging = with_metrics(kind, validation_step=logs_in_validation)
    logging.val_metrics = TokenMetricCollection(METRICS, prefix="val/")
    own = XentCallback(METRICS, stages=["train", "val"])
    with launched(rank, size):
        for net, callbacks in ((module(kind), []), (module(kind), [own]), (logging, [])):
            run = trainer(size, kind, *callbacks, max_epochs=2)
            with Collectives() as collectives:
                run.fit(net, *(DataLoader(Sequences(count, seed), batch_size=BATCH) for seed in (0, 1)))
            found.append(collectives.calls)
    return found


def watched(rank, size, count, folder):
    """Early stopping and a best checkpoint by one of the callback's values, which never improves."""
    callbacks = importlib.import_module("lightning.pytorch.callbacks")
    best = callbacks.ModelCheckpoint(folder, monitor="val/cross_entropy", filename="{epoch}")
    stop = callbacks.EarlyStopping("val/cross_entropy", patience=1)
    with launched(rank, size):
        run = trainer(size, "ddp", XentCallback(METRICS), best, stop, max_epochs=5, enable_checkpointing=True)
        run.fit(module("ddp"), *(DataLoader(Sequences(count, seed), batch_size=BATCH) for seed in (0, 1)))
    return {"epochs": run.current_epoch, "best": best.best_model_score.item(), "kept": best.best_model_path}


class Backwards(BatchSampler):
    """The same batches in reverse order."""

    def __iter__(self):
        return iter(list(super().__iter__())[::-1])


class Batched:
    """A batch sampler that isn't a subclass of torch's."""

    def __init__(self, sampler, batch_size, drop_last=False):
        self.sampler, self.batch_size, self.drop_last = sampler, batch_size, drop_last

    def __iter__(self):
        return iter(BatchSampler(self.sampler, self.batch_size, self.drop_last))

    def __len__(self):
        return len(BatchSampler(self.sampler, self.batch_size, self.drop_last))


def one_of_two(self, batch, batch_idx):
    return {"logits": self(batch["a"]["ids"]), "targets": batch["a"]["targets"]}


def one_sequence(self, batch, batch_idx):
    return {"logits": self(batch["ids"])[None], "targets": batch["targets"][None]}


def one_row_each(self, batch, batch_idx):
    return {"logits": self(batch["ids"]).flatten(0, 1), "targets": batch["targets"].flatten()}


def soft(self, batch, batch_idx):
    return {"logits": self(batch["ids"]), "targets": one_hot(batch["targets"].clamp(0), V).float()}


#: Loaders for Lightning to distribute, each with the step that reads its batches (None: the default step).
LOADERS = {
    "usual": (lambda data: DataLoader(data, BATCH), None),
    "batch_size=None": (lambda data: DataLoader(data, batch_size=None), one_sequence),
    "soft targets": (lambda data: DataLoader(data, BATCH), soft),
    "backwards": (lambda data: DataLoader(data, batch_sampler=Backwards(SequentialSampler(data), BATCH, False)), None),
    "foreign class": (lambda data: DataLoader(data, batch_sampler=Batched(SequentialSampler(data), BATCH)), None),
    "in parallel": (
        lambda data: CombinedLoader({key: DataLoader(data, BATCH) for key in "ab"}, "min_size"), one_of_two
    ),
    "rows": (lambda data: DataLoader(data, BATCH), one_row_each),
}  # fmt: skip


def repeated(rank, size, count, mask_duplicates=True):
    """For each loader, the cross entropy of a validation whose sampler repeats samples, or the error."""
    found = {}
    with launched(rank, size):
        for name, (loader, step) in LOADERS.items():
            run = trainer(size, "ddp", XentCallback(["cross_entropy"], mask_duplicates=mask_duplicates))
            net = module("ddp", **({} if step is None else {"validation_step": step}))
            try:
                run.validate(net, loader(Sequences(count)), verbose=False)
                found[name] = values(run)["val/cross_entropy"]
            except InvalidInputError as error:
                found[name] = str(error)
    return found


class Share(IterableDataset):
    """This rank's share of the sequences; the last rank has none. Batches without targets fill up to `steps`."""

    def __init__(self, data, rank, size, steps=0):
        mine = [] if rank == size - 1 else list(range(rank, len(data), size - 1))
        self.batches = [default_collate([data[i] for i in mine[k : k + BATCH]]) for k in range(0, len(mine), BATCH)]
        nothing = {"ids": data.ids[:1, :-1], "targets": torch.full_like(data.target[:1], -100)}
        self.batches += [nothing] * (steps - len(self.batches))

    def __iter__(self):
        return iter(self.batches)


def uneven(rank, size, kind, count):
    """Validate two loaders of which the last rank has no sequences."""
    steps = 0 if kind == "ddp" else count // BATCH + 1  # a sharded forward needs all ranks
    with launched(rank, size), counted() as calls:
        run = trainer(size, kind, XentCallback(METRICS))
        loaders = [DataLoader(Share(Sequences(count, seed), rank, size, steps), batch_size=None) for seed in (0, 1)]
        run.validate(module(kind), loaders, verbose=False)
    return {"values": values(run), "collectives": len(calls)}


class Rest:
    """The sequences from `start` on, distributed over `size` ranks, after `done` steps by Lightning's count."""

    def __init__(self, data, rank, size, start=0, done=0):
        mine = range(start + rank, len(data), size)
        self.batches = [default_collate([data[i] for i in mine[k : k + BATCH]]) for k in range(0, len(mine), BATCH)]
        self.done = done

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return self.done + len(self.batches)


def resumed(rank, size, kind, folder, count, checkpoint=None, start=0, done=0):
    """Train for an epoch, from a checkpoint if one is given, and write a checkpoint after every second step."""
    package = importlib.import_module("lightning.pytorch.callbacks")
    save = package.ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1, filename=f"{kind}{size}-{{step}}")
    with launched(rank, size):
        run = trainer(size, kind, XentCallback(METRICS, stages=["train"]), save, enable_checkpointing=True)
        run.fit(module(kind), Rest(Sequences(count), rank, size, start, done), ckpt_path=checkpoint, weights_only=False)
    return values(run)


def failing_sync(rank, size, count):
    """A validation whose final sync fails: its error, and the value of a later sync."""
    callback, real = XentCallback(["cross_entropy"]), dist.all_reduce

    def all_reduce(tensor, *args, **kwargs):
        if tensor.dtype == torch.int64 and tensor.ndim == 2:
            raise RuntimeError("timed out")
        return real(tensor, *args, **kwargs)

    with launched(rank, size):
        try:
            with mock.patch.object(dist, "all_reduce", all_reduce):
                trainer(size, "ddp", callback).validate(
                    module("ddp"), DataLoader(Sequences(count), BATCH), verbose=False
                )
        except SyncError as error:
            return {"error": str(error), "later": callback._running["val"].compute()["val/cross_entropy"].item()}


def with_metrics(kind, synced=True, **steps):
    """A module that logs its own metrics and keeps their sums in its checkpoints."""
    net = module(kind, training_step=logs_its_metrics, **steps)
    net.train_metrics = TokenMetricCollection(METRICS, prefix="train/")
    net.train_metrics.persistent(True, synced=synced)
    return net


def logs_its_metrics(self, batch, batch_idx):
    logits = self(batch["ids"])
    self.train_metrics.update(logits, batch["targets"])
    self.log_dict(self.train_metrics, on_step=False, on_epoch=True)
    return cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())


def own_metrics_resumed(rank, size, kind, folder, count, checkpoint=None, start=0, done=0, synced=True):
    """Like `resumed`, for a module's own metrics; counts the all_reduces of checkpoints and of the epoch's end."""
    package = importlib.import_module("lightning.pytorch.callbacks")
    save = package.ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1, filename=f"{kind}{size}-{{step}}")
    with launched(rank, size), counted() as calls:
        run = trainer(size, kind, save, enable_checkpointing=True)
        rest = Rest(Sequences(count), rank, size, start, done)
        try:
            run.fit(with_metrics(kind, synced), rest, ckpt_path=checkpoint, weights_only=False)
        except RuntimeError as error:
            return str(error)
    return {"values": values(run), "collectives": len(calls)}


def own_metrics_in_a_sharded_state_dict(rank, size):
    """Save and load a state_dict with torch.distributed.checkpoint."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

    mesh = init_device_mesh("cpu", (size,))
    nets = [with_metrics("ddp"), with_metrics("ddp"), with_metrics("ddp")]
    for net in nets:
        fully_shard(net.table, mesh=mesh)
    first, of_shards, of_all = nets
    first.train_metrics.update(first.table(torch.tensor([[rank, 3]])), torch.tensor([[1, 2 + rank]]))
    with first.train_metrics.sync_context():
        want = [metric.state for metric in first.train_metrics.members().values()]
    whole = StateDictOptions(full_state_dict=True)
    set_model_state_dict(of_shards, get_model_state_dict(first))
    set_model_state_dict(of_all, get_model_state_dict(first, options=whole), options=whole)
    found = []
    for net in (of_shards, of_all):
        with net.train_metrics.sync_context():
            found.append([metric.state for metric in net.train_metrics.members().values()])
    return all(map(torch.equal, [*want, *want], [*found[0], *found[1]]))


def evaluated(rank, size, kind, folder):
    """lm-eval tasks in validation: documents distributed under DDP, all on every rank if forward is sharded."""
    callback = LMEvalCallback(
        ["texts"], include_path=[folder], tokenizer="support.lightning:LETTERS", max_length=8, replicate=kind != "ddp"
    )
    with launched(rank, size):
        run = trainer(size, kind, callback)
        run.validate(module(kind), DataLoader(Sequences(4), batch_size=2), verbose=False)
    return values(run)


def pictured(rank, size, folder, count):
    """A validation whose reliability diagram goes to TensorBoard."""
    loggers = importlib.import_module("lightning.pytorch.loggers")
    with launched(rank, size), counted() as calls:
        callback = XentCallback(["expected_calibration_error"])
        run = trainer(size, "ddp", callback, logger=loggers.TensorBoardLogger(folder))
        run.validate(module("ddp"), DataLoader(Sequences(count), BATCH), verbose=False)
        if rank == 0:
            run.logger.experiment.close()
    return len(calls)
