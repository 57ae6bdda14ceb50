"""A Flask version of the application in `tests.support.unaware_apps`, in its own module because each worker imports
it.
"""

from __future__ import annotations

from flask import Flask

app = Flask(__name__)


@app.get("/me")
def me() -> dict[str, str]:
    """Respond to every request that the application receives."""
    return {"served": "yes"}
