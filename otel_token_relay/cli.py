"""Parse the command line and run a command from `otel_token_relay.commands`."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata

from otel_token_relay.commands import (
    INTERRUPTED,
    PROBLEM,
    USAGE_ERROR,
    UsageError,
    check,
    demo,
    explain,
    picture,
    verify,
)
from otel_token_relay.commands.arguments import Parser, describe_unrecognized
from otel_token_relay.commands.coverage import version_of

_EXAMPLES = """\
examples:
  otel-token-relay check
  otel-token-relay explain https://profile-service/v1/me 'https://billing.internal/invoices?year=2026'
  otel-token-relay verify --claims sub < token.txt
  otel-token-relay demo --record run.json
  otel-token-relay picture run.json -o run.html
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; see `otel_token_relay.commands`."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # the shell has closed the stream
            setattr(sys, stream, open(os.devnull, "w"))  # noqa: SIM115  # open until the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The output might quote user input that the terminal's encoding does not support.
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = _parser()
    options, unrecognized = parser.parse_known_args(arguments)
    if unrecognized:
        parser.error(describe_unrecognized(unrecognized, getattr(options, "takes_no_arguments", None)))
    if options.command is None:
        parser.print_help(sys.stderr)
        return USAGE_ERROR
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except UsageError as error:
        print(f"otel-token-relay {options.command}: error: {error}", file=sys.stderr)
        return USAGE_ERROR
    except OSError as error:  # for example, `head` has closed the pipe, or the disk is full
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"otel-token-relay: error: cannot write the output: {error.strerror}", file=sys.stderr)
        return PROBLEM
    return status


def _parser() -> Parser:
    parser = Parser(
        prog="otel-token-relay",
        description="Relay the caller's bearer token to the destinations on an allow-list.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_versions())
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    for command in (check, explain, verify, demo, picture):
        command.add_parser(commands)
    return parser


def _versions() -> str:
    opentelemetry = version_of("opentelemetry-api") or "not installed"
    return (
        f"otel-token-relay {metadata.version('otel-token-relay')}"
        f" (Python {platform.python_version()}, OpenTelemetry {opentelemetry})"
    )
