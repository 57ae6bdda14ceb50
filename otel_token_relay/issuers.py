"""Validate and combine the settings for trusted issuers.

Most issuers are https URLs, and their metadata includes the URL of their keys. There are three special cases:

* An issuer that is not an https URL is called a name. Examples are ``accounts.google.com`` and AD FS's
  ``http://adfs.example/adfs/services/trust``. Such a name is compared with the ``iss`` claim, but no metadata is
  fetched for it. Therefore, the operator must configure the URL of the issuer's keys. If the operator allows plain http
  for the host of an http URL, the URL is not considered a name, because the issuer's metadata can be fetched.
* ``https://login.microsoftonline.com/{tid}/v2.0`` matches any Microsoft Entra tenant.
* An issuer with its own keys, audience, or introspection endpoint is represented by a `TrustedIssuer`.

This module does not depend on packages that are installed only with an extra.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

from otel_token_relay.client_credentials import ClientCredential, make_credential
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.origin import Origin, is_trustworthy
from otel_token_relay.printable import escape, shorten
from otel_token_relay.spelling import hint

TENANT: Final = "{tid}"

# The hosts that issue Microsoft Entra access tokens (versions 1.0 and 2.0) in each Microsoft cloud.
_MICROSOFT_HOSTS: Final = frozenset(
    {
        "login.microsoftonline.com",
        "login.microsoftonline.us",
        "login.partner.microsoftonline.cn",
        "sts.windows.net",
        "sts.microsoftonline.us",
        "sts.chinacloudapi.cn",
    }
)
_ENDPOINTS_OF_MANY: Final = ("common", "organizations", "consumers")
# The tenant ID for personal Microsoft accounts (see `tid` in Microsoft's access token claims reference).
PERSONAL_TENANT: Final = "9188040d-6c67-4c5b-b112-36a304b66dad"

is_tenant: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII).fullmatch
ENDPOINTS: Final = ("jwks_uri", "introspection_endpoint", "token_endpoint")
"""The `TrustedIssuer` fields that contain URLs."""

_is_name: Final = re.compile(r"[!-~]{1,500}", re.ASCII).fullmatch

_KEYS: Final = (
    "issuer",
    "jwks_uri",
    "jwks_token_file",
    "audience",
    "introspection_endpoint",
    "token_endpoint",
    "client",
)
_CLIENT_KEYS: Final[Mapping[str, str]] = {
    "id": "client_id",
    "secret": "secret",
    "secret_file": "secret_file",
    "key_file": "key_file",
    "key_id": "key_id",
    "assertion_file": "assertion_file",
    "cert_file": "cert_file",
    "auth": "method",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedIssuer:
    """A trusted issuer with its own settings.

    Attributes:
        issuer: The issuer, exactly as it appears in the ``iss`` claim.
        jwks_uri: The URL of the issuer's keys; ``None`` to use the URL in the issuer's metadata.
        jwks_token_file: The path to the file that contains the bearer token for fetching the issuer's metadata and
            keys; empty if no token is required.
        audience: The audience values that identify this service in the issuer's tokens; empty to use the verifier's
            audience.
        introspection_endpoint: The URL of the issuer's token introspection endpoint (RFC 7662), or ``None``.
        token_endpoint: The URL for exchanging the issuer's tokens; ``None`` to use the URL in the issuer's metadata.
        client: The credential that this service uses to authenticate to the issuer's endpoints, or ``None``.

    Raises:
        ConfigurationError: A value is invalid.
    """

    issuer: str
    jwks_uri: str | None = None
    jwks_token_file: str = ""
    audience: tuple[str, ...] = ()
    introspection_endpoint: str | None = None
    token_endpoint: str | None = None
    client: ClientCredential | None = None

    def __post_init__(self) -> None:
        problem = problem_with_issuer(self.issuer)
        if problem is not None:
            raise ConfigurationError("issuers", problem)
        for name in ENDPOINTS:
            check_endpoint_syntax(name, getattr(self, name))
        if not isinstance(self.jwks_token_file, str) or "\0" in self.jwks_token_file:
            raise ConfigurationError("jwks_token_file", "expected a file path")
        audience: object = self.audience
        names = (audience,) if isinstance(audience, str) else tuple(self.audience)
        if not all(isinstance(name, str) and name for name in names):
            raise ConfigurationError("audience", "expected non-empty names for this service")
        object.__setattr__(self, "audience", names)
        if self.client is not None and self.introspection_endpoint is not None:
            self.client.check_use(self.issuer, self.introspection_endpoint)

    def has_metadata(self, plaintext_hosts: Collection[str] = ()) -> bool:
        """Return whether the issuer's metadata can be fetched.

        Args:
            plaintext_hosts: The hosts, each with an optional port, for which plain http is allowed.
        """
        return self.is_any_tenant or is_issuer(self.issuer, plaintext_hosts)

    @property
    def is_any_tenant(self) -> bool:
        """Whether the issuer matches any Microsoft Entra tenant."""
        return TENANT in self.issuer

    def __str__(self) -> str:
        return self.issuer


def check_endpoint_syntax(setting: str, url: object) -> None:
    """Raise an exception unless *url* is ``None`` or a valid URL. Any http URL is accepted here, because a different
    setting lists the hosts for which plain http is allowed.

    Raises:
        ConfigurationError: *url* is not an absolute http or https URL, or it has a fragment.
    """
    is_url = isinstance(url, str) and Origin.parse(url) is not None and url.isascii() and "#" not in url
    if url is not None and not is_url:
        raise ConfigurationError(setting, _ENDPOINT)


def check_endpoint(setting: str, url: object, plaintext_hosts: Collection[str] = ()) -> None:
    """Raise an exception unless *url* is ``None`` or a URL that may be fetched.

    Args:
        setting: The setting's name.
        url: The URL.
        plaintext_hosts: The hosts, each with an optional port, for which plain http is allowed.

    Raises:
        ConfigurationError: The URL does not use https, and its host is neither loopback nor in *plaintext_hosts*.
    """
    if url is not None and (not isinstance(url, str) or not is_trustworthy(url, plaintext_hosts)):
        raise ConfigurationError(setting, _ENDPOINT)


def is_issuer(url: str, plaintext_hosts: Collection[str] = ()) -> bool:
    """Return whether *url* is an issuer whose metadata may be fetched (RFC 8414, section 2).

    Args:
        url: The issuer.
        plaintext_hosts: The hosts, each with an optional port, for which plain http is allowed.
    """
    return is_trustworthy(url, plaintext_hosts) and "?" not in url and "{" not in url


def problem_with_issuer(issuer: object) -> str | None:
    """Return a description of the problem with *issuer*, or ``None`` if *issuer* is valid. `problem_with_entry` checks
    whether the issuer has keys.
    """
    if not isinstance(issuer, str) or not _is_name(issuer):
        return "expected an https URL or a name without white space, exactly as in the iss claim"
    if "{" in issuer or "}" in issuer:
        return _problem_with_template(issuer)
    if issuer.lower().startswith("https:") and not is_issuer(issuer):
        return "expected an https URL without a query or fragment"
    parts = urlsplit(issuer)
    first = parts.path.strip("/").partition("/")[0]
    if parts.hostname in _MICROSOFT_HOSTS and first in _ENDPOINTS_OF_MANY:
        return f"no token has this issuer: replace {first} with {TENANT} to accept any tenant, or with a tenant ID"
    return None


def _problem_with_template(issuer: str) -> str | None:
    parts = urlsplit(issuer.replace(TENANT, PERSONAL_TENANT))
    if issuer.count(TENANT) != 1 or TENANT not in urlsplit(issuer).path.split("/") or "{" in issuer.replace(TENANT, ""):
        return f"{TENANT} must be a whole path segment"
    if parts.hostname not in _MICROSOFT_HOSTS or not is_issuer(parts.geturl()) or parts.port not in (None, 443):
        return f"{TENANT} is allowed only in an https URL with a Microsoft Entra host"
    return None


def fill_tenant(template: str, tenant: object, tenants: Sequence[str] = ()) -> str | None:
    """Return a tenant's issuer, or ``None`` if the tenant is not accepted.

    Args:
        template: An issuer that contains ``{tid}``.
        tenant: The token's ``tid`` claim.
        tenants: The accepted tenants; empty to accept all tenants except the tenant for personal accounts.
    """
    if not isinstance(tenant, str) or not is_tenant(tenant):
        return None
    if tenant not in tenants if tenants else tenant == PERSONAL_TENANT:
        return None
    return template.replace(TENANT, tenant)


def read_issuers(entries: Iterable[object], report: Callable[[str, str], None]) -> tuple[str | TrustedIssuer, ...]:
    """Return the valid entries. Mappings are converted to instances of `TrustedIssuer`.

    Args:
        entries: Strings, mappings from a configuration file, and instances of `TrustedIssuer`.
        report: A function that accepts the setting's name and a description that identifies the entry. The function is
            called for each problem.
    """
    if isinstance(entries, str):
        report("issuers", "expected a sequence of issuers, not a single string")
        return ()
    found: dict[str, str | TrustedIssuer] = {}
    for position, entry in enumerate(entries):
        try:
            read = _read_issuer(entry)
        except ConfigurationError as error:
            detail = error.problem if error.setting == "issuers" else f"{error.setting}: {error.problem}"
            report("issuers", f"{_describe(entry, position)}: {detail}")
            continue
        if str(read) in found:
            if read == found[str(read)]:
                continue
            report("issuers", f"{_describe(entry, position)}: duplicate issuer with different settings")
            continue
        found[str(read)] = read
    return tuple(found.values())


def _read_issuer(entry: object) -> str | TrustedIssuer:
    if isinstance(entry, TrustedIssuer):
        return entry
    if not isinstance(entry, Mapping):
        problem = problem_with_issuer(entry)
        if problem is not None:
            raise ConfigurationError("issuers", problem)
        return str(entry)
    values = _check_keys(entry, _KEYS)
    client = values.pop("client", None)
    if client is not None:
        if not isinstance(client, Mapping):
            raise ConfigurationError("client", "expected a mapping")
        given = {_CLIENT_KEYS[key]: value for key, value in _check_keys(client, tuple(_CLIENT_KEYS)).items()}
        values["client"] = make_credential(given.pop("client_id", ""), **given)
    audience = values.pop("audience", ())
    if isinstance(audience, str):
        audience = [name.strip() for name in audience.split(",")]
    if not isinstance(audience, list | tuple):
        raise ConfigurationError("audience", "expected text or a list")
    values["audience"] = tuple(audience)
    values.setdefault("issuer", "")
    return TrustedIssuer(**values)


def _check_keys(entry: Mapping[Any, Any], known: Sequence[str]) -> dict[str, Any]:
    """Validate the entry's keys and the types of its values, and return the entry without its empty values."""
    for key in entry:
        if key not in known:
            raise ConfigurationError("issuers", f"unknown key {ascii(key)[:60]}{hint(str(key), known)}")
    for key, value in entry.items():
        if key not in ("client", "audience") and value is not None and not isinstance(value, str):
            raise ConfigurationError(key, "expected text")
    return {key: value for key, value in entry.items() if value is not None and value != ""}


