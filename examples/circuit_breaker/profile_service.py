"""The profile-service and archive services, which identify the caller by the token and fail on demand.

After ``PUT /behavior/fail``, the service responds with 503. After ``hang``, it waits for the next change of
behavior and then responds with 503. After ``work``, it works normally. ``GET /callers`` returns the callers, oldest
first.
"""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Header, HTTPException

# These endpoints exist only for this example. A production service verifies the token; see ../verify_fastapi.
USERS = {f"{name}-demo-token": name for name in ("alice", "bob")}

app = FastAPI(title="profile-service")
app.state.behavior = "work"
app.state.has_changed = asyncio.Event()
app.state.callers = []


@app.get("/profile")
async def read_profile(authorization: str = Header(default="")) -> dict[str, str]:
    """Return the caller's profile."""
    caller = USERS.get(authorization.removeprefix("Bearer "))
    app.state.callers.append(caller)
    if app.state.behavior == "hang":
        await app.state.has_changed.wait()
        raise HTTPException(503)
    if app.state.behavior == "fail":
        raise HTTPException(503)
    if caller is None:
        raise HTTPException(401, headers={"WWW-Authenticate": "Bearer"})
    return {"name": caller}


@app.put("/behavior/{name}")
async def change_behavior(name: str) -> None:
    """Change the behavior, and end the requests that hang."""
    app.state.behavior = name
    app.state.has_changed.set()
    app.state.has_changed = asyncio.Event()


@app.get("/callers")
async def read_callers() -> list[str | None]:
    """Return the callers, with ``None`` for a call without a known token."""
    callers: list[str | None] = app.state.callers
    return callers
