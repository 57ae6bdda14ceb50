"""A FastAPI service without verification code, in which environment variables enable verification."""

from fastapi import FastAPI

from otel_token_relay import current_token

app = FastAPI()


@app.get("/me")
def me() -> dict[str, object]:
    """Return the subject of the verified token."""
    token = current_token()
    claims = token.claims if token is not None else None
    return {"sub": claims["sub"] if claims is not None else None}


@app.get("/healthz")
def healthz() -> dict[str, str]:
    """Respond to the orchestrator's health check, which has no token."""
    return {"status": "ok"}
