"""profile-service, and the archive too: knows a caller by the token, and misbehaves on demand.

``PUT /behaviour/fail`` makes it answer 503, ``hang`` makes it wait for the next behaviour before
it answers 503, ``well`` makes it work. ``GET /callers`` tells who has called, oldest first.
"""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Header, HTTPException

# A real service verifies the token, see otel_token_relay.verification. These are for the example.
USERS = {f"{name}-demo-token": name for name in ("alice", "bob")}

app = FastAPI(title="profile-service")
app.state.behaviour = "well"
app.state.has_changed = asyncio.Event()
app.state.callers = []


@app.get("/profile")
async def read_profile(authorization: str = Header(default="")) -> dict[str, str]:
    """Give the caller's profile."""
    caller = USERS.get(authorization.removeprefix("Bearer "))
    app.state.callers.append(caller)
    if app.state.behaviour == "hang":
        await app.state.has_changed.wait()
        raise HTTPException(503)
    if app.state.behaviour == "fail":
        raise HTTPException(503)
    if caller is None:
        raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
    return {"name": caller}


@app.put("/behaviour/{name}")
async def change_behaviour(name: str) -> None:
    """Behave so from now on; whoever hangs is let go."""
    app.state.behaviour = name
    app.state.has_changed.set()
    app.state.has_changed = asyncio.Event()


@app.get("/callers")
async def read_callers() -> list[str | None]:
    """Tell who has called, ``None`` for a call without a token that we know."""
    callers: list[str | None] = app.state.callers
    return callers
