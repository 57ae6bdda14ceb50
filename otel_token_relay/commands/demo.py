"""``otel-token-relay demo``: demonstrate the package with servers on loopback."""

from __future__ import annotations

import argparse
import sys

from otel_token_relay.commands import USAGE_ERROR


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("demo", help="run three services and an authorization server on loopback")
    parser.add_argument(
        "--record", metavar="FILE", help="write the spans of the run to FILE as OTLP JSON, for `picture`"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command, which requires the `demo` extra."""
    from otel_token_relay.demo import run as run_demo

    try:
        return run_demo(options.record)
    except ModuleNotFoundError as error:
        print(
            f"the demo requires the 'demo' extra: pip install 'otel-token-relay[demo]' ({error.name} is missing)",
            file=sys.stderr,
        )
        return USAGE_ERROR
