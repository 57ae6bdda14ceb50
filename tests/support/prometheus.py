"""Debian's Prometheus, which evaluates rules and queries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import ProxyHandler, build_opener

import pytest

from tests.support import installed
from tests.support.issuers import wait_until
from tests.support.processes import end, start, unused_port


def program(name: str) -> str:
    """Return the path of ``prometheus`` or ``promtool``."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install prometheus")
    return found


class Prometheus:
    """A running server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._open = build_opener(ProxyHandler({})).open

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data from an HTTP API response."""
        with self._open(f"{self.url}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as response:
            document = json.load(response)
        assert document["status"] == "success", document
        return document["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an instant query selects."""
        result: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return result

    def is_ready(self) -> bool:
        """Return whether the server accepts requests."""
        try:
            with self._open(f"{self.url}/-/ready", timeout=30) as response:
                return bool(response.status == 200)
        except OSError:
            return False


@contextmanager
def scraping(target: str, rules: Path, directory: Path, *, job: str) -> Iterator[Prometheus]:
    """Run Prometheus on loopback until the block ends.

    Args:
        target: The exporter's URL, which Prometheus scrapes every second.
        rules: The rule file, which Prometheus evaluates every second.
        directory: An empty directory for Prometheus's data.
        job: The target's job name.
    """
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": job, "static_configs": [{"targets": [urlsplit(target).netloc]}]}],
    }
    path = directory / "prometheus.json"
    path.write_text(json.dumps(config))  # JSON is YAML
    url = f"http://127.0.0.1:{unused_port()}"
    options = {
        "config.file": path,
        "storage.tsdb.path": directory / "data",
        "web.listen-address": urlsplit(url).netloc,
        "log.level": "error",
    }
    with (directory / "log").open("wb") as log:
        command = [program("prometheus"), *(f"--{name}={value}" for name, value in options.items())]
        process = start(command, env=installed.clean_environ(), stdout=log, stderr=log)
    try:
        server = Prometheus(url)
        wait_until(server.is_ready, 60)
        yield server
    finally:
        end(process)
