"""The boundary of a request has credentials and a lease, and nested applications can share the boundary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_token_relay import Settings, TokenRelayPropagator, current_token, use_token
from otel_token_relay.authentication import ErrorResponse, RequestPath
from otel_token_relay.boundary import Boundary, RequestLease
from otel_token_relay.credentials import Credentials, locate
from otel_token_relay.reasons import Reason
from otel_token_relay.token import BearerToken

A, B = "token-of-a", "token-of-b"
SETTINGS = Settings()

ValuesOf = Callable[[str], Sequence[str | bytes]]


def headers(*authorization: str | bytes) -> ValuesOf:
    """Return a function that looks up headers, as servers do."""
    return lambda name: authorization if name == "authorization" else ()


def broken(name: str) -> Sequence[str]:
    """Look up a header in a request that the server cannot read."""
    raise UnicodeDecodeError("ascii", b"\xff", 0, 1, name)


@contextmanager
def current(boundary: Boundary) -> Iterator[None]:
    """Run the block in the request's context."""
    attached = otel_context.attach(boundary.context())
    try:
        yield
    finally:
        otel_context.detach(attached)


def shown() -> str | None:
    token = current_token()
    return token and token.reveal()


class Authenticator:
    """An authenticator that accepts the credentials if *accepts* is true, and records each checked path."""

    def __init__(self, *, accepts: bool = True, verifies: bool = False) -> None:
        self.accepts = accepts
        self.verifies = verifies
        self.checked: list[str] = []

    def check(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        self.checked.append(path.whole)
        if not self.accepts:
            return ErrorResponse.build(401, "invalid_token")
        if self.verifies and isinstance(credentials, BearerToken):
            credentials.mark_verified(Verified())
        return None

    async def check_async(self, credentials: Credentials, path: RequestPath) -> ErrorResponse | None:
        await asyncio.sleep(0)
        return self.check(credentials, path)

    def prepare(self) -> None: ...


class Verified:
    """The result of a verifier."""

    expires_at = None

    @property
    def claims(self) -> dict[str, object]:
        return {"sub": "alice"}

    def is_still_valid(self) -> bool:
        return True


Check = Callable[[Boundary, Authenticator | None, RequestPath], ErrorResponse | None]


def check_async(boundary: Boundary, authenticator: Authenticator | None, path: RequestPath) -> ErrorResponse | None:
    return asyncio.run(boundary.check_async(authenticator, path))


both_checks = pytest.mark.parametrize("check", [Boundary.check, check_async], ids=["check", "check_async"])


@pytest.mark.parametrize(
    ("values_of", "expected"),
    [
        pytest.param(headers(f"Bearer {A}"), A, id="text"),
        pytest.param(headers(f"Bearer {A}".encode()), A, id="bytes"),
        pytest.param(headers(), Reason.ABSENT, id="no header"),
        pytest.param(headers("Basic dTpw"), Reason.ABSENT, id="another scheme"),
        pytest.param(headers("Bearer a b"), Reason.MALFORMED, id="malformed"),
        pytest.param(headers(f"Bearer {A}", f"Bearer {A}"), Reason.AMBIGUOUS, id="two lines"),
        pytest.param(headers("Bearer " + "a" * 20_000), Reason.TOO_LONG, id="too long"),
        pytest.param(broken, Reason.MALFORMED, id="unreadable"),
        pytest.param(headers(None), Reason.MALFORMED, id="not text"),  # type: ignore[arg-type]
    ],
)
def test_a_request_has_its_token_or_the_reason_why_it_has_none(values_of: ValuesOf, expected: str | Reason) -> None:
    """A request with invalid headers does not fail and does not use an outer context's token."""
    with use_token(B):
        boundary = Boundary.of(values_of, SETTINGS)
        with current(boundary):
            assert shown() == (expected if isinstance(expected, str) else None)

    if isinstance(expected, str):
        assert boundary.token == boundary.credentials == BearerToken(expected)
    else:
        assert boundary.token is None
        assert boundary.credentials is expected


def test_a_rejected_header_is_logged_without_its_value(caplog: pytest.LogCaptureFixture) -> None:
    """For a rejected header, the log contains the reason but not the header's value."""
    caplog.set_level("DEBUG", "otel_token_relay")
    Boundary.of(headers("Bearer one-token two"), SETTINGS)
    Boundary.of(headers(), SETTINGS)
    Boundary.of(headers("Basic dTpw"), SETTINGS)

    assert len(caplog.records) == 1
    assert "one-token" not in caplog.text


def test_instrumentation_extracts_no_token_that_the_boundary_rejected() -> None:
    """Until the response ends, instrumentation extracts no token that the boundary rejected, even from one of two
    lines.
    """
    propagator = TokenRelayPropagator(SETTINGS)
    carrier = {"authorization": f"Bearer {A}"}
    boundary = Boundary.of(headers(f"Bearer {A}", f"Bearer {B}"), SETTINGS)
    with current(boundary):
        assert current_token(propagator.extract(carrier)) is None
        inner = Boundary.of(headers(f"Bearer {B}"), SETTINGS)
        with current(inner):
            assert current_token(propagator.extract({"authorization": f"Bearer {B}"})) is not None
        assert current_token(propagator.extract(carrier)) is None
        boundary.close()
        assert current_token(propagator.extract(carrier)) is not None


@pytest.mark.parametrize("linger", [0.0, 60.0])
def test_the_lease_ends_with_the_response_or_after_lingering(linger: float) -> None:
    """A context that is kept after the response has no token once the lease ends, immediately or after it lingers."""
    boundary = Boundary.of(headers(f"Bearer {A}"), Settings(linger=linger))
    with current(boundary):
        assert shown() == A
        boundary.close()
        assert shown() == (A if linger else None)
        assert not boundary.still_applies_to(partial(locate, headers(f"Bearer {A}")))


@both_checks
def test_only_successful_checks_are_cached_for_their_path(check: Check) -> None:
    """Only successful checks are cached, separately for each path and each authenticator."""
    boundary = Boundary.of(headers(f"Bearer {A}"), SETTINGS)
    one, other = Authenticator(accepts=False), Authenticator()
    path = RequestPath("/a", "/a")
    failed = check(boundary, one, path)
    one.accepts = True

    assert failed is not None
    assert failed.status == 401
    assert boundary.admitted_by == ()
    for _ in range(2):
        assert check(boundary, one, path) is None
        assert check(boundary, other, path) is None
        assert check(boundary, one, RequestPath("/b", "/b")) is None
        assert check(boundary, None, path) is None
    assert one.checked == ["/a", "/a", "/b"]
    assert other.checked == ["/a"]
    assert boundary.admitted_by == ((one, "/a", "/a"), (other, "/a", "/a"), (one, "/b", "/b"))


@both_checks
@pytest.mark.parametrize("verifies", [True, False], ids=["verified", "excluded"])
def test_an_exclusion_does_not_apply_below_a_mount_point_that_the_client_chose(check: Check, verifies: bool) -> None:
    """A request that was accepted without a verified token is checked again below a mount point that the client
    chose.
    """
    boundary = Boundary.of(headers(f"Bearer {A}"), SETTINGS)
    authenticator = Authenticator(verifies=verifies)
    moved = RequestPath("/a", "/mount/a", lambda: ["/mount"])
    assert moved.is_mount_chosen
    check(boundary, authenticator, RequestPath("/mount/a", "/mount/a"))
    check(boundary, authenticator, moved)

    assert authenticator.checked == ["/mount/a"] * (1 if verifies else 2)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        pytest.param([f"Bearer {A}"], [f"Bearer {A}"], True, id="same token"),
        pytest.param([f"Bearer {A}"], [f"bearer  {A}"], True, id="same token in other words"),
        pytest.param([f"Bearer {A}"], [f"Bearer {A}".encode()], True, id="same token in bytes"),
        pytest.param([f"Bearer {A}"], [f"Bearer {B}"], False, id="exchanged"),
        pytest.param([f"Bearer {A}"], [], False, id="removed"),
        pytest.param([], [f"Bearer {A}"], False, id="added"),
        pytest.param([], ["Basic dTpw"], True, id="another scheme"),
        pytest.param([f"Bearer {A}"], [f"Bearer {A}"] * 2, False, id="repeated"),
        pytest.param(["Bearer a b"], ["Bearer a b"], True, id="malformed"),
        pytest.param(["Bearer a b"], [f"Bearer {A}"], False, id="repaired"),
    ],
)
def test_an_inner_application_shares_the_boundary_if_the_credentials_are_the_same(
    outer: list[str | bytes], inner: list[str | bytes], expected: bool
) -> None:
    """An inner application shares the boundary only if no middleware between them changed the credentials."""
    boundary = Boundary.of(headers(*outer), SETTINGS)
    with current(boundary):
        assert boundary.still_applies_to(partial(locate, headers(*inner))) is expected


