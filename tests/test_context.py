"""The token in the context can be read and bound explicitly."""

import logging
import multiprocessing.process
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_token_relay import BearerToken, Settings, as_service, context, current_token, to_destination, use_token
from otel_token_relay.boundary import Boundary
from otel_token_relay.context import (
    DESTINATION_KEY,
    TOKEN_KEY,
    UNUSED_KEY,
    NamedUrl,
    announce,
    announce_obtained,
    announce_verified,
    bind_not_found,
    bound_token,
    is_bound,
    is_refused,
    is_unserved,
    with_token,
    with_unused,
)
from otel_token_relay.origin import Origin
from otel_token_relay.token import Lease
from otel_token_relay.unused_credentials import UnusedCredentials
from tests.support.current import ALICE, BOB, shown


def test_there_is_no_token_by_default():
    """The default context and an empty context contain no token."""
    assert current_token() is None
    assert current_token(Context()) is None


def test_a_bound_token_is_current_only_inside_the_block():
    """A bound token cannot be used after its block ends, even through a kept context or token."""
    with use_token(ALICE) as token:
        kept = otel_context.get_current()
        assert shown() == ALICE

    assert current_token() is None
    assert current_token(kept) is None
    assert bound_token(kept) is token
    assert not token.is_usable


def test_blocks_nest():
    """In nested blocks, the innermost token applies, and `None` hides the outer token."""
    with use_token(ALICE):
        with use_token(BOB):
            assert shown() == BOB
        with use_token(None) as nothing:
            assert nothing is None
            assert shown() is None
        assert shown() == ALICE


def test_a_token_whose_request_has_ended_can_be_bound_explicitly():
    """Explicitly binding a token whose request has ended starts a new lease."""
    with use_token(ALICE) as token:
        pass

    with use_token(token):
        assert shown() == ALICE
    assert current_token() is None


def test_a_failing_block_ends_its_lease():
    """A block that raises an exception ends its lease and propagates the exception."""
    with pytest.raises(ZeroDivisionError), use_token(ALICE) as token:
        raise ZeroDivisionError

    assert current_token() is None
    assert not token.is_usable


@pytest.mark.parametrize("text", ["Bearer abc", "", "a b"])
def test_invalid_token_text_cannot_be_bound(text):
    """The error about invalid token text does not contain the text."""
    with pytest.raises(ValueError, match="RFC 6750"), use_token(text):
        pass


def test_to_destination_returns_a_copy_of_the_context():
    """`to_destination` returns a copy of the context and does not change the current context."""
    with use_token(ALICE):
        context = to_destination("https://Profile-Service/me")

        assert context[DESTINATION_KEY] == NamedUrl(Origin("https", "profile-service", 443), is_signed=False)
        assert current_token(context).reveal() == ALICE
        assert DESTINATION_KEY not in otel_context.get_current()


def test_an_unreadable_url_names_no_destination():
    """An unreadable URL sets the destination to `None`, so the decision can state the reason."""
    assert to_destination("http://a\\@b/", Context()) == {DESTINATION_KEY: NamedUrl(None, is_signed=False)}


def test_a_token_is_usable_only_in_its_own_process(monkeypatch):
    """A token is usable only in its own process, not in a forked child."""
    token = BearerToken(ALICE, lease=Lease())

    monkeypatch.setattr("os.getpid", lambda: token.pid + 1)

    assert token.lease.is_open
    assert not token.is_usable
    assert current_token(with_token(token)) is None


@pytest.fixture
def unserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a process that has neither bound a token nor served a request."""
    monkeypatch.setattr(context, "has_served", False)
    monkeypatch.setattr(context, "has_bound", False)


def served(*authorization: str) -> Boundary:
    """Return the boundary of a request with these `Authorization` lines."""
    return Boundary.of(lambda name: list(authorization) if name == "authorization" else [], Settings())


@pytest.mark.usefixtures("unserved")
def test_a_process_that_serves_no_requests_acts_on_its_own_behalf() -> None:
    """Before a process serves its first request, code acts on the service's own behalf unless a token, or its absence,
    is bound.
    """
    token = BearerToken(ALICE, lease=Lease())

    assert is_unserved(Context())
    assert not is_unserved(with_token(token, Context()))
    assert not is_unserved(with_token(None, Context()))

    not_found = bind_not_found(Context())
    assert context.has_bound
    assert current_token(not_found) is None
    assert is_unserved(not_found)
    assert not is_unserved(with_token(None, not_found))

    served().close()
    assert not is_unserved(Context())
    assert not is_unserved(not_found)


@pytest.mark.usefixtures("unserved")
def test_a_worker_process_never_acts_on_its_own_behalf_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that `multiprocessing` started acts on the service's own behalf only in `as_service`, because its task
    can belong to a request of the parent process.
    """
    monkeypatch.setattr(multiprocessing.process, "parent_process", multiprocessing.process.current_process)

    assert not is_unserved(Context())
    with as_service():
        assert is_unserved(otel_context.get_current())


