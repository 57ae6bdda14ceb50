"""Tokens, their encoded forms, and text without tokens, for the redaction tests."""

from __future__ import annotations

import base64
import html
import json
import textwrap
from collections.abc import Callable
from urllib.parse import quote, quote_plus

OWN_JWT = (
    "eyJhbGciOiJSUzI1NiIsImtpZCI6ImtleS0xIiwidHlwIjoiYXQrand0In0."
    "eyJpc3MiOiJodHRwczovL2lkcC5leGFtcGxlIiwic3ViIjoiYWxpY2UiLCJhdWQiOiJmcm9udCIsImV4cCI6NDg3MDAwMDAwMH0."
    "uQ3vT8xZ1kLmN0pRsW7yB2dFgH5jKlM9nPqR4sTvWxYzA6bCdEfGhIjKlMnOpQrStUvWxYz0123456789ab"
)
OWN_OPAQUE = "tGzv3JOkF0XG5Qx2TlKWIA.k9_Zr-71bLxYqHs4"
# Contains every character that any of the encoders below changes.
OWN_BASE64 = "q8/Zk+3vN1x+Lm0/pRt5Wy7+Bc2/Df9Gh4Jk6Ms8Qa=="
OWN_UUID = "c8a1f7d2-6b3e-4f95-b0d4-72e9a65c1f83"
OWN_HEX = "5c2d9e41f07ab386d19c4e75a2b860f3d7419ce05b8a62f1"
FOREIGN_JWT = (
    "eyJ0eXAiOiJKV1QiLCJhbGciOiJFUzI1NiJ9."
    "eyJzdWIiOiJib2IiLCJpYXQiOjE3MDAwMDAwMDAsInNjb3BlIjoiYWRtaW4ifQ."
    "Zm9yZWlnbi1zaWduYXR1cmUtdGhhdC1pcy1sb25nLWVub3VnaA"
)
OWN = {"jwt": OWN_JWT, "opaque": OWN_OPAQUE, "base64": OWN_BASE64, "uuid": OWN_UUID, "hex": OWN_HEX}

# A function that embeds a token in text or in a different value, in one encoding.
Encoding = Callable[[str], object]


def _coded(before: str) -> Encoding:
    return lambda token: base64.b64encode(f"{before}{token} end".encode()).decode()


