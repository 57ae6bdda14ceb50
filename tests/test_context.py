"""The token in the context can be read and bound explicitly."""

import pytest
from opentelemetry import context as otel_context
from opentelemetry.context import Context

from otel_token_relay import BearerToken, current_token, to_destination, use_token
from otel_token_relay.context import DESTINATION_KEY, NamedUrl, bound_token, with_token
from otel_token_relay.origin import Origin
from otel_token_relay.token import Lease
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
