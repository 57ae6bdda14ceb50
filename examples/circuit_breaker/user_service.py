"""The user-service, which calls profile-service through a circuit breaker and falls back to the archive.

The call runs in an executor with a timeout and is tried twice. The service contains no code for tokens.
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


def is_client_error(error: BaseException) -> bool:
    """Return whether the service itself works. A caller without a token must not open the breaker for all callers."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code < 500


def is_retryable(error: Exception) -> bool:
    """Return whether a second attempt might succeed, for example, after the server closed an idle connection."""
    return isinstance(error, httpx.HTTPError) and not is_client_error(error)


app = FastAPI(title="user-service")
breaker = pybreaker.CircuitBreaker(fail_max=3, reset_timeout=RESET_TIMEOUT, exclude=[is_client_error])
executor = ThreadPoolExecutor(16, thread_name_prefix="profile")
client = httpx.Client(timeout=30)


@stamina.retry(on=is_retryable, attempts=2, wait_initial=0.01, wait_max=0.01, wait_jitter=0)
def fetch_profile(service: str) -> dict[str, Any]:
    """Return the caller's profile from profile-service or from the archive."""
    response = client.get(f"{service}/profile")
    response.raise_for_status()
    profile: dict[str, Any] = response.json()
    return profile


def fetch_profile_in_time() -> dict[str, Any]:
    """Return the profile, or raise an error after the timeout. The thread continues, because it cannot be stopped."""
    return executor.submit(fetch_profile, PROFILE_URL).result(timeout=TIME_LIMIT)


def fetch_profile_or_fall_back() -> dict[str, Any]:
    """Return the profile and its source."""
    try:
        # breaker.call() runs one call at a time, so all callers would wait for a call that hangs.
        with breaker.calling():
            return {"source": "profile-service", **fetch_profile_in_time()}
    except (pybreaker.CircuitBreakerError, TimeoutError, httpx.HTTPError) as error:
        if is_client_error(error):
            raise
        return {"source": "archive", **fetch_profile(ARCHIVE_URL)}


@app.get("/users/me")
def read_me() -> dict[str, Any]:
    """Return the caller's profile."""
    try:
        return fetch_profile_or_fall_back()
    except httpx.HTTPStatusError as error:
        raise HTTPException(error.response.status_code if is_client_error(error) else 502) from error
    except httpx.HTTPError as error:
        raise HTTPException(502) from error
