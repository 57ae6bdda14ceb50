"""The demo's authorization server conforms to its standards, as tested with PyJWT over HTTP."""

import secrets
from urllib.parse import parse_qs, urlsplit

import httpx
import jwt
import pytest

from otel_token_relay.demo.sign_in import CLIENT_ID, REDIRECT_URI, code_challenge, sign_in, sign_out

SERVICE = ("profile-service", "profile-service-secret")
VERIFIER = secrets.token_urlsafe(48)


@pytest.fixture
def client(issuer):
    with httpx.Client(base_url=issuer, trust_env=False) as client:
        yield client


def verify(client, token, *, audience="profile-service"):
    """Verify a token as a resource server that has only the issuer's URL."""
    metadata = client.get("/.well-known/openid-configuration").json()
    keys = {key["kid"]: jwt.PyJWK(key) for key in client.get(metadata["jwks_uri"]).json()["keys"]}
    kid = jwt.get_unverified_header(token)["kid"]
    if kid not in keys:
        raise jwt.InvalidKeyError("unknown key")
    return jwt.decode(token, keys[kid], algorithms=["RS256"], audience=audience, issuer=metadata["issuer"])


def authorize(client, **changes):
    """Request a code as Alice, and return the parameters of the redirect."""
    parameters = {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": REDIRECT_URI,
        "scope": "profile",
        "state": "some-state",
        "login_hint": "alice",
        "code_challenge": code_challenge(VERIFIER),
        "code_challenge_method": "S256",
    } | changes
    response = client.get("/authorize", params={key: value for key, value in parameters.items() if value})
    return {key: values[0] for key, values in parse_qs(urlsplit(response.headers["location"]).query).items()}


def redeem(client, code, /, **changes):
    form = {
        "grant_type": "authorization_code",
        "client_id": CLIENT_ID,
        "redirect_uri": REDIRECT_URI,
        "code": code,
        "code_verifier": VERIFIER,
    } | changes
    return client.post("/token", data={key: value for key, value in form.items() if value})


def is_active(client, token):
    return client.post("/introspect", data={"token": token}, auth=SERVICE).json()["active"]


@pytest.mark.parametrize("path", ["openid-configuration", "oauth-authorization-server"])
def test_discovery_names_the_issuer_and_existing_endpoints(client, issuer, path):
    """Both metadata documents contain the issuer and only endpoints that exist."""
    metadata = client.get(f"/.well-known/{path}").json()

    assert metadata["issuer"] == issuer
    endpoints = [value for key, value in metadata.items() if key.endswith(("_endpoint", "_uri"))]
    assert len(endpoints) == 5
    assert all(client.options(endpoint).status_code == 200 for endpoint in endpoints)


def test_published_keys_are_public(client):
    """The key set contains public RSA signature keys without private members."""
    keys = client.get("/jwks").json()["keys"]

    assert keys
    for key in keys:
        assert key.keys() == {"kty", "n", "e", "kid", "use", "alg"}


@pytest.mark.parametrize("user", ["alice", "bob"])
def test_token_of_a_user_verifies(client, issuer, user):
    """A signed-in user gets an RFC 9068 token, which PyJWT verifies with the published key."""
    token = sign_in(issuer, user)

    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"
    claims = verify(client, token)
    assert claims["sub"] == user
    assert claims.keys() == {"iss", "sub", "aud", "exp", "iat", "jti", "client_id", "scope"}
    assert claims["exp"] - claims["iat"] == 120


def test_token_from_a_kiosk_lives_for_a_second(client, issuer):
    """A client can have a different token lifetime, such as one second for the kiosk."""
    token = sign_in(issuer, "alice", client_id="kiosk")

    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 1


def test_resource_determines_the_audience(client, issuer):
    """The `resource` parameter determines the token's audience (RFC 8707)."""
    token = sign_in(issuer, "alice", resource="https://other-service")

    assert verify(client, token, audience="https://other-service")["sub"] == "alice"
    with pytest.raises(jwt.InvalidAudienceError):
        verify(client, token)


def test_unknown_user_cannot_sign_in(client, issuer):
    """A user without an account gets no code."""
    assert authorize(client, login_hint="mallory")["error"] == "access_denied"
    with pytest.raises(RuntimeError):
        sign_in(issuer, "mallory")


@pytest.mark.parametrize(
    "changes",
    [{"code_challenge": None, "code_challenge_method": None}, {"code_challenge_method": "plain"}],
    ids=["no challenge", "plain"],
)
def test_code_needs_a_hashed_challenge(client, changes):
    """A request without PKCE, or with the `plain` method, gets no code."""
    result = authorize(client, **changes)

    assert result["error"] == "invalid_request"
    assert "code" not in result


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_verifier": secrets.token_urlsafe(48)}, "invalid_grant"),
        ({"code_verifier": None}, "invalid_request"),
        ({"code": "made-up"}, "invalid_grant"),
        ({"redirect_uri": "http://127.0.0.1/elsewhere"}, "invalid_grant"),
        ({"client_id": "unknown"}, "invalid_client"),
    ],
    ids=["wrong verifier", "no verifier", "wrong code", "other redirect", "other client"],
)
def test_token_request_is_rejected(client, changes, error):
    """Only the client that requested a code can redeem it, and only with the original parameters."""
    code = authorize(client)["code"]

    response = redeem(client, code, **changes)

    assert response.status_code in (400, 401)
    assert response.json()["error"] == error


