"""Detect URLs whose query contains a signature or a token that authenticates the request.

If a request contains such a query and an ``Authorization`` header, the server rejects the request or ignores one of the
two credentials. Therefore, the query is considered the request's own credential.

A single parameter name is often ambiguous. For example, ``signature`` can refer to a document's signature. Therefore,
each row in the table lists parameters that must all be present. Parameters are separated by ``&``. Their names are
percent-decoded and compared case-insensitively, and their values are ignored.

This module examines entire queries. `otel_token_relay.redaction.secret_names` determines which values redaction masks.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import unquote


class Row(NamedTuple):
    """A set of parameters that together authenticate a request.

    Attributes:
        source: The specification or vendor documentation that defines the parameters.
        secret: The lowercase name of the parameter that contains the signature or token.
        companions: The lowercase names of the other parameters.
    """

    source: str
    secret: str
    companions: frozenset[str] = frozenset()


def _row(source: str, secret: str, *companions: str) -> Row:
    return Row(source, secret, frozenset(companions))


TABLE: Final = (
    _row("RFC 6750, section 2.3, which forbids a second method in the same request", "access_token"),
    _row("RFC 5849 (OAuth 1.0), section 3.5.3", "oauth_signature", "oauth_consumer_key"),
    _row("AWS Signature Version 4 and 4A: Amazon S3, Using Query Parameters", "x-amz-signature"),
    _row("AWS Signature Version 2: Amazon S3, Query String Request Authentication", "signature", "awsaccesskeyid"),
    _row("Amazon CloudFront, Using Signed URLs", "signature", "key-pair-id"),
    _row("Google Cloud Storage, V4 signing process", "x-goog-signature"),
    _row("Google Cloud Storage, V2 signing process", "signature", "googleaccessid"),
    _row("Google Cloud CDN and Media CDN, Use signed URLs", "signature", "keyname", "expires"),
    # A stored access policy (`si`) can specify the permissions and the expiration time. Logic Apps requires only `sp`
    # and `sv`.
    _row("Azure Storage, Create a service, account or user delegation SAS; Azure Logic Apps", "sig", "sv", "sp"),
    _row("Azure Storage, Create a service SAS: stored access policy", "sig", "sv", "si"),
    _row("Azure Storage, service SAS before version 2012-02-12", "sig", "sr", "se", "sp"),
    _row("Azure Storage, service SAS before version 2012-02-12: stored access policy", "sig", "sr", "si"),
    _row("Azure Service Bus and Event Hubs, Access control with Shared Access Signatures", "sig", "sr", "se", "skn"),
    _row("Alibaba Cloud OSS, V4 signatures in a URL", "x-oss-signature"),
    _row("Alibaba Cloud OSS, V1 signatures in a URL", "signature", "ossaccesskeyid"),
    _row("Huawei Cloud OBS, Authentication of Signature in a URL; Alibaba Cloud RPC APIs", "signature", "accesskeyid"),
    _row("Tencent Cloud COS, Request Signature", "q-signature", "q-ak"),
    _row("Volcengine TOS, Signature in a URL", "x-tos-signature"),
    _row("OpenStack Swift and Ceph, Temporary URL middleware", "temp_url_sig", "temp_url_expires"),
    _row("Backblaze B2, b2_get_download_authorization", "authorization"),
)

_has_encoded_name: Final = re.compile("(?:^|&)[^=&%]*%").search
_SECRETS: Final = frozenset(row.secret for row in TABLE)


def is_signed(url: str) -> bool:
    """Return whether the query in a URL or request target authenticates the request."""
    query = url.partition("#")[0].partition("?")[2]
    return bool(query) and is_signed_query(query)


def is_signed_query(query: str) -> bool:
    """Return whether *query*, which must not include the ``?``, authenticates the request."""
    query = query.lower()
    # Each secret parameter's name contains one of these strings. Most queries contain none of them, so this check is
    # usually sufficient.
    if (
        "sig" not in query
        and "access_token" not in query
        and "authorization" not in query
        and ("%" not in query or _has_encoded_name(query) is None)
    ):
        return False
    names = {part.partition("=")[0] for part in query.split("&")}
    if any("%" in name for name in names):
        names = {unquote(name).lower() for name in names}
    return not names.isdisjoint(_SECRETS) and any(row.secret in names and row.companions <= names for row in TABLE)
