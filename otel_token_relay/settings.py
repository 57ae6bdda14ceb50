"""Define all settings in a frozen dataclass.

`Settings(...)` raises an exception for the first invalid value. `Settings.load()` and `Settings.from_env()` never raise
an exception, because an exception would prevent the application from starting. Instead, both methods replace an invalid
value with the setting's strict value and report the problem in `Settings.problems`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, cast

from otel_token_relay import environment_variables as env
from otel_token_relay.algorithms import ALGORITHMS, DEFAULT_ALGORITHMS, PROFILES, Profile
from otel_token_relay.client_credentials import (
    CLIENT_AUTH_METHODS,
    SECRET_VARIABLE,
    ClientAuth,
    ClientCredential,
    Secret,
    make_credential,
)
from otel_token_relay.configuration_file import Section, read_configuration_file
from otel_token_relay.destinations import Destination, read_destinations
from otel_token_relay.durations import check_seconds
from otel_token_relay.entry_syntax import GRANTS
from otel_token_relay.errors import ConfigurationError
from otel_token_relay.issuers import (
    ENDPOINTS,
    TrustedIssuer,
    check_endpoint,
    check_endpoint_syntax,
    combine,
    is_tenant,
    problem_with_entry,
    read_issuers,
)
from otel_token_relay.origin import Origin, OriginPattern, is_listed, is_trustworthy
from otel_token_relay.policy import RelayPolicy
from otel_token_relay.setting_kinds import (
    COUNT,
    ENTRIES,
    FLAG,
    ISSUERS,
    NUMBER,
    SECRET,
    TEXT,
    WORDS,
    Kind,
    choice,
)
from otel_token_relay.sources import Source, SourceReader, Variable, merge
from otel_token_relay.token import DEFAULT_MAX_LENGTH

OnConflict = Literal["keep", "replace"]
Verify = Literal["off", "report", "optional", "enforce"]
VerifyStreams = Literal["off", "exp"]
Log = Literal["", "decisions", "debug"]
ExchangeGrant = Literal["token-exchange", "on-behalf-of", "off"]
EXCHANGE_GRANTS: Final[tuple[ExchangeGrant, ...]] = (*GRANTS, "off")
ExchangeActor = Literal["none", "client"]
EXCHANGE_ACTORS: Final[tuple[ExchangeActor, ...]] = ("none", "client")

# A header field's name is a `token` (RFC 9110, sections 5.1 and 5.6.2).
_is_field_name = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+").fullmatch

# RFC 6750, section 3: %x20-21 / %x23-5B / %x5D-7E.
_is_quotable = re.compile(r"[\x20-\x21\x23-\x5B\x5D-\x7E]+", re.ASCII).fullmatch

# A bearer token in any of these headers would either break the request or be sent to the wrong recipient.
_UNUSABLE_HEADERS: Final = frozenset(
    {
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "cookie",
        "content-type",
        # These headers are intended for the next proxy, not for the destination. For example, urllib sends
        # `proxy-authorization` in a CONNECT request.
        "proxy-authorization",
        "proxy-connection",
        "keep-alive",
    }
)


NO_FILE: Final = "/dev/null"
"""The strict value of a setting that specifies a file. An empty file contains no certificates or tokens."""

# RFC 6749, section 3.3.
_is_scope = re.compile(r"[!#-\[\]-~]+", re.ASCII).fullmatch

# Strict values that match nothing. No host names exist in the `.invalid` domain (RFC 6761, section 6.4).
_NO_URL: Final = "https://{}.invalid"
_NONE: Final = "(none)"


def _setting(name: str, kind: Kind, meaning: str, *, default: Any, shown: str, strict: Any = None) -> Any:
    variable = Variable(name, kind, default if strict is None else strict, meaning, shown)
    return field(default=default, metadata={"variable": variable}, repr=not kind.is_secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The validated settings. By default, the relay does not send the token to any destination.

    All durations are in seconds. Each string in *destinations* is parsed with `Destination.parse`.

    Raises:
        ConfigurationError: A value is invalid. The error identifies the setting and, for a destination, the entry.
    """

    destinations: Sequence[Destination | str] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_DESTINATIONS,
        ENTRIES,
        "The destinations that may receive the token, as comma-separated entries: `ORIGIN[;param[=value]]…`. Values"
        " are percent-encoded. If the list is empty, the relay does not send the token to any destination.",
        default=(),
        shown="",
    )
    source_headers: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_SOURCE_HEADERS,
        WORDS,
        "A comma-separated list of request headers that may contain the caller's token. Only the first header that is"
        " present in the request is read. In headers other than `authorization`, the `Bearer ` prefix is optional.",
        default=("authorization",),
        shown="authorization",
        strict=(),
    )
    header: str = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_HEADER,
        TEXT,
        "The header that contains the token in outgoing requests. The `Bearer ` prefix is added only in the"
        " `Authorization` header.",
        default="Authorization",
        shown="Authorization",
    )
    on_conflict: OnConflict = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_ON_CONFLICT,
        choice("keep", "replace"),
        "What to do with a credential that the outgoing request already contains: `keep` or `replace`.",
        default="keep",
        shown="keep",
    )
    max_age: float = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_MAX_AGE,
        NUMBER,
        "The number of seconds after receipt during which a token without a lease can be relayed. A token has no lease"
        " if `extract` reads it outside any server boundary. A token with a lease can be relayed until its request"
        " ends.",
        default=300.0,
        shown="300",
        strict=0.0,
    )
    linger: float = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_LINGER,
        NUMBER,
        "The number of seconds that the lease stays open for background work after the request has ended.",
        default=0.0,
        shown="0",
    )
    min_ttl: float = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_MIN_TTL,
        NUMBER,
        "The minimum remaining lifetime, in seconds, of a JWT that is relayed. The lifetime is calculated from the"
        " `exp` claim.",
        default=0.0,
        shown="0",
    )
    max_length: int = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_MAX_LENGTH,
        COUNT,
        "The maximum length of an incoming token, in characters. A longer token is rejected, never truncated. If a"
        " header line exceeds the maximum by more than seven characters, the line is rejected without being read.",
        default=DEFAULT_MAX_LENGTH,
        shown="16384",
    )
    require_verified: bool = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_REQUIRE_VERIFIED,
        FLAG,
        "Whether to relay a token only if this service has verified the token during the current request.",
        default=False,
        shown="false",
        strict=True,
    )
    protect_caches: bool = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_PROTECT_CACHES,
        FLAG,
        "Whether to prevent [caches between the application and its clients](caches.md) from storing the response to"
        " a request with a token, and from using a stored response for such a request.",
        default=True,
        shown="true",
        strict=True,
    )
    redaction: bool = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_REDACTION,
        FLAG,
        "Whether to mask tokens in spans, log records, and metrics before they are exported.",
        default=True,
        shown="true",
    )
    redact_keys: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_REDACT_KEYS,
        WORDS,
        "A comma-separated list of names whose values are always masked, in addition to the built-in names. A name"
        " matches both attribute keys and names within strings. Case is ignored, and `-` and `_` are equivalent. For"
        " example, `x-api-key` also matches `http.request.header.x-api-key`.",
        default=(),
        shown="",
    )
    verify: Verify = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_VERIFY,
        choice("off", "report", "optional", "enforce"),
        "Whether the server boundary verifies each request's token. `enforce` rejects every request that does not"
        " have a valid token; the status is 400, 401, or 503 (gRPC: `UNAUTHENTICATED` or `UNAVAILABLE`). `optional`"
        " also accepts requests without a token. `report` rejects no requests, but counts and logs those that"
        " `enforce` would reject. Verification requires `…_ISSUERS`, `…_AUDIENCE`, and the `verify` extra.",
        default="off",
        shown="off",
        strict="enforce",
    )
    issuers: Sequence[str | TrustedIssuer] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_ISSUERS,
        ISSUERS,
        "A comma-separated list of trusted issuers, exactly as they appear in the `iss` claim. In a Microsoft Entra"
        " issuer, `{tid}` matches any tenant. An issuer that is a name rather than a URL requires `…_JWKS_URI`.",
        default=(),
        shown="",
    )
    audience: Sequence[str] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_AUDIENCE,
        WORDS,
        "A comma-separated list of this service's names. The `aud` claim must contain at least one of these names.",
        default=(),
        shown="",
    )
    audience_claim: str = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_AUDIENCE_CLAIM,
        TEXT,
        "The claim that must contain one of the names in `…_AUDIENCE`. Change this setting only if the issuer does"
        " not include `aud` in its tokens. If a token contains both claims, both must match. This setting requires the"
        " `generic` profile and at most one issuer.",
        default="aud",
        shown="aud",
        strict=_NONE,
    )
    jwks_uri: str | None = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_JWKS_URI,
        TEXT,
        "The URL of the issuer's key set, if exactly one issuer is trusted. If this setting is unset, the URL is read"
        " from the issuer's metadata.",
        default=None,
        shown="",
        strict=_NO_URL.format("jwks-uri"),
    )
    leeway: float = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_LEEWAY,
        NUMBER,
        "The maximum permitted difference, in seconds, between the issuer's clock and this machine's clock.",
        default=30.0,
        shown="30",
        strict=0.0,
    )
    tenants: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_TENANTS,
        WORDS,
        "A comma-separated list of the tenant IDs that `{tid}` matches. If this setting is unset, tokens"
        " from every tenant except the one for personal accounts are accepted.",
        default=(),
        shown="",
        strict=(_NONE,),
    )
    scope_claims: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_SCOPE_CLAIMS,
        WORDS,
        "A comma-separated list of the claims that contain a token's scopes. The scopes from all of these claims are"
        " combined. Use a dot to refer to a member of an object, as in `realm_access.roles`.",
        default=("scope", "scp"),
        shown="scope,scp",
        strict=(),
    )
    required_scopes: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_REQUIRED_SCOPES,
        WORDS,
        "A comma-separated list of scopes that every request requires. If any required scope is missing, the response"
        " has status 403.",
        default=(),
        shown="",
        strict=(_NONE,),
    )
    introspection_endpoint: str | None = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_INTROSPECTION_ENDPOINT,
        TEXT,
        "The URL of the issuer's introspection endpoint (RFC 7662), if at most one issuer is trusted. If `…_ISSUERS`"
        " is unset, tokens are verified by introspection only.",
        default=None,
        shown="",
        strict=_NO_URL.format("introspection-endpoint"),
    )
    client_id: str | None = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_CLIENT_ID,
        TEXT,
        "The client ID that identifies this service at the introspection and token endpoints.",
        default=None,
        shown="",
    )
    client_secret: Secret | str | None = _setting(
        SECRET_VARIABLE,
        SECRET,
        "The client's secret. The secret is never printed, and it cannot be set with a flag.",
        default=None,
        shown="",
    )
    client_secret_file: str | None = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_CLIENT_SECRET_FILE,
        TEXT,
        "A file that contains the client's secret, as an alternative to `…_CLIENT_SECRET`. The file is read again"
        " when it changes.",
        default=None,
        shown="",
    )
    client_key_file: str | None = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_CLIENT_KEY_FILE,
        TEXT,
        "A file that contains a private key (RSA, P-256, P-384, P-521, or Ed25519) in PEM or JWK format, as an"
        " alternative to a secret. The key signs the assertions that identify this service. The file is read again"
        " when it changes.",
        default=None,
        shown="",
    )
    client_key_id: str | None = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_CLIENT_KEY_ID,
        TEXT,
        "The `kid` of the assertions. If this setting is unset, the assertions contain the JWK's own `kid`, if"
        " present.",
        default=None,
        shown="",
    )
    client_assertion_file: str | None = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_CLIENT_ASSERTION_FILE,
        TEXT,
        "A file that contains an assertion, as an alternative to a secret. For example, the file can contain a"
        " Kubernetes service account's projected token or a token for workload identity in Microsoft Entra. The"
        " assertion is sent unchanged. The file is read again when it changes.",
        default=None,
        shown="",
    )
    client_cert_file: str | None = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_CLIENT_CERT_FILE,
        TEXT,
        "A file that contains a certificate in PEM format. For `tls_client_auth`, this is the TLS client certificate,"
        " and its private key is in the same file or in `…_CLIENT_KEY_FILE`. For `private_key_jwt_rfc7523`, the"
        " assertions refer to this certificate. The file is read again when it changes.",
        default=None,
        shown="",
    )
    client_auth: ClientAuth | None = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_CLIENT_AUTH,
        choice(*CLIENT_AUTH_METHODS),
        "The authentication method for this service's credential. The methods for a secret are `client_secret_basic`"
        " (the default), `client_secret_post`, and `client_secret_basic_plain`. Use `client_secret_basic_plain` for a"
        " server that does not percent-decode the client ID and secret in the header (RFC 6749, section 2.3.1). The"
        " methods for a key are `private_key_jwt` (the default), whose audience is the issuer, and"
        " `private_key_jwt_rfc7523`, whose audience is the endpoint. Microsoft Entra requires"
        " `private_key_jwt_rfc7523`. The method for a certificate is `tls_client_auth` (RFC 8705).",
        default=None,
        shown="",
    )
    token_endpoint: str | None = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_TOKEN_ENDPOINT,
        TEXT,
        "The URL of the token endpoint that exchanges the caller's token for a destination's token, if at most one"
        " issuer is trusted. If this setting is unset, the URL is read from the issuer's metadata.",
        default=None,
        shown="",
        strict=_NO_URL.format("token-endpoint"),
    )
    exchange_grant: ExchangeGrant = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_EXCHANGE_GRANT,
        choice(*EXCHANGE_GRANTS),
        "The grant for token exchange: `token-exchange` (RFC 8693), `on-behalf-of` (Microsoft Entra), or `off`. The"
        " `;grant=` parameter in `…_DESTINATIONS` overrides this setting for one entry.",
        default="token-exchange",
        shown="token-exchange",
        strict="off",
    )
    exchange_actor: ExchangeActor = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_EXCHANGE_ACTOR,
        choice(*EXCHANGE_ACTORS),
        "Whether an exchange identifies this service as the actor. With `client`, the exchange sends the service's"
        " own token as `actor_token` (RFC 8693). Requires the `token-exchange` grant.",
        default="none",
        shown="none",
        strict="client",
    )
    exchange_unverified: bool = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_EXCHANGE_UNVERIFIED,
        FLAG,
        "Whether to exchange tokens that this service has not verified. If this setting is `true`, any caller can"
        " make this service send requests with its own credential.",
        default=False,
        shown="false",
    )
    algorithms: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_ALGORITHMS,
        WORDS,
        "A comma-separated list of accepted signature algorithms. Only asymmetric algorithms are supported.",
        default=DEFAULT_ALGORITHMS,
        shown="RS256,PS256,ES256,EdDSA",
        strict=(),
    )
    profile: Profile = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_PROFILE,
        choice(*PROFILES),
        "The validation rules for tokens. The default, `rfc9068`, requires the `at+jwt` type. Use `generic` for"
        " issuers whose access tokens do not have this type, and `id-token` for providers whose clients send ID tokens"
        " to APIs.",
        default="rfc9068",
        shown="rfc9068",
    )
    verify_exclude: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_VERIFY_EXCLUDE,
        WORDS,
        "A comma-separated list of paths that do not require a token. A request's path must match exactly, but an"
        " entry that ends with `/*` matches all paths below that prefix. For gRPC, specify full"
        " method names, such as `/grpc.health.v1.Health/Check`.",
        default=(),
        shown="",
    )
    span_claims: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_SPAN_CLAIMS,
        WORDS,
        "A comma-separated list of `claim:attribute` pairs, such as `sub:enduser.id`. After verification, each claim"
        " is recorded as the given attribute of the SERVER span.",
        default=(),
        shown="",
    )
    log: Log = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_LOG,
        choice("", "decisions", "debug"),
        "What to write to standard error, regardless of the application's `logging` configuration. `decisions` writes"
        " one line for each hop and each verification; `debug` also writes this package's debug messages.",
        default="",
        shown="",
    )
    plaintext_hosts: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_PLAINTEXT_HOSTS,
        WORDS,
        "A comma-separated list of destinations for which plain http does not cause a warning, because a service mesh"
        " encrypts the traffic. Each entry is a host with an optional port.",
        default=(),
        shown="",
    )
    ca_file: str = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_CA_FILE,
        TEXT,
        "A file in PEM format that contains certificate authorities. For requests to issuers and to their endpoints,"
        " this package trusts these authorities instead of the system's. The file is read again when it changes.",
        default="",
        shown="",
        strict=NO_FILE,
    )
    plaintext_issuers: tuple[str, ...] = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_PLAINTEXT_ISSUERS,
        WORDS,
        "A comma-separated list of hosts from which issuers' metadata, keys, introspection results, and tokens can be"
        " fetched over plain http, because a service mesh or a container network protects the traffic. Each entry is"
        " a host with an optional port.",
        default=(),
        shown="",
    )
    jwks_token_file: str = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_JWKS_TOKEN_FILE,
        TEXT,
        "A file that contains a bearer token, such as a Kubernetes service account token. This token is sent with"
        " requests for the issuer's metadata and keys. The token is sent only over https, and only to the issuer's"
        " origin or the origin of `…_JWKS_URI`. The file is read before each request. This setting requires exactly"
        " one issuer.",
        default="",
        shown="",
        strict=NO_FILE,
    )
    realm: str = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_REALM,
        TEXT,
        "The realm in the challenge for a rejected request: ASCII text without quotes or backslashes.",
        default="api",
        shown="api",
    )
    resource_metadata: str = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_RESOURCE_METADATA,
        TEXT,
        "This service's identifier as a protected resource, which is the URL that clients use, such as"
        " `https://mcp.example/mcp`. If this setting is set, the server boundary publishes the resource's metadata"
        " (RFC 9728) without requiring a token, and each challenge contains the metadata's URL.",
        default="",
        shown="",
    )
    verify_streams: VerifyStreams = _setting(
        env.OTEL_PYTHON_TOKEN_RELAY_VERIFY_STREAMS,
        choice("off", "exp"),
        "Whether a long-lived response ends when the caller's token expires. With `exp`, the response ends at the"
        " time in the `exp` claim plus the leeway: a WebSocket closes with code 1008, a gRPC stream ends with"
        " `UNAUTHENTICATED`, and a `text/event-stream` response stops.",
        default="off",
        shown="off",
        strict="exp",
    )
    problems: tuple[str, ...] = ()
    """A one-sentence description of each invalid value. Only `load` and `from_env` set this field."""
    refused: tuple[OriginPattern, ...] = ()
    """The origins of skipped entries. Only `load` and `from_env` set this field.

    A skipped entry might be stricter than a broader entry that also matches its origin. Therefore, no broader entry
    applies to that origin.
    """

    given: frozenset[str] = field(init=False, repr=False, compare=False)
    """The names of the settings that were passed explicitly."""

    def __new__(cls, *args: object, **values: object) -> Settings:
        settings = object.__new__(cls)
        # `dataclasses.replace` passes every field, so ignore the fields that have their default values.
        is_copy = VARIABLES.keys() <= values.keys()
        _set(settings, "given", frozenset(n for n in values if not is_copy or values[n] != _DEFAULTS.get(n)))
        return settings

    def __post_init__(self) -> None:
        _set(self, "destinations", read_destinations(self.destinations, _raise))
        if isinstance(self.source_headers, str):
            raise ConfigurationError("source_headers", "expected a sequence of header names, not a single string")
        _set(self, "source_headers", tuple(_read_header("source_headers", h).lower() for h in self.source_headers))
        _read_header("header", self.header)
        if self.on_conflict not in ("keep", "replace"):
            raise ConfigurationError("on_conflict", "expected keep or replace")
        for name in ("max_age", "linger", "min_ttl", "leeway"):
            check_seconds(name, getattr(self, name))
        if isinstance(self.max_length, bool) or not isinstance(self.max_length, int) or self.max_length < 1:
            raise ConfigurationError("max_length", "expected a whole number greater than 0")
        _check_choices_and_lists(self)
        _check_issuers_and_client(self)
        _check_files_and_metadata(self)
        for name in ("protect_caches", "redaction", "exchange_unverified"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationError(name, "expected true or false")
        _set(self, "redact_keys", tuple(key.strip().lower() for key in self.redact_keys))

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings from environment variables only. See also `load`."""
        return cls._merge([READER.read_environment(environ)])

    @classmethod
    def load(
        cls,
        environ: Mapping[str, str] = os.environ,
        *,
        code: Settings | None = None,
        passed: Mapping[str, object] | None = None,
    ) -> Settings:
        """Read the settings from all sources. This method never raises an exception.

        Settings in code take precedence over OpenTelemetry's configuration file, which takes precedence over
        environment variables. For ``verify``, ``require_verified``, ``redaction``, and ``protect_caches``, the
        strictest value from any source applies instead.

        Invalid values are handled as follows:

        * Invalid destinations are skipped, and valid destinations are kept.
        * An invalid ``header`` removes all destinations, because the token must not be sent in a different header.
        * An unreadable configuration file removes all destinations and applies the strict values of the four protective
          settings.
        * Any other invalid value is replaced with the setting's strict value.

        If a name is probably a misspelling of an unset setting, that setting's strict value applies. A misspelled
        ``verify`` or ``require_verified`` has no effect if its value turns the feature off.

        Args:
            environ: The environment variables.
            code: The settings from code. Only settings that were passed explicitly take precedence.
            passed: The keys under ``token_relay:`` in a configuration file that the application itself has loaded.
        """
        return cls._merge(load_sources(environ, code=code, passed=passed))

    @classmethod
    def _merge(cls, sources: list[Source]) -> Settings:
        merged = merge(sources)
        problems = list(dict.fromkeys(merged.problems))
        settings = cls(**merged.values | _usable_issuers(merged, problems))
        if settings.verify != "off" and (obstacle := settings.verification_problem) is not None:
            effect = "requests are not verified" if settings.verify == "report" else "requests receive a 503 response"
            problems.append(
                f"{VARIABLES['verify'].name}: verification cannot start, because {obstacle}; until this is corrected,"
                f" {effect}"
            )
        loaded = replace(settings, problems=tuple(problems), refused=tuple(sorted(merged.refused, key=str)))
        _set(loaded, "given", frozenset(merged.values))
        return loaded

    @property
    def entries(self) -> tuple[Destination, ...]:
        """The parsed destinations."""
        return cast("tuple[Destination, ...]", self.destinations)

    @property
    def trusted_issuers(self) -> tuple[TrustedIssuer, ...]:
        """The trusted issuers, each combined with the settings that apply to it.

        Raises:
            ConfigurationError: It is unclear which issuer a setting belongs to, or a credential is incomplete.
        """
        return combine(
            self.issuers,
            jwks_uri=self.jwks_uri,
            jwks_token_file=self.jwks_token_file,
            introspection_endpoint=self.introspection_endpoint,
            token_endpoint=self.token_endpoint,
            client=self.client_credential,
            plaintext_hosts=self.plaintext_issuers,
        )

    @property
    def client_credential(self) -> ClientCredential | None:
        """This service's credential; ``None`` if no credential is configured.

        Raises:
            ConfigurationError: The credential is incomplete, or its settings contradict each other.
        """
        return make_credential(
            self.client_id,
            self.client_secret,
            self.client_secret_file,
            self.client_auth,
            key_file=self.client_key_file,
            key_id=self.client_key_id,
            assertion_file=self.client_assertion_file,
            cert_file=self.client_cert_file,
        )

    @property
    def missing_to_verify(self) -> tuple[str, ...]:
        """The settings that verification requires but that have no valid value."""
        own = [entry for entry in self.issuers if isinstance(entry, TrustedIssuer) and entry.audience]
        has = {
            "issuers": bool(self.issuers) or self.introspection_endpoint is not None,
            "audience": bool(self.audience) or (bool(own) and len(own) == len(self.issuers)),
            "algorithms": bool(self.algorithms),
        }
        return tuple(name for name, is_there in has.items() if not is_there)

    @property
    def verification_problem(self) -> str | None:
        """The reason that verification cannot start; ``None`` if it can start."""
        if missing := self.missing_to_verify:
            names = " and ".join(VARIABLES[name].name for name in missing)
            return f"{names} {'has' if len(missing) == 1 else 'have'} no valid value"
        try:
            several = len(self.trusted_issuers) > 1
        except ConfigurationError as error:
            return _as_clause(error)
        if self.audience_claim != "aud":
            name = VARIABLES["audience_claim"].name
            if self.profile != "generic":
                return f"{name} requires {VARIABLES['profile'].name}=generic"
            if several:
                return f"{name} cannot be used with more than one issuer"
        return None

    @property
    def exchange_problem(self) -> str | None:
        """The reason that tokens cannot be exchanged; ``None`` if they can be exchanged."""
        if self.exchange_grant == "off":
            return f"{VARIABLES['exchange_grant'].name} is off"
        if self.exchange_actor != "none" and "on-behalf-of" in {d.grant or self.exchange_grant for d in self.entries}:
            return f"{VARIABLES['exchange_actor'].name} cannot be used with the on-behalf-of grant"
        try:
            return self._problem_with_token_endpoints()
        except ConfigurationError as error:
            return _as_clause(error)

    def _problem_with_token_endpoints(self) -> str | None:
        trusted, variable = self.trusted_issuers, VARIABLES["token_endpoint"].name
        if not trusted and self.token_endpoint is None:
            return f"neither {variable} nor {VARIABLES['issuers'].name} has a valid value"
        lacks_credential = f"this service has no credential: {VARIABLES['client_id'].name} has no valid value"
        if not trusted:
            if (client := self.client_credential) is None:
                return lacks_credential
            client.check_use(None, str(self.token_endpoint))
        for issuer in trusted:
            name = issuer.issuer if issuer.has_metadata(self.plaintext_issuers) else None
            if issuer.client is not None:
                if issuer.token_endpoint is None and name is None:
                    return f"{variable} has no valid value, and {issuer} has no metadata that could contain it"
                issuer.client.check_use(name, issuer.token_endpoint or issuer.issuer)
        return lacks_credential if trusted and not any(issuer.client for issuer in trusted) else None

    @property
    def rejects(self) -> bool:
        """Whether the server boundary rejects requests that have an invalid token."""
        return self.verify in ("optional", "enforce")

    @property
    def header_is_authorization(self) -> bool:
        """Whether the token is sent with the ``Bearer`` scheme (RFC 6750, section 2.1)."""
        return self.header.lower() == "authorization"

    @property
    def warnings(self) -> tuple[str, ...]:
        """A one-sentence warning for each setting that is valid but risky."""
        found = []
        policy = RelayPolicy(self.entries, self.refused)
        if self.issuers and self.verify == "off":
            found.append(
                f"{VARIABLES['issuers'].name} is set, but requests are not verified; set"
                f" {VARIABLES['verify'].name}=enforce"
            )
        if self.verify != "off" and not self.tenants and any("{tid}" in str(issuer) for issuer in self.issuers):
            found.append(
                f"tokens from every Microsoft Entra tenant are accepted: list the tenants that you expect in"
                f" {VARIABLES['tenants'].name}"
            )
        for destination in self.entries:
            pattern = destination.pattern
            if destination.never:
                if _relays_to_other_ports(policy, pattern):
                    found.append(
                        f"{destination} excludes only one port, but a broader entry relays tokens to the host's other"
                        " ports"
                    )
            elif pattern.host == "*":
                found.append(f"the destination {pattern} allows every caller's token to be sent to any host")
            elif pattern.scheme == "http" and not pattern.is_loopback and not is_listed(pattern, self.plaintext_hosts):
                found.append(
                    f"the destination {pattern} receives unencrypted tokens; this is safe only behind a mesh sidecar"
                )
        return tuple(found)


VARIABLES: Final[Mapping[str, Variable]] = {
    f.name: cast("Variable", f.metadata["variable"]) for f in fields(Settings) if "variable" in f.metadata
}


def _as_clause(error: ConfigurationError) -> str:
    """Return a clause that identifies the environment variable and describes the problem."""
    name = VARIABLES[error.setting].name if error.setting in VARIABLES else error.setting
    return f"{name} cannot be used: {error.problem}"


def _relays_to_other_ports(policy: RelayPolicy, pattern: OriginPattern) -> bool:
    """Return whether a ``;never`` entry's host can receive a token on a port that no entry specifies."""
    host = pattern.host.replace("*", "any")
    return policy.match(Origin(pattern.scheme, host, 0)) is not None


_DEFAULTS: Final = {f.name: f.default for f in fields(Settings)}


RELAY_SETTINGS: Final = ("destinations", "header", "on_conflict", "max_age", "linger", "min_ttl", "require_verified")
"""The settings that have an effect only if the relay is enabled."""


def _usable_issuers(merged: Source, problems: list[str]) -> dict[str, Any]:
    """Return replacements for unusable issuer settings, and add a description of each problem to *problems*.

    After an issuer is removed, it is unclear which issuer the global settings belong to. Therefore, if the keys or an
    endpoint are configured globally, all issuers are removed. A globally configured credential is not used.
    """
    values = merged.values
    # If the `exchange_actor` setting is invalid, the intended actor is unknown, so tokens are not exchanged.
    replaced: dict[str, Any] = {"exchange_grant": "off"} if "exchange_actor" in merged.invalid else {}
    plaintext_hosts = values.get("plaintext_issuers", ())
    for name in ENDPOINTS:
        try:
            check_endpoint(name, values.get(name), plaintext_hosts)
        except ConfigurationError as error:
            problems.append(f"{VARIABLES[name].name}: {error.problem}")
            replaced[name] = VARIABLES[name].strict
    issuers = values.get("issuers", ())
    found = {entry: problem_with_entry(entry, values.get("jwks_uri"), plaintext_hosts) for entry in issuers}
    unusable = [entry for entry, problem in found.items() if problem is not None]
    name = VARIABLES["issuers"].name
    problems += [
        f"{name}: {entry}: {found[entry]}; until this is corrected, its tokens are refused" for entry in unusable
    ]
    if not unusable and "issuers" not in merged.invalid:
        return replaced
    if any(values.get(name) for name in (*ENDPOINTS, "jwks_token_file")):
        return {"issuers": (), "jwks_token_file": "", "exchange_grant": "off"} | dict.fromkeys(ENDPOINTS)
    credential = [name for name in VARIABLES if name.startswith("client_") and values.get(name)]
    if credential:
        names = ", ".join(VARIABLES[name].name for name in credential)
        problems.append(f"{names}: it is unclear which issuer the credential belongs to, so the credential is not used")
        replaced |= dict.fromkeys(credential)
    return replaced | {"issuers": tuple(entry for entry in issuers if entry not in unusable)}


RESOURCE_RULE: Final = (
    "expected the URL that clients use for this service, not its metadata's URL: an https URL, or an http URL on"
    " loopback, without a query or fragment"
)


def is_resource(url: object) -> bool:
    """Return whether *url* can identify a protected resource (RFC 9728, section 1.2).

    The http scheme is allowed only for loopback hosts.
    """
    if not isinstance(url, str) or not is_trustworthy(url) or not _is_quotable(url):
        return False
    return "?" not in url and "/.well-known/oauth-protected-resource" not in url


def _check_one(setting: str, value: object) -> Any:
    """Validate the value in the same way as `Settings`, and return it in the format that `Settings` stores."""
    if setting == "issuers":
        # `read_issuers` has already checked each entry, and `_usable_issuers` checks the entries against other
        # settings.
        return value
    if setting in ENDPOINTS:
        check_endpoint_syntax(setting, value)
        return value
    return getattr(Settings(**cast("dict[str, Any]", {setting: value})), setting)


READER: Final = SourceReader(VARIABLES, _check_one)


def load_sources(
    environ: Mapping[str, str],
    *,
    code: Settings | None = None,
    passed: Mapping[str, object] | None = None,
) -> list[Source]:
    """Return the sources in order of precedence, starting with the highest. See `Settings.load`."""
    section = None if passed is None else Section("propagator.composite[].token_relay", passed)
    sources = READER.read(read_configuration_file(environ), section, environ)
    if code is not None:
        values = {name: getattr(code, name) for name in VARIABLES if name in code.given}
        sources.insert(0, Source("code", values, problems=list(code.problems), refused=set(code.refused)))
    return sources


def _set(settings: Settings, name: str, value: object) -> None:
    object.__setattr__(settings, name, value)


def _raise(setting: str, problem: str) -> None:
    raise ConfigurationError(setting, problem)


def _check_choices_and_lists(settings: Settings) -> None:
    for name, choices in (
        ("verify", ("off", "report", "optional", "enforce")),
        ("verify_streams", ("off", "exp")),
        ("profile", PROFILES),
        ("log", ("", "decisions", "debug")),
        ("exchange_grant", EXCHANGE_GRANTS),
        ("exchange_actor", EXCHANGE_ACTORS),
        ("client_auth", (None, *CLIENT_AUTH_METHODS)),
    ):
        if getattr(settings, name) not in choices:
            raise ConfigurationError(name, f"expected one of {', '.join(filter(None, choices))}")
    for name, rule, is_good in (
        ("audience", "expected non-empty names for this service", bool),
        ("algorithms", f"expected one or more of {', '.join(ALGORITHMS)}", ALGORITHMS.__contains__),
        ("verify_exclude", "expected paths that start with / and optionally end with /*", is_exclusion),
        ("redact_keys", "expected a sequence of non-empty attribute keys", str.strip),
        ("plaintext_hosts", "expected hosts without a scheme, such as profile-service or 10.0.0.7:8080", _is_host),
        ("plaintext_issuers", "expected hosts without a scheme, such as keycloak:8080", _is_host),
        ("span_claims", "expected claim:attribute pairs, such as sub:enduser.id", _is_pair),
        ("tenants", "expected lowercase tenant IDs, such as 72f988bf-86f1-41af-91ab-2d7cd011db47", is_tenant),
        ("scope_claims", "expected non-empty claim names", str.strip),
        ("required_scopes", "expected scopes without white space", _is_scope),
    ):
        values = getattr(settings, name)
        if name == "audience" and isinstance(values, str) and values:
            values = (values,)
        read = () if isinstance(values, str) else tuple(values)  # a generator can be consumed only once
        is_strict = read == VARIABLES[name].strict
        if isinstance(values, str) or not (
            is_strict or all(isinstance(value, str) and is_good(value) for value in read)
        ):
            raise ConfigurationError(name, rule)
        _set(settings, name, read)


def _check_issuers_and_client(settings: Settings) -> None:
    issuers = read_issuers(settings.issuers, _raise)
    _set(settings, "issuers", issuers)
    for name in ENDPOINTS:
        check_endpoint(name, getattr(settings, name), settings.plaintext_issuers)
    for entry in issuers:
        problem = problem_with_entry(entry, settings.jwks_uri, settings.plaintext_issuers)
        if problem is not None:
            raise ConfigurationError("issuers", f"{entry}: {problem}")
    for name in (
        "audience_claim",
        "client_id",
        "client_secret_file",
        "client_key_file",
        "client_key_id",
        "client_assertion_file",
        "client_cert_file",
    ):
        value = getattr(settings, name)
        if (value is None and name == "audience_claim") or (value is not None and not _is_text(value)):
            raise ConfigurationError(name, "expected text without control characters")
    secret = settings.client_secret
    if isinstance(secret, str):
        secret = Secret(secret)
        _set(settings, "client_secret", secret)
    if secret is not None and (not isinstance(secret, Secret) or not _is_text(secret.reveal())):
        raise ConfigurationError("client_secret", "expected text without control characters")


def _check_files_and_metadata(settings: Settings) -> None:
    for name in ("ca_file", "jwks_token_file"):
        path = getattr(settings, name)
        if not isinstance(path, str) or "\0" in path:
            raise ConfigurationError(name, "expected a file path")
    if not isinstance(settings.realm, str) or not _is_quotable(settings.realm):
        raise ConfigurationError("realm", "expected ASCII text without quotes or backslashes")
    if settings.resource_metadata and not is_resource(settings.resource_metadata):
        raise ConfigurationError("resource_metadata", RESOURCE_RULE)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and value.isprintable()


def is_exclusion(text: str) -> bool:
    """Return whether *text* is a path or a path followed by ``/*``.

    ``/*`` alone is invalid, because it would exclude every path.
    """
    return text.startswith("/") and "*" not in text.removesuffix("/*") and text != "/*"


def _is_host(text: str) -> bool:
    return OriginPattern.find(f"http://{text}") is not None and "*" not in text and text == text.lower()


def _is_pair(text: str) -> bool:
    claim, colon, attribute = text.partition(":")
    return bool(claim and colon and attribute)


def _read_header(setting: str, name: object) -> str:
    if not isinstance(name, str) or not _is_field_name(name):
        raise ConfigurationError(setting, "expected a header name")
    if name.lower() in _UNUSABLE_HEADERS:
        raise ConfigurationError(setting, f"the header {name} is reserved and cannot contain a token")
    return name
