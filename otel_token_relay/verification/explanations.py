"""Explain why a token was rejected.

An explanation identifies the failed check and lists the expected values and the token's values. The explanation can
contain the values of ``iss``, ``aud``, ``typ``, ``alg``, ``kid``, scopes, and times. The `concealment` module processes
every value, because the token is unverified. An explanation never contains the token or its signature.

A token can also be rejected because of an introspection response, which is not available to this module. If the token
itself satisfies the rule, the explanation mentions the introspection response and does not contain any values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeGuard

from otel_token_relay import environment_variables as env
from otel_token_relay.algorithms import Profile
from otel_token_relay.differences import closest_difference
from otel_token_relay.errors import TokenRejected
from otel_token_relay.issuers import PERSONAL_TENANT, TENANT
from otel_token_relay.verification.causes import (
    MAX_VALUE_LENGTH,
    MAX_VALUES,
    Cause,
    Expectations,
    ExplainedReason,
    describe_time,
    join_names,
)
from otel_token_relay.verification.claims import (
    ACCEPTED_TYPES,
    MAX_NUMERIC_DATE,
    NAMES,
    Rules,
    check_audience,
    check_name,
    check_type,
    look_up,
    read_scopes,
    without_nulls,
)
from otel_token_relay.verification.concealment import Concealment
from otel_token_relay.verification.jws import Claims
from otel_token_relay.verification.malformations import find_malformation, read_unverified
from otel_token_relay.verification.token_kinds import Kinds, Marker, TokenKind, read_kinds


def explain(token: str, reason: ExplainedReason, expectations: Expectations, *, now: float) -> Cause:
    """Return the reason for the token's rejection. This function has no side effects and never raises an exception.

    Args:
        token: The token as received, without the ``Bearer`` prefix.
        reason: The reason from the `TokenRejected` exception or from the authenticator's error response.
        expectations: The verifier's acceptance criteria.
        now: The time when the token was verified, as seconds since the epoch.
    """
    # An explanation is only a troubleshooting aid, so an error in this function must not cause the request to fail.
    with contextlib.suppress(Exception):
        if reason in _WITHOUT_CLAIMS:
            return _WITHOUT_CLAIMS[reason](token, expectations)
        read = read_unverified(token) if len(token) <= expectations.max_length else None
        if read is not None:
            header, claims = read[0], without_nulls(read[1])
            cause = _CHECKS[reason](_Case(header, claims, expectations, Concealment(token), now))
            if cause is not None:
                return cause
    return _ELSEWHERE.get(reason, _UNKNOWN)


@dataclass(frozen=True, slots=True)
class _Case:
    """A token and the verifier's acceptance criteria."""

    header: Claims
    claims: Claims
    expectations: Expectations
    concealment: Concealment
    now: float

    @property
    def rules(self) -> Rules:
        return self.expectations.rules

    def show(self, value: Any) -> str:
        return self.concealment.value(value, MAX_VALUE_LENGTH)

    def show_all(self, values: Iterable[Any]) -> tuple[str, ...]:
        return self.concealment.values(values, limit=MAX_VALUE_LENGTH, count=MAX_VALUES)

    def has_type_of(self, profile: Profile) -> bool:
        """Return whether *profile* accepts the token's type."""
        return _is_accepted_by(check_type)(self.header, self.claims, profile)

    def would_pass_as_generic(self) -> bool:
        """Return whether the token has the type and the claims that the ``generic`` profile requires."""
        rules = Rules(audience=self.rules.audience, profile="generic")
        return self.has_type_of("generic") and rules.find_missing_claim(self.claims) is None


# Explanations of checks that precede the claim checks


def _explain_form(token: str, expectations: Expectations) -> Cause:
    found = find_malformation(token)
    if found is None:
        return _ELSEWHERE["malformed"]
    return Cause(check="form", problem=found[0], advice=found[1], expected=("a signed token (JWS)",))


def _explain_length(token: str, expectations: Expectations) -> Cause:
    limit = expectations.max_length
    return Cause(
        check="length",
        problem=f"expected at most {limit} characters; the token has {len(token)}",
        advice="Configure the issuer to include fewer claims in the token, or increase"
        f" {env.OTEL_PYTHON_TOKEN_RELAY_MAX_LENGTH}.",
        expected=(f"at most {limit}",),
        actual=(str(len(token)),),
    )


# Header, issuer, and signature


