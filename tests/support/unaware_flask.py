"""The application of `tests.support.unaware_apps` with Flask, in a module of its own because each worker imports it."""

from __future__ import annotations

from flask import Flask

app = Flask(__name__)


@app.get("/me")
def me() -> dict[str, str]:
    """Respond to every request that reaches the application."""
    return {"served": "yes"}
