"""The access logs of real servers contain every line and no tokens if their handlers have the filter."""

from __future__ import annotations

import http.client
import json
import logging
import sys
from base64 import b64encode
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from otel_token_relay import Settings, install
from otel_token_relay.redaction import RedactingFilter
from tests.support import apps
from tests.support.issuers import wait_until
from tests.support.processes import Service, service
from tests.support.servers import get, serve_asgi

IN_QUERY, OPAQUE, BASIC = "kq3Zt9vX0aPl71bLxYqH", "mW8rT2cN5jD7fS1gV4hB", b64encode(b"alice:s3cret-Zq81").decode()
HEADERS = "%({x-forwarded-for}i)s %({authorization}i)s %({x-absent}i)s"

APPS = """
def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]

async def asgi(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
"""


def _logging(logger: str) -> dict[str, object]:
    stream = {"class": "logging.StreamHandler", "filters": ["redacting"], "stream": "ext://sys.stdout"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"redacting": {"()": f"{RedactingFilter.__module__}.{RedactingFilter.__name__}"}},
        "formatters": {"access": {"format": "access: %(message)s"}},
        "handlers": {"access": {**stream, "formatter": "access"}, "plain": stream},
        "root": {"handlers": ["plain"], "level": "INFO"},
        "loggers": {logger: {"handlers": ["access"], "level": "INFO", "propagate": False}},
    }


def _gunicorn(folder: Path) -> list[str]:
    options = ["bind = '127.0.0.1:0'", "accesslog = '-'", "control_socket_disable = True"]
    options += [f"access_log_format = {f'%(r)s {HEADERS}'!r}", f"logconfig_dict = {_logging('gunicorn.access')!r}"]
    (folder / "gunicorn.conf.py").write_text("\n".join(options))
    return ["-m", "gunicorn", "application:wsgi", "--worker-class", "sync"]


def _hypercorn(folder: Path) -> list[str]:
    # In this server, `%(r)s` does not include the query.
    options = ["bind = ['127.0.0.1:0']", "accesslog = '-'", f"access_log_format = {f'%(r)s %(q)s {HEADERS}'!r}"]
    options += [f"logconfig_dict = {_logging('hypercorn.access')!r}"]
    (folder / "hypercorn_options.py").write_text("\n".join(options))
    return ["-m", "hypercorn", "application:asgi", "--config", "file:hypercorn_options.py"]


def _uvicorn(folder: Path) -> list[str]:
    (folder / "logging.json").write_text(json.dumps(_logging("uvicorn.access")))
    return ["-m", "uvicorn", "application:asgi", "--host", "127.0.0.1", "--port", "0", "--log-config", "logging.json"]


SERVERS = {"gunicorn": _gunicorn, "hypercorn": _hypercorn, "uvicorn": _uvicorn}


def _send(server: Service, path: str, authorization: str | None = None) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=20)
    headers = {"X-Forwarded-For": "203.0.113.7"} | ({"Authorization": authorization} if authorization else {})
    connection.request("GET", path, headers=headers)
    assert connection.getresponse().read() == b"ok"
    connection.close()


def _access_lines(server: Service) -> list[str]:
    return [line.removeprefix("access: ") for line in server.log.splitlines() if line.startswith("access: ")]


@pytest.mark.parametrize("name", SERVERS)
def test_every_access_line_arrives_without_tokens(name: str, tmp_path: Path) -> None:
    """An absent header is logged as ``-``, as it is without the filter."""
    pytest.importorskip(name)
    (tmp_path / "application.py").write_text(APPS)
    command = [sys.executable, *SERVERS[name](tmp_path)]

    with service(*command, cwd=tmp_path, environ={"PYTHONPATH": str(Path(__file__).parents[2])}) as server:
        _send(server, f"/orders?access_token={IN_QUERY}&page=2")
        _send(server, "/me?page=3", f"Bearer {OPAQUE}")
        _send(server, "/me?code=DE", f"Basic {BASIC}")
        wait_until(lambda: len(_access_lines(server)) == 3)
        lines = _access_lines(server)

    queries = ["access_token=[REDACTED]&page=2", "page=3", "code=DE"]
    assert all(query in line for query, line in zip(queries, lines, strict=True)), lines
    for secret in (IN_QUERY, OPAQUE, BASIC.rstrip("=")):
        assert secret not in server.log
    if name != "uvicorn":  # the lines of this log contain no headers
        ends = ["203.0.113.7 - -", "203.0.113.7 [REDACTED] -", "203.0.113.7 [REDACTED] -"]
        assert [line.partition(" 203.")[1].strip() + line.partition(" 203.")[2] for line in lines] == ends
    assert "Traceback" not in server.log


def test_uvicorn_in_an_installed_process_logs_every_request(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redaction and the boundary do not change uvicorn's access log."""
    token = "token-of-a"
    # A server that an earlier test started in this process might have stopped uvicorn's loggers from propagating.
    access_log = logging.getLogger("uvicorn.access")
    for name, value in (("propagate", False), ("disabled", False), ("handlers", [caplog.handler])):
        monkeypatch.setattr(access_log, name, value)
    install(Settings())
    caplog.set_level(logging.INFO, "uvicorn.access")
    with serve_asgi(apps.starlette(), access_log=True) as port:
        get(port, "/token", token)
        get(port, "/nowhere", token)

    lines = [record.getMessage() for record in caplog.records if record.name == "uvicorn.access"]
    assert [line.split('"')[1:] for line in lines] == [
        ["GET /token HTTP/1.1", " 200"],
        ["GET /nowhere HTTP/1.1", " 404"],
    ]
    assert token not in caplog.text
