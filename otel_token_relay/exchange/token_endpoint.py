"""Determine a token endpoint's URL, which is either configured or read from the issuer's metadata."""

from __future__ import annotations

import time
from typing import Final

from otel_token_relay.errors import ExchangeFailed
from otel_token_relay.token import Clock
from otel_token_relay.verification.http_client import FetchFailed, HttpClient, Response
from otel_token_relay.verification.jws import Claims, parse_object
from otel_token_relay.verification.metadata import (
    describe_status,
    fresh_seconds,
    metadata_urls,
    problem_with_metadata,
)

_RETRY_SECONDS: Final = 5.0
# The maximum number of seconds that a request waits while the metadata is being fetched again.
_REFRESH_SECONDS: Final = 1.0


class TokenEndpoint:
    """A token endpoint, which receives callers' tokens and this service's credential. This class is thread-safe.

    Args:
        url: The endpoint's URL; ``None`` to read the URL from the issuer's metadata.
        issuer: The issuer; ``None`` if the issuer is unknown.
        http: The client that fetches the metadata.
        monotonic: A monotonic clock that returns the time in seconds.

    Attributes:
        issuer: The issuer.
        identity: A string that uniquely identifies this endpoint, even if the URL is not yet known.
    """

    def __init__(
        self, url: str | None, issuer: str | None, *, http: HttpClient, monotonic: Clock = time.monotonic
    ) -> None:
        self.issuer = issuer
        self.identity: str = f"{issuer} {url}"
        self._url = url
        self._http = http
        self._monotonic = monotonic
        self._until = float("inf") if url is not None else float("-inf")

    def __str__(self) -> str:
        return self._url or f"the token endpoint of {self.issuer}"

    def locate(self, timeout: float) -> str:
        """Return the URL. Call this method in a worker thread, because it can fetch the issuer's metadata.

        Raises:
            ExchangeFailed: The URL could not be read from the issuer's metadata.
        """
        known, now = self._url, self._monotonic()
        if known is None:
            return self._discover(timeout)
        if now >= self._until:
            # The known URL is used if discovery fails. Other threads use the known URL while this thread is fetching
            # the metadata.
            self._until = now + _RETRY_SECONDS
            try:
                # Reserve the rest of the time for the request to the endpoint.
                return self._discover(min(timeout / 2, _REFRESH_SECONDS))
            except ExchangeFailed:
                self._until = self._monotonic() + _RETRY_SECONDS
        return known

    def _discover(self, timeout: float) -> str:
        """Read the URL from the issuer's metadata."""
        if self.issuer is None:
            raise ExchangeFailed("unavailable", "the issuer is unknown")
        deadline = self._monotonic() + timeout
        is_late, problems = False, []
        for address in metadata_urls(self.issuer):
            try:
                response = self._http.fetch(address, timeout=max(deadline - self._monotonic(), 0.001))
            except FetchFailed as error:
                is_late = error.cause == "timed_out"
                problems.append(f"{address}: {error}")
                continue
            document, problem = self._read(response)
            if problem is None:
                self._url, self._until = document["token_endpoint"], self._monotonic() + fresh_seconds(response.headers)
                return self._url
            problems.append(f"{address}: {problem}")
        raise ExchangeFailed(
            "timeout" if is_late else "unavailable",
            f"no usable token_endpoint in the issuer's metadata ({'; '.join(problems)})",
        )

    def _read(self, response: Response) -> tuple[Claims, str | None]:
        """Return the document in a response and, if the document is unusable, the reason; otherwise, ``None``."""
        if response.status != 200:
            return {}, describe_status(response.status)
        try:
            document = parse_object(response.body)
        except ValueError:  # some web applications return the same HTML page for every path
            return {}, "the response is not a JSON object"
        hosts = self._http.plaintext_hosts
        return document, problem_with_metadata(document, str(self.issuer), hosts, "token_endpoint")
