"""The server answers its own hosts only, reads only, and sends its security headers with everything."""

import socket

import pytest
from starlette.testclient import TestClient

from xent_metrics.errors import InvalidInputError
from xent_metrics.view import server
from xent_metrics.view.links import page_name, slug
from xent_metrics.view.server import allowed_hosts, application, serve
from xent_metrics.view.site import ASSETS


@pytest.fixture(scope="module")
def client(site):
    return TestClient(application(site, allowed_hosts("127.0.0.1")), base_url="http://127.0.0.1:8000")


def test_pages_and_assets_are_served(client, site):
    for path in ("/", "/index.html"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert answer.content == site.page("index.html")
    for name, (_, _, kind) in ASSETS.items():
        assert client.get(f"/{name}").headers["content-type"].startswith(kind)
    assert client.get("/version.json").json() == {"version": site.folder.snapshot().version}


def test_what_is_not_there_is_said_with_404(client):
    for path in ("/nothing.html", "/run--nothing.html", "/..%2f..%2fetc%2fpasswd", "/a/b"):
        assert client.get(path).status_code == 404
    assert "The folder has no such run" in client.get("/run--nothing.html").text.replace("the folder", "The folder")


def test_every_answer_has_the_security_headers(client):
    for path in ("/", "/view.js", "/version.json", "/nothing.html", "/a/b"):
        headers = client.get(path).headers
        for name, value in server.HEADERS.items():
            assert headers[name] == value
    policy = headers["content-security-policy"]
    assert "script-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_nothing_can_be_written(client, method):
    assert getattr(client, method)("/").status_code == 405


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "[::1", "localhost@evil.example", "a b"]
)
def test_other_hosts_are_refused(client, host):
    answer = client.get("/", headers={"host": host})
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (400, "nosniff")
    assert answer.text.startswith("These pages are served to 127.0.0.1, ::1, localhost only")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
def test_loopback_is_allowed_under_all_its_names(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


def test_a_named_address_is_allowed_and_every_address_allows_all(site):
    assert allowed_hosts("Box.example") == {"127.0.0.1", "::1", "localhost", "box.example"}
    everywhere = TestClient(application(site, allowed_hosts("0.0.0.0")))
    assert everywhere.get("/", headers={"host": "any.example"}).status_code == 200


def test_a_page_that_fails_is_said_and_the_others_work(client, site, monkeypatch, caplog):
    run = site.folder.snapshot().runs[1]

    def broken(*_):
        raise RuntimeError("<surprise>")

    monkeypatch.setattr(site.folder, "task", broken)
    answer = client.get("/" + page_name("documents", run.slug, slug("t")))
    assert answer.status_code == 500
    assert "RuntimeError: &lt;surprise&gt;" in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "can't be shown" in caplog.text
    assert client.get("/").status_code == 200


def test_a_port_that_is_taken_is_an_error(site):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            InvalidInputError, match=f"can't listen on 127.0.0.1, port {port}: .*Choose another with --port"
        ):
            serve(site, port=port)
