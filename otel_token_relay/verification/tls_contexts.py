"""The TLS contexts of an HTTP client.

Each client certificate has a separate context to ensure that it is presented only for the intended requests. Requests
without a client certificate use an additional context.
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
    """TLS contexts, each of which is rebuilt when one of its files changes. This class is thread-safe.

    Args:
        ca_file: A PEM file that contains the trusted CA certificates. If this argument is ``None``, the contexts trust
            the certificates in ``SSL_CERT_FILE`` or in the system's certificate store.
    """

    def __init__(self, ca_file: str | None) -> None:
        self._ca_file = ca_file
        self._contexts: dict[tuple[str, str | None] | None, tuple[object, ssl.SSLContext]] = {}

    def context(self, certificate: ClientCertificate | None = None) -> ssl.SSLContext:
        """Return a context that presents *certificate*. If *certificate* is ``None``, the context does not present a
        certificate.

        Raises:
            FetchFailed: A certificate file or key file cannot be used.
        """
        key = None if certificate is None else (certificate.cert_file, certificate.key_file)
        try:
            version = (None if self._ca_file is None else FileVersion.of(os.stat(self._ca_file)), certificate)
            known = self._contexts.get(key)
            if known is not None and known[0] == version:
                return known[1]
            # The context is cached, because loading the certificate store takes about 20 ms. OpenSSL reads the
            # SSL_CERT_FILE variable.
            context = ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ValueError):
            raise FetchFailed("the CA certificates cannot be read", "not_configured") from None
        if certificate is not None:
            try:
                certificate.load_into(context)
            except CredentialUnavailable as error:
                raise FetchFailed(str(error), "not_configured") from None
        if len(self._contexts) >= _MAX_CONTEXTS:
            self._contexts.clear()
        self._contexts[key] = version, context
        return context
