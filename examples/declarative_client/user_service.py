"""The user-service, which calls profile-service with a declarative client, a circuit breaker, an executor, and a
fallback.

The service contains no code for tokens.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pybreaker
import requests
import uplink
from fastapi import FastAPI

PROFILE_URL = os.environ.get("PROFILE_URL", "http://127.0.0.1:8001")
TIME_LIMIT = float(os.environ.get("TIME_LIMIT", "2"))
RESET_TIMEOUT = float(os.environ.get("RESET_TIMEOUT", "10"))
FALLBACK = {"source": "fallback", "name": "unknown"}


@uplink.response_handler
def raise_for_status(response: requests.Response) -> requests.Response:
    """Raise an error for an error response, which would otherwise be returned as a profile."""
    response.raise_for_status()
    return response


@raise_for_status
@uplink.timeout(30)
class ProfileService(uplink.Consumer):
    """The interface of profile-service, which uplink implements as Feign does in Java."""

    @uplink.returns.json
    @uplink.get("profile")
    def read_profile(self) -> dict[str, Any]:
        """Return the caller's profile."""


def is_client_error(error: BaseException) -> bool:
    """Return whether the service itself works. All callers share the breaker, so a single caller must not open it."""
    return isinstance(error, requests.HTTPError) and error.response.status_code < 500


app = FastAPI(title="user-service")
profile_service = ProfileService(base_url=PROFILE_URL)
breaker = pybreaker.CircuitBreaker(fail_max=3, reset_timeout=RESET_TIMEOUT, exclude=[is_client_error])
executor = ThreadPoolExecutor(16, thread_name_prefix="profile")


@app.get("/users/me")
def read_me() -> dict[str, Any]:
    """Return the caller's profile or the fallback."""
    try:
        # breaker.call() runs one call at a time, so all callers would wait for a call that hangs.
        with breaker.calling():
            profile = executor.submit(profile_service.read_profile).result(timeout=TIME_LIMIT)
    except (pybreaker.CircuitBreakerError, TimeoutError, requests.RequestException):
        return FALLBACK
    return {"source": "profile-service", **profile}
