"""The boundary for aiohttp.web.

Instrumentation for aiohttp extracts the token but never attaches the context that contains the token. The boundary
encloses ``RequestHandler._handle_request``, so it ends after the response has been written. The boundary also
applies to a ``web.Server`` without an application.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, Final

from opentelemetry import context as otel_context

from otel_token_relay import refusals
from otel_token_relay import runtime as in_force
from otel_token_relay.authentication import Authenticator, RequestPath
from otel_token_relay.boundary import BOUNDARY_KEY, Boundary
from otel_token_relay.credentials import locate
from otel_token_relay.patching import Function, Patches
from otel_token_relay.runtime import Runtime, Terms, TermsInForce
from otel_token_relay.settings import Settings
from otel_token_relay.stream_limits import POLICY_VIOLATION, Limit, is_event_stream, limits_streams, seconds_left

Handler = Callable[[Any], Awaitable[Any]]

# The request attribute that indicates that an outer boundary will end the response.
_ENDING_KEY: Final = "otel_token_relay.ends_with_token"


class TokenRelayMiddleware:
    """Middleware that binds each request's token while the application handles the request. Use this middleware if the
    server is not hooked.

    List this middleware first: ``web.Application(middlewares=[TokenRelayMiddleware(), ...])``. The lease ends when the
    handler returns. If an outer boundary exists, the middleware uses that boundary.

    Args:
        settings: ``None`` to use the installed settings or, if there are none, the environment variables.
        authenticator: The authenticator for each request, such as a `BearerAuthenticator`; ``None`` to use the
            authenticator that the settings require.
    """

    # aiohttp requires this attribute for middleware that accepts a request and a handler.
    __middleware_version__: Final = 1

    def __init__(self, settings: Settings | None = None, authenticator: Authenticator | None = None) -> None:
        self._terms = TermsInForce(settings, authenticator)

    async def __call__(self, request: Any, handler: Handler) -> Any:
        terms = self._terms()
        outer: Boundary | None = vars(request).get(BOUNDARY_KEY)
        if outer is not None and outer.still_applies_to(partial(locate, _values_of(request))):
            return await _guard(handler, outer, terms, is_at_server=False)(request)
        with _binding(request, terms.settings) as boundary:
            return await _guard(handler, boundary, terms, is_at_server=False)(request)


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the connection handler in *module*, which is ``aiohttp.web_protocol``."""

    def build(original: Function) -> Function:
        async def _handle_request(
            self: Any, request: Any, start_time: Any, handler: Handler, *args: Any, **kwargs: Any
        ) -> Any:
            installed = in_force.installed
            if installed is None:
                return await original(self, request, start_time, handler, *args, **kwargs)
            with _binding(request, installed.terms.settings) as boundary:
                # If the request cannot be parsed, the server responds with 400 without running application code.
                if getattr(request, "_message", None) is not getattr(module, "ERROR", ()):
                    handler = _guard(handler, boundary, installed.terms, is_at_server=True)
                return await original(self, request, start_time, handler, *args, **kwargs)

        return _handle_request

    patches.wrap(module.RequestHandler, "_handle_request", build)


@contextmanager
def _binding(request: Any, settings: Settings) -> Generator[Boundary, None, None]:
    # Do not store the boundary as a request item. Request items belong to the application, and aiohttp warns about
    # string keys.
    vars(request)[BOUNDARY_KEY] = boundary = Boundary.of(_values_of(request), settings)
    attached = otel_context.attach(boundary.context())
    try:
        yield boundary
    finally:
        boundary.close()
        otel_context.detach(attached)


def _guard(handler: Handler, boundary: Boundary, terms: Terms, *, is_at_server: bool) -> Handler:
    """Return a handler that calls *handler* only for requests (including WebSockets) that the authenticator accepts."""

    settings, authenticator = terms

    async def guarded(request: Any) -> Any:
        # Use the path that aiohttp uses to route requests. In `path`, an encoded slash is indistinguishable from a
        # plain slash. Older versions of aiohttp use the raw path to route requests, and their URLs do not have
        # `path_safe`.
        url = request.rel_url
        path = getattr(url, "path_safe", url.raw_path)
        request_path = RequestPath(path, path, method=request.method, values_of=_values_of(request))
        error_response = await boundary.check_async(authenticator, request_path)
        if error_response is None:
            if limits_streams(settings, authenticator):
                return await _serve_until_expiry(handler, request, boundary, settings)
            return await handler(request)
        from aiohttp import web

        describe = partial(_describe, request)
        refusals.record(error_response, otel_context.get_current(), describe, is_at_server=is_at_server)
        return web.Response(
            status=error_response.status, headers=dict(error_response.headers), body=error_response.body
        )

    return handler if authenticator is None else guarded


async def _serve_until_expiry(handler: Handler, request: Any, boundary: Boundary, settings: Settings) -> Any:
    """Run *handler*. End a long-lived response when the request's token expires."""
    seconds = seconds_left(boundary, settings)
    if seconds is None or _ENDING_KEY in vars(request):
        return await handler(request)
    from aiohttp import web

    limit, lasting = Limit(seconds), []
    prepare = request._prepare_hook

    async def watch(response: Any) -> None:
        # aiohttp calls this function after the application has set the headers and before the headers are sent.
        await prepare(response)
        if isinstance(response, web.WebSocketResponse) or is_event_stream(response.headers.get("Content-Type")):
            lasting.append(response)
            limit.start()

    vars(request).update({_ENDING_KEY: True, "_prepare_hook": watch})
    is_over, response = await limit.run(lambda: handler(request))
    if not is_over:
        return response
    response = lasting[0]
    if isinstance(response, web.WebSocketResponse):
        await response.close(code=POLICY_VIOLATION)
    else:
        await response.write_eof()
    return response


def _describe(request: Any) -> refusals.HttpRequest:
    return refusals.HttpRequest(request.method, request.rel_url.raw_path, request.scheme, _values_of(request))


def _values_of(request: Any) -> Callable[[str], list[str]]:
    return lambda name: list(request.headers.getall(name, ()))
