"""Send a request to an authorization server's endpoint and report the response.

Except for ``kid`` values, a report never quotes the response. A report contains only printable ASCII characters.

To add a kind of endpoint, write a function that examines the endpoint's response, and pass it to `ask` in an
`Endpoint`. The `issuer_endpoints` module contains the functions for metadata, key sets, and introspection.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any, Final, Literal, NamedTuple

from otel_token_relay.client_credentials import ClientCertificate
from otel_token_relay.printable import escape
from otel_token_relay.token import Clock
from otel_token_relay.verification.http_client import FetchFailed, HttpClient, Response, shared_client
from otel_token_relay.verification.metadata import describe_status

EndpointKind = Literal["metadata", "key set", "introspection", "token"]
EndpointState = Literal[
    "ok",
    "unused",  # the endpoint cannot be used, but it is not needed
    "problem",  # the response or the configuration cannot be used
    "no_response",
]

# The ``Date`` header has a resolution of one second, and the response takes time to arrive. Smaller differences cannot
# be measured reliably.
MIN_CLOCK_DIFFERENCE: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointReport:
    """A report about one endpoint's response.

    Attributes:
        kind: The kind of endpoint.
        url: The endpoint's URL.
        state: Whether the endpoint can be used.
        result: A description of the response or, if no response was received, the reason.
        seconds: The number of seconds that the request took.
        clock_difference: The number of seconds by which the server's clock is ahead of this machine's clock. The value
            is negative if the server's clock is behind. The value is ``None`` if the response has no usable ``Date``
            header.
        found: The content of a usable response. The type depends on *kind*.
    """

    kind: EndpointKind
    url: str
    state: EndpointState
    result: str
    seconds: float
    clock_difference: float | None = None
    found: Any = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.kind} {escape(self.url)}: {self.result} ({self.seconds:.2f} s)"

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a JSON-serializable dictionary."""
        return {
            "kind": self.kind,
            "url": escape(self.url),
            "state": self.state,
            "result": self.result,
            "seconds": round(self.seconds, 3),
            "clock_difference": self.clock_difference,
        }


class Finding(NamedTuple):
    """The result of examining a response. The fields have the same meaning as in `EndpointReport`."""

    state: EndpointState
    result: str
    found: Any = None


class Endpoint(NamedTuple):
    """An endpoint and the function that examines its response.

    The last three fields are passed to `HttpClient.fetch`.
    """

    kind: EndpointKind
    url: str
    examine: Callable[[Response], Finding]
    form: bytes | None = None
    authorization: str | None = None
    certificate: ClientCertificate | None = None


def ask(
    endpoint: Endpoint, *, timeout: float, http: HttpClient | None = None, now: Clock = time.time
) -> EndpointReport:
    """Send a request to one endpoint. This function never raises `FetchFailed`.

    Args:
        endpoint: The endpoint. The HTTP client must accept the endpoint's URL.
        timeout: The maximum number of seconds that the request can take, excluding the DNS lookup.
        http: The client that sends the request, or ``None`` to use the default client.
        now: A callable that returns the current time as seconds since the epoch.
    """
    client = shared_client() if http is None else http
    started, sent, difference = time.monotonic(), now(), None
    try:
        response = client.fetch(
            endpoint.url,
            timeout=timeout,
            form=endpoint.form,
            authorization=endpoint.authorization,
            certificate=endpoint.certificate,
        )
    except FetchFailed as error:
        finding = Finding("problem" if error.cause in ("bad_response", "not_configured") else "no_response", str(error))
    else:
        difference = read_clock_difference(response, (sent + now()) / 2)
        finding = endpoint.examine(response)
    return EndpointReport(
        kind=endpoint.kind,
        url=endpoint.url,
        state=finding.state,
        result=finding.result,
        seconds=time.monotonic() - started,
        clock_difference=difference,
        found=finding.found,
    )


def problem_with_status(response: Response) -> str | None:
    """Return a description of the problem with a response's status, or ``None`` if the status is 200."""
    return None if response.status == 200 else describe_status(response.status)


def read_clock_difference(response: Response, at: float) -> float | None:
    """Return the number of seconds by which the server's clock is ahead, or ``None`` if the difference is unknown.

    Args:
        response: The response. Only the ``Date`` and ``Age`` headers are used.
        at: The time on this machine's clock when the response was created, as seconds since the epoch.

    Source: RFC 9110, section 6.6.1; RFC 9111, section 5.1.
    """
    try:
        date = email.utils.parsedate_to_datetime(response.headers["date"])
        created = date.replace(tzinfo=date.tzinfo or UTC).timestamp()
        # Add half a second, because ``Date`` is truncated to whole seconds.
        return round(created + 0.5 + int(response.headers.get("age", "0")[:9]) - at, 1)
    except (KeyError, ValueError, OverflowError):
        return None


def describe_clock(difference: float | None) -> str | None:
    """Return a sentence that describes the clock difference, or ``None`` if the difference is unknown."""
    if difference is None:
        return None
    if abs(difference) < MIN_CLOCK_DIFFERENCE:
        return "The issuer's clock and this machine's clock agree."
    direction = "ahead of" if difference > 0 else "behind"
    return f"The issuer's clock is {abs(difference):.0f} s {direction} this machine's clock."
