"""Where an authorization server issues tokens: a URL that an operator wrote, or that the issuer's metadata names."""

from __future__ import annotations

import time
from typing import Final

from otel_token_relay.errors import ExchangeFailed
from otel_token_relay.token import Clock
from otel_token_relay.verification.http_client import FetchFailed, HttpClient
from otel_token_relay.verification.jws import parse_object
from otel_token_relay.verification.metadata import endpoint_in, fresh_seconds, metadata_urls

_RETRY_SECONDS: Final = 5.0
# How long a request waits for the metadata to be fetched again.
_REFRESH_SECONDS: Final = 1.0


class TokenEndpoint:
    """The URL to which this service sends callers' tokens and its own credential. Safe to share between threads.

    Args:
        url: The URL; ``None`` to read it from the issuer's metadata.
        issuer: The issuer; ``None`` if it is not known.
        http: Fetches the metadata.
        monotonic: A clock in seconds that never goes backward.

    Attributes:
        issuer: The issuer.
        identity: What distinguishes this endpoint from other endpoints, even before its URL is known.
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
        url = self._url
        if url is not None:
            if self._monotonic() < self._until:
                return url
            # Other requests use the known URL meanwhile: a metadata server that hangs must not hold them up.
            self._until = self._monotonic() + _RETRY_SECONDS
            timeout = min(timeout, _REFRESH_SECONDS)
        problem = "the issuer is not known"
        deadline = self._monotonic() + timeout
        for address in () if self.issuer is None else metadata_urls(self.issuer):
            try:
                response = self._http.fetch(address, timeout=max(deadline - self._monotonic(), 0.001))
                document = parse_object(response.body) if response.status == 200 else {}
            except FetchFailed as error:
                problem = str(error)
                continue
            except ValueError:
                problem = "the issuer's metadata is not a JSON document"
                continue
            found = endpoint_in(document, str(self.issuer), "token_endpoint", self._http.plaintext_hosts)
            if found is not None:
                self._url, self._until = found, self._monotonic() + fresh_seconds(response.headers)
                return found
            problem = f"the issuer's metadata names no token endpoint (status {response.status})"
        if url is not None:  # an endpoint that was valid a moment ago is better than none
            return url
        raise ExchangeFailed("unavailable", problem)