def _explain_algorithm(case: _Case) -> Cause | None:
    alg, allowed = case.header.get("alg"), case.expectations.algorithms
    if isinstance(alg, str) and alg in allowed:
        return _explain_algorithm_of_key(case, alg)
    if not isinstance(alg, str):
        advice = "The issuer must specify the signature algorithm in the header."
    elif alg.lower() == "none":
        advice = (
            "The token is not signed, so anyone could have created it. The caller must get a token from the issuer."
        )
    elif alg.upper().startswith("HS"):
        advice = "Tokens signed with a shared secret are not supported. Configure the issuer to use RS256 or ES256."
    else:
        advice = (
            f"If the issuer uses this algorithm, add it to {env.OTEL_PYTHON_TOKEN_RELAY_ALGORITHMS}, or have the"
            " issuer use one of the accepted algorithms."
        )
    return _mismatch(case, "alg", allowed, _present(case.header, "alg"), advice)


def _explain_algorithm_of_key(case: _Case, alg: str) -> Cause | None:
    kid = case.header.get("kid")
    of_key = [algorithm for key, algorithm in case.expectations.keys or () if key == kid]
    if not of_key or alg in of_key:
        return None
    advice = "The key must be used with its own algorithm. Check the issuer's key set and signing configuration."
    return _mismatch(case, "alg", of_key, [alg], advice, note="the issuer's key supports only the expected algorithm")


def _explain_issuer(case: _Case) -> Cause | None:
    issuer, trusted = case.claims.get("iss"), case.expectations.issuers
    if not isinstance(issuer, str) or issuer in trusted:
        return None
    tenant = case.claims.get("tid")
    if any(isinstance(tenant, str) and name.replace(TENANT, tenant) == issuer for name in trusted if TENANT in name):
        return _mismatch(
            case,
            "tid",
            case.expectations.tenants or ["the ID of an organization's tenant"],
            [tenant],
            f"If you trust this tenant, add it to {env.OTEL_PYTHON_TOKEN_RELAY_TENANTS}.",
            note="personal accounts" if tenant == PERSONAL_TENANT else None,
        )
    advice = (
        f"If you trust this issuer, add it to {env.OTEL_PYTHON_TOKEN_RELAY_ISSUERS} exactly as it appears in"
        " the token. Otherwise, the caller must get a token from one of the trusted issuers."
    )
    return _mismatch(case, "iss", trusted, [issuer], advice, note=closest_difference(trusted, issuer))


def _explain_key(case: _Case) -> Cause:
    keys, kid = case.expectations.keys, case.header.get("kid")
    problem = next((text for name, text in case.expectations.unusable_keys if name == kid), None)
    if problem is not None and kid is not None:
        return Cause(
            check="kid",
            problem=f"the key {case.show(kid)} in the issuer's key set cannot be used: {problem}",
            advice="The issuer must publish a key for one of the accepted algorithms"
            f" ({env.OTEL_PYTHON_TOKEN_RELAY_ALGORITHMS}).",
            actual=(case.show(kid),),
        )
    known = None if keys is None else list(dict.fromkeys("(no kid)" if kid is None else kid for kid, _ in keys))
    expected = () if known is None else case.show_all(known)
    actual = case.show_all(_present(case.header, "kid"))
    token_has = f"the token has {actual[0]}" if actual else "the token has none"
    if known is None:
        problem = f"expected one of the issuer's keys; {token_has}"
    elif not known:
        problem = "the issuer's key set has no usable key"
    else:
        problem = f"expected {_one_of(expected)} from the issuer's key set; {token_has}"
    return Cause(
        check="kid",
        problem=problem,
        advice="Check that the token was not issued by a different environment of this issuer. If the issuer changed"
        " its keys recently, try again in 10 seconds."
        if actual
        else "The issuer must include the signing key's kid in the header.",
        expected=expected,
        actual=actual,
    )


def _explain_signature(case: _Case) -> Cause:
    if _is_for_graph(case):
        return Cause(
            check="signature",
            problem="the token is for Microsoft Graph, and only Graph can verify its signature",
            advice="The caller must request a token for this service, with a scope such as api://<client ID>/.default.",
        )
    kid = case.show_all(_present(case.header, "kid"))
    key = f"the issuer's key {kid[0]}" if kid else "any of the issuer's keys"
    return Cause(
        check="signature",
        problem=f"the token was not signed with {key}, or was modified afterward",
        advice="Copy the whole token again. If the token is complete, a different system signed it. Look for another"
        " environment of the issuer that uses the same iss and kid.",
    )


