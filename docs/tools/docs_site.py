"""The hooks that make MkDocs build the site: `make docs` writes it to build/site.

What is added to the pages of docs/:

- README.md is the home page. A file or folder outside docs/ that a page links to is a page of the site, too, so links that work
  on a code host work on the site. If pyproject.toml names the repository's address, such links lead there instead.
- A page for each registered metric, from its class, with a picture of what its `plot` draws.
- Blocks of ```math become MathML when the site is built. Browsers show it without scripts, fonts or a network.
- An entry of the navigation that ends in a slash is replaced by the pages of that folder.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from docs_reference import repository_plugins
from mkdocs.structure.files import File, Files

from xent_metrics.explain import made_up
from xent_metrics.explain.markdown import metric_page, metrics_page
from xent_metrics.explain.metrics import by_family, metric_facts
from xent_metrics.plugins import use_plugins

ROOT = Path(__file__).parents[2]
_CODE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
_LANGUAGES = {".py": "python", ".c": "c", ".h": "c", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}
_NO_SEARCH = "---\nsearch:\n  exclude: true\n---\n\n"


# What MkDocs calls.


def on_config(config: Any) -> Any:
    """Turn blocks of ```math into MathML."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {})
    fences["custom_fences"] = [{"name": "math", "class": "math", "format": mathml}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that aren't in docs/, and complete the navigation."""
    with use_plugins(repository_plugins()):
        for uri, content in {**repository_pages(), **metric_pages()}.items():
            files.append(File.generated(config, uri, content=content))
        pages = sorted(file.src_uri for file in files.documentation_pages())
        config.nav = list(navigation(config.nav, pages))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Make the links of a page in docs/ those of the site; the pages that are added have theirs already."""
    return markdown if page.file.generated_by else relinked(markdown, f"docs/{page.file.src_uri}")


# Formulas.


def mathml(source: str, *_: Any, **__: Any) -> str:
    """The MathML of a formula in LaTeX, as a block."""
    from latex2mathml.converter import convert

    return f"<div>{convert(source.strip(), display='block')}</div>"


# Pages of metrics.


def metric_pages() -> dict[str, str]:
    """The pages and pictures of all registered metrics, and the list of them, by their place on the site."""
    found = {"metrics/index.md": metrics_page()}
    for metric in (metric for family in by_family().values() for metric in family):
        drawn = made_up.picture(metric)
        if drawn:
            found[f"metrics/{metric.name}.svg"] = drawn
        found[f"metrics/{metric.name}.md"] = metric_page(metric_facts(metric), f"{metric.name}.svg" if drawn else "")
    return found


# Links.


def repository_pages() -> dict[str, str]:
    """The pages of what is outside docs/ and linked to, by whatever detour from there, by their place on the site."""
    waiting = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
    waiting += [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    found: dict[str, str] = {}
    seen: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not (ROOT / path).exists():  # MkDocs names a link that leads nowhere, and its page
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            found[place(path)] = _page_of(path)
        if path.endswith(".md"):
            waiting += [target for target in linked(path) if not code_host_address(target)]
    return found


def _page_of(path: str) -> str:
    """A file's or folder's page: Markdown as it is, code as a block, a folder as a list."""
    source = ROOT / path
    if source.is_dir():
        listed = "\n".join(sorted(f"{each.name}{'/' * each.is_dir()}" for each in source.iterdir() if _is_kept(each)))
        return f"{_NO_SEARCH}# {path}\n\n~~~~text\n{listed}\n~~~~\n"
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".md":
        return relinked(text, path)
    return f"{_NO_SEARCH}# {path}\n\n~~~~{_LANGUAGES.get(source.suffix, 'text')}\n{text.rstrip()}\n~~~~\n"


def _is_kept(path: Path) -> bool:
    return not path.name.startswith((".", "__pycache__")) and not path.name.endswith(".egg-info")


def linked(path: str) -> Iterator[str]:
    """What a page links to outside of its code, as paths from the repository's root."""
    for target, _ in _LINK.findall("".join(_CODE.split((ROOT / path).read_text(encoding="utf-8"))[::2])):
        yield resolved(path, target)


def resolved(path: str, target: str) -> str:
    """The path of a link's target from the repository's root; for a folder with a README.md, that of the README.md.

    >>> resolved("docs/plugins.md", "../xent_metrics/errors.py")
    'xent_metrics/errors.py'
    """
    found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    readme = posixpath.normpath(posixpath.join(found, "README.md"))
    return readme if (ROOT / found).is_dir() and (ROOT / readme).exists() else found


def place(path: str) -> str:
    """Where a file or folder is on the site, as MkDocs counts: the place of its Markdown.

    >>> place("docs/plugins.md"), place("README.md"), place("xent_metrics/errors.py")
    ('plugins.md', 'index.md', 'repository/xent_metrics/errors.py.md')
    """
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def relinked(markdown: str, path: str) -> str:
    """The Markdown of the page at `path` with its links as they are on the site; code stays as it is."""

    def link(found: re.Match[str]) -> str:
        target, anchor = resolved(path, found[1]), found[2] or ""
        there = code_host_address(target) or posixpath.relpath(place(target), posixpath.dirname(place(path)) or ".")
        return f"]({there}{anchor})"

    return "".join(part if number % 2 else _LINK.sub(link, part) for number, part in enumerate(_CODE.split(markdown)))


def code_host_address(path: str) -> str:
    """The address of a file outside docs/ on the repository's code host; empty if there is none, or the site has the page."""
    address = repository_address()
    if not address or path.startswith("docs/") or path in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        return ""
    return f"{address.rstrip('/')}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"


def repository_address() -> str:
    """The `Repository` or `Source` of pyproject.toml's `project.urls`; empty if it has none."""
    urls = dict(each.split(", ", 1) for each in metadata("xent-metrics").get_all("Project-URL") or [])
    return urls.get("Repository") or urls.get("Source") or ""


# The navigation.


def navigation(entries: Any, pages: list[str]) -> Iterator[Any]:
    """The entries with each folder, "guides/", replaced by its pages; empty ones are left out."""
    for entry in entries:
        if isinstance(entry, dict):
            [(title, inside)] = entry.items()
            if not isinstance(inside, str):
                yield {title: list(navigation(inside, pages))}
            elif not inside.endswith("/"):
                yield entry
            elif found := _of_folder(inside, pages):
                yield {title: found}
        else:
            yield entry


def _of_folder(folder: str, pages: list[str]) -> list[Any]:
    """The pages of a folder, its index first; metrics by their families."""
    inside = [page for page in pages if page.startswith(folder)]
    index = [page for page in inside if page in (f"{folder}index.md", f"{folder}README.md")]
    if folder != "metrics/":
        return index + [page for page in inside if page not in index]
    families: dict[str, list[str]] = {
        family: [f"metrics/{metric.name}.md" for metric in metrics] for family, metrics in by_family().items()
    }
    return [*index, *({family: found} for family, found in families.items() if found)]