def _describe(entry: object, position: int) -> str:
    name = entry.get("issuer") if isinstance(entry, Mapping) else entry
    text = escape(str(name)) if isinstance(name, str | TrustedIssuer) and str(name) else f"item {position}"
    # Mask the URL's user info, which might contain a password.
    return shorten(re.sub(r"//[^/]*@", "//***@", text), 200)


def problem_with_entry(
    entry: str | TrustedIssuer, jwks_uri: str | None = None, plaintext_hosts: Collection[str] = ()
) -> str | None:
    """Return the reason why a valid entry cannot be used with the other settings, or ``None`` if it can be used.

    Args:
        entry: The issuer.
        jwks_uri: The URL of the issuer's keys, if there is only one issuer and the URL is configured outside the
            issuer's entry.
        plaintext_hosts: The hosts, each with an optional port, for which plain http is allowed.
    """
    trusted = TrustedIssuer(issuer=entry) if isinstance(entry, str) else entry
    for name in ENDPOINTS:
        try:
            check_endpoint(name, getattr(trusted, name), plaintext_hosts)
        except ConfigurationError as error:
            return f"{name}: {error.problem}"
    if trusted.jwks_uri is not None or jwks_uri is not None or trusted.has_metadata(plaintext_hosts):
        return None
    return IS_PLAIN_HTTP if trusted.issuer.startswith("http://") else NEEDS_JWKS_URI


