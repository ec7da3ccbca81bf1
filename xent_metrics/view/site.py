"""The pages of a folder of runs by their names: what the server answers with, and what an export writes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from importlib import resources
from typing import Any

from xent_metrics.errors import ComparisonError, MissingExtraError
from xent_metrics.version import __version__
from xent_metrics.view.curves import curves
from xent_metrics.view.folder import RunFolder, Snapshot
from xent_metrics.view.links import INDEX, PageNotFoundError, page_name, page_parts
from xent_metrics.view.summaries import RunSummary
from xent_metrics.view.tables import all_runs, all_tasks, differences, one_run, one_task

__all__ = ["ASSETS", "CONTENT_SECURITY_POLICY", "Site", "asset"]

#: Nothing but our own files: no inline script, no inline style, no form, no frame, nothing from elsewhere.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'"
)
#: Files besides the pages, with the package that has them: the report's style is ours, too.
ASSETS = {
    "report.css": ("xent_metrics.analysis", "templates/report.css", "text/css"),
    "view.css": ("xent_metrics.view", "static/view.css", "text/css"),
    "view.js": ("xent_metrics.view", "static/view.js", "text/javascript"),
}

#: The templates of the pages that have no template of their own.
_TEMPLATES = {"metric": "index", "changes": "chart"}


class Site:
    """The pages of a folder of runs.

    Args:
        folder: of the runs.
        live: the pages follow the folder: they ask the server whether it has changed.
        most_documents: how many documents of a task are shown, from the highest loss down; None for all.
        baselines: the slugs of the runs that others are compared with; None for all runs.

    Raises:
        MissingExtraError: jinja2 isn't installed.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        live: bool = False,
        most_documents: int | None = None,
        baselines: Collection[str] | None = None,
    ) -> None:
        self.folder = folder
        self.live = live
        self.most_documents = most_documents
        self.baselines = baselines
        self._templates = _templates()
        self._kinds: Mapping[str, Callable[..., dict[str, Any]]] = {
            "index": self._index,
            "metric": self._index,
            "tasks": lambda found: all_tasks(found),
            "run": self._run,
            "task": self._task,
            "chart": self._chart,
            "changes": self._changes,
            "against": self._against,
            "documents": self._documents,
            "document": self._document,
            "pairs": self._pairs,
            "pair": self._pair,
        }

    def page(self, name: str) -> bytes:
        """The page of this name, such as ``index.html``.

        Raises:
            PageNotFoundError: there is none, or what it showed is gone.
        """
        parts = page_parts(name)
        found = self.folder.snapshot()
        kind = self._kinds.get(parts.kind)
        if kind is None or not _takes(kind, found, *parts.slugs):
            raise PageNotFoundError(f"no page is called {name!r}")
        try:
            content = kind(found, *parts.slugs)
        except ComparisonError as error:
            return self.message("This can't be shown", error.message, found)
        return self._rendered(_TEMPLATES.get(parts.kind, parts.kind), found, content)

    def message(self, title: str, text: str, found: Snapshot | None = None) -> bytes:
        """A page that says one thing."""
        return self._rendered("message", found or self.folder.snapshot(), {"title": title, "text": text})

    def _rendered(self, template: str, found: Snapshot, content: Mapping[str, Any]) -> bytes:
        page: str = self._templates.get_template(f"{template}.html.j2").render(
            content,
            policy=CONTENT_SECURITY_POLICY,
            folder=self.folder.root.resolve().name or str(self.folder.root),
            gone=found.gone,
            index=INDEX,
            live=self.live,
            tasks_page=page_name("tasks"),
            package_version=__version__,
            version=found.version,
            counts=(len(found.runs), len(found.tasks)),
            known={
                "step": any(run.training.step is not None for run in found.runs),
                "tokens": any(run.training.tokens is not None for run in found.runs),
            },
        )
        return page.encode("utf-8", errors="backslashreplace")  # a lone surrogate in a name

    def _index(self, found: Snapshot, metric: str | None = None) -> dict[str, Any]:
        return all_runs(found, None if metric is None else _named(found, metric))

    def _run(self, found: Snapshot, run: str) -> dict[str, Any]:
        chosen = _run_of(found, run)
        return one_run(found, chosen, as_baseline=chosen.slug in self._baselines(found))

    def _task(self, found: Snapshot, task: str) -> dict[str, Any]:
        return one_task(found, _task_of(found, task), self._baselines(found))

    def _chart(self, found: Snapshot, task: str, metric: str, *, with_changes: bool = False) -> dict[str, Any]:
        name, wanted = _task_of(found, task), _named(found, metric)
        if not any(wanted in run.tasks[name].values for run in found.tasks[name]):
            raise PageNotFoundError(f"no run has {wanted} of {name}")
        return curves(self.folder, found, name, wanted, with_changes=with_changes)

    def _changes(self, found: Snapshot, task: str, metric: str) -> dict[str, Any]:
        content = self._chart(found, task, metric, with_changes=True)
        if content["look"] is None:
            raise PageNotFoundError("no training has enough checkpoints with a step to look for changes")
        return content

    def _against(self, found: Snapshot, run: str, task: str, page: str = "1") -> dict[str, Any]:
        return differences(self.folder, found, *_task_of_run(found, run, task), _number(page))

    def _documents(self, found: Snapshot, run: str, task: str, page: str = "1") -> dict[str, Any]:
        from xent_metrics.view.documents import documents

        return documents(self.folder, *_task_of_run(found, run, task), _number(page), self.most_documents)

    def _document(self, found: Snapshot, run: str, task: str, wanted: str) -> dict[str, Any]:
        from xent_metrics.view.documents import document

        return document(self.folder, *_task_of_run(found, run, task), wanted, self.most_documents)

    def _pairs(self, found: Snapshot, a: str, b: str, task: str, page: str = "1") -> dict[str, Any]:
        from xent_metrics.view.document_pairs import document_pairs

        return document_pairs(self.folder, *_task_of_two(found, a, b, task), _number(page), self.most_documents)

    def _pair(self, found: Snapshot, a: str, b: str, task: str, wanted: str) -> dict[str, Any]:
        from xent_metrics.view.document_pairs import document_pair

        return document_pair(self.folder, *_task_of_two(found, a, b, task), wanted, self.most_documents)

    def _baselines(self, found: Snapshot) -> Collection[str]:
        return found.by_slug if self.baselines is None else self.baselines


