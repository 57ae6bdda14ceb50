"""A Flask application with requests, served by gunicorn. The application contains no code for OpenTelemetry or
tokens.
"""

import os

import flask
import google.protobuf
import requests
import typing_extensions
import urllib3

assert google.protobuf.__version__
assert typing_extensions.Literal

app = flask.Flask(__name__)


@app.get("/")
def call():
    """Return what the two services received."""
    return flask.jsonify({name: requests.get(os.environ[name], timeout=30).text for name in ("LISTED", "UNLISTED")})


@app.get("/versions")
def versions():
    """Return the urllib3 version that the application uses."""
    return flask.jsonify({"urllib3": urllib3.__version__, "file": urllib3.__file__})


@app.get("/healthz")
def healthz():
    """Respond to the kubelet's health check."""
    return "ok"