# Source: Microsoft, "Access tokens", section "Validate tokens". Microsoft hashes the header's ``nonce`` before signing
# the token.
_GRAPH: Final = ("https://graph.microsoft.com", "https://graph.microsoft.com/", "00000003-0000-0000-c000-000000000000")


def _is_for_graph(case: _Case) -> bool:
    return "nonce" in case.header or case.claims.get("aud") in _GRAPH


# Type and claims


def _explain_type(case: _Case) -> Cause | None:
    profile = case.rules.profile
    if case.has_type_of(profile):
        return None
    typ, kinds = _present(case.header, "typ"), read_kinds(case.claims)
    if profile == "rfc9068":
        return _mismatch(case, "typ", ACCEPTED_TYPES[profile], typ, _advise_about_at_jwt(case, kinds))
    if not _is_accepted_by(check_type)(case.header, _ACCESS_TOKEN if profile == "generic" else {}, profile):
        return _mismatch(case, "typ", ACCEPTED_TYPES[profile], typ, _send(profile))
    if profile == "id-token" and kinds.foreign_kind not in ("refresh", "other") and kinds.access is not None:
        return _explain_marker(case, kinds.access, "access", "an ID token")
    if kinds.foreign is not None and kinds.foreign_kind is not None:
        return _explain_marker(case, kinds.foreign, kinds.foreign_kind, "an access token")
    return Cause(
        check="type",
        problem="expected an access token; the token has no member that indicates an access token",
        advice=f"If this provider's clients send ID tokens to APIs, set {env.OTEL_PYTHON_TOKEN_RELAY_PROFILE}=id-token."
        f" Otherwise, this is probably an ID token. {_SEND_ACCESS_TOKEN}",
        expected=("a member such as scope or scp",),
    )


def _explain_marker(case: _Case, marker: Marker, kind: TokenKind, expected: str) -> Cause:
    name = marker.members[0]
    advice = _send("id-token" if kind == "access" else "generic")
    if marker.kind is None and kind != "access":
        check = "claim typ" if name == "typ" else name
        advice = f"The {name} claim indicates a different kind of token. {advice}"
        return _mismatch(case, check, marker.accepted, [case.claims[name]], advice)
    which = "which indicates a different kind of token" if kind == "other" else f"which only {kind} tokens have"
    problem = f"expected {expected}; the token has the {name} claim, {which}"
    return Cause(check=name, problem=problem, advice=advice, expected=(expected,), actual=(name,))


def _advise_about_at_jwt(case: _Case, kinds: Kinds) -> str:
    if kinds.foreign is not None:
        kind = {"ID": "an ID token", "refresh": "a refresh token"}.get(
            str(kinds.foreign_kind), "a different kind of token"
        )
        return f"This is {kind}, because it has the {kinds.foreign.members[0]} claim. {_SEND_ACCESS_TOKEN}"
    generic = (
        f"set {env.OTEL_PYTHON_TOKEN_RELAY_PROFILE}=generic if this issuer's access tokens have a type"
        " other than at+jwt"
    )
    if case.would_pass_as_generic():
        return f"{generic[0].upper()}{generic[1:]}. Make sure that the caller does not send an ID token."
    return f"Configure the issuer to send access tokens of type at+jwt (RFC 9068), or {generic}. {_SEND_ACCESS_TOKEN}"


def _send(profile: Profile) -> str:
    return "The caller must send its ID token." if profile == "id-token" else _SEND_ACCESS_TOKEN


_SEND_ACCESS_TOKEN: Final = "The caller must send its access token."
# With these claims, the ``generic`` profile's type check can fail only because of the header.
_ACCESS_TOKEN: Final[Claims] = {"scope": ""}


def _explain_missing_claim(case: _Case) -> Cause | None:
    required = case.rules.required_claims
    missing = [name for name in required if look_up(case.claims, name)[1] is None]
    if not missing and case.rules.find_missing_claim(case.claims) == "sub":
        required, missing = (*required, "sub or client_id"), ["sub and client_id"]
    if not missing:
        return None
    advice = "The issuer must add the missing claims (for example, with a claim mapper)."
    if case.rules.profile == "rfc9068" and case.would_pass_as_generic() and "aud" not in missing:
        generic = f"et {env.OTEL_PYTHON_TOKEN_RELAY_PROFILE}=generic if this issuer does not follow RFC 9068."
        # A user's token should have a subject, but a machine's token does not need one.
        advice = f"{advice} Alternatively, s{generic}" if "sub" in missing else f"S{generic}"
    return Cause(
        check="claims",
        problem=f"expected {', '.join(required)}; the token lacks {', '.join(missing)}",
        advice=advice,
        expected=required,
        actual=tuple(name for name in required if name not in missing),
    )


