"""Sample data: a token, an incoming request, and an outgoing request's headers."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from opentelemetry import baggage, trace
from opentelemetry.context import Context

from otel_token_relay.context import with_token
from otel_token_relay.token import BearerToken, Lease

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

# The headers that an HTTP client adds, and the header that instrumentation adds before the wrapper runs.
OUTGOING = {
    "Host": "profile-service:8443",
    "Accept": "*/*",
    "Accept-Encoding": "gzip, deflate",
    "Connection": "keep-alive",
    "User-Agent": "python-client/1.0",
    "traceparent": TRACEPARENT,
}
RECEIVED = {
    "Date": "Fri, 27 Nov 2026 10:00:00 GMT",
    "Server": "uvicorn",
    "Content-Type": "application/json",
    "Content-Length": "412",
    "Cache-Control": "private, max-age=60",
    "Vary": "Authorization",
}
URL = "https://profile-service:8443/users/42/profile?fields=name"
DESTINATION = "https://profile-service:8443"


def _segment(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode("ascii")


def jwt(length: int = 900) -> str:
    """Return a string of the given length that looks like an RS256 access token with an expiry in one hour."""
    header = _segment(json.dumps({"alg": "RS256", "typ": "at+jwt", "kid": "2026-11"}).encode())
    signature = _segment(bytes(range(256)))
    claims: dict[str, Any] = {
        "iss": "https://idp.example",
        "sub": "7f3c2a1e-alice",
        "aud": "profile-service",
        "exp": int(time.time()) + 3600,
        "scope": "profile:read",
        "pad": "",
    }
    room = length - len(header) - len(signature) - 2
    claims["pad"] = "x" * (room * 3 // 4 - len(json.dumps(claims)))
    payload = _segment(json.dumps(claims).encode())
    return f"{header}.{payload}.{signature}"


def scope(*, authorization: str | None) -> dict[str, Any]:
    """Return the ASGI scope of a request with seven headers and, if given, *authorization* as the eighth."""
    headers = [
        (b"host", b"user-service.prod.svc.cluster.local"),
        (b"accept", b"application/json"),
        (b"accept-encoding", b"gzip, deflate, br"),
        (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0"),
        (b"x-request-id", b"0192f3c1-7a52-7f60-9c3c-0d2b7a9c5a11"),
        (b"content-type", b"application/json"),
        (b"traceparent", TRACEPARENT.encode("ascii")),
    ]
    if authorization is not None:
        headers.insert(4, (b"authorization", authorization.encode("ascii")))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("10.0.3.7", 8000),
        "client": ("10.0.3.1", 41822),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": "/orders",
        "raw_path": b"/orders",
        "query_string": b"page=2",
        "headers": headers,
    }


def environ(*, authorization: str | None) -> dict[str, Any]:
    """Return the WSGI environ of the request that `scope` describes."""
    given = scope(authorization=authorization)
    found = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/orders",
        "QUERY_STRING": "page=2",
        "SERVER_NAME": "10.0.3.7",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "10.0.3.1",
        "wsgi.url_scheme": "http",
    }
    for name, value in given["headers"]:
        found["HTTP_" + name.decode("ascii").upper().replace("-", "_")] = value.decode("ascii")
    return found


def context_of_request(*, token: bool) -> Context:
    """Return the context of a request that is being served, with a non-recording span and, if *token* is set, a
    token.
    """
    span_context = trace.SpanContext(
        trace_id=0x4BF92F3577B34DA6A3CE929D0E0E4736,
        span_id=0x00F067AA0BA902B7,
        is_remote=False,
        trace_flags=trace.TraceFlags(1),
    )
    context = trace.set_span_in_context(trace.NonRecordingSpan(span_context), Context())
    if not token:
        return with_token(None, context)
    bearer = BearerToken(jwt(), lease=Lease())
    _ = bearer.expires_at  # read once for each incoming request, at its first hop
    return with_token(bearer, context)


def context_with_baggage() -> Context:
    """Return a context with two typical baggage entries."""
    return baggage.set_baggage("tenant", "acme", baggage.set_baggage("user.tier", "gold", Context()))