_ENDPOINT: Final = "expected an https URL, or an http URL whose host is loopback or in plaintext_issuers"
NEEDS_JWKS_URI: Final = "expected an https URL; any other issuer requires jwks_uri, the URL of its keys"
IS_PLAIN_HTTP: Final = (
    "keys are fetched over plain http only if plaintext_issuers lists the host; an issuer that is a name"
    " requires jwks_uri, the URL of its keys"
)


def combine(
    issuers: Sequence[str | TrustedIssuer],
    *,
    jwks_uri: str | None = None,
    jwks_token_file: str = "",
    introspection_endpoint: str | None = None,
    token_endpoint: str | None = None,
    client: ClientCredential | None = None,
    plaintext_hosts: Collection[str] = (),
) -> tuple[TrustedIssuer, ...]:
    """Return the issuers. If there is only one issuer, the other arguments provide its missing values.

    Raises:
        ConfigurationError: A value applies only to a single issuer, but there are multiple issuers; an issuer that is a
            name has no keys; or the host of an http URL is not in *plaintext_hosts*.
    """
    problems: list[ConfigurationError] = []
    read = read_issuers(issuers, lambda setting, problem: problems.append(ConfigurationError(setting, problem)))
    if problems:
        raise problems[0]
    of_only = {
        "jwks_uri": jwks_uri,
        "jwks_token_file": jwks_token_file,
        "introspection_endpoint": introspection_endpoint,
        "token_endpoint": token_endpoint,
    }
    for setting, value in of_only.items():
        if setting in ENDPOINTS:
            check_endpoint(setting, value, plaintext_hosts)
        if value not in (None, "") and (len(read) > 1 or (setting.startswith("jwks_") and not read)):
            raise ConfigurationError(
                setting, f"{setting} requires exactly one issuer; for multiple issuers, set it in each entry"
            )
    found = [TrustedIssuer(issuer=entry) if isinstance(entry, str) else entry for entry in read]
    if len(found) == 1:
        values: dict[str, Any] = of_only | {"client": client}
        found = [replace(found[0], **{name: getattr(found[0], name) or value for name, value in values.items()})]
    if not found and introspection_endpoint is not None and client is not None:
        client.check_use(None, introspection_endpoint)
    for issuer in found:
        problem = problem_with_entry(issuer, None, plaintext_hosts)
        if problem is not None:
            raise ConfigurationError("issuers", f"{_describe(issuer, 0)}: {problem}")
    return tuple(found)
