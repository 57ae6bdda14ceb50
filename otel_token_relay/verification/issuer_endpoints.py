"""Query each issuer's endpoints as a verifier does, and report the responses.

The requests fetch the metadata and keys, and introspect a random token. All issuers are queried in parallel, and all
requests finish within *timeout* seconds. Each issuer is queried in a separate thread. Threads that are still running at
the deadline are abandoned, because a DNS lookup cannot be canceled.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, Generic, TypeVar

from otel_token_relay.client_credentials import ClientCredential
from otel_token_relay.issuers import TrustedIssuer, combine
from otel_token_relay.printable import escape, shorten
from otel_token_relay.token import Clock
from otel_token_relay.verification.endpoints import (
    Endpoint,
    EndpointReport,
    EndpointState,
    Finding,
    ask,
    problem_with_status,
)
from otel_token_relay.verification.http_client import FetchFailed, HttpClient, Response, shared_client
from otel_token_relay.verification.introspection import build_request, read_response
from otel_token_relay.verification.jwk import KeySet, check_algorithms
from otel_token_relay.verification.jws import Claims, parse_object
from otel_token_relay.verification.key_credential import KeyCredential
from otel_token_relay.verification.metadata import metadata_urls, problem_with_metadata

DEFAULT_TIMEOUT: Final = 4.0
# The number of seconds between the deadline for a thread's requests and the time when the thread is abandoned.
_REPORTING_SECONDS: Final = 0.2
_MAX_KEYS: Final = 5
_MAX_KID_LENGTH: Final = 100

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerReport:
    """A report on the responses from one issuer's endpoints.

    Attributes:
        issuer: The issuer, as configured.
        endpoints: The endpoint reports, in the order in which a verifier queries the endpoints.
    """

    issuer: str
    endpoints: tuple[EndpointReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report in the JSON format that `docs/command-line.md` describes."""
        endpoints = [endpoint.as_dict() for endpoint in self.endpoints]
        return {"issuer": escape(self.issuer), "state": self.state, "endpoints": endpoints}

    @property
    def keys(self) -> KeySet | None:
        """The usable keys, or ``None`` if the issuer does not provide any usable keys."""
        return next((report.found for report in self.endpoints if isinstance(report.found, KeySet)), None)

    @property
    def state(self) -> EndpointState:
        """The issuer's state, which is ``ok`` if the issuer's tokens can be verified."""
        states: set[EndpointState] = {report.state for report in self.endpoints}
        if "no_response" in states:
            return "no_response"
        return "problem" if "problem" in states else "ok"

    @property
    def clock_difference(self) -> float | None:
        """The first known clock difference in the endpoint reports, or ``None`` if none is known."""
        return next((r.clock_difference for r in self.endpoints if r.clock_difference is not None), None)


def ask_issuers(
    issuers: Sequence[str | TrustedIssuer],
    algorithms: Sequence[str],
    *,
    jwks_uri: str | None = None,
    introspection_endpoint: str | None = None,
    client: ClientCredential | None = None,
    jwks_token_file: str = "",
    timeout: float = DEFAULT_TIMEOUT,
    http: HttpClient | None = None,
    now: Clock = time.time,
) -> tuple[IssuerReport, ...]:
    """Query the metadata, key set, and introspection endpoints of all *issuers* in parallel.

    Args:
        issuers: The trusted issuers. The sequence is empty if tokens are verified only by introspection.
        algorithms: The accepted algorithms.
        jwks_uri: The key set's URL, or ``None`` to read it from the metadata. If this argument is set, *issuers* must
            contain exactly one issuer.
        introspection_endpoint: The URL of the introspection endpoint. The request introspects a random token. If this
            argument is set, *issuers* must contain at most one issuer.
        client: This service's credential for the introspection endpoint.
        jwks_token_file: A file that contains the token for fetching the issuer's keys. See `KeyCredential`. If this
            argument is set, *issuers* must contain exactly one issuer.
        timeout: The maximum total duration, in seconds, of all requests. The default value is the same as for a
            verifier.
        http: The client that sends the requests, or ``None`` to use the default client.
        now: A callable that returns the current time as seconds since the epoch.

    Raises:
        ConfigurationError: The arguments conflict with each other. The same rules apply to a verifier's arguments.
    """
    deadline = time.monotonic() + timeout
    until = deadline - _REPORTING_SECONDS
    allowed = check_algorithms(algorithms)
    sender = shared_client() if http is None else http
    trusted = combine(
        issuers,
        jwks_uri=jwks_uri,
        jwks_token_file=jwks_token_file,
        introspection_endpoint=introspection_endpoint,
        client=client,
        plaintext_hosts=sender.plaintext_hosts,
    )
    inquiries = [
        _Inquiry(issuer, issuer.introspection_endpoint, issuer.client, allowed, until, sender, now)
        for issuer in trusted
    ]
    if not trusted and introspection_endpoint is not None:
        inquiries = [_Inquiry(None, introspection_endpoint, client, allowed, until, sender, now)]
    started = [InThread(inquiry.run) for inquiry in inquiries]
    reports = [running.result(deadline) for running in started]
    return tuple(
        inquiry.timed_out() if report is None else report for inquiry, report in zip(inquiries, reports, strict=True)
    )


