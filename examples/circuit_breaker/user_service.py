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
from fastapi import FastAPI, HTTPException

PROFILE_URL = os.environ.get("PROFILE_URL", "http://127.0.0.1:8001")
ARCHIVE_URL = os.environ.get("ARCHIVE_URL", "http://127.0.0.1:8002")
TIME_LIMIT = float(os.environ.get("TIME_LIMIT", "2"))
RESET_TIMEOUT = float(os.environ.get("RESET_TIMEOUT", "10"))


def is_the_callers_fault(error: BaseException) -> bool:
    """Whether the service is in order. A caller without a token must not open the breaker for everybody."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500


def is_worth_a_retry(error: Exception) -> bool:
    """Whether the next attempt may do better, as after a kept connection that was closed meanwhile."""
    return isinstance(error, httpx.HTTPError) and not is_the_callers_fault(error)


app = FastAPI(title="user-service")
breaker = pybreaker.CircuitBreaker(fail_max=3, reset_timeout=RESET_TIMEOUT, exclude=[is_the_callers_fault])
executor = ThreadPoolExecutor(16, thread_name_prefix="profile")
client = httpx.Client(timeout=30)


@stamina.retry(on=is_worth_a_retry, attempts=2, wait_initial=0.01, wait_max=0.01, wait_jitter=0)
def fetch_profile(service: str) -> dict[str, Any]:
    """Ask profile-service, in a thread of the executor, or the archive."""
    response = client.get(f"{service}/profile")
    response.raise_for_status()
    profile: dict[str, Any] = response.json()
    return profile


def fetch_profile_in_time() -> dict[str, Any]:
    """Wait no longer than the time limit. The thread goes on: no thread can be stopped from outside."""
    return executor.submit(fetch_profile, PROFILE_URL).result(timeout=TIME_LIMIT)


def ask_profile_or_archive() -> dict[str, Any]:
    """Give the profile, and say who had it."""
    try:
        # Not breaker.call(), which lets in one caller at a time: all would wait for the one that hangs.
        with breaker.calling():
            return {"source": "profile-service", **fetch_profile_in_time()}
    except (pybreaker.CircuitBreakerError, TimeoutError, httpx.HTTPError) as error:
        if is_the_callers_fault(error):
            raise
        return {"source": "archive", **fetch_profile(ARCHIVE_URL)}


@app.get("/users/me")
def read_me() -> dict[str, Any]:
    """Give the caller's profile."""
    try:
        return ask_profile_or_archive()
    except httpx.HTTPStatusError as error:
        raise HTTPException(error.response.status_code if is_the_callers_fault(error) else 502) from error
    except httpx.HTTPError as error:
        raise HTTPException(502) from error