def test_code_works_once(client):
    """A code can be redeemed only once (RFC 6749, section 4.1.2)."""
    code = authorize(client)["code"]

    assert redeem(client, code).status_code == 200
    assert redeem(client, code).json()["error"] == "invalid_grant"


def test_redirect_uri_must_be_registered(client):
    """An unregistered redirect URI causes an error response instead of a redirect."""
    response = client.get(
        "/authorize",
        params={
            "response_type": "code",
            "client_id": CLIENT_ID,
            "redirect_uri": "http://127.0.0.1:1/evil",
            "login_hint": "alice",
            "code_challenge": code_challenge(VERIFIER),
            "code_challenge_method": "S256",
        },
    )

    assert response.status_code == 400
    assert "location" not in response.headers


def test_refresh_token_is_rotated(client):
    """A refresh token can be used only once."""
    tokens = redeem(client, authorize(client)["code"]).json()
    form = {"grant_type": "refresh_token", "client_id": CLIENT_ID, "refresh_token": tokens["refresh_token"]}

    renewed = client.post("/token", data=form)

    assert verify(client, renewed.json()["access_token"])["sub"] == "alice"
    assert client.post("/token", data=form).json()["error"] == "invalid_grant"


def test_service_gets_its_own_token(client):
    """With client credentials, the client is the token's subject, and a wrong secret is rejected."""
    form = {"grant_type": "client_credentials"}

    token = client.post("/token", data=form, auth=SERVICE).json()["access_token"]

    assert verify(client, token)["sub"] == "profile-service"
    assert client.post("/token", data=form, auth=("profile-service", "wrong")).status_code == 401


def test_introspection_is_for_services_only(client, issuer):
    """Only an authenticated service can introspect a token, and an unknown token is reported as inactive."""
    token = sign_in(issuer, "bob")

    result = client.post("/introspect", data={"token": token}, auth=SERVICE).json()

    assert result["active"] is True
    assert (result["sub"], result["iss"], result["aud"]) == ("bob", issuer, "profile-service")
    assert client.post("/introspect", data={"token": token}).status_code == 401
    assert client.post("/introspect", data={"token": token}, auth=("profile-service", "wrong")).status_code == 401
    assert not is_active(client, "made-up")


def test_refresh_token_is_inactive(client):
    """Introspection reports a refresh token as inactive, because it is not an access token."""
    tokens = redeem(client, authorize(client)["code"]).json()

    assert is_active(client, tokens["access_token"])
    assert not is_active(client, tokens["refresh_token"])


def test_revoked_token_is_inactive(client, issuer):
    """Introspection reports a revoked token as inactive, and a different user's token as active."""
    token, other = sign_in(issuer, "alice"), sign_in(issuer, "bob")

    sign_out(issuer, token)

    assert not is_active(client, token)
    assert is_active(client, other)


def test_revocation_is_for_the_client_that_was_issued_the_token(client, issuer):
    """A token can be revoked only by the client to which it was issued."""
    token = sign_in(issuer, "alice")

    with pytest.raises(RuntimeError, match="did not revoke"):
        sign_out(issuer, token, client_id="kiosk")

    assert client.post("/revoke", data={"token": token}, auth=SERVICE).status_code == 400

    assert is_active(client, token)


def test_rotation_keeps_or_drops_the_old_keys(client, issuer):
    """New tokens are signed with the new key, and old tokens remain valid while the old key is published."""
    old = sign_in(issuer, "alice")

    kid = client.post("/keys/rotate").json()["kid"]
    new = sign_in(issuer, "alice")
    assert jwt.get_unverified_header(new)["kid"] == kid != jwt.get_unverified_header(old)["kid"]
    assert verify(client, old)["sub"] == verify(client, new)["sub"] == "alice"

    client.post("/keys/rotate", data={"keep": "false"})
    with pytest.raises(jwt.InvalidKeyError):
        verify(client, old)
    with pytest.raises(jwt.InvalidKeyError):
        verify(client, new)


def test_a_client_can_omit_its_only_redirect_uri(client):
    """The code is sent to the registered URI, and the token request must then omit the URI as well."""
    code = authorize(client, redirect_uri=None)["code"]

    token = redeem(client, code, redirect_uri=None).json()["access_token"]
    assert verify(client, token)["sub"] == "alice"


def test_a_service_exchanges_a_valid_token(client, issuer):
    """A service exchanges the user's token for a token with a different audience until the user signs out."""
    token = sign_in(issuer, "alice", resource="https://user-service")
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "subject_token": token,
        "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "audience": "profile-service",
    }

    issued = client.post("/token", data=form, auth=SERVICE).json()
    assert verify(client, issued["access_token"])["sub"] == "alice"
    assert issued["issued_token_type"] == "urn:ietf:params:oauth:token-type:access_token"

    sign_out(issuer, token)
    assert client.post("/token", data=form, auth=SERVICE).json()["error"] == "invalid_request"