def describe_keys(keys: KeySet) -> str:
    """Describe the usable keys with their algorithms and the unusable keys with their problems."""
    algorithms: dict[str | None, list[str]] = {}
    for kid, algorithm in keys.uses:
        algorithms.setdefault(kid, []).append(algorithm)
    usable = [f"{_show_kid(kid)} ({', '.join(names)})" for kid, names in algorithms.items()]
    skipped = [f"{_show_kid(kid)} ({problem})" for kid, problem in keys.skipped]
    found = [_enumerate("usable", usable)] if usable else ["no usable key"]
    return "; ".join([*found, _enumerate("unusable", skipped)] if skipped else found)


class InThread(Generic[_Result]):
    """A function call that runs in a daemon thread."""

    def __init__(self, function: Callable[[], _Result]) -> None:
        self._result: _Result | None = None

        def run() -> None:
            with contextlib.suppress(Exception):  # prevent Python from printing the traceback
                self._result = function()

        self._thread = threading.Thread(target=run, name="token-relay-endpoint", daemon=True)
        self._thread.start()

    def result(self, deadline: float) -> _Result | None:
        """Wait until the function finishes or the monotonic time *deadline* is reached, and return the result.

        Return ``None`` if the function raised an exception or is still running.
        """
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return self._result


@dataclass(slots=True)
class _Inquiry:
    """The requests to one issuer's endpoints.

    Attributes:
        issuer: The issuer, or ``None`` if tokens are verified only by introspection.
        endpoint: The introspection endpoint, or ``None`` if tokens are not introspected.
        client: This service's credential for the introspection endpoint.
        algorithms: The accepted algorithms.
        deadline: The monotonic time, in seconds, by which all requests must finish.
    """

    issuer: TrustedIssuer | None
    endpoint: str | None
    client: ClientCredential | None
    algorithms: frozenset[str]
    deadline: float
    http: HttpClient
    now: Clock
    started: float = field(default_factory=time.monotonic)

    @property
    def _name(self) -> str:
        return str(self.endpoint) if self.issuer is None else self.issuer.issuer

    def run(self) -> IssuerReport:
        """Query the endpoints and return the reports in the order in which a verifier queries the endpoints.

        Both metadata documents are requested simultaneously.
        """
        introspection = None if self.endpoint is None else InThread(self._ask_introspection)
        reports = [] if self.issuer is None else self._ask_for_keys(self.issuer)
        if introspection is not None:
            reports.append(
                self._wait(Endpoint("introspection", str(self.endpoint), _examine_introspection), introspection)
            )
        return self._report(reports)

    def _ask_introspection(self) -> EndpointReport:
        endpoint = Endpoint("introspection", str(self.endpoint), _examine_introspection)
        try:
            issuer = None if self.issuer is None else self.issuer.issuer
            form, identity = build_request(secrets.token_urlsafe(32), self.client, issuer, endpoint.url)
        except FetchFailed as error:
            return replace(self._late(endpoint), state="problem", result=str(error))
        return self._ask(
            endpoint._replace(form=form, authorization=identity.authorization, certificate=identity.certificate)
        )

    def _ask_for_keys(self, issuer: TrustedIssuer) -> list[EndpointReport]:
        if issuer.jwks_uri is not None:
            return [self._fetch(self._key_set(issuer.jwks_uri))]
        running = [(endpoint, InThread(partial(self._fetch, endpoint))) for endpoint in self._metadata()]
        metadata, keys = [self._wait(*running[0])], []
        # If the first metadata request receives no response, a verifier does not send the second request.
        if metadata[0].state == "problem":
            metadata.append(self._wait(*running[1]))
        jwks_uri = next((report.found for report in metadata if report.found is not None), None)
        if jwks_uri is not None:
            keys.append(self._fetch(self._key_set(jwks_uri)))
        if len(metadata) == 1:
            metadata.append(self._wait(*running[1]))
        if jwks_uri is not None:
            metadata = [
                report
                if report.state == "ok"
                else replace(report, state="unused", result=f"{report.result}; not needed")
                for report in metadata
            ]
        return metadata + keys

    def timed_out(self) -> IssuerReport:
        """Return the report for an issuer whose requests did not finish before the deadline."""
        if self.issuer is None:
            endpoint = Endpoint("introspection", self._name, _examine_introspection)
        else:
            endpoint = self._metadata()[0] if self.issuer.jwks_uri is None else self._key_set(self.issuer.jwks_uri)
        return self._report([self._late(endpoint)])

    def _report(self, endpoints: list[EndpointReport]) -> IssuerReport:
        return IssuerReport(issuer=self._name, endpoints=tuple(endpoints))

    def _fetch(self, endpoint: Endpoint) -> EndpointReport:
        """Fetch metadata or keys with the token from the issuer's token file, if one is configured."""
        try:
            authorization = KeyCredential.of(self.issuer).header_for(endpoint.url)
        except FetchFailed as error:
            return replace(self._late(endpoint), state="problem", result=str(error))
        return self._ask(endpoint._replace(authorization=authorization))

    def _ask(self, endpoint: Endpoint) -> EndpointReport:
        return ask(endpoint, timeout=self.deadline - time.monotonic(), http=self.http, now=self.now)

    def _wait(self, endpoint: Endpoint, running: InThread[EndpointReport]) -> EndpointReport:
        return running.result(self.deadline + _REPORTING_SECONDS / 2) or self._late(endpoint)

    def _late(self, endpoint: Endpoint) -> EndpointReport:
        now = time.monotonic()
        return EndpointReport(
            kind=endpoint.kind,
            url=endpoint.url,
            state="no_response",
            result="timed out" if now >= self.deadline else "the request failed for an unknown reason",
            seconds=now - self.started,
        )

    def _metadata(self) -> list[Endpoint]:
        return [Endpoint("metadata", url, self._examine_metadata) for url in metadata_urls(self._name)]

    def _key_set(self, url: str) -> Endpoint:
        return Endpoint("key set", url, self._examine_key_set)

    def _examine_metadata(self, response: Response) -> Finding:
        document = _read_document(response)
        if isinstance(document, str):
            return Finding("problem", document)
        problem = problem_with_metadata(document, self._name, self.http.plaintext_hosts)
        if problem is not None:
            return Finding("problem", problem)
        return Finding("ok", "the document specifies this issuer and its key set", document["jwks_uri"])

    def _examine_key_set(self, response: Response) -> Finding:
        document = _read_document(response)
        if isinstance(document, str):
            return Finding("problem", document)
        if document.get("keys") == []:
            return Finding("problem", "the key set is empty")
        try:
            keys = KeySet.parse(document, self.algorithms)
        except ValueError:
            return Finding("problem", "the response is not a key set")
        return Finding("ok", describe_keys(keys), keys) if keys.uses else Finding("problem", describe_keys(keys))


