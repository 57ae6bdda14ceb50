"""Run everything that explains a setup: `check`, `explain`, `verify`, the startup log, and the decision log.

Everything runs in this process, with the setup's environment and files. The process starts as
OpenTelemetry starts it: the propagators are loaded, and then `pre_instrument` runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Final

import httpx
import pytest
from opentelemetry import propagate
from opentelemetry.context import Context

from otel_token_relay import cli, credentials, operator_log, runtime
from otel_token_relay.authentication import Authenticator, RequestPath
from otel_token_relay.commands import activation, check
from otel_token_relay.commands.coverage import Library, installed_libraries
from otel_token_relay.configured_authenticator import build_authenticator
from otel_token_relay.context import with_token
from otel_token_relay.errors import TokenUnavailable
from otel_token_relay.installation import pre_instrument, uninstall
from otel_token_relay.settings import Settings
from otel_token_relay.token import BearerToken, Lease
from otel_token_relay.verification.authenticator import BearerAuthenticator
from tests.support.issuers import Issuer, issuing
from tests.support.processes import unused_port
from tests.support.tokens import public_jwk

PREFIX: Final = "OTEL_PYTHON_TOKEN_RELAY_"
SECRET: Final = "s3cret-Pa55word"
OPAQUE: Final = "an-opaque-token-0123456789-abcdefghij"


@dataclass(frozen=True)
class Says:
    """The expected output of a command.

    Attributes:
        status: The command's exit status.
        words: Words that the output contains.
        never: Words that the output must not contain, because they are untrue for this setup.
    """

    status: int
    words: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


def says(status: int, *words: str, never: tuple[str, ...] = ()) -> Says:
    return Says(status, words, never)


@dataclass(frozen=True, kw_only=True)
class SetUp:
    """An incorrect setup and the output that explains it.

    In the variables and in the file, ``{issuer}`` is replaced with the issuer, and ``{file}`` with the file's path.

    Attributes:
        name: A description of the mistake.
        variables: The environment variables. `PREFIX` is prepended to names that start with a dot.
        check: The expected output of ``check``.
        explain: The expected output of ``explain``.
        verify: The expected output of ``verify``.
        startup: Words in one line of the startup log; empty if the log contains no line about the mistake.
        line: Words in one line of the decision log, or an empty string.
        url: The URL of the hop.
        token: A function that returns the token for the ``Authorization: Bearer`` header of the request.
        fault: A function that changes the issuer's behavior.
        is_down: Whether no server listens at the issuer's address.
        file: The content of OpenTelemetry's configuration file.
        suffix: The file name's suffix.
        arguments: The arguments of ``check``.
        libraries: The installed libraries; ``None`` uses those of this environment.
        works: The reason that ``check`` finds no problem in this setup; empty if ``check`` must find one.
    """

    name: str
    variables: Mapping[str, str]
    check: Says
    explain: Says
    verify: Says = field(default_factory=lambda: says(1, "not configured"))
    startup: tuple[str, ...] = ()
    line: tuple[str, ...] = ()
    url: str = "https://profile-service/v1/me"
    token: Callable[[Issuer], str] = lambda issuer: OPAQUE
    fault: Callable[[Issuer], None] | None = None
    is_down: bool = False
    file: str = ""
    suffix: str = ".yaml"
    arguments: tuple[str, ...] = ()
    libraries: tuple[Library, ...] | None = None
    works: str = ""


@dataclass(frozen=True)
class Output:
    """The output of a command."""

    status: int
    text: str


@dataclass(frozen=True)
class Observed:
    """The output that explains a setup.

    Attributes:
        check, explain, verify: The output of the commands.
        startup: The lines of the startup log.
        lines: The lines of the decision log for one hop, and for one request if requests are verified.
        is_relayed: Whether the hop received a token. The token is opaque, has not expired, and, if this service can
            verify tokens, is verified.
        token: The request's token.
    """

    check: Output
    explain: Output
    verify: Output
    startup: tuple[str, ...]
    lines: tuple[str, ...]
    is_relayed: bool
    token: str

    def everything(self) -> str:
        """Return all text."""
        commands = (self.check, self.explain, self.verify)
        return "\n".join((*(output.text for output in commands), *self.startup, *self.lines))


class _Accepted:
    """The verification of the hop's token."""

    claims: Mapping[str, object] = MappingProxyType({})
    expires_at: float | None = None

    def is_still_valid(self) -> bool:
        return True


@cache
def _libraries() -> list[Library]:
    """Look up the libraries only once, because the lookup takes a second."""
    return installed_libraries()


@cache
def _entry_points(**wanted: str) -> EntryPoints:
    """Read the metadata of all packages only once for each group."""
    return entry_points(**wanted)


