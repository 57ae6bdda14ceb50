"""x06: an entry with mistyped parameters relays nothing, even if a wider entry exists."""

from __future__ import annotations

import itertools

import pytest

from otel_token_relay import Settings
from otel_token_relay.environment_variables import OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS
from otel_token_relay.policy import RelayPolicy

SEPARATORS = (";", "\uff1b", "\u037e", "|", "#", " ", "?", "/", "&", "%3B", "; ;", ":", ",;", ", ")
MISTAKES = (
    "without-user",
    "without-user=yes",
    "without_user=client",
    "expect=billing",
    "grant=on-behalf-of",
    "grant=x",
    "audience:billing",
    "audience=",
    "aud=billing",
    "audience=a;audience=b",
    "audience=billing;expect=",
    "audience=billing;grant=off",
    "audience=billing;without-user=Client",
    "audience=billing;retry=on",
    "audience=billing;retry",
    "audience=billing;retries=idempotent",
    "retry=idempotent",
    "retry=off",
    "required;retry=idempotent",
    "audience=billing;never",
    "audience=%zz",
    "never=",
)
AMBIGUOUS = {(", ", "without-user")}  # the text could be a host name


@pytest.mark.parametrize("wide", ["http://*", "http://h:*", "http://*,http://h:*"])
def test_a_mistyped_parameter(wide: str) -> None:
    for separator, mistake, origin in itertools.product(SEPARATORS, MISTAKES, ("http://h", "http://h:1")):
        entry = f"{origin}{separator}{mistake}"
        for text in (f"{wide},{entry}", f"{entry},{wide}"):
            if (separator, mistake) in AMBIGUOUS:
                continue
            settings = Settings.from_env({OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS: text})
            policy = RelayPolicy(settings.entries, settings.refused)
            assert settings.problems, text
            found = policy.find("http", "h", 1 if origin.endswith(":1") else 80)
            assert found is None or found.needs_exchange, text
