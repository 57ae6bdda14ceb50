"""The service that user-service calls. It identifies the caller by the token."""

from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

# These tokens exist only for this example. A production service verifies the token; see ../verify_fastapi.
SESSIONS = {"token-of-alice": "Alice", "token-of-bob": "Bob"}

app = FastAPI()


@app.get("/profile")
async def profile(
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))],
) -> dict[str, str]:
    name = SESSIONS.get(credentials.credentials) if credentials else None
    if name is None:
        raise HTTPException(401, "Who are you?", headers={"WWW-Authenticate": 'Bearer realm="profile-service"'})
    return {"name": name}
