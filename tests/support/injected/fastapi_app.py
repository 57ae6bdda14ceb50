"""A FastAPI application with httpx and pydantic 1 under uvicorn."""

import os

import google.protobuf
import httpx
import pydantic
import typing_extensions
from fastapi import FastAPI

assert google.protobuf.__version__
assert typing_extensions.Literal

app = FastAPI()


class Received(pydantic.BaseModel):
    """What two services received."""

    LISTED: str
    UNLISTED: str


@app.get("/")
async def call() -> Received:
    """Return what two services received."""
    async with httpx.AsyncClient(timeout=30) as client:
        return Received(**{name: (await client.get(os.environ[name])).text for name in ("LISTED", "UNLISTED")})


@app.get("/versions")
async def versions():
    """Return which urllib3 the application uses."""
    import urllib3

    return {"urllib3": urllib3.__version__, "file": urllib3.__file__}


@app.get("/healthz")
async def healthz():
    """Respond to the kubelet."""
    return "ok"