def _explain_invalid_claim(case: _Case) -> Cause | None:
    for name, expected, is_good in (
        ("iss", "a string", lambda value: isinstance(value, str)),
        *((name, "a non-empty string on one line", _is_accepted_by(check_name)) for name in NAMES),
        *((name, "a string or a list of strings", None) for name in case.rules.scope_claims),
        *((name, "a number of seconds since 1970", _is_date) for name in ("exp", "nbf", "iat")),
        ("aud", "a string or a list of strings", lambda value: _is_string_or_strings(value)),
    ):
        found, value = look_up(case.claims, name)
        if not found or (_has_scopes(case, name) if is_good is None else is_good(value)):
            continue
        return Cause(
            check=name,
            problem=f"expected {expected}; the token has {_describe_kind(value)}",
            advice="The issuer must send this claim in the format required by RFC 7519 and RFC 9068.",
            expected=(expected,),
            actual=(_describe_kind(value),),
        )
    return None


def _explain_audience(case: _Case) -> Cause | None:
    accepted, chosen = case.rules.audience, case.rules.audience_claim
    for claim in dict.fromkeys((chosen, "aud")):
        value = look_up(case.claims, claim)[1]
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or _is_accepted_by(check_audience)(value, accepted):
            continue
        note = next((found for name in names if (found := closest_difference(accepted, name)) is not None), None)
        advice = (
            f"If this is one of this service's names, add it to {env.OTEL_PYTHON_TOKEN_RELAY_AUDIENCE}. Otherwise, the"
            " caller must request a token for this service."
        )
        return _mismatch(case, claim, accepted, names, advice, note=note)
    return None


def _explain_expiry(case: _Case) -> Cause | None:
    exp, leeway = case.claims.get("exp"), case.rules.leeway
    if not _is_date(exp) or case.now < exp + leeway:
        return None
    return Cause(
        check="exp",
        problem=f"{describe_time(exp)}, {case.now - exp:.0f} s ago; leeway {leeway:g} s",
        advice="The caller must get a new token. If the token is new, compare the clocks of the issuer and"
        " this machine.",
        expected=(f"later than {describe_time(case.now - leeway)}",),
        actual=(describe_time(exp),),
    )


def _explain_start(case: _Case) -> Cause | None:
    leeway = case.rules.leeway
    for name in ("nbf", "iat"):
        value = case.claims.get(name)
        if _is_date(value) and case.now < value - leeway:
            return Cause(
                check=name,
                problem=f"{describe_time(value)}, {value - case.now:.0f} s from now; leeway {leeway:g} s",
                advice="The issuer's clock and this machine's clock are probably out of sync. Synchronize them.",
                expected=(f"no later than {describe_time(case.now + leeway)}",),
                actual=(describe_time(value),),
            )
    return None


def _explain_confirmation(case: _Case) -> Cause | None:
    if "cnf" not in case.claims:
        return None
    cnf = case.claims["cnf"]
    methods = {"jkt": "DPoP (jkt)", "x5t#S256": "a client certificate (x5t#S256)"}
    used = tuple(text for name, text in methods.items() if isinstance(cnf, Mapping) and name in cnf) or ("a key",)
    return Cause(
        check="cnf",
        problem=f"expected a bearer token without cnf; the token is bound to {' and '.join(used)}",
        advice="Configure the issuer to send bearer tokens to this client by disabling DPoP or certificate binding.",
        expected=("no cnf",),
        actual=used,
    )


def _explain_scope(case: _Case) -> Cause | None:
    required = case.expectations.required_scopes
    scopes = read_scopes(case.claims, case.rules.scope_claims)
    missing = [scope for scope in required if scope not in scopes]
    if not missing:
        return None
    expected, actual = case.show_all(required), case.show_all(sorted(scopes))
    return Cause(
        check="scope",
        problem=f"expected {', '.join(expected)}; the token has {', '.join(actual) or 'none'}",
        advice=f"The caller must request the missing scopes: {join_names(missing)}.",
        expected=expected,
        actual=actual,
    )


