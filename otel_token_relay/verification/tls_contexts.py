"""One HTTP client's TLS contexts: one without a client certificate, and one for each client certificate.

They are kept separate so that a certificate is presented only with the requests for which it is configured.
"""

from __future__ import annotations

import os
import ssl
from typing import Final

from otel_token_relay.client_credentials import ClientCertificate
from otel_token_relay.credential_files import CredentialUnavailable, FileVersion
from otel_token_relay.verification.fetch_failures import FetchFailed

_MAX_CONTEXTS: Final = 32


class TlsContexts:
    """TLS contexts that are rebuilt when a file changes. Safe to share between threads.

    Args:
        ca_file: A PEM file with the certificate authorities to trust; ``None`` to trust those in the system's store or
            in ``SSL_CERT_FILE``.
    """

    def __init__(self, ca_file: str | None) -> None:
        self._ca_file = ca_file
        self._contexts: dict[tuple[str, str | None] | None, tuple[object, ssl.SSLContext]] = {}

    def context(self, certificate: ClientCertificate | None = None) -> ssl.SSLContext:
        """Return the context that presents *certificate*, or no certificate if it is ``None``.

        Raises:
            FetchFailed: A file cannot be used.
        """
        key = None if certificate is None else (certificate.cert_file, certificate.key_file)
        try:
            version = (None if self._ca_file is None else FileVersion.of(os.stat(self._ca_file)), certificate)
            known = self._contexts.get(key)
            if known is not None and known[0] == version:
                return known[1]
            # Cached, because reading the certificate store takes about 20 ms. SSL_CERT_FILE is honored.
            context = ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ValueError):
            raise FetchFailed("the certificate authorities cannot be read", "not_configured") from None
        if certificate is not None:
            try:
                certificate.load_into(context)
            except CredentialUnavailable as error:
                raise FetchFailed(str(error), "not_configured") from None
        if len(self._contexts) >= _MAX_CONTEXTS:
            self._contexts.clear()
        self._contexts[key] = version, context
        return context
