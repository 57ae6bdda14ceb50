"""The hooks for synchronous and asyncio gRPC channels.

The hooks add an innermost interceptor to each channel. A call's destination is the channel's target. The scheme is
``https`` if the channel uses TLS, and ``http`` otherwise. If the target does not identify exactly one host, calls on
the channel do not carry the token.

A call with ``wait_for_ready`` can still be waiting for a connection after the caller's request has ended. If such a
call would carry the token, the interceptor waits until the channel is ready and then makes the decision. The
interceptor cannot wait in a synchronous call that returns a future or a response stream, because such a call returns
immediately.

Source: https://github.com/grpc/grpc/blob/master/doc/naming.md
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from otel_token_relay.clients.connections import check_tls_name
from otel_token_relay.origin import Target
from otel_token_relay.patching import Function, Patches
from otel_token_relay.relay import Exchange, HasHeader, Hop, Relay
from otel_token_relay.runtime import Runtime

_logger = logging.getLogger("otel_token_relay")

# The resolver's default port, both with and without TLS.
DEFAULT_PORT = 443

# The interval, in seconds, at which to check whether a watched channel has been closed.
_WATCH_INTERVAL = 0.2

_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")

# Matches a host or a bracketed address, with an optional port and an optional `dns:` prefix. A target that specifies a
# DNS server does not match.
_read_target = re.compile(
    r"(?:dns:(?:///)?)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
).fullmatch
# Matches exactly one IP address. A target with multiple addresses contains a comma and does not match.
_read_address = re.compile(r"ipv[46]:(?P<host>\[[0-9A-Fa-f:.]+\]|[0-9.]+)(?::(?P<port>[0-9]{1,5}))?").fullmatch
_SCHEMES = frozenset(
    {"dns", "unix", "unix-abstract", "vsock", "ipv4", "ipv6", "xds", "xdstp", "google-c2p", "passthrough"}
)

# Channel credentials that use TLS but do not include call credentials.
_TLS = frozenset({"SSLChannelCredentials"})
# Channel credentials that do not use TLS and do not include call credentials.
_PLAIN = frozenset({"LocalChannelCredentials", "InsecureChannelCredentials"})

# The channel options that can set a TLS server name that differs from the target's host.
_TLS_NAMES = frozenset({"grpc.ssl_target_name_override", "grpc.default_authority"})


class _Channel(NamedTuple):
    """A channel's target, and whether the channel adds call credentials that interceptors cannot read."""

    scheme: str
    target: str
    has_credentials: bool
    # The position of the `interceptors` parameter in `grpc.aio.insecure_channel` or `grpc.aio.secure_channel`.
    interceptors_position: int
    tls_names: tuple[Any, ...] = ()


def patch(module: ModuleType, runtime: Runtime, patches: Patches) -> None:
    """Hook the channel factories in *module* (``grpc`` or ``grpc.aio``)."""
    relay = runtime.relay
    join = _joiner_aio(module, relay) if module.__name__ == "grpc.aio" else _joiner(module, relay)

    def build_insecure(original: Function) -> Function:
        def insecure_channel(target: str, *args: Any, **kwargs: Any) -> Any:
            return join(_Channel("http", target, False, 3), original, (target, *args), kwargs)

        return insecure_channel

    def build_secure(original: Function) -> Function:
        def secure_channel(target: str, credentials: Any, options: Any = None, *args: Any, **kwargs: Any) -> Any:
            options = () if options is None else tuple(options)
            channel = _read_credentials(target, credentials, options)
            return join(channel, original, (target, credentials, options, *args), kwargs)

        return secure_channel

    patches.wrap(module, "insecure_channel", build_insecure)
    patches.wrap(module, "secure_channel", build_secure)


def _read_credentials(target: str, credentials: Any, options: tuple[Any, ...]) -> _Channel:
    kind = type(getattr(credentials, "_credentials", None)).__name__
    if kind in _PLAIN:
        return _Channel("http", target, False, 4)
    names = tuple(option[1] for option in options if option[0] in _TLS_NAMES)
    # Composite credentials add authorization metadata after all interceptors have run.
    return _Channel("https", target, kind not in _TLS, 4, names)


