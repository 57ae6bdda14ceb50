"""The URL of a token endpoint, either configured by an operator or read from the issuer's metadata."""

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
# The maximum time that a request waits for the metadata to be fetched again.
_REFRESH_SECONDS: Final = 1.0


class TokenEndpoint:
    """The URL to which this service sends callers' tokens and its own credential. Safe to share between threads.

    Args:
        url: The URL; ``None`` to read it from the issuer's metadata.
        issuer: The issuer; ``None`` if it is not known.
        http: The client that fetches the metadata.
        monotonic: A clock in seconds that never goes backward.

    Attributes:
        issuer: The issuer.
        identity: A string that distinguishes this endpoint from other endpoints, even before its URL is known.
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
        """Return the URL. This may fetch the issuer's metadata, so call it in a worker thread.

        Raises:
            ExchangeFailed: The URL is not known.
        """
        known, now = self._url, self._monotonic()
        if known is None:
            return self._discover(timeout)
        if now >= self._until:
            # If discovery fails, a URL that was valid a moment ago is better than none. Other threads use that URL in
            # the meantime.
            self._until = now + _RETRY_SECONDS
            try:
                # The rest of the time is reserved for the request to the endpoint.
                return self._discover(min(timeout / 2, _REFRESH_SECONDS))
            except ExchangeFailed:
                self._until = self._monotonic() + _RETRY_SECONDS
        return known

    def _discover(self, timeout: float) -> str:
        """Read the URL from the issuer's metadata."""
        if self.issuer is None:
            raise ExchangeFailed("unavailable", "the issuer is not known")
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
        """Return the document in a response and, if the document cannot be used, the reason."""
        if response.status != 200:
            return {}, describe_status(response.status)
        try:
            document = parse_object(response.body)
        except ValueError:  # probably a web application that serves its start page at every path
            return {}, "the response is not a JSON object"
        hosts = self._http.plaintext_hosts
        return document, problem_with_metadata(document, str(self.issuer), hosts, "token_endpoint")