def _templates() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtraError("the page needs jinja2: pip install 'xent-metrics[view]'") from error
    loader = jinja2.PackageLoader("xent_metrics.view")
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def _takes(kind: Callable[..., Any], *arguments: Any) -> bool:
    try:
        inspect.signature(kind).bind(*arguments)
    except TypeError:
        return False
    return True


def asset(name: str) -> bytes:
    """The content of one of `ASSETS`."""
    package, path, _ = ASSETS[name]
    return resources.files(package).joinpath(path).read_bytes()


def _run_of(found: Snapshot, wanted: str) -> RunSummary:
    if wanted not in found.by_slug:
        raise PageNotFoundError("the folder has no such run (any more)")
    return found.by_slug[wanted]


def _named(found: Snapshot, wanted: str) -> str:
    if wanted not in found.names_by_slug:
        raise PageNotFoundError("no run has such a task or metric (any more)")
    return found.names_by_slug[wanted]


def _task_of(found: Snapshot, wanted: str) -> str:
    name = _named(found, wanted)
    if name not in found.tasks:
        raise PageNotFoundError(f"no run has a task {name}")
    return name


def _task_of_run(found: Snapshot, run: str, task: str) -> tuple[RunSummary, str]:
    chosen, name = _run_of(found, run), _task_of(found, task)
    if name not in chosen.tasks:
        raise PageNotFoundError(f"{chosen.name} has no task {name}")
    return chosen, name


def _task_of_two(found: Snapshot, a: str, b: str, task: str) -> tuple[RunSummary, RunSummary, str]:
    return _task_of_run(found, a, task)[0], *_task_of_run(found, b, task)


def _number(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise PageNotFoundError(f"no page has the number {text!r}")
    return int(text)
