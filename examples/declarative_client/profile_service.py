"""The profile-service, which returns the caller's profile. Environment variables enable verification."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI

from otel_token_relay.verification.fastapi import Principal, current_principal

app = FastAPI(title="profile-service")


@app.get("/profile")
def read_profile(caller: Annotated[Principal, Depends(current_principal)]) -> dict[str, str | None]:
    """Return the caller's profile."""
    return {"name": caller.subject}