def _target_of(call: tuple[_Channel, Any]) -> Target:
    scheme, target = call[0].scheme, call[0].target
    found = _read_target(target)
    if found is None or found["host"].lower() in _SCHEMES:
        found = _read_address(target)
    if found is None:
        raise ValueError("expected a target with exactly one host")
    host = found["host"].strip("[]")
    for name in call[0].tls_names:
        named = _read_target(name)
        check_tls_name(named and named["host"].strip("[]"), host)
    return scheme, host, int(found["port"] or DEFAULT_PORT)


def _has_header(call: tuple[_Channel, Any], name: str) -> HasHeader:
    # gRPC adds the metadata from call credentials after all interceptors have run, so an interceptor cannot read or
    # replace that metadata.
    if call[0].has_credentials or getattr(call[1], "credentials", None) is not None:
        return "fixed"
    return any(key.lower() == name for key, _ in call[1].metadata or ())


def _decide(relay: Relay, channel: _Channel, details: Any) -> Any:
    """Return a call's details with the token added, or *details* itself if the call does not carry the token."""
    value = relay.decide((channel, details), _target_of, _has_header)
    return details if value is None else _replace(details, _with_header(details, relay.header, value))


def _decide_early(relay: Relay, channel: _Channel, details: Any) -> Hop | None:
    """Make the preliminary decision for a call that must wait for a connection."""
    return relay.decide((channel, details), _target_of, _has_header, is_final=False)


def _with_header(details: Any, name: str, value: str) -> list[tuple[str, Any]]:
    # gRPC rejects metadata keys that contain uppercase letters.
    kept = [(key, held) for key, held in details.metadata or () if key.lower() != name]
    return [*kept, (name, value)]


class _Wait(NamedTuple):
    """The result of waiting for a channel: whether the channel is ready, and how much of the call's timeout remains."""

    is_ready: bool
    timeout: float | None


def _metadata_after(wait: _Wait, details: Any, hop: Hop) -> Any:
    """Return the metadata to send with a call that has waited for the channel.

    The metadata includes the token only if the channel is ready and the token may still be sent.
    """
    if not wait.is_ready or (wait.timeout is not None and wait.timeout <= 0) or not hop.confirm():
        return details.metadata
    return _with_header(details, hop.header, hop.reveal())


class _Details(NamedTuple):
    method: Any
    timeout: Any
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


def _replace(details: Any, metadata: Any, **changed: Any) -> _Details:
    values = {name: getattr(details, name, None) for name in _Details._fields}
    return _Details(**{**values, "metadata": metadata, **changed})


# A function that creates a channel with the added interceptor. The arguments are the channel's description, the
# original function, and that function's positional and keyword arguments.
Join = Callable[[_Channel, Function, Any, Any], Any]


def _joiner(module: Any, relay: Relay) -> Join:
    def intercept(self: Any, continuation: Function, details: Any, request: Any) -> Any:
        if details.wait_for_ready and _is_blocking(continuation):
            hop = _decide_early(relay, self.channel, details)
            if hop is None or _is_closed(self.inner()):
                return continuation(details, request)
            wait = _wait_until_ready(module, self.inner(), details.timeout)
            if wait is None:  # gRPC cancels waiting calls when their channel is closed
                return _cancelled(module) or continuation(details, request)
            return continuation(_replace(details, _metadata_after(wait, details, hop), timeout=wait.timeout), request)
        # Error trackers capture the local variables of frames that are currently executing. This function therefore
        # does not store the metadata with the token in a local variable, although gRPC's own functions do.
        return continuation(_decide(relay, self.channel, details), request)

    bases = tuple(getattr(module, f"{_camel(kind)}ClientInterceptor") for kind in _KINDS)
    # All channels share one class, because each class is part of a reference cycle that only the garbage collector can
    # free.
    interceptor = _interceptor_class(bases, {f"intercept_{kind}": intercept for kind in _KINDS})

    def join(channel: _Channel, original: Function, args: Any, kwargs: Any) -> Any:
        inner = original(*args, **kwargs)
        ours = interceptor(channel)
        ours.inner = lambda: inner
        return module.intercept_channel(inner, ours)

    return join


def _is_blocking(continuation: Function) -> bool:
    """Return whether the calling thread blocks until the response arrives.

    gRPC does not provide this information to interceptors, so the check uses the name of a private function.
    """
    return "_with_call.<locals>" in getattr(continuation, "__qualname__", "")


# A closed channel raises ValueError. Any other exception indicates a gRPC version with different private names.
def _is_closed(channel: Any) -> bool:
    try:
        channel._channel.check_connectivity_state(False)
    except ValueError:
        return True
    except Exception:
        return False
    return False


