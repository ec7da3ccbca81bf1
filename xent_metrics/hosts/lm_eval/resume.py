"""`xent lm-eval run … --resume DIR`: a run that was killed goes on where it was.

    with resume("runs/gpt2"):
        lm_eval.simple_evaluate(model="xent-hf", …)

Every result is kept in the folder as it comes (journal.py). The same command then runs the requests that have none. It refuses
if the model's weights or options, the tasks, their documents, or the versions of packages have changed.

Our models lay out the same batches again, and leave out those whose results are all known, so that a result has the bits that it
would have had. On another number of processes the batches differ, and only ``invariant=true`` keeps the bits. Texts that are
drawn at random are generated again.

Who syncs: nobody here. Every process keeps its own results and reads those of all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lm_eval.api.model import CacheHook, CachingLM
from torch import nn

from xent_metrics.errors import InvalidInputError
from xent_metrics.files import replacing
from xent_metrics.hosts.lm_eval.journal import Journal
from xent_metrics.hosts.lm_eval.models.scoring_lm import ScoringLM
from xent_metrics.hosts.lm_eval.models.weights import weights_digest
from xent_metrics.hosts.lm_eval.upstream import around_evaluate
from xent_metrics.plugins import provenance

__all__ = ["ResumedLM", "resume"]

log = logging.getLogger(__name__)

_REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
_OPTIONS = ("limit", "samples", "system_instruction", "apply_chat_template", "fewshot_as_multiturn")
_PACKAGES = ("lm_eval", "torch", "transformers")


@contextmanager
def resume(folder: str | Path) -> Iterator[None]:
    """Within it, an evaluation keeps its results in `folder`, and doesn't run the requests whose results are there.

    Args:
        folder: made if it isn't there. It belongs to one run.

    Raises:
        InvalidInputError: the folder belongs to another run, or lm-eval's cache is in use; before the model runs.
    """
    with around_evaluate(partial(_evaluate, Path(folder))):
        yield


def _evaluate(folder: Path, evaluate: Any, lm: Any, task_dict: Mapping[str, Any], **options: Any) -> Any:
    if isinstance(lm, CachingLM):
        raise InvalidInputError("--resume keeps all results itself; leave --use_cache out")
    _require_same_run(folder, _identity(lm, task_dict, options))
    journal = Journal(folder, lm.rank)
    if lm.rank == 0 and len(journal):
        log.warning("resume: %s holds the results of %d requests", folder, len(journal))
    if journal.damaged:
        log.warning("resume: %d lines in %s are damaged and left out", journal.damaged, folder)
    lm.set_cache_hook(journal)
    try:
        # Our models ask the journal themselves: they know which batches they may leave out.
        answering = lm if isinstance(lm, ScoringLM) else ResumedLM(lm, journal)
        return evaluate(lm=answering, task_dict=task_dict, **options)
    finally:
        lm.set_cache_hook(CacheHook(None))
        journal.close()


class ResumedLM:
    """A model of lm-eval's whose known results are read from a journal; all else is the model's own.

    Args:
        lm: the model, which writes results into the journal as they come.
        journal: the journal.
    """

    def __init__(self, lm: Any, journal: Journal) -> None:
        self.lm, self.journal = lm, journal

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.lm, name)
        return partial(self._answer, name, found) if name in _REQUESTS else found

    def _answer(self, kind: str, answer: Any, requests: Sequence[Any], **options: Any) -> list[Any]:
        found = {place: self.journal.find(kind, request.args) for place, request in enumerate(requests)}
        rest = [place for place, result in found.items() if result is None]
        for place, result in zip(rest, answer([requests[i] for i in rest], **options) if rest else (), strict=True):
            found[place] = result
            self.journal.add_partial(kind, requests[place].args, result)
        return list(found.values())


def _require_same_run(folder: Path, identity: Mapping[str, Any]) -> None:
    """Raise `InvalidInputError` unless the folder is new or belongs to this run.

    Every process of a new run writes what the run is, all of them the same, before any of its results.
    """
    path = folder / "run.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if any(folder.glob("results_*.jsonl")):
            raise InvalidInputError(
                f"{folder} holds results without run.json, which says of what; choose another folder"
            )
        with replacing(path) as new:
            new.write_text(json.dumps(identity, indent=1, sort_keys=True), encoding="utf-8")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInputError(f"{path} can't be read: {error}. Choose another folder for --resume") from error
    changed = list(_differences(before, json.loads(json.dumps(identity))))
    if changed:
        shown = "\n".join(f"  {each}" for each in changed[:10])
        raise InvalidInputError(
            f"{folder} belongs to another run, so its results can't be taken for this one's. Choose another folder for "
            f"--resume, or undo the change:\n{shown}"
        )


def _differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from _differences(before.get(name), now.get(name), f"{where}.{name}" if where else name)
    elif before != now:
        yield f"{where}: was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:90]} … {text[-90:]}"


# What a run is.


def _identity(lm: Any, task_dict: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": _model_identity(lm),
        "tasks": {name: _task_identity(task) for name, task in sorted(task_dict["tasks"].items())},
        "options": {name: options.get(name) for name in _OPTIONS},
        "packages": {name: _version(name) for name in _PACKAGES} | dict(provenance()),
    }


def _model_identity(lm: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"class": f"{type(lm).__module__}.{type(lm).__qualname__}"}
    if isinstance(lm, ScoringLM):
        return {**found, **lm.made_by(), **lm.batching()}
    if hasattr(lm, "get_model_info"):
        found["info"] = _plain(lm.get_model_info())
    if isinstance(getattr(lm, "model", None), nn.Module):
        found["weights"] = weights_digest(lm.model)
    return found


def _task_identity(task: Any) -> dict[str, Any]:
    digest, number = hashlib.sha256(), 0
    for document in task.eval_docs:
        digest.update(json.dumps(document, default=_described, sort_keys=True).encode())
        number += 1
    return {"config": _plain(task.dump_config()), "documents": number, "digest": digest.hexdigest()[:32]}


def _plain(value: Any) -> Any:
    """The value as JSON has it, without addresses in memory."""
    return json.loads(json.dumps(value, default=_described))


def _described(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