def _examine_introspection(response: Response) -> Finding:
    """Examine the introspection response for a random token, which must not be active (RFC 7662, section 2.2)."""
    problem = problem_with_status(response)
    if problem is not None:
        hint = {401: "; check the client's credential", 403: "; check the client's permissions"}
        return Finding("problem", f"{problem}{hint.get(response.status, '')}")
    try:
        claims = read_response(response.body)
    except FetchFailed as error:
        return Finding("problem", str(error))
    if claims is not None:
        return Finding("problem", "the endpoint reports that a random token is active")
    return Finding("ok", "a random token is not active")


def _read_document(response: Response) -> Claims | str:
    """Return the JSON object from the response, or a description of the problem."""
    problem = problem_with_status(response)
    if problem is not None:
        return problem
    try:
        return parse_object(response.body)
    except ValueError as error:
        return f"the response is not a JSON document: {error}"


def _enumerate(kind: str, keys: list[str]) -> str:
    shown = [*keys[:_MAX_KEYS], f"{len(keys) - _MAX_KEYS} more"] if len(keys) > _MAX_KEYS else keys
    return f"{len(keys)} {kind} key{'s' * (len(keys) > 1)}: {', '.join(shown)}"


def _show_kid(kid: str | None) -> str:
    return "no kid" if kid is None else shorten(escape(kid), _MAX_KID_LENGTH)