def _wait_until_ready(module: Any, channel: Any, timeout: float | None) -> _Wait | None:
    """Wait until a synchronous channel is connected, and return ``None`` if the channel is closed during the wait.

    ``channel_ready_future`` is not used, because the future never completes if the channel is closed.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    ready = module.ChannelConnectivity.READY.value[0]
    try:
        core = channel._channel
        while (state := core.check_connectivity_state(True)) != ready:
            left = _WATCH_INTERVAL if deadline is None else min(_WATCH_INTERVAL, deadline - time.monotonic())
            if left <= 0:
                return _Wait(False, left)
            core.watch_connectivity_state(state, time.time() + left)
    except ValueError:
        return None
    except Exception as error:  # make the decision now, and let gRPC wait
        _logger.debug("cannot wait for a gRPC channel: %s", type(error).__name__)
    return _Wait(True, None if deadline is None else deadline - time.monotonic())


def _cancelled(module: Any) -> Any:
    """Return gRPC's result for a call on a closed channel, or ``None`` if the result cannot be created."""
    try:
        kinds = module._channel
        state = kinds._RPCState((), (), (), module.StatusCode.CANCELLED, "Channel closed!")
        return kinds._InactiveRpcError(state)
    except Exception:  # if these private names do not exist, let gRPC raise ValueError
        return None


def _joiner_aio(module: Any, relay: Relay) -> Join:
    def replace(details: Any, metadata: Any, timeout: float | None) -> Any:
        metadata = module.Metadata(*metadata or ())
        return module.ClientCallDetails(details.method, timeout, metadata, details.credentials, details.wait_for_ready)

    async def decide(channel: _Channel, details: Any) -> Any:
        value = relay.decide((channel, details), _target_of, _has_header, may_block=False)
        if isinstance(value, Exchange):
            value = await value.run_async()
        if value is None:
            return details
        return replace(details, _with_header(details, relay.header, value), details.timeout)

    async def intercept(self: Any, continuation: Function, details: Any, request: Any) -> Any:
        if details.wait_for_ready:
            hop = relay.decide((self.channel, details), _target_of, _has_header, is_final=False, may_block=False)
            if isinstance(hop, Exchange):
                hop = await hop.run_async()
            if hop is None:
                return await continuation(details, request)
            wait = await _wait_until_ready_aio(self.inner(), details.timeout)
            return await continuation(replace(details, _metadata_after(wait, details, hop), wait.timeout), request)
        return await continuation(await decide(self.channel, details), request)

    # An aio channel groups its interceptors by class and uses each interceptor for only one kind of call.
    bases = {kind: getattr(module, f"{_camel(kind)}ClientInterceptor") for kind in _KINDS}
    interceptors = [_interceptor_class((base,), {f"intercept_{kind}": intercept}) for kind, base in bases.items()]

    def join(channel: _Channel, original: Function, args: Any, kwargs: Any) -> Any:
        ours = [interceptor(channel) for interceptor in interceptors]
        position = channel.interceptors_position
        if len(args) > position:
            args = (*args[:position], [*(args[position] or ()), *ours], *args[position + 1 :])
        else:
            kwargs["interceptors"] = [*(kwargs.get("interceptors") or ()), *ours]
        made = original(*args, **kwargs)
        for one in ours:
            one.inner = weakref.ref(made)  # a weak reference, because the channel refers to its interceptors
        return made

    return join


async def _wait_until_ready_aio(channel: Any, timeout: float | None) -> _Wait:
    """Wait until an aio channel is connected."""
    deadline = None if timeout is None else time.monotonic() + timeout
    is_ready = True
    try:
        async with asyncio.timeout(timeout):
            await channel.channel_ready()
    except Exception as error:  # the wait timed out or the channel was closed
        is_ready = False
        _logger.debug("a gRPC channel did not become ready: %s", type(error).__name__)
    return _Wait(is_ready, None if deadline is None else deadline - time.monotonic())


def _interceptor_class(bases: tuple[type, ...], methods: dict[str, Function]) -> Any:
    def __init__(self: Any, channel: _Channel) -> None:
        self.channel = channel
        self.inner = lambda: None  # later replaced with a function that returns gRPC's own channel

    return type("TokenRelayInterceptor", bases, {"__init__": __init__, **methods})


def _camel(kind: str) -> str:
    return "".join(part.capitalize() for part in kind.split("_"))
