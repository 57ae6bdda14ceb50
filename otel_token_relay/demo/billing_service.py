"""The service that receives tokens of its own: it accepts only tokens that are intended for it, not the callers'."""

import logging
import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from otel_token_relay.verification import AsyncTokenVerifier
from otel_token_relay.verification.asgi import BearerAuthMiddleware

# Rejected callers are not told the reason, which is logged at this level.
logging.basicConfig()
logging.getLogger("otel_token_relay").setLevel(logging.DEBUG)

verifier: AsyncTokenVerifier = AsyncTokenVerifier(issuers=[os.environ["ISSUER"]], audience="billing-service")


async def invoices(request: Request) -> JSONResponse:
    return JSONResponse({"name": request.user.subject})


app: Starlette = Starlette(routes=[Route("/invoices", invoices)])
app.add_middleware(BearerAuthMiddleware, verifier=verifier, realm="billing")