def observe(set_up: SetUp, folder: Path) -> Observed:
    """Run the commands, and one request with one hop, in the setup's environment."""
    with _issuer(set_up) as issuer, pytest.MonkeyPatch.context() as patch:
        if set_up.fault is not None:
            set_up.fault(issuer)
        for name in [name for name in os.environ if name.startswith("OTEL_")]:
            patch.delenv(name)
        places = {"{issuer}": issuer.url, "{file}": str(folder / f"otel{set_up.suffix}")}
        if set_up.file:
            Path(places["{file}"]).write_text(_fill(set_up.file, places), "utf-8")
        for name, value in set_up.variables.items():
            patch.setenv(f"{PREFIX}{name[1:]}" if name.startswith(".") else name, _fill(value, places))
        libraries = _libraries() if set_up.libraries is None else list(set_up.libraries)
        patch.setattr(check, "installed_libraries", lambda: libraries)
        patch.setattr(activation, "entry_points", _entry_points)
        token = set_up.token(issuer)
        outputs = (
            _run(["check", *set_up.arguments]),
            _run(["explain", set_up.url]),
            _run(["verify"], token),
        )
        with _started() as startup:
            lines, is_relayed = _serve(set_up, token)
    return Observed(*outputs, tuple(startup), lines, is_relayed, token)


def _issuer(set_up: SetUp) -> contextlib.AbstractContextManager[Issuer]:
    if set_up.is_down or not any("{issuer}" in value for value in set_up.variables.values()):
        return contextlib.nullcontext(Issuer(f"http://127.0.0.1:{unused_port()}", []))
    return issuing(public_jwk("RS256", "k1"))


def _fill(text: str, places: Mapping[str, str]) -> str:
    for place, value in places.items():
        text = text.replace(place, value)
    return text


def _run(arguments: list[str], given: str = "") -> Output:
    """Run a command of the command-line interface."""
    output = io.StringIO()
    original = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(given.encode()))
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = cli.main(arguments)
    finally:
        sys.stdin = original
    return Output(status, output.getvalue())


class _Lines(logging.Handler):
    """A handler that keeps the logged lines."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append(record.getMessage())


@contextlib.contextmanager
def _started() -> Iterator[list[str]]:
    """Start this process as OpenTelemetry does, and yield the log lines."""
    handler, logger, textmap = _Lines(), logging.getLogger("otel_token_relay"), propagate.get_global_textmap()
    build_authenticator.cache_clear()  # building the authenticator logs why verification cannot start
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        # Importing the module loads the propagators. This process has already imported the module, so reload it.
        spec = importlib.util.spec_from_file_location("propagate_of_set_up", propagate.__file__)
        assert spec is not None
        assert spec.loader is not None
        try:
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        except ValueError as error:
            handler.kept.append(f"the application does not start: {error}")
            uninstall()
        else:
            pre_instrument()
        yield handler.kept
    finally:
        uninstall()
        propagate.set_global_textmap(textmap)
        logger.removeHandler(handler)
        logger.propagate = before


def _serve(set_up: SetUp, token: str) -> tuple[tuple[str, ...], bool]:
    """Serve one request, if requests are verified, and make one hop. Return the decision log."""
    installed = runtime.installed
    settings = Settings.load() if installed is None else installed.settings
    authenticator: Authenticator | None = None if installed is None else installed.terms.authenticator
    log, is_relayed = io.StringIO(), False
    operator_log.follow("debug")  # use the values that the tests look for
    try:
        with contextlib.redirect_stderr(log):
            if authenticator is not None:
                source = ("authorization", [f"Bearer {token}"])
                found = credentials.read(source, settings, lease=Lease())
                authenticator.check(found, RequestPath("/", "/"))
            if installed is not None and installed.clients_are_hooked:
                is_relayed = _hop(set_up.url, is_verified=isinstance(authenticator, BearerAuthenticator))
    finally:
        operator_log.follow("")
    return tuple(log.getvalue().splitlines()), is_relayed


def _hop(url: str, *, is_verified: bool) -> bool:
    """Return whether the installed relay adds the token to an httpx request."""
    assert runtime.installed is not None
    settings = runtime.installed.settings
    source = credentials.locate(lambda name: [f"Bearer {OPAQUE}"], settings)
    token = credentials.read(source, settings, lease=Lease())
    if isinstance(token, BearerToken) and is_verified:
        token.mark_verified(_Accepted())
    try:
        parsed = httpx.Request("GET", url).url
        value = runtime.installed.relay.decide(
            parsed,
            lambda target: (target.scheme, target.raw_host.decode("ascii"), target.port),
            lambda target, name: bool(target.userinfo) and name == "authorization",
            with_token(token if isinstance(token, BearerToken) else None, Context()),
        )
    except (httpx.InvalidURL, TokenUnavailable):
        return False
    return value is not None
