"""A FastAPI service that does not know of verification at all::

export OTEL_PROPAGATORS=tracecontext,baggage,token_relay
export OTEL_PYTHON_TOKEN_RELAY_VERIFY=enforce
export OTEL_PYTHON_TOKEN_RELAY_ISSUERS=https://idp.example
export OTEL_PYTHON_TOKEN_RELAY_AUDIENCE=profile-service
export OTEL_PYTHON_TOKEN_RELAY_VERIFY_EXCLUDE=/healthz
opentelemetry-instrument uvicorn examples.verify_zero_code:app
"""

from fastapi import FastAPI

from otel_token_relay import current_token

app = FastAPI()


@app.get("/me")
def me() -> dict[str, object]:
    """Say who calls: what was verified is at hand."""
    token = current_token()
    claims = token.claims if token is not None else None
    return {"sub": claims["sub"] if claims is not None else None}


@app.get("/healthz")
def healthz() -> dict[str, str]:
    """Answer to the orchestrator, which has no token."""
    return {"status": "ok"}
