"""A Celery worker and a small WSGI server in one process. A request starts a task and waits for the task's result."""

import json
import os
from wsgiref.simple_server import make_server

import google.protobuf
import requests
import typing_extensions
import urllib3
from celery import Celery
from celery.contrib.testing.worker import start_worker

assert google.protobuf.__version__
assert typing_extensions.Literal

tasks = Celery("tasks", broker="memory://", backend="cache+memory://")


@tasks.task(name="call")
def call():
    """Return what two services received from the task."""
    return {name: requests.get(os.environ[name], timeout=30).text for name in ("LISTED", "UNLISTED")}


def application(environ, start_response):
    """Call the services directly or from a task."""
    path = environ["PATH_INFO"]
    if path == "/task":
        document = call.delay().get(timeout=30)
    elif path == "/versions":
        document = {"urllib3": urllib3.__version__, "file": urllib3.__file__}
    elif path == "/healthz":
        document = "ok"
    else:
        document = call()
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(document).encode()]


if __name__ == "__main__":
    with start_worker(tasks, perform_ping_check=False, pool="solo"), make_server("127.0.0.1", 0, application) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201
        server.serve_forever()