def test_as_service_hides_the_token_until_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """In `as_service`, the caller's token is hidden, and a context that is kept after the block has no privilege."""
    monkeypatch.setattr(context, "has_served", True)
    with use_token(ALICE):
        with as_service():
            kept = otel_context.get_current()
            assert shown() is None
            assert is_unserved(kept)
            with use_token(BOB):
                assert shown() == BOB
                assert not is_unserved(otel_context.get_current())
        assert shown() == ALICE
    assert not is_unserved(kept)


def test_a_failing_block_ends_the_services_privilege(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of `as_service` that raises an exception ends the privilege of the context that remains."""
    monkeypatch.setattr(context, "has_served", True)
    kept: list[Context] = []

    def fail() -> None:
        with as_service():
            kept.append(otel_context.get_current())
            assert is_unserved(kept[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not is_unserved(kept[0])
    assert is_bound(kept[0])


def test_a_context_is_bound_if_it_identifies_a_caller_or_the_service() -> None:
    """A context is bound if it contains a token, the absence of a token, or the service's own lease."""
    assert not is_bound(Context())
    assert not is_bound(Context({DESTINATION_KEY: NamedUrl(None, is_signed=False)}))
    assert is_bound(with_token(BearerToken(ALICE), Context()))
    assert is_bound(with_token(None, Context()))
    assert is_bound(bind_not_found(Context()))
    with as_service():
        assert is_bound(otel_context.get_current())


@pytest.mark.usefixtures("unserved")
@pytest.mark.parametrize(
    ("authorization", "expected"),
    [([], False), ([f"Bearer {ALICE}"], False), ([f"Bearer {ALICE}", f"Bearer {BOB}"], True), (["Basic dTpw"], False)],
    ids=["no header", "token", "two tokens", "other scheme"],
)
def test_a_request_with_ambiguous_credentials_is_refused_until_it_ends(
    authorization: list[str], expected: bool
) -> None:
    """The context of a request whose credentials are rejected is refused until the request ends."""
    boundary = served(*authorization)
    bound = boundary.context()

    assert is_refused(bound) is expected
    boundary.close()
    assert not is_refused(bound)


@contextmanager
def watching(watchers: list[Any], watch: Callable[..., None]) -> Iterator[None]:
    """Register a function that raises an error, and then *watch*, as redaction registers its functions."""

    def broken(*arguments: object) -> None:
        raise RuntimeError("broken")

    watchers += [broken, watch]
    try:
        yield
    finally:
        watchers.remove(broken)
        watchers.remove(watch)


def test_redaction_gets_each_token_with_its_context(caplog: pytest.LogCaptureFixture) -> None:
    """Redaction gets each bound, verified, or obtained token, and a function that raises an error does not affect the
    request.
    """
    bound: list[tuple[str, Context]] = []
    verified: list[str] = []
    empty = Context()
    with (
        caplog.at_level(logging.DEBUG, logger="otel_token_relay"),
        watching(context.token_watchers, lambda token, found: bound.append((token.reveal(), found))),
        watching(context.verification_watchers, lambda token: verified.append(token.reveal())),
    ):
        with_token(BearerToken(ALICE), empty)
        with_token(None, empty)
        announce(BearerToken(BOB), empty)
        assert (bound, verified) == ([(ALICE, empty), (BOB, empty)], [])

        announce_verified(BearerToken(ALICE))
        assert (len(bound), verified) == (2, [ALICE])

        bound.clear()
        verified.clear()
        announce_obtained(BearerToken("issued-token-0001"))
        assert bound == [("issued-token-0001", otel_context.get_current())]
        assert verified == ["issued-token-0001"]

    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert not any(token in caplog.text for token in (ALICE, BOB, "issued-token-0001"))


def test_redaction_gets_the_unused_credentials_of_a_request() -> None:
    """Redaction gets the unused credentials with the context that contains them, but is not told of their absence."""
    found: list[tuple[UnusedCredentials, Context]] = []
    unused = UnusedCredentials((BOB,), None)
    original = with_token(BearerToken(ALICE), Context())
    with watching(context.unused_watchers, lambda *arguments: found.append(arguments)):
        bound = with_unused(unused, original)
        without = with_unused(None, bound)

    assert found == [(unused, bound)]
    assert (bound[UNUSED_KEY], without[UNUSED_KEY]) == (unused, None)
    assert bound[TOKEN_KEY] is original[TOKEN_KEY]
    assert UNUSED_KEY not in original
