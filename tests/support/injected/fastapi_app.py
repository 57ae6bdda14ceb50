"""A FastAPI application with httpx and pydantic 1, served by uvicorn."""

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
    """The tokens that two services received."""

    LISTED: str
    UNLISTED: str


@app.get("/")
async def call() -> Received:
    """Return what the two services received."""
    async with httpx.AsyncClient(timeout=30) as client:
        return Received(**{name: (await client.get(os.environ[name])).text for name in ("LISTED", "UNLISTED")})


@app.get("/versions")
async def versions():
    """Return the urllib3 version that the application uses."""
    import urllib3

    return {"urllib3": urllib3.__version__, "file": urllib3.__file__}


@app.get("/healthz")
async def healthz():
    """Respond to the kubelet's health check."""
    return "ok"
