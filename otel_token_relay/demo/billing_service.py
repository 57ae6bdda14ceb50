"""A service that accepts only tokens issued for billing-service, so the relay must exchange callers' tokens."""

import logging
import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from otel_token_relay.verification import AsyncTokenVerifier
from otel_token_relay.verification.asgi import BearerAuthMiddleware

# At this level, the log includes the reason for each rejection; the response does not.
logging.basicConfig()
logging.getLogger("otel_token_relay").setLevel(logging.DEBUG)

verifier: AsyncTokenVerifier = AsyncTokenVerifier(issuers=[os.environ["ISSUER"]], audience="billing-service")


async def invoices(request: Request) -> JSONResponse:
    return JSONResponse({"name": request.user.subject})


app: Starlette = Starlette(routes=[Route("/invoices", invoices)])
app.add_middleware(BearerAuthMiddleware, verifier=verifier, realm="billing")
