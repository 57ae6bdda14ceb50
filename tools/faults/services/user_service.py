"""The user-service, which calls profile-service for a user and returns the response.

``GET /profile`` calls profile-service immediately. ``POST /report`` calls it in the background, and ``GET /report``
returns the result of the latest background job.
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import requests

PROFILE_SERVICE = os.environ["PROFILE_SERVICE"]

background: ThreadPoolExecutor = ThreadPoolExecutor(2)
reports: list[Future[requests.Response]] = []


def fetch_profile() -> requests.Response:
    """Get the user's profile."""
    return requests.get(f"{PROFILE_SERVICE}/me", timeout=20)


def write_report() -> requests.Response:
    """Do slow work, and then get the user's profile."""
    time.sleep(0.3)
    return fetch_profile()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Respond to one request."""
    call = (scope["method"], scope["path"])
    if call == ("GET", "/profile"):
        response = await asyncio.to_thread(fetch_profile)
    elif call == ("POST", "/report"):
        reports.append(background.submit(write_report))
        return await respond(send, 202, b'{"report":"in progress"}')
    elif call == ("GET", "/report") and reports:
        response = await asyncio.wrap_future(reports[-1])
    else:
        return await respond(send, 404, b'{"error":"not found"}')
    return await respond(send, response.status_code, response.content)


async def respond(send: Any, status: int, body: bytes) -> None:
    """Send a response with a JSON body."""
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