def test_an_unreadable_request_shares_only_the_boundary_of_an_unreadable_request() -> None:
    """A request whose headers became unreadable does not share a boundary that read its headers."""
    unreadable, readable = Boundary.of(broken, SETTINGS), Boundary.of(headers(f"Bearer {A}"), SETTINGS)
    with current(unreadable):
        assert unreadable.still_applies_to(partial(locate, broken))
        assert not unreadable.still_applies_to(partial(locate, headers(f"Bearer {A}")))
    with current(readable):
        assert not readable.still_applies_to(partial(locate, broken))


def test_a_boundary_does_not_apply_in_the_context_of_another_request() -> None:
    """A boundary does not apply in the context of another request, in which a worker task can run."""
    values_of = headers(f"Bearer {A}")
    boundary, other = Boundary.of(values_of, SETTINGS), Boundary.of(values_of, SETTINGS)
    with current(other):
        assert not boundary.still_applies_to(partial(locate, values_of))
        with current(boundary):
            assert boundary.still_applies_to(partial(locate, values_of))
            with use_token(B):
                assert boundary.still_applies_to(partial(locate, values_of))
            attached = otel_context.attach(Context())
            try:
                assert not boundary.still_applies_to(partial(locate, values_of))
            finally:
                otel_context.detach(attached)


def test_a_lease_knows_the_thread_and_the_task_that_serve_the_request() -> None:
    """A worker thread or a different task does not serve the request until the boundary moves there."""
    boundary = Boundary.of(headers(f"Bearer {A}"), SETTINGS)
    assert boundary.token is not None
    lease = boundary.token.lease
    assert isinstance(lease, RequestLease)
    assert lease.is_here

    async def serve() -> bool:
        boundary.move_here()
        return lease.is_here

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: lease.is_here).result() is False
    assert asyncio.run(serve()) is True
    assert lease.is_here is False
    lease.move_here()
    assert lease.is_here is True


def test_a_plain_boundary_does_not_recognize_its_request() -> None:
    """Only the boundaries of ASGI and WSGI have an object to compare."""
    assert Boundary.of(headers(f"Bearer {A}"), SETTINGS).encloses({"authorization": f"Bearer {A}"}) is False