# Parts of explanations


def _mismatch(
    case: _Case, check: str, expected: Sequence[str], actual: Sequence[Any], advice: str, *, note: str | None = None
) -> Cause:
    wanted, found = case.show_all(expected), case.show_all(actual)
    return Cause(
        check=check,
        problem=f"expected {_one_of(wanted)}; the token has {', '.join(found) or 'none'}{f' ({note})' if note else ''}",
        advice=advice,
        expected=wanted,
        actual=found,
    )


def _one_of(values: Sequence[str]) -> str:
    return f"one of {', '.join(values)}" if len(values) > 1 else "".join(values) or "nothing"


def _present(members: Claims, name: str) -> list[Any]:
    return [members[name]] if name in members else []


def _is_date(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and 0 <= value < MAX_NUMERIC_DATE


def _is_string_or_strings(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _has_scopes(case: _Case, name: str) -> bool:
    return _is_accepted_by(read_scopes)(case.claims, (name,))


def _is_accepted_by(check: Callable[..., object]) -> Callable[..., bool]:
    def is_accepted(*values: Any) -> bool:
        try:
            check(*values)
        except TokenRejected:
            return False
        return True

    return is_accepted


def _describe_kind(value: Any) -> str:
    """Return a description of the JSON type of a claim's value. The description does not include any text from the
    token."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str):
        if not value:
            return "an empty string"
        return "a string" if _is_accepted_by(check_name)(value) else "a string with control characters"
    if isinstance(value, (int, float)):
        if value >= MAX_NUMERIC_DATE:
            return "a number that is too large, such as a time in milliseconds"
        return "a number" if value >= 0 else "a negative number"
    return "an object" if isinstance(value, Mapping) else "a list"


_WITHOUT_CLAIMS: Final[dict[str, Callable[[str, Expectations], Cause]]] = {
    "malformed": _explain_form,
    "too_long": _explain_length,
}
_CHECKS: Final[dict[str, Callable[[_Case], Cause | None]]] = {
    "algorithm_not_allowed": _explain_algorithm,
    "wrong_type": _explain_type,
    "unknown_issuer": _explain_issuer,
    "unknown_key": _explain_key,
    "bad_signature": _explain_signature,
    "missing_claim": _explain_missing_claim,
    "invalid_claim": _explain_invalid_claim,
    "wrong_audience": _explain_audience,
    "expired": _explain_expiry,
    "not_yet_valid": _explain_start,
    "sender_constrained": _explain_confirmation,
    "insufficient_scope": _explain_scope,
    "inactive": lambda case: None,
    "revoked": lambda case: None,
    "insufficient_user_authentication": lambda case: None,
}

_ASK_ISSUER: Final = "Look up the token in the authorization server's own log or console."


def _of_response(check: str) -> Cause:
    return Cause(
        check=check, problem="the introspection response violates the rule; the token does not", advice=_ASK_ISSUER
    )


_UNKNOWN: Final = Cause(check="token", problem="the token does not satisfy the rules", advice=_ASK_ISSUER)
# Causes that cannot be determined from the token alone.
_ELSEWHERE: Final[dict[str, Cause]] = {
    "malformed": _of_response("form"),
    "algorithm_not_allowed": replace(
        _UNKNOWN, check="alg", problem="none of the issuer's keys supports this algorithm"
    ),
    "wrong_type": _of_response("token_type"),
    "unknown_issuer": _of_response("iss"),
    "missing_claim": _of_response("claims"),
    "invalid_claim": _of_response("claims"),
    "wrong_audience": _of_response("aud"),
    "expired": _of_response("exp"),
    "not_yet_valid": _of_response("nbf"),
    "sender_constrained": _of_response("cnf"),
    "insufficient_scope": _of_response("scope"),
    "inactive": Cause(
        check="active",
        problem="the authorization server reports that the token is not active",
        advice="The token has expired, has been revoked, or was issued by a different server. The caller must get a"
        " new token.",
    ),
    "revoked": Cause(
        check="revocation",
        problem="the service's is_revoked callable reports that the token has been revoked",
        advice="The caller must get a new token.",
    ),
    "insufficient_user_authentication": Cause(
        check="acr",
        problem="the user did not authenticate recently or strongly enough (acr_values, max_age)",
        advice="The caller must have the user sign in again (RFC 9470).",
    ),
}