OWN_FORMS: dict[str, Encoding] = {
    "raw": lambda t: t,
    "bearer": lambda t: f"Bearer {t}",
    "in-a-sentence": lambda t: f"cannot use {t}, sorry",
    "url": lambda t: f"https://api.example/me?access_token={quote(t, safe='')}&page=2",
    "url-path": lambda t: f"GET /reset/{quote(t, safe='')}/now",
    "userinfo": lambda t: f"https://oauth2:{quote(t, safe='')}@git.example/r.git",
    "form": lambda t: f"grant_type=x&other={quote_plus(t)}",
    "percent-twice": lambda t: quote(quote(f"https://a/?x={t}", safe=""), safe=""),
    "json": lambda t: json.dumps({"x": t}),
    "json-in-json": lambda t: json.dumps({"x": json.dumps({"y": t})}),
    "json-escaped-slash": lambda t: json.dumps({"x": t}).replace("/", "\\/"),
    "json-unicode": lambda t: json.dumps({"x": t}).replace("+", "\\u002B").replace("=", "\\u003D"),
    "html": lambda t: html.escape(f'<a href="?x={t}">'),
    "html-numeric": lambda t: t.replace("+", "&#43;").replace("/", "&#47;").replace("=", "&#61;"),
    "repr-bytes": lambda t: f"Illegal header value {t.encode()!r}",
    "repr-dict": lambda t: repr({"headers": [("authorization", f"Bearer {t}")]}),
    "upper": str.upper,
    "lower": str.lower,
    "base64-0": _coded(""),
    "base64-1": _coded("u"),
    "base64-2": _coded("us"),
    "base64-url": lambda t: base64.urlsafe_b64encode(f"user:{t}".encode()).decode(),
    "basic": lambda t: "Basic " + base64.b64encode(f"oauth2:{t}".encode()).decode(),
    "head-17": lambda t: f"x={t[:17]}",
    "head-24": lambda t: f"{t[:24]}...",
    "tail-17": lambda t: f"...{t[-17:]}",
    "head-and-tail": lambda t: f"input_value='{t[:20]}...{t[-20:]}'",
    "wrapped-64": lambda t: "\n".join(textwrap.wrap(t * 1, 64, break_on_hyphens=False)),
    "wrapped-20": lambda t: "\n    ".join(t[i : i + 20] for i in range(0, len(t), 20)),
    "list": lambda t: ["a", t, "b"],
    "tuple-of-header": lambda t: (f"Bearer {t}",),
    "halves": lambda t: [t[: len(t) // 2], t[len(t) // 2 :]],
    "split-5": lambda t: [t[i : i + 5] for i in range(0, len(t), 5)],
    "characters": list,
    "bytes": lambda t: t.encode(),
    "nested": lambda t: {"a": [{"b": (1, {"c": f"x {t} y"})}]},
    "nested-key": lambda t: {"a": {t: 1}},
}

# The scrubber does not know these tokens and must recognize them by their format or the surrounding text.
FOREIGN_FORMS: dict[str, Encoding] = {
    name: OWN_FORMS[name]
    for name in (
        "raw",
        "bearer",
        "in-a-sentence",
        "url",
        "url-path",
        "userinfo",
        "percent-twice",
        "json",
        "json-in-json",
        "html",
        "repr-bytes",
        "repr-dict",
        "list",
        "tuple-of-header",
        "bytes",
        "nested",
        "nested-key",
    )
} | {
    "without-signature": lambda t: t.rpartition(".")[0] + "...",
    "cut-in-the-payload": lambda t: t[:64],
    "header-and-little": lambda t: t[: t.index(".") + 12],
    "payload-alone": lambda t: t.split(".")[1],
}

# The scrubber does not know this opaque token and must recognize it by its label.
MARKED = "2YotnFZFEjr1zCsicMWpAA"
MARKS = {
    "bearer": f"Bearer {MARKED}",
    "bearer-lower": f"authorization: bearer {MARKED}",
    "bearer-percent": f"Authorization%3A%20Bearer%20{MARKED}",
    "bearer-plus": f"header=Bearer+{MARKED}",
    "bearer-short": "Bearer a1-b2",
    "bearer-repr": f"(b'authorization', b'Bearer {MARKED}')",
    "access_token": f"https://a.example/?access_token={MARKED}",
    "access_token-short": "https://a.example/?access_token=abc&x=1",
    "second-parameter": f"/cb?x=1&access_token={MARKED}#frag",
    "fragment": f"https://a.example/cb#access_token={MARKED}&token_type=bearer",
    "refresh_token": f"grant_type=refresh_token&refresh_token={MARKED}",
    "id_token": f"/logout?id_token_hint={MARKED}",
    "client_secret": "client_id=me&client_secret=7Fjfp0ZBr1KtDRbnfVdmIw",
    "client_secret-special": "client_id=me&client_secret=s3cr%2Bt%21",
    "code": "https://a.example/cb?code=SplxlOBeZQQYbYS6WxSbIA&state=xyz",
    "code-short-with-state": "/cb?code=abc&state=xyz",
    "code-keycloak": "/cb?code=fb9b1c33-0ea0-4a20-8b0c-9b3b2ab1c0de.6f2c.42",
    "assertion": f"grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer&assertion={MARKED}",
    "client_assertion": f"client_assertion={MARKED}",
    "subject_token": f"subject_token={MARKED}&subject_token_type=urn:ietf:params:oauth:token-type:access_token",
    "actor_token": f"actor_token={MARKED}",
    "code_verifier": "code_verifier=dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    "device_code": "device_code=GmRhmhcxhwAzkoEqiMEg_DnyEysNkuNhszIySk9eS",
    "token": f"token={MARKED}&token_type_hint=access_token",
    "json": json.dumps({"access_token": MARKED, "expires_in": 3600}),
    "json-spaced": json.dumps({"access_token": MARKED}, indent=2),
    "json-quotes": json.dumps({"client_secret": 'a"b c\\d'}),
    "json-in-json": json.dumps(json.dumps({"refresh_token": MARKED})),
    "json-camel": json.dumps({"accessToken": MARKED}),
    "json-code": json.dumps({"code": "SplxlOBeZQQYbYS6WxSbIA"}),
    "repr": repr({"access_token": MARKED}),
    "parse_qs": repr({"access_token": [MARKED]}),
    "sql-parameters": f"[parameters: {{'access_token': '{MARKED}'}}]",
    "percent-nested": f"/go?to={quote(f'https://a/?access_token={MARKED}&x=1', safe='')}",
    "html": html.escape(json.dumps({"access_token": MARKED})),
    "upper-name": f"ACCESS_TOKEN={MARKED}",
    "log-line": f"access_token: {MARKED}",
}
SECRETS_OF_MARKS = (
    MARKED,
    "a1-b2",
    "=abc&",
    "7Fjfp0ZBr1KtDRbnfVdmIw",
    "s3cr%2Bt",
    "SplxlOBeZQQYbYS6WxSbIA",
    "fb9b1c33-0ea0",
    "dBjftJeZ4CVP",
    "GmRhmhcxhwAz",
    'a\\"b c',
)

BENIGN = (
    "",
    "GET",
    "GET /users/{id}",
    "HTTP/1.1",
    "200 OK",
    "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
    "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "sha384-oqVuAfXRKap7fdgcCY5uykM6+R9GqQ8K/uxy9rx7HNQlGYl1kPzQho1wx4JwY8wC",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAUAAAAFCAYAAACNbyblAAAAHElEQVQI12P4//8/w38GIAXDIBKE0DHxgljNBAAO"
    "9TXL0Y4OHwAAAABJRU5ErkJggg==",
    "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "b3=80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1",
    "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7",
    "the bearer of news arrived",
    "a bearer of good tidings, the standard-bearer",
    "Bearer",
    "Bearer token",
    "bearer authentication is required",
    "Bearer token authentication (RFC 6750)",
    "Bearer oauth2.0 flow",
    'Bearer realm="api", error="invalid_token", error_description="The token expired"',
    "Bearer realm=api",
    'WWW-Authenticate: Bearer realm="example", scope="openid profile"',
    "token_type=Bearer&expires_in=3600",
    '{"token_type": "Bearer", "expires_in": 3600}',
    '{"token_type":"Bearer","refresh_token_expires_in":86400}',
    "Authorization: none",
    "authorization required",
    "tokenizer",
    "tokenizer=whitespace",
    "the tokenizer produced 12 tokens",
    "max_tokens=4096",
    "completion_tokens: 512",
    "unexpected token: ')'",
    "SyntaxError: Unexpected token < in JSON at position 0",
    "SELECT token_id, created_at FROM tokens WHERE token_id = 42",
    "SELECT * FROM sessions WHERE access_token = $1",
    "SELECT * FROM sessions WHERE access_token = %s AND id = %s",
    "SELECT * FROM sessions WHERE access_token = ? LIMIT 1",
    "SELECT * FROM sessions WHERE access_token = :token",
    "UPDATE t SET access_token = NULL WHERE id = 7",
    "access_token=",
    "access_token=None",
    '{"access_token": null}',
    "access_token is missing",
    "access_token: required",
    "missing parameter: refresh_token",
    "subject_token_type=urn:ietf:params:oauth:token-type:access_token",
    "grant_type=authorization_code",
    "response_type=code",
    "error=invalid_client&error_description=client_secret+is+wrong",
    "status_code=404",
    "status code: 503",
    "exit code=137",
    "code=404",
    "code=ENOENT",
    "error code=ECONNREFUSED",
    "?country_code=DE&currency_code=EUR",
    "zip_code=94103-1234",
    '{"code": "not_found", "message": "no such user"}',
    '{"code": 7, "details": []}',
    '{"code": "PROMO2024"}',
    "QR code: scan me",
    "AssertionError: assertion failed: 1 != 2",
    "csrf protection is on",
    "session=active",
    "author=alice&authority=local",
    "https://shop.example/products/4711?page=2&sort=price&filter=in-stock&utm_source=news&utm_medium=email",
    "https://cdn.example/assets/index-4f3c2b1a9d8e7f60.js",
    "https://example.com/" + "very/long/path/" * 40 + "?q=" + "word+" * 60,
    "/api/v1/items?cursor=eyJpZCI6MTIzLCJkaXIiOiJuZXh0In0",
    "cursor=eyJwYWdlIjoyfQ==",
    "eyJ",
    "keyJohn",
    "SELECT id, name FROM users WHERE id = $1 AND active = true",
    "postgresql://db.internal:5432/app",
    "redis://cache:6379/0",
    "arn:aws:iam::123456789012:role/service-role",
    "projects/my-project/locations/europe-west1/clusters/c1",
    "ami-0abcdef1234567890",
    "k8s.pod/profile-service-5d69c7b7c4-x2x9z",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
    "python-httpx/0.28.1",
    "2026-11-23T08:56:02.562226Z",
    "10.0.0.17:51034",
    "2001:db8::8a2e:370:7334",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me@host",
    'Traceback (most recent call last):\n  File "/srv/app/main.py", line 3, in read\n    raise KeyError("user")',
    "ValueError: invalid literal for int() with base 10: 'abc'",
    "größe=12 ✓ naïve İstanbul",
    "%7B%22page%22%3A2%7D",
    "a=1&amp;b=2&quot;c&quot;",
    "null",
    "[REDACTED]",
    "Bearer [REDACTED]",
    "line one\nline two\ttabbed\r\n",
    "4111111111111111",
    "secret santa",
    "client_secret_basic",
    "token_endpoint_auth_method=client_secret_post",
    "verifier=none",
    # Documents, SQL, and code that contain parameter names without values.
    '{"grant_types_supported":["authorization_code","refresh_token","client_credentials"]}',
    '{"response_types_supported":["code","token","id_token","code id_token"]}',
    '{"required":["access_token","token_type"]}',
    "['id', 'access_token', 'created_at']",
    'SELECT "t"."id", "t"."access_token", "t"."user_id" FROM "app_token" "t"',
    'INSERT INTO "app_token" ("access_token", "created_at") VALUES (%s, %s)',
    "UPDATE users SET access_token=? WHERE users.id = ?",
    "UPDATE users SET refresh_token=$1::VARCHAR WHERE users.id = $2::INTEGER",
    "UPDATE users SET id_token=@p1",
    "UPDATE users SET access_token=%(access_token)s WHERE id=1",
    "UPDATE u SET access_token=:access_token",
    "client_secret=${CLIENT_SECRET}",
    "client_secret=$CLIENT_SECRET",
    "    client.refresh(refresh_token=self._refresh_token, client_id=cid)",
    "    return f(access_token=token)",
    '    resp = post(data={"access_token": access_token})',
    "def f(access_token: str, id_token: str | None = None):",
    # Values of `code` keys that are not credentials.
    '{"Error":{"Code":"ProvisionedThroughputExceededException","Message":"slow down"}}',
    "{'Error': {'Code': 'InvalidParameterCombination', 'Message': 'x'}}",
    '{"code":"auth/requires-recent-login"}',
    '{"code":"auth/account-exists-with-different-credential"}',
    '{"code":"ER_TOO_MANY_USER_CONNECTIONS_1226"}',
    '{"code":"rate_limit_exceeded_429"}',
    '{"code":"org.springframework.dao.DataIntegrityViolationException"}',
    '{"code":"ERR_HTTP2_GOAWAY_SESSION_TIMEOUT"}',
    '{"code":"iso-8859-1/latin1"}',
    '{"code":"ISO-3166-2:DE-BW"}',
    '{"code":"SKU-2024-XL-blue"}',
    '{"token":"internationalisation"}',
    "supports Bearer authentication/authorization headers",
    "the bearer internationalization of it",
)


def fragments(token: str, length: int = 17) -> list[str]:
    """Return every run of *length* characters of *token*."""
    return [token[at : at + length] for at in range(len(token) - length + 1)]
