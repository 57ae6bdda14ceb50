"""user-service: asks profile-service through a circuit breaker, and the archive if that fails.

The call runs in an executor with a time limit, and is tried twice. No line here is about tokens.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pybreaker
import stamina
from fastapi import FastAPI

PROFILE_URL = os.environ.get("PROFILE_URL", "http://127.0.0.1:8001")
ARCHIVE_URL = os.environ.get("ARCHIVE_URL", "http://127.0.0.1:8002")
TIME_LIMIT = float(os.environ.get("TIME_LIMIT", "2"))

app = FastAPI(title="user-service")
breaker = pybreaker.CircuitBreaker(fail_max=3, reset_timeout=float(os.environ.get("RESET_TIMEOUT", "10")))
executor = ThreadPoolExecutor(16, thread_name_prefix="profile")
client = httpx.Client(timeout=30)


def is_worth_a_retry(error: Exception) -> bool:
    """Whether the next attempt may do better."""
    return isinstance(error, httpx.TransportError) or (
        isinstance(error, httpx.HTTPStatusError) and error.response.status_code >= 500
    )


@stamina.retry(on=is_worth_a_retry, attempts=2, wait_initial=0.01, wait_max=0.01, wait_jitter=0)
def fetch_profile() -> dict[str, Any]:
    """Ask profile-service. Runs in a thread of the executor."""
    response = client.get(f"{PROFILE_URL}/profile")
    response.raise_for_status()
    profile: dict[str, Any] = response.json()
    return profile


def fetch_profile_in_time() -> dict[str, Any]:
    """Wait no longer than the time limit. The thread goes on: no thread can be stopped from outside."""
    return executor.submit(fetch_profile).result(timeout=TIME_LIMIT)


@app.get("/users/me")
def read_me() -> dict[str, Any]:
    """Give the profile, and say who had it."""
    try:
        return {"source": "profile-service", **breaker.call(fetch_profile_in_time)}
    except (pybreaker.CircuitBreakerError, TimeoutError, httpx.HTTPError):
        response = client.get(f"{ARCHIVE_URL}/profile")
        response.raise_for_status()
        return {"source": "archive", **response.json()}
