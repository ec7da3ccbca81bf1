"""The pages served to this machine's own browsers: read-only, on loopback unless told otherwise.

A request must name a host that the server was started for, so that a site that makes its own name point to this machine
(DNS rebinding) can't read the runs.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Collection
from contextlib import suppress
from ipaddress import ip_address
from urllib.parse import urlsplit

from xent_metrics.errors import InvalidInputError, MissingExtraError

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ImportError as error:
    raise MissingExtraError("the page needs Starlette and uvicorn: pip install 'xent-metrics[view]'") from error

from xent_metrics.view.links import INDEX, PageNotFoundError
from xent_metrics.view.site import ASSETS, CONTENT_SECURITY_POLICY, Site, asset

__all__ = ["Guard", "allowed_hosts", "application", "is_loopback", "serve"]

_log = logging.getLogger(__name__)

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": f"{CONTENT_SECURITY_POLICY}; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(site: Site, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve the pages until interrupted; prints the address.

    Args:
        site: the pages.
        host: the address to listen on.
        port: 0 takes a free one.

    Raises:
        InvalidInputError: the address can't be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InvalidInputError(
            f"can't listen on {host}, port {port}: {error.strerror}. Choose another with --port"
        ) from error
    with listening:
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{listening.getsockname()[1]}/", flush=True)
        config = uvicorn.Config(application(site, allowed_hosts(host)), log_level="warning", lifespan="off")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def is_loopback(host: str) -> bool:
    """True if only this machine can reach the address.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, True, False)
    """
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host: str) -> frozenset[str] | None:
    """The hosts that requests may name; None, any, if the server listens on every address.

    >>> sorted(allowed_hosts("127.0.0.1")), allowed_hosts("0.0.0.0")
    (['127.0.0.1', '::1', 'localhost'], None)
    """
    if host in ("0.0.0.0", "::"):
        return None
    return frozenset({"127.0.0.1", "::1", "localhost", host.lower()})


def application(site: Site, hosts: Collection[str] | None) -> Starlette:
    """The server's application; `hosts` are those that requests may name, None for any."""

    def page(request: Request) -> Response:
        name = request.path_params.get("name", INDEX)
        if name in ASSETS:
            return Response(asset(name), media_type=ASSETS[name][2])
        try:
            return Response(site.page(name), media_type="text/html")
        except PageNotFoundError as error:
            return Response(site.message("Not found", f"{error}."), status_code=404, media_type="text/html")
        except Exception as error:  # whatever is in files of somebody else's; the other pages are served
            _log.exception("%s can't be shown", name)
            text = f"{type(error).__name__}: {error}. The other pages may still work; the server's log has more."
            return Response(site.message("This can't be shown", text), status_code=500, media_type="text/html")

    def version(request: Request) -> Response:
        return JSONResponse({"version": site.folder.snapshot().version})

    routes = [Route("/", page), Route("/version.json", version), Route("/{name}", page)]
    return Starlette(routes=routes, middleware=[Middleware(Guard, hosts=hosts)])


class Guard:
    """Refuses requests that name another host, and sets the security headers of every response.

    Args:
        app: the application that is guarded.
        hosts: the hosts that requests may name; None for any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *ours]
            await send(message)

        app = self.app
        if scope["type"] == "http" and not self._is_allowed(scope):
            text = f"These pages are served to {', '.join(sorted(self.hosts or ()))} only. Name another address with --host.\n"
            app = PlainTextResponse(text, status_code=400)
        await app(scope, receive, send_with_headers)

    def _is_allowed(self, scope: Scope) -> bool:
        named = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        try:
            return self.hosts is None or (len(named) == 1 and urlsplit(f"//{named[0]}").hostname in self.hosts)
        except ValueError:  # not a host at all
            return False
