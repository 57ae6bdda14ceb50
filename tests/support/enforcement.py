"""Settings that verify tokens from a test's issuer, and a record of the application code that a request runs."""

from __future__ import annotations

from typing import Any

from otel_token_relay import Settings
from tests.support.issuers import Issuer
from tests.support.tokens import AUDIENCE, claims, make_token


def settings_for(issuer: Issuer, mode: Any = "enforce", **options: Any) -> Settings:
    options = {"verify_exclude": ("/healthz",)} | options
    return Settings(verify=mode, issuers=(issuer.url,), audience=(AUDIENCE,), **options)


def bearer(issuer: Issuer, **changes: Any) -> bytes:
    return f" Bearer {make_token(claims(issuer.url, **changes))}".encode()


def application_reached() -> list[str]:
    """Return the parts of the application that ran. Its access log can run for rejected requests too."""
    from tests.support.protected_servers import reached  # the oldest environment lacks its dependencies

    return [name for name in reached if not name.startswith("log ")]


class FaultyAuthenticator:
    """An authenticator with a bug."""

    def check(self, reading: Any, path: Any) -> Any:
        raise RuntimeError("this authenticator is broken")

    async def check_async(self, reading: Any, path: Any) -> Any:
        raise RuntimeError("this authenticator is broken")

    def prepare(self) -> None:
        """Do nothing in advance."""
